"""`selective_scan` outside of CUDA: a block of tokens at a time, in memory that is used again for the next block.

# G directions, B batch, L tokens, D channels, S states per channel, T tokens per block, K = ceil(L / T) blocks
All numbers of L x S x D exist for one block only. A block costs four passes over them forward and fifteen backward,
each one operator, and one more operator per token for the recurrence itself. The backward pass starts every block from
the state that the forward pass has kept, and computes the others again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# By measurement on CPUs with 1 MB of cache: fewer tokens cost operators, more of them leave the cache, and so do
# more numbers (states of a block, for all the images that are taken at once).
BLOCK_TOKENS = 16
BLOCK_NUMBERS = 1 << 19


@torch.library.custom_op("dart::selective_scan_blocks", mutates_args=())
def scan_blocks(x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """x and dt (G, B, L, D), rates (G, S, D), b and c (G, B, L, S), all of one dtype.

    Returns:
        y (G, B, L, D) without the direct path, and the states before each block (K, G, B, S, D).
    """
    y, starts = _empty(x, dt, rates, b, c)
    if y.numel():
        for part in _parts((x, dt, b, c, y), starts, rates):
            _forward(*part, rates)
    return y, starts


@scan_blocks.register_fake
def _empty(x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    groups, batch, length, dim = x.shape
    blocks = (length + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    return x.new_empty(x.shape), x.new_empty(blocks, groups, batch, rates.shape[1], dim)


@torch.library.custom_op("dart::selective_scan_blocks_backward", mutates_args=())
def _scan_backward(
    grad: Tensor, x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradient of y -> those of x, dt, rates, b, c."""
    grads = _empty_grads(grad, x, dt, rates, b, c, starts)
    to_x, to_dt, to_rates, to_b, to_c = grads
    to_rates.zero_()
    if x.numel():
        for part in _parts((x, dt, b, c, grad, to_x, to_dt, to_b, to_c), starts, rates):
            to_rates += _backward_of_part(*part, rates)
    return grads


