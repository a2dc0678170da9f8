"""DART-Grid for dense prediction: an image warped by rows and columns of equal mass, and everything brought back.

# B batch, C channels, H W source pixels, R K rows and columns, P pixels on a cell's side, n an axis' cells, h w a map
Cell (r, k) of the source, [rows[r], rows[r + 1]) x [cols[k], cols[k + 1]), is drawn P px wide and high. Either axis is
mapped by itself, linearly inside a cell, so all maps here are one small matrix or one pair of neighbours per axis.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels.sample_regions import MIN_CELL_PX
from dart.partition import geometry_dtype, grid_cells, grid_edges, whole_precision
from dart.registry import SAMPLINGS
from dart.tokenizer import one_of

# A cell without width has no inverse: it is taken to be so wide. A density with a floor has none.
MIN_WIDTH_PX = 1e-6


class GridWarp(NamedTuple):
    """Borders of the cells in the source, in pixels; one warp may serve all images.

    rows: (B or 1, R + 1), from 0 to H.
    cols: (B or 1, K + 1), from 0 to W.
    cell_px: P.
    """

    rows: Tensor
    cols: Tensor
    cell_px: int

    @property
    def warped_size(self) -> tuple[int, int]:
        """Height and width of the warped image: R P, K P."""
        return (self.rows.shape[-1] - 1) * self.cell_px, (self.cols.shape[-1] - 1) * self.cell_px

    @property
    def regions(self) -> Tensor:
        """The cells in the source, in reading order: (B or 1, R K, 4) as x0, y0, x1, y1."""
        return grid_cells(self.rows, self.cols)


class Neighbours(NamedTuple):
    """Where to read between two samples of an axis: their places (B or 1, m, 2) and shares (B or 1, m, 2), sum 1."""

    places: Tensor
    shares: Tensor


def warp_grid(density: Tensor, img_size: tuple[int, int], grid: tuple[int, int], cell_px: int) -> GridWarp:
    """Rows and, independently, columns of equal mass.

    Args:
        density: (B, G_h, G_w), positive.
        img_size: H, W.
        grid: R, K.
        cell_px: P.

    Returns:
        Differentiable in the density, see `dart.partition.grid_regions`.
    """
    return GridWarp(*grid_edges(density, grid, img_size), cell_px)


def uniform_grid(
    img_size: tuple[int, int], grid: tuple[int, int], cell_px: int, device: torch.device, dtype: torch.dtype
) -> GridWarp:
    """The warp of a constant density, which resizes; one for all images."""
    rows, cols = (
        torch.arange(parts + 1, device=device, dtype=dtype)[None] * pixels / parts
        for parts, pixels in zip(grid, img_size, strict=True)
    )
    return GridWarp(rows, cols, cell_px)


def warp_images(images: Tensor, warp: GridWarp, sampling: str = "area") -> Tensor:
    """Draw the source's cells as squares.

    Args:
        images: (B, C, H, W).
        sampling: "area": every warped pixel is the mean of its box of the source, exactly; boxes narrower than
            `MIN_CELL_PX` are read as if they were that wide. "point": interpolated at the pixels' centres.

    Returns:
        (B, C, R P, K P) in the images' dtype, differentiable in the images and the warp.
    """
    one_of("sampling", sampling, SAMPLINGS)
    _check_source(warp, (images.shape[-2], images.shape[-1]))
    with whole_precision(images.device):
        values = _widen("images", images, warp)
        sides = zip((warp.rows, warp.cols), values.shape[-2:], strict=True)
        if sampling == "area":
            matrices = (_box_means(edges, warp.cell_px, side).to(values.dtype) for edges, side in sides)
            return _apply(values, *matrices).to(images.dtype)
        down, across = (neighbours(_centres(edges, warp.cell_px), side) for edges, side in sides)
        return _look_up(values, down, across).to(images.dtype)


def warp_labels(labels: Tensor, warp: GridWarp) -> Tensor:
    """The class at every warped pixel's centre: whole numbers (B, H, W) -> (B, R P, K P). No class is made up."""
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels = {labels.dtype}: must be whole numbers; they are not interpolated")
    height, width = labels.shape[-2:]
    _check_source(warp, (height, width))
    y, x = (
        _centres(edges.detach(), warp.cell_px).long().clamp(0, side - 1).expand(labels.shape[0], -1)
        for edges, side in ((warp.rows, height), (warp.cols, width))
    )
    lines = labels.gather(1, y[..., None].expand(-1, -1, width))  # (B, R P, W)
    return lines.gather(2, x[:, None].expand(-1, lines.shape[1], -1))


