"""The selective scan of state-space models (Mamba, arXiv 2312.00752): a diagonal linear recurrence along the tokens.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,        y_t = C_t . h_t + D x_t,        h_{-1} = 0

# G directions, B batch, L tokens, D channels, S states per channel, T tokens per run, K runs
"""

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels.dispatch import is_exporting
from dart.kernels.selective_scan_blocks import scan_blocks


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """The recurrence above for every channel and image.

    The state is float32 at least, whatever the inputs are, and decays are only ever multiplied, never divided by, so
    nothing overflows at any step size. Memory grows linearly with the tokens: the backward pass keeps the inputs and
    one state per block of tokens, and computes the other states again.

    Scans of one shape may be stacked, as the two directions of a bidirectional model: every tensor then has one
    dimension more at its front, G.

    Args:
        x: (B, L, D) inputs.
        dt: (B, L, D) step sizes, not negative.
        A: (D, S) decay rates, negative.
        B: (B, L, S) how an input enters the states.
        C: (B, L, S) how the states are read.
        D: (D,) weight of the input itself; None for zero.

    Returns:
        (B, L, D) in the dtype of `x`; differentiable once, in every argument.
    """
    if A.dim() == 2:
        stack = [None if v is None else v[None] for v in (x, dt, A, B, C, D)]
        return selective_scan(*stack)[0]  # type: ignore[arg-type]
    x_, dt, A, B, C = _promote(x, dt, A, B, C)
    scan = scan_in_runs if is_exporting() else _scan
    return _skip(scan(x_, dt, A.mT.contiguous(), B, C), x_, D).to(x.dtype)


def selective_scan_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """`selective_scan` as it is defined, one token after the other."""
    x_, dt, A, B, C = _promote(x, dt, A, B, C)
    state = x_.new_zeros(*x.shape[:-2], *A.shape[-2:])  # (B, D, S)
    A = A.unsqueeze(-3)
    out = []
    for t in range(x.shape[-2]):
        entering = (dt[..., t, :] * x_[..., t, :])[..., None] * B[..., t, None, :]
        state = (dt[..., t, :, None] * A).exp() * state + entering
        out.append((state * C[..., t, None, :]).sum(-1))
    return _skip(torch.stack(out, -2), x_, D).to(x.dtype)


def scan_in_runs(x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The scan of few plain operators, for exports: runs of T tokens side by side, about 3 sqrt(L) steps for L tokens.

    First every run from a zero state, all at once; then the state that each run really starts from, run after run;
    then every run again.

    Args:
        x, dt: (G, B, L, D).
        rates: (G, S, D).
        b, c: (G, B, L, S).

    Returns:
        (G, B, L, D).
    """
    length = x.shape[2]
    run = isqrt(length - 1) + 1
    # A token with dt = 0 leaves the state as it is: the last run is filled with such.
    u, dt, b, c = (F.pad(v, (0, 0, 0, -length % run)).unflatten(2, (-1, run)) for v in (dt * x, dt, b, c))
    rates = rates[:, None, None]
    decay = (dt[..., None, :] * rates[..., None, :, :]).exp()  # (G, B, K, T, S, D)
    steps = list(zip(decay.unbind(3), (u[..., None, :] * b[..., None]).unbind(3), c.unbind(3), strict=True))
    end = steps[0][1]  # (G, B, K, S, D)
    for factor, drive, _ in steps[1:]:
        end = torch.addcmul(drive, factor, end)
    starts = [torch.zeros_like(end[:, :, 0])]
    total = (dt.sum(3)[..., None, :] * rates).exp()
    for factor, drive in zip(total.unbind(2), end.unbind(2), strict=True):
        starts.append(torch.addcmul(drive, factor, starts[-1]))
    state = torch.stack(starts[:-1], 2)
    out = []
    for factor, drive, read in steps:
        state = torch.addcmul(drive, factor, state)
        out.append((state * read[..., None]).sum(-2))
    return torch.stack(out, 3).flatten(2, 3)[:, :, :length]


def _scan(x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return scan_blocks(x, dt, rates, b, c)[0]


def _promote(*tensors: Tensor) -> list[Tensor]:
    """All in one dtype, float32 at least: a state is a sum over many tokens."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def _skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """y + D x."""
    return y if D is None else torch.addcmul(y, D.to(y.dtype)[..., None, None, :], x)
