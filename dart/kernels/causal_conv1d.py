"""A short convolution along the tokens, for every channel by itself, that sees no later token.

# B batch, L tokens, E channels, W width
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels.dispatch import is_exporting, use_triton


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_t = bias + sum over k of weight_k x_{t - W + 1 + k}, and x is zero before its first token.

    Args:
        x: (B, L, E).
        weight: (E, W): `conv.weight[:, 0]` of the depthwise `nn.Conv1d(E, E, W, groups=E)`.
        bias: (E,) or None.

    Returns:
        (B, L, E) in the dtype of `x`, summed in float32 at least; differentiable once, in every argument.
    """
    if use_triton(x, weight):
        from dart.kernels.causal_conv1d_triton import causal_conv1d_triton

        return causal_conv1d_triton(x, weight, bias)
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    conv = causal_conv1d_reference if is_exporting() else conv_shifted
    return conv(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)


def causal_conv1d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`causal_conv1d` as it is defined, of plain operators."""
    length, width = x.shape[1], weight.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    seen = (padded[:, k : k + length] * weight[:, k] for k in range(width))
    y = sum(seen, torch.zeros_like(x))
    return y if bias is None else y + bias


@torch.library.custom_op("dart::causal_conv1d_shifted", mutates_args=())
def conv_shifted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, L, E), (E, W), (E,) of one dtype -> (B, L, E): one multiply-add per tap, onto the sum so far.

    The channels stay last, as the projections around it have them; a convolution of torch wants them in front of the
    tokens, and takes longer on a CPU, most of all backwards.
    """
    taps = weight.mT.flip(0).contiguous()  # (W, E): of the token itself, the one before, ...
    y = _empty(x, weight, bias)
    if bias is None:
        torch.mul(x, taps[0], out=y)
    else:
        torch.addcmul(bias, x, taps[0], out=y)
    for lag, tap in enumerate(taps[1:], 1):
        y[:, lag:].addcmul_(x[:, :-lag], tap)
    return y


@conv_shifted.register_fake
def _empty(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("dart::causal_conv1d_shifted_backward", mutates_args=())
def _shifted_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of y -> those of x and of the weight."""
    to_x, to_weight = _empty_grads(grad, x, weight)
    product = torch.empty_like(to_x)
    for lag, tap in enumerate(weight.mT.flip(0).contiguous()):
        until = max(x.shape[1] - lag, 0)
        now, before = grad[:, lag:], x[:, :until]
        if lag:
            to_x[:, :until].addcmul_(now, tap)
        else:
            torch.mul(now, tap, out=to_x)
        to_weight[:, -1 - lag] = torch.mul(now, before, out=product[:, :until]).sum((0, 1))
    return to_x, to_weight


@_shifted_backward.register_fake
def _empty_grads(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    to_x, to_weight = _shifted_backward(grad, *ctx.saved_tensors)
    return to_x, to_weight, grad.sum((0, 1)) if ctx.needs_input_grad[2] else None


conv_shifted.register_autograd(_backward, setup_context=_save)
