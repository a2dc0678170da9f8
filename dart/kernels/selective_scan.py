"""The selective scan of state-space models (Mamba, arXiv 2312.00752): a diagonal linear recurrence along the tokens.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,        y_t = C_t . h_t + D x_t,        h_{-1} = 0

# B batch, L tokens, D channels, S states per channel, T tokens per run, K runs per block
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Tokens per run and runs per block, by measurement on a CPU: 64 tokens of one image stay in its cache, and 23 steps of
# the recurrence serve them. Larger blocks write to memory what is read again at once.
RUN_LENGTH = 8
RUNS_PER_BLOCK = 8


def selective_scan_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """`selective_scan` as it is defined, one token after the other."""
    x_, dt, A, B, C = _promote(x, dt, A, B, C)
    state = x_.new_zeros(x.shape[0], *A.shape)  # (B, D, S)
    out = []
    for t in range(x.shape[1]):
        state = (dt[:, t, :, None] * A).exp() * state + (dt[:, t] * x_[:, t])[..., None] * B[:, t, None]
        out.append((state * C[:, t, None]).sum(-1))
    return _skip(torch.stack(out, 1), x_, D).to(x.dtype)


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """The recurrence above for every channel and image, in runs of tokens side by side.

    The state is float32 at least, whatever the inputs are, and decays are only ever multiplied, never divided by, so
    nothing overflows at any step size. Memory grows linearly with the tokens: the backward pass keeps the inputs and
    one state per block, and computes the other states again.

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
    x_, dt, A, B, C = _promote(x, dt, A, B, C)
    length = x.shape[1]
    # A token with dt = 0 leaves the state as it is: the last run is filled with such.
    pad = -length % RUN_LENGTH
    runs = [F.pad(v, (0, 0, 0, pad)).unflatten(1, (-1, RUN_LENGTH)) for v in (dt * x_, dt, B, C)]
    y = _Scan.apply(*runs, A.mT.contiguous())
    return _skip(y.flatten(1, 2)[:, :length], x_, D).to(x.dtype)


class _Scan(torch.autograd.Function):
    """u, dt (B, K', T, D), b, c (B, K', T, S) and the rates (S, D) to y (B, K', T, D); K' is the runs of all blocks.

    Written by hand since autograd would keep five tensors of L x S x D numbers per image and layer.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, b: Tensor, c: Tensor, rates: Tensor) -> Tensor:
        carry = u.new_zeros(u.shape[0], *rates.shape)  # (B, S, D), the state before the block
        out, carries = [], []
        with _full_precision(u):
            for ub, dtb, bb, cb in _blocks(u, dt, b, c):
                carries.append(carry)
                states, carry = _sweep(_decay(dtb, rates), _drive(ub, bb), _decay(dtb.sum(2), rates), carry)
                out.append((cb[..., None, :] @ states).squeeze(-2))
        ctx.save_for_backward(u, dt, b, c, rates, *carries)
        return torch.cat(out, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, dt, b, c, rates, *carries = ctx.saved_tensors
        arriving = torch.zeros_like(carries[0])  # (B, S, D), what reaches a block's last state from later tokens
        grad_rates = torch.zeros_like(rates)
        pieces = []
        with _full_precision(u):
            for (ub, dtb, bb, cb, gy), carry in zip(_blocks(u, dt, b, c, grads[0])[::-1], carries[::-1], strict=True):
                decay, drive, total = _decay(dtb, rates), _drive(ub, bb), _decay(dtb.sum(2), rates)
                states, _ = _sweep(decay, drive, total, carry)
                grad_states, arriving = _sweep_back(decay, _drive(gy, cb), total, arriving)
                # states - drive is decay_t h_{t-1}, so this is the gradient by the exponent dt A.
                grad_exponent = (states - drive).mul_(grad_states)
                grad_rates += (grad_exponent * dtb[..., None, :]).sum((0, 1, 2))
                pieces.append(
                    (
                        (bb[..., None, :] @ grad_states).squeeze(-2),
                        (grad_exponent * rates).sum(-2),
                        (ub[..., None, :] @ grad_states.mT).squeeze(-2),
                        (gy[..., None, :] @ states.mT).squeeze(-2),
                    )
                )
        return *(torch.cat(parts[::-1], 1) for parts in zip(*pieces, strict=True)), grad_rates


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast would take the sums over the states in half precision. Without it there is nothing to switch off."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(RUNS_PER_BLOCK, 1) for tensor in tensors), strict=True))


def _sweep(decay: Tensor, drive: Tensor, total: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = decay_t h_{t-1} + drive_t over one block, from the state `carry` (B, S, D).

    First every run from a zero state, all at once; then the state that each run really starts from, run after run;
    then every run again. `total` (B, K, S, D) is a run's product of decays.

    Returns:
        All states (B, K, T, S, D), and the last one.
    """
    steps = list(zip(decay.unbind(2), drive.unbind(2), strict=True))
    end = steps[0][1]
    for a, b in steps[1:]:
        end = torch.addcmul(b, a, end)
    starts = [carry]
    for a, b in zip(total.unbind(1), end.unbind(1), strict=True):
        starts.append(torch.addcmul(b, a, starts[-1]))
    state = torch.stack(starts[:-1], 1)  # (B, K, S, D)
    states = []
    for a, b in steps:
        state = torch.addcmul(b, a, state)
        states.append(state)
    return torch.stack(states, 2), starts[-1]


def _sweep_back(decay: Tensor, direct: Tensor, total: Tensor, arriving: Tensor) -> tuple[Tensor, Tensor]:
    """g_t = direct_t + decay_{t+1} g_{t+1} over one block, from its end, where `arriving` (B, S, D) is added.

    Returns:
        All gradients by the states (B, K, T, S, D), and decay_0 g_0, what arrives at the block before.
    """
    steps = list(zip(decay.unbind(2), direct.unbind(2), strict=True))[::-1]
    end = steps[0][0] * steps[0][1]
    for a, b in steps[1:]:
        end = a * (b + end)
    ends = [arriving]
    for a, b in list(zip(total.unbind(1), end.unbind(1), strict=True))[::-1]:
        ends.append(torch.addcmul(b, a, ends[-1]))
    grad = torch.stack(ends[:-1][::-1], 1)  # (B, K, S, D)
    before: Tensor | None = None  # the decay of the token after
    grads = []
    for a, b in steps:
        grad = b + grad if before is None else torch.addcmul(b, before, grad)
        before = a
        grads.append(grad)
    return torch.stack(grads[::-1], 2), ends[-1]


def _decay(dt: Tensor, rates: Tensor) -> Tensor:
    """(..., D), (S, D) -> (..., S, D); channels last, since they are many and states few."""
    return (dt[..., None, :] * rates).exp_()


def _drive(u: Tensor, b: Tensor) -> Tensor:
    """What the tokens add to the states: (B, K, T, D), (B, K, T, S) -> (B, K, T, S, D)."""
    return u[..., None, :] * b[..., None]


def _promote(*tensors: Tensor) -> list[Tensor]:
    """All in one dtype, float32 at least: a state is a sum over many tokens."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def _skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    return y if D is None else torch.addcmul(y, D.to(y.dtype), x)
