"""Density -> regions: quantiles of the density cut an image into rows, and every row into tokens.

# B batch, G_h G_w density grid, H W image pixels, R rows, N tokens
Coordinates are pixels, origin at the top-left corner, pixel centres at +0.5, intervals half-open. A partition is a
tensor of regions (B, N, 4), x0 y0 x1 y1, in reading order; they tile the image, and none lies in two rows.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels import invert_cdf
from dart.registry import PARTITIONS, ROW_WEIGHTS


def plan_rows(num_patches: int, num_rows: int | None = None, aspect: float = 1.0) -> int:
    """The number of rows: as asked, or what makes uniform regions about square, round(sqrt(num_patches * aspect)).

    `aspect` is height over width; for square images that is the paper's round(sqrt(num_patches)).
    """
    if num_rows is None:
        num_rows = min(num_patches, max(1, round((num_patches * aspect) ** 0.5)))
    if not 1 <= check_whole("num_rows", num_rows) <= num_patches:
        raise ValueError(f"num_rows = {num_rows}: must be from 1 to num_patches ({num_patches})")
    return num_rows


def plan_grid(num_patches: int, num_rows: int | None = None, aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns of a grid partition: `num_rows`, or the divisor that makes uniform cells most nearly square."""
    divisors = [r for r in range(1, num_patches + 1) if num_patches % r == 0]
    if num_rows is None:
        wanted = (num_patches * aspect) ** 0.5
        rows = min(divisors, key=lambda r: abs(math.log(r / wanted)))
        return rows, num_patches // rows
    if check_whole("num_rows", num_rows) not in divisors:
        near = min(divisors, key=lambda r: abs(r - num_rows))
        raise ValueError(f"num_rows = {num_rows}: a grid of {num_patches} tokens needs a divisor; try {near}")
    return num_rows, num_patches // num_rows


def partition_image(
    density: Tensor,
    img_size: tuple[int, int],
    num_patches: int,
    num_rows: int | None = None,
    *,
    partition: str = "flow",
    row_weight: str = "mass",
) -> Tensor:
    """The regions of `flow_regions` or `grid_regions`, by name."""
    if partition not in PARTITIONS:
        raise ValueError(f"partition = {partition!r}: unknown; known: {', '.join(PARTITIONS)}")
    aspect = img_size[0] / img_size[1]
    if partition == "grid":
        return grid_regions(density, plan_grid(num_patches, num_rows, aspect), img_size)
    return flow_regions(density, num_patches, plan_rows(num_patches, num_rows, aspect), img_size, row_weight)


def flow_regions(
    density: Tensor, num_patches: int, num_rows: int, img_size: tuple[int, int], row_weight: str = "mass"
) -> Tensor:
    """Cut images into rows, and every row into tokens of equal mass.

    Args:
        density: (B, G_h, G_w), positive.
        num_patches: N.
        num_rows: R, at most N.
        img_size: H, W in pixels.
        row_weight: "mass": rows hold as equal numbers of tokens n_r as whole numbers allow and mass n_r / N, so
            that every token of the image holds 1 / N of the density. "density": the rows have equal mass, and the
            tokens go to them by mean density, in whole numbers, at least one each; thin, dense rows get more. That
            is the paper's choice, which lets density act twice (arXiv 2506.10390, section 3), without its tokens
            that straddle two rows.

    Returns:
        (B, N, 4) pixels, differentiable in the density; whole numbers of tokens are constants.
    """
    check_row_weight(row_weight)
    grid_h, by_mass, device, dtype = density.shape[-2], row_weight == "mass", density.device, density.dtype
    ends = even_ends(num_patches, num_rows, device)  # (1, R)
    levels = ends[0, :-1].to(dtype) / num_patches if by_mass else _even_levels(num_rows, device, dtype)
    rows = _with_ends(invert_cdf(density.sum(-1), levels), grid_h)  # (B, R + 1), cells
    # The mass of each row by column (B, R, G_w). Not `@`: under autocast that would be bfloat16.
    strips = (overlap(rows, grid_h)[..., None] * density[:, None]).sum(2)
    return cut_rows(strips, rows, ends if by_mass else None, num_patches, img_size, grid_h)


def grid_regions(density: Tensor, grid: tuple[int, int], img_size: tuple[int, int]) -> Tensor:
    """Cut images into rows and columns of equal mass each: density (B, G_h, G_w) -> (B, N, 4), differentiable.

    The cells of such a grid are rectangles of a separable warp of the image (paper, DART-Grid); their masses are
    equal only where the density is a product of its two margins.
    """
    return grid_cells(*grid_edges(density, grid, img_size))


