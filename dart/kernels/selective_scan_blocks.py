"""`selective_scan` outside of CUDA: a block of tokens at a time, in memory that is used again for the next block.

# B batch, L tokens, D channels, S states per channel, T tokens per block, K = ceil(L / T) blocks
Numbers of L x S x D exist for one block only. A block costs five passes over them forward and fifteen backward, each
one operator, and of these the recurrence itself is one operator per token. The backward pass starts every block from
the state that the forward pass has kept, and computes the others again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dart.kernels.selective_scan_gradient import empty_grads, register_gradient

# By measurement on CPUs with 1 MB of cache: fewer tokens cost operators, more of them leave the cache, and so do
# more numbers (states of a block, for all the images that are taken at once).
BLOCK_TOKENS = 16
BLOCK_NUMBERS = 1 << 19
FEW_STATES = 4  # products of so small matrices take six times as long as their sums


@torch.library.custom_op("dart::selective_scan_blocks", mutates_args=())
def scan_blocks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """`dart.kernels.selective_scan`, all tensors of one dtype.

    Returns:
        y (B, L, D), and the states before each block (K, B, S, D).
    """
    y, starts = _empty(x, dt, A, B, C, D)
    rates = A.mT.contiguous()  # (S, D): channels last, since they are many and states few
    if y.numel():
        for part in _parts((x, dt, B, C, y), starts):
            _forward(rates, *part)
        if D is not None:
            y.addcmul_(D, x)
    return y, starts


@scan_blocks.register_fake
def _empty(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, length, dim = x.shape
    blocks = (length + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    return x.new_empty(x.shape), x.new_empty(blocks, batch, A.shape[1], dim)


@torch.library.custom_op("dart::selective_scan_blocks_backward", mutates_args=())
def _scan_backward(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, starts: Tensor
) -> list[Tensor]:
    """The gradient of y -> those of x, dt, A, B, C, and D."""
    grads = empty_grads(grad, x, dt, A, B, C, D, starts)
    to_x, to_dt, to_A, to_B, to_C = grads[:5]
    rates = A.mT.contiguous()
    to_rates = torch.zeros_like(rates)
    if x.numel():
        for part in _parts((x, dt, B, C, grad, to_x, to_dt, to_B, to_C), starts):
            to_rates += _backward_of_part(rates, *part)
    to_A.copy_(to_rates.mT)
    if D is not None:
        to_x.addcmul_(grad, D)
        torch.sum(grad * x, (0, 1), out=grads[5])
    return grads


register_gradient(scan_blocks, _scan_backward)


def _parts(tensors: Sequence[Tensor], starts: Tensor) -> list[tuple[Tensor, ...]]:
    """As many images at a time as keep a block in the cache."""
    tokens, numbers = min(BLOCK_TOKENS, tensors[0].shape[1]), starts[0, 0].numel()
    images = max(1, BLOCK_NUMBERS // (tokens * numbers))
    return list(zip(*(t.split(images) for t in tensors), starts.split(images, 1), strict=True))


def _forward(rates: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, y: Tensor, starts: Tensor) -> None:
    """Writes `y`, without the direct path, and `starts`."""
    given = [_tokens_first(t) for t in (x * dt, dt, b, c)]  # (L, B, .)
    out = torch.empty_like(given[0])
    tokens = min(BLOCK_TOKENS, x.shape[1])
    decay = rates.new_empty(tokens, *starts.shape[1:])  # (T, B, S, D)
    states = rates.new_empty(tokens + 1, *starts.shape[1:])  # the first is the one before the block
    steps = _steps(decay, states)
    states[0].zero_()
    for start, (u, step, enter, read, wanted) in zip(starts, _blocks([*given, out]), strict=True):
        num = len(u)
        start.copy_(states[0])
        _fill(rates, decay[:num], states[1 : num + 1], u, step, enter)
        for state, factor, before in steps[:num]:
            state.addcmul_(factor, before)
        _sum_states(read, states[1 : num + 1], wanted)
        states[0].copy_(states[num])
    y.copy_(out.transpose(0, 1))


def _backward_of_part(
    rates: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, grad: Tensor,
    to_x: Tensor, to_dt: Tensor, to_b: Tensor, to_c: Tensor, starts: Tensor,
) -> Tensor:  # fmt: skip
    """Writes the gradients of x, dt, b and c, and returns that of the rates."""
    given = [_tokens_first(t) for t in (x * dt, dt, b, c, grad)]
    found = [torch.empty_like(t) for t in given[:4]]  # the gradients of x dt, dt, b, c
    tokens = min(BLOCK_TOKENS, x.shape[1])
    decay, slopes, to_rates = rates.new_empty(3, tokens, *starts.shape[1:])
    states = rates.new_empty(tokens + 1, *starts.shape[1:])
    steps, back = _steps(decay, states), _steps(decay[1:], slopes)
    arriving = torch.zeros_like(starts[0])  # what reaches the last state of a block from later tokens
    to_rates.zero_()
    for start, block, wanted in list(zip(starts, _blocks(given), _blocks(found), strict=True))[::-1]:
        (u, step, enter, read, slope), (to_u, to_step, to_enter, to_read) = block, wanted
        num = len(u)
        a, h, g = decay[:num], states[1 : num + 1], slopes[:num]
        states[0].copy_(start)
        _fill(rates, a, h, u, step, enter)
        for state, factor, before in steps[:num]:
            state.addcmul_(factor, before)
        _sum_channels(slope, h, to_read)
        torch.mul(slope.unsqueeze(-2), read.unsqueeze(-1), out=g)
        g[-1].add_(arriving)
        for later, factor, now in back[: num - 1][::-1]:
            now.addcmul_(factor, later)
        torch.mul(a[0], g[0], out=arriving)
        _sum_states(enter, g, to_u)
        _sum_channels(u, g, to_enter)
        a.mul_(g).mul_(states[:num])  # the gradient by the exponent dt A
        to_rates[:num].addcmul_(a, step.unsqueeze(-2))
        torch.sum(a.mul_(rates), -2, out=to_step)
    to_u, to_step, to_enter, to_read = (t.transpose(0, 1) for t in found)
    torch.mul(to_u, dt, out=to_x)
    torch.addcmul(to_step, to_u, x, out=to_dt)
    to_b.copy_(to_enter)
    to_c.copy_(to_read)
    return to_rates.sum((0, 1))


def _tokens_first(values: Tensor) -> Tensor:
    """(B, L, .) -> (L, B, .): one token of all images is one piece of memory."""
    return values.transpose(0, 1).contiguous()


def _blocks(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.split(BLOCK_TOKENS) for t in tensors), strict=True))


def _steps(decay: Tensor, states: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per token: its state, its decay, and the state before. Made once, for a view costs as much as a small product."""
    each = states.unbind(0)
    return list(zip(each[1:], decay.unbind(0), each, strict=False))


