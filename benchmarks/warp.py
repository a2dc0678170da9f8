"""The warp of dense prediction and its inverse against the backbone that reads the warped image, Swin-T at 512 px."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.compare import Comparison, Contestant, forward_backward
from dart.models.warped import build_upernet
from dart.paper import reshaper as paper
from dart.warp import GridWarp, unwarp, warp_grid, warp_images

SIZE = (512, 512)
GRID, CELL_PX = (32, 32), 16  # the warped image is as large as the image
CLASSES, STRIDE = 150, 4  # of the logits that come back, as UPerNet makes them
# The target: at most a tenth of the backbone's time; `warp + inverse` has what any segmenter needs in it, the
# interpolation of logits to pixels.
PROMISED = 10.0


def comparisons() -> Iterator[Comparison]:
    torch.manual_seed(0)
    images, density = torch.rand(1, 3, *SIZE), torch.rand(1, 14, 14) ** 4 + 0.01
    logits = torch.rand(1, CLASSES, SIZE[0] // STRIDE, SIZE[1] // STRIDE)
    network = build_upernet("swin_tiny_patch4_window7_224", SIZE, 3, 256, pretrained=False, drop_path_rate=0.0).eval()

    def grid() -> GridWarp:
        return warp_grid(density, SIZE, GRID, CELL_PX)

    def both(images: Tensor) -> Tensor:
        warp = grid()
        warp_images(images, warp)
        return unwarp(logits, warp, SIZE)

    fixed = grid()
    theirs = paper.GridWarp(fixed.rows.diff(dim=-1), fixed.cols.diff(dim=-1))
    contestants: dict[str, Contestant] = {
        "Swin-T, its four feature maps": network.encoder,
        "the same with UPerNet of 256 channels": network,
        "grid, warp, inverse": both,
        "warp, area": lambda images: warp_images(images, fixed),
        "warp, point": lambda images: warp_images(images, fixed, "point"),
        "warp, paper mode": lambda images: paper.warp_images(images, theirs),
        "inverse": lambda _: unwarp(logits, fixed, SIZE),
        "F.interpolate of the same logits": lambda _: interpolate(logits),
        "inverse, paper mode (with F.interpolate)": lambda _: paper.unwarp(interpolate(logits), theirs),
    }
    title = f"{CLASSES} classes at stride {STRIDE}, {GRID[0]} x {GRID[1]} cells, forward"
    yield Comparison(title, images, contestants, {"grid, warp, inverse": PROMISED})
    yield backward(images, density, logits)


def backward(images: Tensor, density: Tensor, logits: Tensor) -> Comparison:
    """The same with gradients of the density and the logits: what training adds to a plain segmenter."""
    density, logits = density.clone().requires_grad_(), logits.clone().requires_grad_()

    def both(images: Tensor) -> Tensor:
        warp = warp_grid(density, SIZE, GRID, CELL_PX)
        return warp_images(images, warp).sum() + unwarp(logits, warp, SIZE).sum()

    contestants = {
        "F.interpolate of the logits": forward_backward(lambda _: interpolate(logits)),
        "grid, warp, inverse": forward_backward(both),
    }
    return Comparison("the same, forward + backward", images, contestants)


def interpolate(logits: Tensor) -> Tensor:
    """What any segmenter does to its logits."""
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
