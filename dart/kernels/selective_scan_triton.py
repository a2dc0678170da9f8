"""`selective_scan` in Triton: a program takes some channels of one image through all tokens, a tile of them at a time.

# B batch, L tokens, D channels, S states per channel, T tokens per tile, K = ceil(L / T) tiles
A tile (T, S, D) lives in registers: its loads are all in flight at once, and its tokens are one associative scan, which
lies within each thread as long as the states occupy the warps. The forward pass keeps the state before each tile, from
which the backward pass computes the others again. What is summed over all programs (the gradients of A, B, C, D) is
written by each program apart and summed by torch: no atomics, the same bits every time.
"""

# mypy: disable-error-code="no-untyped-def"
# The parameters of a kernel are pointers and numbers that Triton types by itself.

import torch
import triton
import triton.language as tl
from torch import Tensor

from dart.kernels.selective_scan_gradient import empty_grads, register_gradient

TOKENS = 16
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


def selective_scan_triton(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """See `dart.kernels.selective_scan`."""
    out: Tensor = _scan(x, dt, A, B, C, D)[0]
    return out


@torch.library.custom_op("dart::selective_scan", mutates_args=())
def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (B, L, D), and the states before each tile (B, K, S, D) in float32."""
    x, dt, A, B, C, direct = _contiguous(x, dt, A, B, C, D)
    y, starts = _empty(x, dt, A, B, C, D)
    if y.numel():
        grid, sizes, tile = _launch(x, A)
        with torch.cuda.device_of(x):
            _scan_kernel[grid](x, dt, A, B, C, direct, y, starts, *sizes, HAS_D=D is not None, **tile)
    return y, starts


@_scan.register_fake
def _empty(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    tiles = (x.shape[1] + TOKENS - 1) // TOKENS
    starts = x.new_empty(x.shape[0], tiles, A.shape[1], x.shape[2], dtype=torch.float32)
    return x.new_empty(x.shape), starts


@torch.library.custom_op("dart::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, starts: Tensor
) -> list[Tensor]:
    """The gradient of y -> those of x, dt, A, B, C, and D."""
    grads = empty_grads(grad, x, dt, A, B, C, D, starts)
    grad, x, dt, A, B, C, direct = _contiguous(grad, x, dt, A, B, C, D)
    if not x.numel():
        return [g.zero_() for g in grads]
    grid, sizes, tile = _launch(x, A)
    batch, parts = x.shape[0], grid[0] // x.shape[0]
    to_A, to_D = (starts.new_empty(batch, rows, x.shape[2]) for rows in (A.shape[1], 1))
    to_B, to_C = (starts.new_empty(parts, *B.shape) for _ in range(2))
    with torch.cuda.device_of(x):
        _scan_backward_kernel[grid](
            grad, x, dt, A, B, C, direct, starts, grads[0], grads[1], to_A, to_B, to_C, to_D, *sizes,
            HAS_D=D is not None, **tile,
        )  # fmt: skip
    for whole, pieces in zip(grads[2:], (to_A.mT, to_B, to_C, to_D[:, 0]), strict=False):
        whole.copy_(pieces.sum(0))
    return grads


register_gradient(_scan, _scan_backward)


def _contiguous(*tensors: Tensor | None) -> list[Tensor]:
    """The last may be missing; a kernel that does not read it gets the first in its place."""
    assert tensors[0] is not None
    return [tensors[0].contiguous() if t is None else t.contiguous() for t in tensors]


def _launch(x: Tensor, A: Tensor) -> tuple[tuple[int], tuple[int, int, int], dict[str, int]]:
    """The grid, the sizes that vary, and the tile: as many warps as there are states, 8 at most.

    How fast other tiles are is not measured; larger ones spill registers in the backward pass.
    """
    batch, length, dim = x.shape
    states = A.shape[1]
    block_d, block_s = min(triton.next_power_of_2(dim), 32), triton.next_power_of_2(states)
    tile = {"TOKENS": TOKENS, "BLOCK_D": block_d, "BLOCK_S": block_s, "num_warps": min(block_s, 8)}
    return (batch * triton.cdiv(dim, block_d),), (length, dim, states), tile


@triton.jit
def _compose(decay, drive, next_decay, next_drive):
    """h -> decay h + drive, and then the next one."""
    return decay * next_decay, next_decay * drive + next_drive


@triton.jit
def _load(pointer, where, mask):
    return tl.load(pointer + where, mask, 0.0).to(tl.float32)


@triton.jit
def _place(dim, num_states, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):
    """This program's image, its channels (D,) and states (S,)."""
    blocks = tl.cdiv(dim, BLOCK_D)
    channel = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    return (tl.program_id(0) // blocks).to(tl.int64), channel, tl.arange(0, BLOCK_S)


@triton.jit
def _scan_kernel(
    x, dt, rates, enter, read, direct, y, starts, length, dim, num_states,
    HAS_D: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    image, d, s = _place(dim, num_states, BLOCK_D, BLOCK_S)
    plane = (s < num_states)[:, None] & (d < dim)[None, :]  # (S, D)
    rate = _load(rates, d[None, :] * num_states + s[:, None], plane) * LOG2_E
    skip = _load(direct, d, (d < dim) & HAS_D)
    state = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    start = starts + image * tl.cdiv(length, TOKENS) * num_states * dim + s[:, None] * dim + d[None, :]
    token = tl.arange(0, TOKENS)
    for first in tl.range(0, length, TOKENS):
        t = first + token
        wide = (image * length + t)[:, None] * dim + d[None, :]  # (T, D)
        thin = (image * length + t)[:, None] * num_states + s[None, :]  # (T, S)
        in_wide = (t < length)[:, None] & (d < dim)[None, :]
        in_thin = (t < length)[:, None] & (s < num_states)[None, :]
        step = _load(dt, wide, in_wide)  # zero behind the last token, which leaves the state as it is
        value = _load(x, wide, in_wide)
        b = _load(enter, thin, in_thin)
        c = _load(read, thin, in_thin)
        tl.store(start, state, plane)
        start += num_states * dim
        decay = tl.exp2(step[:, None, :] * rate[None, :, :])
        drive = (step * value)[:, None, :] * b[:, :, None]
        decay, drive = tl.associative_scan((decay, drive), 0, _compose)
        states = drive + decay * state[None, :, :]
        state = tl.sum(tl.where((token == TOKENS - 1)[:, None, None], states, 0.0), 0)
        out = tl.sum(states * c[:, :, None], 1) + skip[None, :] * value
        tl.store(y + wide, out.to(y.dtype.element_ty), in_wide)


@triton.jit
def _scan_backward_kernel(
    grad, x, dt, rates, enter, read, direct, starts, to_x, to_dt, to_rates, to_enter, to_read, to_direct,
    length, dim, num_states,
    HAS_D: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    image, d, s = _place(dim, num_states, BLOCK_D, BLOCK_S)
    plane = (s < num_states)[:, None] & (d < dim)[None, :]  # (S, D)
    rate = _load(rates, d[None, :] * num_states + s[:, None], plane) * LOG2_E
    skip = _load(direct, d, (d < dim) & HAS_D)
    tiles = tl.cdiv(length, TOKENS)
    start = starts + image * tiles * num_states * dim + s[:, None] * dim + d[None, :]
    # This program's share of the gradients of B and C.
    share = tl.program_id(0).to(tl.int64) % tl.cdiv(dim, BLOCK_D) * (tl.num_programs(0) // tl.cdiv(dim, BLOCK_D))
    share = share * length * num_states
    arriving = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)  # what reaches the last state of a tile from later tokens
    rate_slope = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    skip_slope = tl.zeros((BLOCK_D,), tl.float32)
    token = tl.arange(0, TOKENS)
    for done in tl.range(0, tiles):
        tile = tiles - 1 - done
        t = tile * TOKENS + token
        wide = (image * length + t)[:, None] * dim + d[None, :]  # (T, D)
        thin = (image * length + t)[:, None] * num_states + s[None, :]  # (T, S)
        in_wide = (t < length)[:, None] & (d < dim)[None, :]
        in_thin = (t < length)[:, None] & (s < num_states)[None, :]
        in_tile = ((t + 1 < length) & (token < TOKENS - 1))[:, None] & (d < dim)[None, :]
        step = _load(dt, wide, in_wide)
        value = _load(x, wide, in_wide)
        slope = _load(grad, wide, in_wide)
        b = _load(enter, thin, in_thin)
        c = _load(read, thin, in_thin)
        state = tl.load(start + tile * num_states * dim, plane, 0.0)
        decay = tl.exp2(step[:, None, :] * rate[None, :, :])
        drive = (step * value)[:, None, :] * b[:, :, None]
        since, states = tl.associative_scan((decay, drive), 0, _compose)
        states += since * state[None, :, :]
        tl.store(to_read + share + thin, tl.sum(states * slope[:, None, :], 2), in_thin)
        # From here on backwards: the gradient by a state is what it is read with, and the next one's times its decay.
        last = (token == TOKENS - 1)[:, None, None]
        state_slope = slope[:, None, :] * c[:, :, None] + tl.where(last, arriving[None, :, :], 0.0)
        follow = tl.exp2(_load(dt, wide + dim, in_tile)[:, None, :] * rate[None, :, :])
        follow, state_slope = tl.associative_scan((follow, state_slope), 0, _compose, reverse=True)
        arriving = tl.sum(tl.where((token == 0)[:, None, None], decay * state_slope, 0.0), 0)
        tl.store(to_enter + share + thin, tl.sum(state_slope * (step * value)[:, None, :], 2), in_thin)
        enters = tl.sum(state_slope * b[:, :, None], 1)  # the gradient by dt x
        exponent = (states - drive) * state_slope  # by dt A, for states - drive is the decayed state before
        stepped = enters * value + tl.sum(exponent * rate[None, :, :], 1) * LN_2
        rate_slope += tl.sum(exponent * step[:, None, :], 0)
        skip_slope += tl.sum(slope * value, 0)
        tl.store(to_x + wide, (enters * step + skip[None, :] * slope).to(to_x.dtype.element_ty), in_wide)
        tl.store(to_dt + wide, stepped.to(to_dt.dtype.element_ty), in_wide)
    tl.store(to_rates + image * num_states * dim + s[:, None] * dim + d[None, :], rate_slope, plane)
    tl.store(to_direct + image * dim + d, skip_slope, d < dim)
