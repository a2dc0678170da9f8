"""The warp of method.md: a photograph and its classes as a network reads them, and what it says, brought back."""

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from dart.draw import figures as draw
from dart.draw.segments import image_miou, segment_overlay
from dart.warp import unwarp, warp_grid, warp_images, warp_labels

CELLS, CELL_PX = 14, 32  # a side, and pixels of a side of each in the warped image
LOGITS_PX = 4  # a network's own resolution: a logit for so many pixels of a side
PALETTE = {1: "#0072B2"}


def draw_warp(image: Tensor, density: Tensor) -> Figure:
    """Borders, warped image, classes there and back: image (3, S, S) from 0 to 1, density (1, G, G)."""
    size = (image.shape[-2], image.shape[-1])
    warp = warp_grid(density, size, (CELLS, CELLS), CELL_PX)
    classes = (image[0] > 1.25 * image[1:].amax(0)).long()[None]  # what is red
    warped_classes = warp_labels(classes, warp)
    # A network that is always right, at the resolution that networks have.
    logits = F.avg_pool2d(F.one_hot(warped_classes, 2).movedim(-1, 1).float(), LOGITS_PX)
    back = unwarp(logits, warp, size).argmax(1)
    warped = warp_images(image[None], warp)
    figure, (axes,) = draw.panel_grid(["image, cells", "warped image", "classes", "warped classes", "brought back"], 1)
    pixels, seen = draw.as_array(image), draw.as_array(warped[0])
    draw.show_regions(axes[0], pixels, draw.as_array(warp.regions[0]))
    draw.show_image(axes[1], seen)
    for ax, below, found in zip(axes[2:], (pixels, seen, pixels), (classes, warped_classes, back), strict=True):
        segment_overlay(ax, below, found[0].numpy(), PALETTE)
    shares = [float(found.float().mean()) for found in (classes, warped_classes)]
    texts = [f"{CELLS} rows, {CELLS} columns", f"{CELL_PX} x {CELL_PX} px each", f"{shares[0]:.0%} of the image"]
    texts += [
        f"{shares[1]:.0%} of the image",
        f"mIoU {100 * (image_miou(back[0].numpy(), classes[0].numpy()) or 0):.1f}%",
    ]
    for ax, text in zip(axes, texts, strict=True):
        draw.write_caption(ax, text)
    return figure
