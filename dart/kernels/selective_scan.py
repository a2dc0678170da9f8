"""The selective scan of state-space models (Mamba, arXiv 2312.00752): a diagonal linear recurrence along the tokens.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,        y_t = C_t . h_t + D x_t,        h_{-1} = 0

# B batch, L tokens, D channels, S states per channel, T tokens per run, K runs
"""

from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels.dispatch import is_exporting, use_triton
from dart.kernels.selective_scan_blocks import scan_blocks


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """The recurrence above for every channel and image.

    The state is float32 at least, whatever the inputs are, and decays are only ever multiplied, never divided by, so
    nothing overflows at any step size. Memory grows linearly with the tokens: the backward pass keeps the inputs and
    one state per block of tokens, and computes the other states again.

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
    if is_exporting():
        return scan_in_runs(x, dt, A, B, C, D)
    if use_triton(x, dt, A, B, C):
        from dart.kernels.selective_scan_triton import selective_scan_triton

        return selective_scan_triton(x, dt, A, B, C, D)
    return scan_blocks(*_promote(x, dt, A, B, C, D))[0].to(x.dtype)


def selective_scan_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """`selective_scan` as it is defined, one token after the other."""
    x_, dt, A, B, C, D = _promote(x, dt, A, B, C, D)
    state = x_.new_zeros(x.shape[0], *A.shape)  # (B, D, S)
    out = []
    for t in range(x.shape[1]):
        state = (dt[:, t, :, None] * A).exp() * state + (dt[:, t] * x_[:, t])[..., None] * B[:, t, None]
        out.append((state * C[:, t, None]).sum(-1))
    return _skip(torch.stack(out, 1), x_, D).to(x.dtype)


def scan_in_runs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """`selective_scan` of plain operators, for exports: runs of tokens side by side, 3 sqrt(L) steps for L tokens.

    First every run from a zero state, all at once; then the state that each run really starts from, run after run;
    then every run again.
    """
    x_, dt, A, B, C, D = _promote(x, dt, A, B, C, D)
    length = x.shape[1]
    run = isqrt(length - 1) + 1
    # A token with dt = 0 leaves the state as it is: the last run is filled with such.
    u, dt, B, C = (F.pad(v, (0, 0, 0, -length % run)).unflatten(1, (-1, run)) for v in (dt * x_, dt, B, C))
    decay, drive = (dt[..., None, :] * A.mT).exp(), u[..., None, :] * B[..., None]  # (B, K, T, S, D)
    steps = list(zip(decay.unbind(2), drive.unbind(2), C.unbind(2), strict=True))
    end = steps[0][1]  # (B, K, S, D)
    for factor, entering, _ in steps[1:]:
        end = torch.addcmul(entering, factor, end)
    starts = [torch.zeros_like(end[:, 0])]
    total = (dt.sum(2)[..., None, :] * A.mT).exp()
    for factor, entering in zip(total.unbind(1), end.unbind(1), strict=True):
        starts.append(torch.addcmul(entering, factor, starts[-1]))
    state = torch.stack(starts[:-1], 1)
    out = []
    for factor, entering, read in steps:
        state = torch.addcmul(entering, factor, state)
        out.append((state * read[..., None]).sum(-2))
    return _skip(torch.stack(out, 2).flatten(1, 2)[:, :length], x_, D).to(x.dtype)


def _promote(x: Tensor, *tensors: Tensor | None) -> list[Any]:
    """All in one dtype, float32 at least: a state is a sum over many tokens."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    for tensor in tensors:
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return [tensor if tensor is None else tensor.to(dtype) for tensor in (x, *tensors)]


def _skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    return y if D is None else torch.addcmul(y, D, x)