def grid_edges(density: Tensor, grid: tuple[int, int], img_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The borders of those rows (B, R + 1) and columns (B, K + 1), in pixels: density (B, G_h, G_w), grid R, K."""
    rows, cols = (
        _equal_parts(density.sum(axis), parts) * pixels / cells
        for axis, parts, pixels, cells in zip((-1, -2), grid, img_size, density.shape[-2:], strict=True)
    )
    return rows, cols


def grid_cells(rows: Tensor, cols: Tensor) -> Tensor:
    """Row edges (B, R + 1) and column edges (B, K + 1) -> regions (B, R * K, 4)."""
    shape = (rows.shape[0], rows.shape[1] - 1, cols.shape[1] - 1)
    x0, x1 = cols[:, None, :-1].expand(shape), cols[:, None, 1:].expand(shape)
    y0, y1 = rows[:, :-1, None].expand(shape), rows[:, 1:, None].expand(shape)
    return torch.stack([x0, y0, x1, y1], -1).flatten(1, 2)


def uniform_regions(
    num_patches: int,
    num_rows: int | None,
    img_size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    partition: str = "flow",
) -> Tensor:
    """The partition of a constant density, in closed form, for all images: (1, N, 4)."""
    height, width = img_size
    aspect = height / width
    grid = partition == "grid"
    rows = plan_grid(num_patches, num_rows, aspect)[0] if grid else plan_rows(num_patches, num_rows, aspect)
    ends = even_ends(num_patches, rows, device)
    row, part = token_places(ends, num_patches, dtype)
    y = torch.stack([F.pad(ends[:, :-1], (1, 0)), ends], -1).gather(1, row[..., None].expand(-1, -1, 2))
    return torch.stack([part * width, y.to(dtype) * height / num_patches], -1).flatten(2)


def cut_rows(
    strips: Tensor, rows: Tensor, ends: Tensor | None, num_patches: int, cell_size: tuple[int, int], grid_h: int
) -> Tensor:
    """Row edges (B, R + 1), in cells -> regions (B, N, 4): every row cut into tokens of equal mass.

    Args:
        strips: The mass of each row by column (B, R, G_w).
        ends: Tokens up to each row (1, R), or None to share them out by the rows' mean density.
        cell_size: Height in pixels of grid_h cells, and width of all.
    """
    (height, width), grid_w = cell_size, strips.shape[-1]
    if ends is None:
        ends = _share_tokens(strips.sum(-1) / rows.diff(dim=-1), num_patches)
    row, part = token_places(ends, num_patches, strips.dtype)
    row = row.expand(strips.shape[0], -1)[..., None]
    x = invert_cdf(strips.gather(1, row.expand(-1, -1, grid_w)), part)  # (B, N, 2), cells
    x = torch.where(part < 1, x, grid_w)  # a row's end is exact whatever the rounding of the sums
    y = torch.stack([rows[:, :-1], rows[:, 1:]], -1).gather(1, row.expand(-1, -1, 2))
    # Times the pixels, then by the cells: in this order the ends stay exact.
    return torch.stack([x * width / grid_w, y * height / grid_h], -1).flatten(2)


def even_ends(num_patches: int, num_rows: int, device: torch.device) -> Tensor:
    """Tokens up to each row (1, R), as equal as whole numbers allow. Made on the device: nothing waits for a copy."""
    return (torch.arange(1, num_rows + 1, device=device) * num_patches // num_rows)[None]


def token_places(ends: Tensor, num_patches: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For every token its row (., N), and the fractions of that row's mass where it starts and stops (., N, 2)."""
    tokens = torch.arange(num_patches, device=ends.device).expand(ends.shape[0], -1)
    row = (tokens[..., None] >= ends[:, None, :-1]).sum(-1)
    first = F.pad(ends, (1, 0)).gather(1, row)
    count = ends.gather(1, row) - first
    nth = (tokens - first)[..., None] + torch.arange(2, device=ends.device)
    return row, nth.to(dtype) / count[..., None]


def overlap(edges: Tensor, num_cells: int) -> Tensor:
    """How much of every unit cell lies in every interval: (..., K + 1) edges -> (..., K, num_cells)."""
    left = torch.arange(num_cells, device=edges.device, dtype=edges.dtype)
    covered = (edges[..., None] - left).clamp(0, 1)
    return covered[..., 1:, :] - covered[..., :-1, :]


def check_whole(where: str, value: int) -> int:
    """The value, if it is a whole number; a graph that is written down may hold a symbol of one."""
    if not isinstance(value, (int, torch.SymInt)):
        raise ValueError(f"{where} = {value!r}: must be a whole number")
    return value


def check_row_weight(row_weight: str) -> None:
    """Refuse an unknown name."""
    if row_weight not in ROW_WEIGHTS:
        raise ValueError(f"row_weight = {row_weight!r}: unknown; known: {', '.join(ROW_WEIGHTS)}")


def geometry_dtype(dtype: torch.dtype) -> torch.dtype:
    """Edges and densities are never computed in less than float32: bfloat16 moves edges by hundreds of pixels."""
    return torch.promote_types(dtype, torch.float32)


def whole_precision(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast: geometry is not rounded to half precision. Devices that do not know autocast have none."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _even_levels(parts: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The inner borders of equal parts of 1: (parts - 1,)."""
    return torch.arange(1, parts, device=device, dtype=dtype) / parts


def _share_tokens(weights: Tensor, num_patches: int) -> Tensor:
    """Tokens up to each row (B, R), in proportion to positive weights (B, R), at least one token a row."""
    num_rows = weights.shape[-1]
    share = weights.detach().cumsum(-1) / weights.detach().sum(-1, keepdim=True)
    extra = (share * (num_patches - num_rows)).round().long()
    extra[:, -1] = num_patches - num_rows
    return extra + torch.arange(1, num_rows + 1, device=weights.device)


def _equal_parts(mass: Tensor, parts: int) -> Tensor:
    """Edges (B, parts + 1), in cells, of parts of equal mass of (B, G)."""
    return _with_ends(invert_cdf(mass, _even_levels(parts, mass.device, mass.dtype)), mass.shape[-1])


def _with_ends(inner: Tensor, end: int) -> Tensor:
    """Put the exact borders 0 and `end` around the inner edges."""
    return F.pad(F.pad(inner, (1, 0)), (0, 1), value=end)
