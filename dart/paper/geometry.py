"""Scores -> row heights -> token edges, and grids carried onto rows and tokens, exactly as in the paper.

# B batch, G_h G_w score grid, R rows, L = R G_w cells of the strip, N tokens, D channels
Rows have heights in nominal pixels, 16 to a grid cell (a 448 px image has 224 of them). Put side by side, left to
right, the rows form one long strip; tokens are intervals of the strip, in cells, and nothing stops them at a row's end.
Everything here is in the precision of its inputs, and differentiable in them unless it says otherwise.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CELL_PX = 16  # nominal pixels per grid cell
EPS = 1e-8


class Cut(NamedTuple):
    """An image cut into rows and tokens.

    density: (B, G_h, G_w), sum 1 per image.
    heights: (B, R) nominal px, sum 16 G_h.
    edges: (B, N + 1) in cells of the strip, from 0 to R G_w.
    """

    density: Tensor
    heights: Tensor
    edges: Tensor


def cut_image(scores: Tensor, num_rows: int, num_patches: int) -> Cut:
    """Positive scores (B, G_h, G_w) -> density, rows and tokens (sections 3.1 and 3.2), in the scores' precision.

    Computed in float64 where the device has it: single precision moves an edge by hundredths of a pixel, which on
    thousands of pixels of strip is all that it resolves; half precision moves it by many tokens.
    """
    wide = scores if scores.device.type == "mps" else scores.double()
    with torch.autocast(scores.device.type, enabled=False):
        density = scores_to_density(wide)
        heights = row_heights(density.sum(-1), num_rows)
        edges = equal_mass_edges(strip_density(density, heights), num_patches)
    return Cut(*(part.to(scores.dtype) for part in (density, heights, edges)))


def scores_to_density(scores: Tensor) -> Tensor:
    """Share of each cell in its image (section 3.1): positive (B, G_h, G_w) -> the same, sum 1 per image."""
    return scores / scores.sum((1, 2), keepdim=True)


def invert_cdf(mass: Tensor, levels: Tensor) -> Tensor:
    """Where the running sum of `mass` reaches each level, linearly interpolated inside a cell (eq. 4).

    Args:
        mass: (B, L) non-negative.
        levels: (K,) increasing, in the unit of `mass`.

    Returns:
        (B, K) in cells. The cell that a level falls in is a constant for differentiation.
    """
    after = mass.cumsum(-1)
    # Counted, not searched: every exporter can do that.
    cell = (after.detach()[:, None] < levels[:, None]).sum(-1).clamp(max=mass.shape[-1] - 1)
    inside = mass.gather(-1, cell)
    before = after.gather(-1, cell) - inside
    return cell + (levels - before) / (inside + EPS)


def equal_mass_edges(mass: Tensor, num_parts: int) -> Tensor:
    """Cut cells of mass (B, L), sum 1, into parts of equal mass: (B, num_parts + 1) from exactly 0 to exactly L."""
    levels = torch.arange(1, num_parts, device=mass.device, dtype=mass.dtype) / num_parts
    first = mass.new_zeros(mass.shape[0], 1)
    return torch.cat([first, invert_cdf(mass, levels), first + mass.shape[-1]], -1)


def row_heights(marginal: Tensor, num_rows: int) -> Tensor:
    """Heights of rows of equal mass (section 3.2): mass per grid row (B, G_h) -> (B, R) nominal px, sum 16 G_h."""
    marginal = marginal / (marginal.sum(-1, keepdim=True) + EPS)
    return equal_mass_edges(marginal, num_rows).diff(dim=-1) * CELL_PX


def overlap(edges: Tensor, num_cells: int) -> Tensor:
    """How much of every unit cell lies in every interval: (B, K + 1) edges -> (B, K, num_cells).

    The values of `dart.partition.overlap`, another gradient: where an edge lies on a cell's border, as the last one
    always does, minimum and maximum (the paper's way) pass on half of it.
    """
    cells = torch.arange(num_cells, device=edges.device, dtype=edges.dtype)
    end = torch.minimum(edges[:, 1:, None], cells + 1)
    start = torch.maximum(edges[:, :-1, None], cells)
    return (end - start).relu()


def average_rows(grid: Tensor, heights: Tensor) -> Tensor:
    """The mean of a grid over every row (section 3.2): an average, so a row's mass is not kept.

    Thin rows, which are the important ones, therefore keep their full density and later get more than their share of
    the tokens: in the paper the density counts twice.

    Args:
        grid: (B or 1, G_h, G_w, D).
        heights: (B, R) nominal px.

    Returns:
        (B, R, G_w, D).
    """
    ends = heights.relu().cumsum(-1) / CELL_PX
    edges = torch.cat([torch.zeros_like(ends[:, :1]), ends], -1)
    weights = overlap(edges, grid.shape[1])
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    return torch.einsum("brg,bgwd->brwd", weights, grid.expand(weights.shape[0], -1, -1, -1))


def strip_density(density: Tensor, heights: Tensor) -> Tensor:
    """The density along the strip (section 3.2): (B, G_h, G_w) and (B, R) -> (B, R G_w), sum 1 per image."""
    strip = average_rows(density[..., None], heights).flatten(1)
    return strip / strip.sum(-1, keepdim=True)


def average_tokens(strip: Tensor, edges: Tensor) -> Tensor:
    """The mean of a strip (B or 1, L, D) over every token, edges (B, N + 1) in cells: (B, N, D) (section 3.3)."""
    weights = overlap(edges, strip.shape[1])
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-12)
    return weights @ strip


def carry_grid(grid: Tensor, heights: Tensor, edges: Tensor) -> Tensor:
    """A grid (B or 1, G_h, G_w, D) averaged over rows, then over tokens: (B, N, D) (section 3.3)."""
    return average_tokens(average_rows(grid, heights).flatten(1, 2), edges)


def strip_shares(heights: Tensor, edges: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """How much of every cell of a grid lies in every token, all its rows counted; for maps, without gradient.

    Args:
        heights: (B, R) nominal px.
        edges: (B, N + 1) in cells of the strip.
        grid_size: G_h, G_w.

    Returns:
        (B, N, G_h * G_w), in cells.
    """
    ends = heights.detach().cumsum(-1) / CELL_PX
    rows = overlap(torch.cat([torch.zeros_like(ends[:, :1]), ends], -1), grid_size[0])  # (B, R, G_h)
    parts = overlap(edges.detach(), heights.shape[-1] * grid_size[1]).unflatten(-1, (-1, grid_size[1]))
    with torch.autocast(edges.device.type, enabled=False):
        return torch.einsum("brg,bnrw->bngw", rows, parts).flatten(2)


def token_regions(heights: Tensor, edges: Tensor, width: int) -> Tensor:
    """The rectangle of every token, for figures: (B, N, 4) as x0, y0, x1, y1 in input pixels.

    A token that goes on in the next row is shown by its part in the row that its middle lies in.

    Args:
        heights: (B, R) input px.
        edges: (B, N + 1) strip px, from 0 to R W.
        width: W.
    """
    start, end = edges[:, :-1], edges[:, 1:]
    row = ((start + end) / 2 / width).long().clamp(0, heights.shape[-1] - 1)
    x0, x1 = ((x - row * width).clamp(0, width) for x in (start, end))
    bottom = heights.cumsum(-1)
    return torch.stack([x0, (bottom - heights).gather(-1, row), x1, bottom.gather(-1, row)], -1)
