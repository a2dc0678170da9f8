"""Density -> regions: quantiles of the density cut an image into rows, and every row into tokens.

# B batch, G_h G_w density grid, H W image pixels, R rows, M most tokens in a row, N tokens
Coordinates are pixels, origin at the top-left corner, pixel centres at +0.5, intervals half-open.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Partition(NamedTuple):
    """The flow partition: full-width rows from top to bottom, each cut from left to right.

    row_edges: (B, R + 1) pixels, increasing from 0 to H.
    col_edges: (B, R, M + 1) pixels, increasing from 0 to W; a row of fewer than M tokens repeats W at its end.
    tokens_per_row: R numbers that sum to the token budget, the same for every image.
    """

    row_edges: Tensor
    col_edges: Tensor
    tokens_per_row: tuple[int, ...]

    def regions(self) -> Tensor:
        """(B, N, 4) as x0, y0, x1, y1 in pixels; tokens in reading order."""
        batch, num_rows, width = self.col_edges.shape
        shape = (batch, num_rows, width - 1)
        x0, x1 = self.col_edges[..., :-1], self.col_edges[..., 1:]
        y0 = self.row_edges[:, :-1, None].expand(shape)
        y1 = self.row_edges[:, 1:, None].expand(shape)
        return select_tokens(torch.stack([x0, y0, x1, y1], -1), self.tokens_per_row)


def plan_rows(num_patches: int, num_rows: int | None = None) -> tuple[int, ...]:
    """How many tokens each row holds: as equal as whole numbers allow, no token across two rows.

    `num_rows` defaults to round(sqrt(num_patches)), as in the paper.
    """
    rows = num_rows or max(1, round(num_patches**0.5))
    if not 1 <= rows <= num_patches:
        raise ValueError(f"num_rows = {rows}: must be from 1 to num_patches ({num_patches})")
    return tuple((r + 1) * num_patches // rows - r * num_patches // rows for r in range(rows))


def select_tokens(per_row: Tensor, tokens_per_row: tuple[int, ...]) -> Tensor:
    """(B, R, M, ...) -> (B, N, ...): drop the padding of rows that hold fewer than M tokens."""
    flat = per_row.flatten(1, 2)
    most = max(tokens_per_row)
    if min(tokens_per_row) == most:
        return flat
    keep = [r * most + k for r, count in enumerate(tokens_per_row) for k in range(count)]
    return flat[:, torch.tensor(keep, device=flat.device)]


def invert_cdf(mass: Tensor, levels: Tensor) -> Tensor:
    """Where the running sum of `mass` reaches each level, linearly interpolated inside a cell (paper, eq. 4).

    Args:
        mass: (..., G) non-negative, any positive sum.
        levels: (..., K) fractions of the sum, in [0, 1]; leading dimensions must broadcast to those of `mass`.

    Returns:
        (..., K) positions in cells, in [0, G], increasing with the level. The cell that a level falls in is a
        constant for differentiation; the position inside it is differentiable in every mass up to that cell.
    """
    total = mass.sum(-1, keepdim=True)
    after = mass.cumsum(-1)
    goal = (levels * total).expand(*mass.shape[:-1], levels.shape[-1])
    cell = torch.searchsorted(after.detach().contiguous(), goal.detach().contiguous()).clamp(max=mass.shape[-1] - 1)
    inside = mass.gather(-1, cell)
    before = after.gather(-1, cell) - inside
    # A level may fall on an empty cell only by rounding: the clamp keeps that finite and inside the cell.
    part = (goal - before) / inside.clamp(min=torch.finfo(mass.dtype).tiny)
    return cell + part.clamp(0, 1)


def overlap(edges: Tensor, num_cells: int) -> Tensor:
    """How much of every unit cell lies in every interval: (..., K + 1) edges -> (..., K, num_cells)."""
    left = torch.arange(num_cells, device=edges.device, dtype=edges.dtype)
    covered = (edges[..., None] - left).clamp(0, 1)
    return covered[..., 1:, :] - covered[..., :-1, :]


def flow_partition(density: Tensor, tokens_per_row: tuple[int, ...], img_size: tuple[int, int]) -> Partition:
    """Cut images into rows of mass n_r / N and each row r into n_r tokens of equal mass.

    Every token holds 1 / N of the density: where the density is high, regions are small. The paper re-normalises
    each row by its mean density instead, which concentrates twice (arXiv 2506.10390, section 3).

    Args:
        density: (B, G_h, G_w), positive.
        tokens_per_row: From `plan_rows`.
        img_size: H, W in pixels.

    Returns:
        The partition, differentiable in the density.
    """
    height, width = img_size
    grid_h, grid_w = density.shape[-2:]
    counts = torch.tensor(tokens_per_row, device=density.device, dtype=density.dtype)
    rows = invert_cdf(density.sum(-1), counts.cumsum(0)[:-1] / counts.sum())
    rows = _with_ends(rows, grid_h)
    strips = overlap(rows, grid_h) @ density  # (B, R, G_w), the mass of each row by column
    inner = torch.arange(1, max(tokens_per_row), device=density.device, dtype=density.dtype)
    levels = inner / counts[:, None]  # (R, M - 1)
    cols = invert_cdf(strips, levels.clamp(max=1))
    cols = torch.where(levels < 1, cols, grid_w)
    cols = _with_ends(cols, grid_w)
    return Partition(rows * height / grid_h, cols * width / grid_w, tokens_per_row)


def uniform_partition(
    tokens_per_row: tuple[int, ...], img_size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Partition:
    """The partition of a constant density, in closed form, for one image (B = 1)."""
    height, width = img_size
    counts = torch.tensor(tokens_per_row, device=device, dtype=dtype)
    rows = torch.cat([counts.new_zeros(1), counts.cumsum(0)]) * height / counts.sum()
    steps = torch.arange(max(tokens_per_row) + 1, device=device, dtype=dtype)
    cols = (steps * width / counts[:, None]).clamp(max=width)
    return Partition(rows[None], cols[None], tokens_per_row)


def geometry_dtype(dtype: torch.dtype) -> torch.dtype:
    """Edges and densities are never computed in less than float32: bfloat16 moves edges by hundreds of pixels."""
    return torch.promote_types(dtype, torch.float32)


def _with_ends(inner: Tensor, end: int) -> Tensor:
    """Put the exact borders 0 and `end` around the inner edges."""
    border = inner.new_zeros(*inner.shape[:-1], 1)
    return torch.cat([border, inner, border + end], -1)