def _fill(rates: Tensor, decay: Tensor, drive: Tensor, u: Tensor, dt: Tensor, b: Tensor) -> None:
    """Writes exp(dt A) and u B, both (T, B, S, D)."""
    torch.mul(dt.unsqueeze(-2), rates, out=decay).exp_()
    torch.mul(u.unsqueeze(-2), b.unsqueeze(-1), out=drive)


def _sum_states(weights: Tensor, values: Tensor, out: Tensor) -> None:
    """(T, B, S), (T, B, S, D) -> (T, B, D). With `out=`, for autocast would have the product in half precision."""
    if weights.shape[-1] <= FEW_STATES:
        first, *others = zip(weights.unsqueeze(-1).unbind(-2), values.unbind(-2), strict=True)
        torch.mul(*first, out=out)
        for weight, value in others:
            out.addcmul_(weight, value)
        return
    torch.bmm(weights.flatten(0, 1).unsqueeze(1), values.flatten(0, 1), out=out.flatten(0, 1).unsqueeze(1))


def _sum_channels(weights: Tensor, values: Tensor, out: Tensor) -> None:
    """(T, B, D), (T, B, S, D) -> (T, B, S), contiguous, as `out` must be."""
    torch.bmm(weights.flatten(0, 1).unsqueeze(1), values.flatten(0, 1).mT, out=out.flatten(0, 1).unsqueeze(1))