def unwarp(predictions: Tensor, warp: GridWarp, img_size: tuple[int, int]) -> Tensor:
    """Bring a prediction for the warped image back to the source's pixels, from any resolution.

    One look-up, where every source pixel's centre went, upsamples and inverts; with a uniform grid it is
    `F.interpolate(mode="bilinear")`.

    Args:
        predictions: (B, C, h, w), their samples spread evenly over the warped image. Logits, not classes.
        img_size: H, W.

    Returns:
        (B, C, H, W) in the predictions' dtype, bilinear, the border repeated; differentiable in both.
    """
    _check_source(warp, img_size)
    with whole_precision(predictions.device):
        values = _widen("predictions", predictions, warp)
        down, across = (
            neighbours(_pixels_on_map(edges, warp.cell_px, pixels, samples), samples)
            for edges, pixels, samples in zip((warp.rows, warp.cols), img_size, values.shape[-2:], strict=True)
        )
        return _look_up(values, down, across).to(predictions.dtype)


def map_points(points: Tensor, warp: GridWarp, to: str) -> Tensor:
    """Points (B, M, 2) as x, y px, to "warped" or back to "source" coordinates, differentiable in both.

    The result has float64, where the device has it, so that there and back again is exact to 1e-5 px: at 512 px
    float32 resolves three times that. Outside the image the cells at its border go on.
    """
    one_of("to", to, ("warped", "source"))
    move = to_warped if to == "warped" else to_source
    x, y = points.unbind(-1)
    return torch.stack([move(x, warp.cols, warp.cell_px), move(y, warp.rows, warp.cell_px)], -1)


def map_boxes(boxes: Tensor, warp: GridWarp, to: str) -> Tensor:
    """Boxes (B, M, 4) as x0, y0, x1, y1 px: their two corners, mapped as points. Boxes stay boxes."""
    return map_points(boxes.unflatten(-1, (2, 2)).flatten(1, 2), warp, to).unflatten(1, (-1, 2)).flatten(2)


def to_warped(position: Tensor, edges: Tensor, cell_px: int) -> Tensor:
    """Positions (B or 1, m) on an axis of the source -> on the warped axis; edges (B or 1, n + 1), all px."""
    position, edges = _together(position, edges)
    inside = edges[:, 1:-1].detach().contiguous()
    cell = torch.searchsorted(inside, position.detach().contiguous(), right=True)
    start, end = edges.gather(-1, cell), edges.gather(-1, cell + 1)
    return (cell + (position - start) / (end - start).clamp(min=MIN_WIDTH_PX)) * cell_px


def to_source(position: Tensor, edges: Tensor, cell_px: int) -> Tensor:
    """The inverse of `to_warped`."""
    position, edges = _together(position, edges)
    position = position / cell_px
    cell = position.detach().floor().long().clamp(0, edges.shape[-1] - 2)
    start, end = edges.gather(-1, cell), edges.gather(-1, cell + 1)
    return start + (position - cell) * (end - start)


def neighbours(position: Tensor, num_samples: int) -> Neighbours:
    """What to read at positions (B or 1, m), in samples with centres at +0.5; the border is repeated."""
    position = (position - 0.5).clamp(0, num_samples - 1)
    low = position.detach().floor()
    share = position - low
    places = torch.stack([low, (low + 1).clamp(max=num_samples - 1)], -1).long()
    return Neighbours(places, torch.stack([1 - share, share], -1))


def _centres(edges: Tensor, cell_px: int) -> Tensor:
    """Where the warped pixels' centres are in the source: (B or 1, n P)."""
    steps = (torch.arange(cell_px, device=edges.device, dtype=edges.dtype) + 0.5) / cell_px
    return (edges[:, :-1, None] + edges.diff(dim=-1)[..., None] * steps).flatten(1)


