"""`invert_cdf` in Triton: one program per histogram, which holds all of it and compares every level with every cell.

# R histograms, G cells, K levels, L rows of levels
"""

# mypy: disable-error-code="no-untyped-def"
# The parameters of a kernel are pointers and numbers that Triton types by itself.

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers in the tile levels x cells; more would spill.
TILE = 4096


def invert_cdf_triton(mass: Tensor, levels: Tensor) -> Tensor:
    """See `dart.kernels.invert_cdf`; computed in float32 whatever the dtype."""
    lead, cells, num_levels = mass.shape[:-1], mass.shape[-1], levels.shape[-1]
    # Rows of levels repeat with the last dimensions of the masses; any other broadcast is written out.
    if levels.shape[:-1] != lead[mass.ndim - levels.ndim :]:
        levels = levels.expand(*lead, num_levels)
    flat = _invert(mass.reshape(prod(lead), cells), levels.reshape(prod(levels.shape[:-1]), num_levels))
    return flat.view(*lead, num_levels)


@torch.library.custom_op("dart::invert_cdf", mutates_args=())
def _invert(mass: Tensor, levels: Tensor) -> Tensor:
    """(R, G) masses and (L, K) levels, R a multiple of L -> (R, K)."""
    mass, levels = mass.contiguous(), levels.contiguous()
    out = _empty(mass, levels)
    if out.numel():
        with torch.cuda.device_of(mass):
            _invert_kernel[(mass.shape[0],)](
                mass, levels, out, *_sizes(mass, levels), **_tiles(mass, levels), num_warps=1
            )
    return out


@_invert.register_fake
def _empty(mass: Tensor, levels: Tensor) -> Tensor:
    return mass.new_empty(mass.shape[0], levels.shape[-1], dtype=torch.promote_types(mass.dtype, levels.dtype))


@torch.library.custom_op("dart::invert_cdf_backward", mutates_args=())
def _invert_backward(grad: Tensor, mass: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K) gradient of the positions -> (R, G) of the masses and (R, K) of the levels."""
    grad, mass, levels = grad.contiguous(), mass.contiguous(), levels.contiguous()
    grad_mass, grad_levels = _empty_grads(grad, mass, levels)
    if mass.numel():
        with torch.cuda.device_of(mass):
            _invert_backward_kernel[(mass.shape[0],)](
                grad, mass, levels, grad_mass, grad_levels, *_sizes(mass, levels), **_tiles(mass, levels), num_warps=1
            )
    return grad_mass, grad_levels


@_invert_backward.register_fake
def _empty_grads(grad: Tensor, mass: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    return mass.new_empty(mass.shape), levels.new_empty(grad.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    mass, levels = ctx.saved_tensors
    grad_mass, grad_levels = _invert_backward(grad, mass, levels)
    # Row r of the masses had row r % L of the levels.
    return grad_mass, grad_levels.unflatten(0, (-1, levels.shape[0])).sum(0) if ctx.needs_input_grad[1] else None


_invert.register_autograd(_backward, setup_context=_save)


def _sizes(mass: Tensor, levels: Tensor) -> tuple[int, int, int]:
    return mass.shape[-1], levels.shape[-1], levels.shape[0]


def _tiles(mass: Tensor, levels: Tensor) -> dict[str, int]:
    block_g = triton.next_power_of_2(mass.shape[-1])
    block_k = min(triton.next_power_of_2(max(levels.shape[-1], 1)), max(TILE // block_g, 1))
    return {"BLOCK_G": block_g, "BLOCK_K": block_k}


@triton.jit
def _cut(mass, after, total, level, g, cells):
    """The cell (K,) that each level falls in, what lies inside it and before it, and the level as a mass."""
    goal = level * total
    cell = tl.minimum(tl.sum((after[None, :] < goal[:, None]).to(tl.int32), 1), cells - 1)
    here = g[None, :] == cell[:, None]
    inside = tl.sum(tl.where(here, mass[None, :], 0.0), 1)
    before = tl.sum(tl.where(here, after[None, :], 0.0), 1) - inside
    return cell, inside, before, goal


@triton.jit
def _invert_kernel(mass, levels, out, cells, num_levels, level_rows, BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    m = tl.load(mass + row * cells + g, mask=g < cells, other=0.0).to(tl.float32)
    after = tl.cumsum(m, 0)
    total = tl.sum(tl.where(g == cells - 1, after, 0.0), 0)  # not another sum, which rounds in another order
    for first in tl.range(0, num_levels, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        level = tl.load(levels + row % level_rows * num_levels + k, mask=k < num_levels, other=0.0).to(tl.float32)
        cell, inside, before, goal = _cut(m, after, total, level, g, cells)
        # A level may fall on an empty cell only by rounding, at either end.
        part = tl.where(inside > 0, (goal - before) / tl.where(inside > 0, inside, 1.0), (goal > before).to(tl.float32))
        part = tl.where(part > 1, 1.0, tl.where(part < 0, 0.0, part))  # unlike minimum, keeps NaN
        tl.store(out + row * num_levels + k, (cell + part).to(out.dtype.element_ty), mask=k < num_levels)


@triton.jit
def _invert_backward_kernel(
    grad, mass, levels, grad_mass, grad_levels, cells, num_levels, level_rows,
    BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    m = tl.load(mass + row * cells + g, mask=g < cells, other=0.0).to(tl.float32)
    after = tl.cumsum(m, 0)
    total = tl.sum(tl.where(g == cells - 1, after, 0.0), 0)  # not another sum, which rounds in another order
    to_mass = tl.zeros((BLOCK_G,), tl.float32)
    for first in tl.range(0, num_levels, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        level = tl.load(levels + row % level_rows * num_levels + k, mask=k < num_levels, other=0.0).to(tl.float32)
        slope = tl.load(grad + row * num_levels + k, mask=k < num_levels, other=0.0).to(tl.float32)
        cell, inside, before, goal = _cut(m, after, total, level, g, cells)
        width = tl.where(inside > 0, inside, 1.0)
        slope = tl.where(inside > 0, slope / width, 0.0)  # an empty cell: the position is an end, and constant
        # position = cell + (level * total - before) / inside
        part = ((goal - before) / width)[:, None]
        moved = (g[None, :] < cell[:, None]).to(tl.float32) + tl.where(g[None, :] == cell[:, None], part, 0.0)
        to_mass += tl.sum(slope[:, None] * (level[:, None] - moved), 0)
        to_level = (slope * total).to(grad_levels.dtype.element_ty)
        tl.store(grad_levels + row * num_levels + k, to_level, mask=k < num_levels)
    tl.store(grad_mass + row * cells + g, to_mass.to(grad_mass.dtype.element_ty), mask=g < cells)
