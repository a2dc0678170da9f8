"""What a tokenizer does to an image, as figures: its density, its regions, and the mosaic the model sees.

# B batch, C channels (1 or 3 are shown, else their mean), H W image pixels, R rows, N tokens, P patch side
Takes tensors or arrays alike; nothing here needs a display, a model or a GPU. Needs matplotlib.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# Okabe and Ito's palette: told apart with any colour vision, and on black as well as on white.
DART_COLOR, UNIFORM_COLOR = "#E69F00", "#56B4E9"
RIGHT_COLOR, WRONG_COLOR = "#00734F", "#C1272D"
PANEL_SIDE_IN = 1.9  # inches
MAX_ASPECT = 1.3  # height / width of a panel; taller images become narrower instead


class Caption(NamedTuple):
    """A line under a picture: what the model said, and whether that is right (None: nobody knows)."""

    text: str
    right: bool | None = None


def draw_tokens(images: Any, tokenization: Any, captions: Sequence[Caption | str]) -> Figure:
    """One row per image: the image, the density over it, its regions, and what the model sees.

    Args:
        images: (B, C, H, W), any value range; an image that leaves [0, 1] is shown from its smallest value to its
            largest.
        tokenization: Anything with `density` (B, G_h, G_w), `regions` (B, N, 4) and `patches`
            (B, N, C, P, P), such as the tokenizer's `inspect(images)`.
        captions: One per image, set under the mosaic.
    """
    images, density, regions, patches = map(
        as_array, (images, tokenization.density, tokenization.regions, tokenization.patches)
    )
    regions = np.broadcast_to(regions, (len(images), *regions.shape[1:]))  # one partition may serve all
    figure, axes = panel_grid(["image", "density", "token regions", "what the model sees"], len(images))
    for i, caption in enumerate(captions):
        show_image(axes[i, 0], images[i])
        show_density(axes[i, 1], images[i], density[i])
        show_regions(axes[i, 2], images[i], regions[i])
        show_mosaic(axes[i, 3], images[i], regions[i], patches[i])
        write_caption(axes[i, 3], caption)
    return figure


class Panels(NamedTuple):
    """One photograph as `draw_comparison` shows it: what a uniform grid and DART make of it.

    image: (C, H, W); uniform_regions, regions: (N, 4) pixels; uniform_patches, patches: (N, C, P, P) in the image's
    range of values; density: (G_h, G_w). Captions stand under the uniform mosaic, the density and DART's mosaic.
    """

    name: str
    image: Any
    uniform_regions: Any
    uniform_patches: Any
    density: Any
    regions: Any
    patches: Any
    uniform_caption: Caption | str = ""
    density_caption: Caption | str = ""
    caption: Caption | str = ""


def draw_comparison(
    rows: Sequence[Panels], importance: str = "learned importance", panel_in: float = 2.6, who: str = "DART"
) -> Figure:
    """Five panels a photograph: uniform grid, what it sees, the importance, DART's regions, what DART sees.

    `who` is whose regions are shown, if not DART's.
    """
    titles = ["uniform grid", "what uniform sees", importance, f"regions of {who}", f"what {who} sees"]
    if who == "DART":
        titles[3] = "DART's regions"
    aspects = [min(MAX_ASPECT, row.image.shape[-2] / row.image.shape[-1]) for row in rows]
    figure, axes = panel_grid(titles, len(rows), panel_in, aspects)
    for ax, row in zip(axes, rows, strict=True):
        image, density = as_array(row.image), as_array(row.density)
        for columns, regions, patches, color, caption in (
            (ax[:2], row.uniform_regions, row.uniform_patches, UNIFORM_COLOR, row.uniform_caption),
            (ax[3:], row.regions, row.patches, DART_COLOR, row.caption),
        ):
            show_regions(columns[0], image, as_array(regions), color)
            show_mosaic(columns[1], image, as_array(regions), as_array(patches), color)
            write_caption(columns[1], caption)
        show_density(ax[2], image, density)
        write_caption(ax[2], row.density_caption)
        ax[0].set_ylabel(row.name, fontsize=10)
    return figure


def panel_grid(
    titles: Sequence[str], num_rows: int, panel_in: float = PANEL_SIDE_IN, aspects: Sequence[float] | None = None
) -> tuple[Figure, NDArray[Any]]:
    """An empty figure of panels, and its axes (num_rows, len(titles)); every column has a title.

    Args:
        panel_in: Width of a panel in inches.
        aspects: Height / width of each row's panels; None: square.
    """
    aspects = list(aspects or [1.0] * max(num_rows, 1))
    width, height = panel_in * len(titles) + 0.3, sum(panel_in * aspect + 0.22 for aspect in aspects) + 0.3
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(len(aspects), len(titles), squeeze=False, height_ratios=aspects)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], anchor="N")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    return figure, axes


def show_image(ax: Axes, image: Array, dim: float = 1.0) -> None:
    """The image (C, H, W) with pixels as the unit of both axes; `dim` < 1 darkens it behind an overlay."""
    height, width = image.shape[-2:]
    shown = _displayed(image, image) * dim
    ax.imshow(shown, extent=(0, width, height, 0), interpolation="nearest", cmap="gray", vmin=0, vmax=1)
    ax.set(xlim=(0, width), ylim=(height, 0))


def show_density(ax: Axes, image: Array, density: Array, limits: tuple[float, float] | None = None) -> None:
    """The density (G_h, G_w) as colour over the image (C, H, W): dark is nothing, bright is the most.

    `limits` are the densities that are darkest and brightest; None: the image's own.
    """
    show_image(ax, image)
    height, width = image.shape[-2:]
    smooth = _resize(density, height, width)
    # A density that is uniform up to rounding is shown as uniform.
    low, high = limits or (float(smooth.min()), float(smooth.max()))
    heat = np.clip((smooth - low) / max(high - low, 1e-3 * high, 1e-12), 0, 1)
    # Where the density is low the image stays visible in grey, where it is high the colour covers it more.
    alpha = 0.25 + 0.45 * np.sqrt(heat)
    extent = (0, width, height, 0)
    ax.imshow(heat, extent=extent, cmap="inferno", vmin=0, vmax=1, alpha=alpha, interpolation="bilinear")
    ax.set(xlim=(0, width), ylim=(height, 0))


def show_regions(ax: Axes, image: Array, regions: Array, color: str = DART_COLOR) -> None:
    """The outlines of the regions (N, 4), as x0, y0, x1, y1 in pixels, over the image (C, H, W)."""
    show_image(ax, image, dim=0.85)
    width = 0.9 if len(regions) <= 100 else 0.6  # in points
    ax.add_collection(LineCollection(list(outlines(regions)), colors=color, linewidths=width))


def show_mosaic(ax: Axes, image: Array, regions: Array, patches: Array, color: str = DART_COLOR) -> None:
    """Every token's patch (N, C, P, P) at the same size, in rows as in the image, with coloured gaps between.

    The image gives the range of values, so that a patch is as bright as the place it was read from. Regions that lie
    in no rows are shown where they are, each at the pixels that the model receives, later ones above earlier ones.
    """
    if not in_rows(regions):
        _show_in_place(ax, image, regions, patches, color)
        return
    # Nearest when pixels are large; where they are not, nearest would make some gaps twice as wide as others.
    ax.imshow(mosaic(image, regions, patches, color), interpolation="auto")


def write_caption(ax: Axes, caption: Caption | str) -> None:
    """Set the line under a panel: green with a tick when right, red with a cross when wrong."""
    caption = Caption(caption) if isinstance(caption, str) else caption
    sign, color = caption_style(caption)
    ax.set_xlabel(sign + caption.text, color=color, fontsize=9, labelpad=3)


def caption_style(caption: Caption) -> tuple[str, str]:
    """The sign before a caption, and its colour."""
    return {None: ("", "black"), True: ("✓ ", RIGHT_COLOR), False: ("✗ ", WRONG_COLOR)}[caption.right]


def mosaic(image: Array, regions: Array, patches: Array, color: str = DART_COLOR, gap_px: int = 1) -> Array:
    """The tokens as the model receives them: (h, w, 3) in [0, 1]; places without a token are white."""
    side = patches.shape[-1] + gap_px
    rows = tokens_per_row(regions)
    canvas = np.ones((len(rows) * side + gap_px, max(rows) * side + gap_px, 3))
    places = [(row * side, column * side) for row, count in enumerate(rows) for column in range(count)]
    for patch, (top, left) in zip(patches, places, strict=True):
        shown = _displayed(patch, image)
        canvas[top : top + side + gap_px, left : left + side + gap_px] = to_rgb(color)
        inside = canvas[top + gap_px : top + side, left + gap_px : left + side]
        inside[:] = shown if shown.ndim == 3 else shown[..., None]
    return canvas


def tokens_per_row(regions: Array) -> list[int]:
    """How many of the regions (N, 4), in reading order, lie in each row: a row starts at the left edge."""
    starts = np.flatnonzero(np.r_[True, regions[1:, 0] < regions[:-1, 2] - 1e-3])
    return [int(count) for count in np.diff(np.r_[starts, len(regions)])]


def in_rows(regions: Array) -> bool:
    """Whether regions (N, 4) come row by row; those of a quadtree, or of patches that moved, do not."""
    return not (np.diff(regions[:, 1]) < -1e-3).any()


def outlines(regions: Array) -> Array:
    """The four corners of each region (N, 4), closed: (N, 5, 2) as x, y."""
    x0, y0, x1, y1 = np.moveaxis(regions, -1, 0)
    return np.stack([np.stack(c, -1) for c in [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]], -2)


def unit_range(pixels: Array, image: Array) -> Array:
    """Values in [0, 1], which those of an image inside [0, 1] are already; else its smallest is 0, its largest 1."""
    low, high = float(image.min()), float(image.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.clip((pixels - low) / max(high - low, 1e-12), 0, 1)


def as_array(values: Any) -> Array:
    """A float32 array from an array or from a tensor on any device, with or without a gradient."""
    values = values.detach().float().cpu().numpy() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=np.float32)


def _show_in_place(ax: Axes, image: Array, regions: Array, patches: Array, color: str) -> None:
    """Patches (N, C, P, P) stretched over their regions (N, 4); places that none covers are white."""
    for patch, (x0, y0, x1, y1) in zip(patches, regions, strict=True):
        shown = _displayed(patch, image)
        ax.imshow(shown, extent=(x0, x1, y1, y0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.add_collection(LineCollection(list(outlines(regions)), colors=color, linewidths=0.5))
    ax.set(xlim=(0, image.shape[-1]), ylim=(image.shape[-2], 0))


def _displayed(pixels: Array, image: Array) -> Array:
    """(C, h, w) -> (h, w) or (h, w, 3), in the `unit_range` of the image."""
    scaled = unit_range(pixels, image)
    return np.moveaxis(scaled, 0, -1) if len(scaled) == 3 else scaled.mean(0)


def _resize(grid: Array, height: int, width: int) -> Array:
    """Bilinear, with cell centres at +0.5 as everywhere; the border cells are continued outwards."""
    rows = (np.arange(height) + 0.5) * grid.shape[0] / height - 0.5
    columns = (np.arange(width) + 0.5) * grid.shape[1] / width - 0.5
    wide = np.stack([np.interp(columns, np.arange(grid.shape[1]), line) for line in grid])
    return np.stack([np.interp(rows, np.arange(grid.shape[0]), line) for line in wide.T], axis=1)
