"""The class of every pixel, as figures: segmentations in colour over their images, beside the regions they came from.

# B batch, C channels, H W image pixels, N tokens
Takes tensors or arrays alike. A class's colour is the same in all panels of a figure. Needs matplotlib.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from dart.draw.figures import (
    DART_COLOR,
    Array,
    Caption,
    as_array,
    outlines,
    panel_grid,
    show_density,
    show_image,
    show_regions,
    write_caption,
)

Labels = NDArray[np.integer[Any]]
Palette = Mapping[int, str]  # colours by class; a class without one lets the image through

IGNORE = 255  # the class of pixels that do not count
BACKGROUND = "background"  # a class of this name has no colour
# Paul Tol's muted scheme, with amber in place of its grey: told apart with any colour vision, and over grey images.
COLORS = (
    "#CC6677", "#DDCC77", "#44AA99", "#AA4499", "#88CCEE", "#117733", "#999933", "#FFB000", "#882255", "#332288",
)  # fmt: skip
OTHER_COLOR = "#777777"  # of all classes that are left when the colours are used up
IGNORED_COLOR = "#000000"
ALPHA = 0.7
LEGEND_COLUMNS, LEGEND_ROW_IN = 8, 0.22  # inches


def draw_segments(
    images: Any, segmentations: Any, truths: Any, regions: Any, names: Sequence[str], density: Any = None
) -> Figure:
    """A row per image: the image, its true classes, the density, the token regions, and the predicted classes.

    Args:
        images: (B, C, H, W), any value range.
        segmentations: (B, H, W) integer, predicted classes.
        truths: (B, H, W) integer; pixels of class 255 do not count.
        regions: (B or 1, N, 4) as x0, y0, x1, y1 in pixels; of a warped grid, its cells.
        names: Of the classes.
        density: (B, G_h, G_w); without it there is no such panel.
    """
    images, regions, truths, segmentations = (
        as_array(images),
        as_array(regions),
        _labels(truths),
        _labels(segmentations),
    )
    regions = np.broadcast_to(regions, (len(images), *regions.shape[1:]))  # one partition may serve all
    palette = choose_palette([truths, segmentations], names)
    titles = ["image", "true classes", *(["density"] if density is not None else []), "token regions", "prediction"]
    figure, axes = panel_grid(titles, len(images))
    for i, row in enumerate(axes):
        show_image(row[0], images[i])
        segment_overlay(row[1], images[i], truths[i], palette)
        if density is not None:
            show_density(row[2], images[i], as_array(density)[i])
        show_regions(row[-2], images[i], regions[i])
        segment_overlay(row[-1], images[i], segmentations[i], palette)
        write_caption(row[-1], miou_caption(segmentations[i], truths[i]))
    show_legend(figure, palette, names)
    return figure


def choose_palette(segmentations: Iterable[Any], names: Sequence[str]) -> Palette:
    """The colours of the classes that occur: the more pixels a class has, the sooner it has one of its own."""
    counts = sum(np.bincount(_labels(classes).ravel(), minlength=256) for classes in segmentations)
    order = np.argsort(-np.asarray(counts), kind="stable").tolist()
    shown = [c for c in order if np.asarray(counts)[c] and c != IGNORE and names[c] != BACKGROUND]
    return {c: COLORS[place] if place < len(COLORS) else OTHER_COLOR for place, c in enumerate(shown)}


def segment_overlay(
    ax: Axes, image: Array, classes: Labels, palette: Palette, regions: Array | None = None, color: str = DART_COLOR
) -> None:
    """The classes (H, W) in colour over the image (C, H, W), and the outlines of regions (N, 4), where given."""
    show_image(ax, image, dim=0.85)
    height, width = image.shape[-2:]
    ax.imshow(paint(classes, palette), extent=(0, width, height, 0), interpolation="nearest")
    ax.set(xlim=(0, width), ylim=(height, 0))
    if regions is not None:
        ax.add_collection(LineCollection(list(outlines(regions)), colors=color, linewidths=0.5, alpha=0.8))


def paint(classes: Labels, palette: Palette) -> Array:
    """The colours of classes (H, W) as (H, W, 4), transparent where a class has none."""
    table = np.zeros((256, 4), dtype=np.float32)
    for label, color in {**palette, IGNORE: IGNORED_COLOR}.items():
        table[label] = to_rgba(color, ALPHA)
    return table[classes]


def show_legend(figure: Figure, palette: Palette, names: Sequence[str]) -> None:
    """Name the colours below the panels, in the order of the classes; the figure grows by what that needs."""
    own = [(color, names[label]) for label, color in sorted(palette.items()) if color != OTHER_COLOR]
    if len(own) < len(palette):
        own.append((OTHER_COLOR, f"{len(palette) - len(own)} other classes"))
    if not own:
        return
    handles = [Patch(color=color, label=name) for color, name in own]
    rows = -(-len(own) // LEGEND_COLUMNS)
    figure.set_figheight(figure.get_figheight() + rows * LEGEND_ROW_IN)
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=9)


def miou_caption(predicted: Any, truth: Any) -> Caption:
    """How well the classes (H, W) of one image were found."""
    miou = image_miou(predicted, truth)
    return Caption("no pixel counts" if miou is None else f"mIoU {100 * miou:.1f}%")


def image_miou(predicted: Any, truth: Any) -> float | None:
    """Intersection over union (H, W), mean over the classes that the truth or the prediction has.

    Pixels of class 255 in the truth do not count; None where none counts.
    """
    counted = _labels(truth) != IGNORE
    said, true = _labels(predicted)[counted], _labels(truth)[counted]
    ratios = [
        ((said == label) & (true == label)).sum() / ((said == label) | (true == label)).sum()
        for label in np.union1d(said, true)
    ]
    return float(np.mean(ratios)) if ratios else None


def _labels(values: Any) -> Labels:
    """A whole-numbered array from an array or a tensor on any device."""
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)