@_scan_backward.register_fake
def _empty_grads(
    grad: Tensor, x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    to_x, to_dt, to_rates, to_b, to_c = (t.new_empty(t.shape) for t in (x, dt, rates, b, c))
    return to_x, to_dt, to_rates, to_b, to_c


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = _scan_backward(grad, *ctx.saved_tensors)
    return grads


scan_blocks.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.dart.selective_scan_blocks)  # type: ignore[untyped-decorator]
def _flops(x: Sequence[int], dt: Sequence[int], rates: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Of the product that reads the states, the only one that is counted of a model (`dart.cost`)."""
    return 2 * x[0] * x[1] * x[2] * x[3] * rates[1]


def _parts(tensors: Sequence[Tensor], starts: Tensor, rates: Tensor) -> list[tuple[Tensor, ...]]:
    """As many images at a time as keep a block in the cache."""
    tokens = min(BLOCK_TOKENS, tensors[0].shape[2])
    images = max(1, BLOCK_NUMBERS // (tokens * rates.numel()))
    return list(zip(*(t.split(images, 1) for t in tensors), starts.split(images, 2), strict=True))


def _forward(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, y: Tensor, starts: Tensor, rates: Tensor) -> None:
    """Writes `y` and `starts`."""
    given = [_tokens_first(t) for t in (x * dt, dt, b, c)]  # (L, G, B, .)
    tokens = min(BLOCK_TOKENS, x.shape[2])
    decay = rates.new_empty(tokens, *starts.shape[1:])  # (T, G, B, S, D)
    states = rates.new_empty(tokens + 1, *starts.shape[1:])  # the first is the one before the block
    steps = _steps(decay, states)
    states[0].zero_()
    out = []
    for start, block in zip(starts, _blocks(given), strict=True):
        num = len(block[0])
        start.copy_(states[0])
        _fill(decay[:num], states[1 : num + 1], *block[:3], rates)
        for state, factor, before in steps[:num]:
            state.addcmul_(factor, before)
        out.append(_sum_states(block[3], states[1 : num + 1]))
        states[0].copy_(states[num])
    y.copy_(torch.cat(out).permute(1, 2, 0, 3))


def _backward_of_part(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, grad: Tensor,
    to_x: Tensor, to_dt: Tensor, to_b: Tensor, to_c: Tensor, starts: Tensor, rates: Tensor,
) -> Tensor:  # fmt: skip
    """Writes the gradients of x, dt, b and c, and returns that of the rates."""
    given = [_tokens_first(t) for t in (x * dt, dt, b, c, grad)]
    found = [torch.empty_like(t) for t in given[:4]]  # the gradients of x dt, dt, b, c
    tokens = min(BLOCK_TOKENS, x.shape[2])
    decay, slopes, rate_slopes = rates.new_empty(3, tokens, *starts.shape[1:])
    states = rates.new_empty(tokens + 1, *starts.shape[1:])
    steps, back = _steps(decay, states), _steps(decay[1:], slopes)
    arriving = torch.zeros_like(starts[0])  # what reaches the last state of a block from later tokens
    rate_slopes.zero_()
    for start, block, wanted in list(zip(starts, _blocks(given), _blocks(found), strict=True))[::-1]:
        (u, step, enter, read, slope), (to_u, to_step, to_enter, to_read) = block, wanted
        num = len(u)
        a, h, g = decay[:num], states[1 : num + 1], slopes[:num]
        states[0].copy_(start)
        _fill(a, h, u, step, enter, rates)
        for state, factor, before in steps[:num]:
            state.addcmul_(factor, before)
        _sum_channels(slope, h, to_read)
        torch.mul(slope.unsqueeze(-2), read.unsqueeze(-1), out=g)
        g[-1].add_(arriving)
        for later, factor, now in back[: num - 1][::-1]:
            now.addcmul_(factor, later)
        torch.mul(a[0], g[0], out=arriving)
        to_u.copy_(_sum_states(enter, g))
        _sum_channels(u, g, to_enter)
        a.mul_(g).mul_(states[:num])  # the gradient by the exponent dt A
        rate_slopes[:num].addcmul_(a, step.unsqueeze(-2))
        torch.sum(a.mul_(rates.unsqueeze(1)), -2, out=to_step)
    to_u, to_step, to_enter, to_read = (t.permute(1, 2, 0, 3) for t in found)
    torch.mul(to_u, dt, out=to_x)
    torch.addcmul(to_step, to_u, x, out=to_dt)
    to_b.copy_(to_enter)
    to_c.copy_(to_read)
    return rate_slopes.sum((0, 2))


def _tokens_first(values: Tensor) -> Tensor:
    """(G, B, L, .) -> (L, G, B, .): one token of all images is one piece of memory."""
    return values.permute(2, 0, 1, 3).contiguous()


def _blocks(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.split(BLOCK_TOKENS) for t in tensors), strict=True))


def _steps(decay: Tensor, states: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per token: its state, its decay, and the state before. Made once, for a view costs as much as a small product."""
    each = states.unbind(0)
    return list(zip(each[1:], decay.unbind(0), each, strict=False))


def _fill(decay: Tensor, drive: Tensor, u: Tensor, dt: Tensor, b: Tensor, rates: Tensor) -> None:
    """Writes exp(dt A) and u B, both (T, G, B, S, D)."""
    torch.mul(dt.unsqueeze(-2), rates.unsqueeze(1), out=decay).exp_()
    torch.mul(u.unsqueeze(-2), b.unsqueeze(-1), out=drive)


def _sum_states(weights: Tensor, values: Tensor) -> Tensor:
    """(T, G, B, S), (T, G, B, S, D) -> (T, G, B, D)."""
    out = values.new_empty(*weights.shape[:-1], values.shape[-1])
    torch.bmm(weights.flatten(0, 2).unsqueeze(1), values.flatten(0, 2), out=out.flatten(0, 2).unsqueeze(1))
    return out


def _sum_channels(weights: Tensor, values: Tensor, out: Tensor) -> None:
    """(T, G, B, D), (T, G, B, S, D) -> (T, G, B, S)."""
    product = out.flatten(0, 2).unsqueeze(1)  # a view: `out` is contiguous. And `out=` is beyond autocast's reach
    torch.bmm(weights.flatten(0, 2).unsqueeze(1), values.flatten(0, 2).mT, out=product)