def _pixels_on_map(edges: Tensor, cell_px: int, num_pixels: int, num_samples: int) -> Tensor:
    """Where the source pixels' centres are on a map of so many samples over the warped axis: (B or 1, num_pixels)."""
    centres = torch.arange(num_pixels, device=edges.device, dtype=edges.dtype)[None] + 0.5
    warped_px = (edges.shape[-1] - 1) * cell_px
    return to_warped(centres, edges, cell_px) * (num_samples / warped_px)


def _box_means(edges: Tensor, cell_px: int, num_pixels: int) -> Tensor:
    """How much each source pixel has in the mean of each warped one: (B or 1, n P, num_pixels), rows sum to 1."""
    steps = torch.arange(cell_px, device=edges.device, dtype=edges.dtype) / cell_px
    starts = (edges[:, :-1, None] + edges.diff(dim=-1)[..., None] * steps).flatten(1)
    ends = torch.cat([starts[:, 1:], edges[:, -1:]], -1)
    missing = (MIN_CELL_PX - (ends - starts)).clamp(min=0) / 2
    pixels = torch.arange(num_pixels, device=edges.device, dtype=edges.dtype)
    end = torch.minimum((ends + missing)[..., None], pixels + 1)
    start = torch.maximum((starts - missing)[..., None], pixels)
    # Not `relu`: a border between two pixels, as all are at the start of training, is pulled by half of either.
    covered = torch.maximum(end - start, edges.new_zeros(()))
    return covered / covered.sum(-1, keepdim=True)


def _apply(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """A matrix for the lines (B or 1, h, H) and one for the columns (B or 1, w, W): (B, C, H, W) -> (B, C, h, w).

    Dense, though most of it is zero: at 512 px several times as fast as the ends of running sums, and more exact.
    """
    lines = torch.matmul(down[:, None], images)  # (B, C, h, W)
    return torch.matmul(lines.flatten(1, 2), across.mT).view(*lines.shape[:3], -1)


def _look_up(images: Tensor, down: Neighbours, across: Neighbours) -> Tensor:
    """Bilinear: (B, C, H, W) -> (B, C, h, w), read at every line of `down` and every column of `across`.

    Columns by a matrix product while the map is small, lines then as weighted sums of two whole lines in one pass over
    memory: less than half the time of `grid_sample`, whose coordinates need not be a grid.
    """
    batch, channels, height, width = images.shape
    reads = across.places[..., None] == torch.arange(width, device=images.device)
    columns = (reads * across.shares.to(images.dtype)[..., None]).sum(2)  # (B or 1, w, W)
    lines = torch.matmul(images.flatten(1, 2), columns.mT)  # (B, C H, w)
    planes = torch.arange(batch * channels, device=images.device).view(batch, channels, 1, 1)
    places = (planes * height + down.places[:, None]).flatten(0, 2)  # (B C h, 2)
    shares = down.shares.to(images.dtype)[:, None].expand(batch, channels, -1, -1).flatten(0, 2)
    found = F.embedding_bag(places, lines.flatten(0, 1), per_sample_weights=shares, mode="sum")
    return found.view(batch, channels, -1, found.shape[-1])


def _together(position: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same batch, in float64 where the device has it."""
    wide = torch.float32 if edges.device.type == "mps" else torch.float64
    batch = max(position.shape[0], edges.shape[0])
    return position.to(wide).expand(batch, -1), edges.to(wide).expand(batch, -1)


def _widen(name: str, values: Tensor, warp: GridWarp) -> Tensor:
    """The values in the precision that they are mixed in. Whole numbers are classes, or would be cut off."""
    if not values.is_floating_point():
        raise ValueError(f"{name} = {values.dtype}: must be floating point; warp_labels is for classes")
    return values.to(torch.promote_types(geometry_dtype(values.dtype), warp.rows.dtype))


def _check_source(warp: GridWarp, img_size: tuple[int, int]) -> None:
    """Refuse a warp of another image's size. Values are looked at on the CPU only: elsewhere it would wait."""
    if warp.rows.device.type != "cpu" or torch.compiler.is_compiling():
        return
    size = tuple(round(edges[0, -1].item()) for edges in (warp.rows, warp.cols))
    if size != img_size:
        has, asked = (f"{height} x {width} px" for height, width in (size, img_size))
        raise ValueError(f"warp = of {has}: the image has {asked}; make the warp for its size")
