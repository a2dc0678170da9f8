"""`causal_conv1d` in Triton: each tap is one more load of the same tokens, which the cache holds.

# B batch, L tokens, E channels, W width
Forward, a program takes a tile of tokens and channels; backward, some channels of one image through all tokens, so that
it sums their share of the gradient of the weights by itself.
"""

# mypy: disable-error-code="no-untyped-def"
# The parameters of a kernel are pointers and numbers that Triton types by itself.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, CHANNELS = 16, 64


def causal_conv1d_triton(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `dart.kernels.causal_conv1d`."""
    return _conv(x, weight, bias)


@torch.library.custom_op("dart::causal_conv1d", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, L, E), the channels of one token side by side; (E, W); (E,) -> (B, L, E)."""
    x, weight = _rows(x), weight.contiguous()
    out = _empty(x, weight, bias)
    batch, length, dim = x.shape
    if out.numel():
        grid = (triton.cdiv(length, TOKENS) * triton.cdiv(dim, CHANNELS), batch)
        with torch.cuda.device_of(x):
            _conv_kernel[grid](
                x, weight, weight if bias is None else bias.contiguous(), out, length, dim, *x.stride()[:2],
                WIDTH=weight.shape[1], HAS_BIAS=bias is not None, TOKENS=TOKENS, CHANNELS=CHANNELS,
            )  # fmt: skip
    return out


@_conv.register_fake
def _empty(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("dart::causal_conv1d_backward", mutates_args=())
def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of y -> those of x, and of the weight (E, W) and the bias (E,) in float32."""
    to_x, to_weight, to_bias = _empty_grads(grad, x, weight)
    if not x.numel():
        return to_x, to_weight.zero_(), to_bias.zero_()
    grad, x, weight = grad.contiguous(), _rows(x), weight.contiguous()
    batch, length, dim = x.shape
    parts = to_weight.new_empty(batch, weight.shape[1] + 1, dim)  # each image's, the bias in the last row
    with torch.cuda.device_of(x):
        _conv_backward_kernel[(triton.cdiv(dim, CHANNELS), batch)](
            grad, x, weight, to_x, parts, length, dim, *x.stride()[:2],
            WIDTH=weight.shape[1], TOKENS=TOKENS, CHANNELS=CHANNELS,
        )  # fmt: skip
    whole = parts.sum(0)
    to_weight.copy_(whole[:-1].mT)
    return to_x, to_weight, to_bias.copy_(whole[-1])


@_conv_backward.register_fake
def _empty_grads(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape, dtype=torch.float32),
        weight.new_empty(weight.shape[:1], dtype=torch.float32),
    )


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias = _conv_backward(grad, x, weight)
    return to_x, to_weight.to(weight.dtype), None if ctx.bias_dtype is None else to_bias.to(ctx.bias_dtype)


_conv.register_autograd(_backward, setup_context=_save)


def _rows(x: Tensor) -> Tensor:
    """Half of a projection is read where it lies; any other order of the numbers is put right."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def _conv_kernel(
    x, weight, bias, out, length, dim, stride_b, stride_t,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(dim, CHANNELS)
    t = tl.program_id(0) // tiles * TOKENS + tl.arange(0, TOKENS)
    e = tl.program_id(0) % tiles * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(1).to(tl.int64)
    acc = tl.zeros((TOKENS, CHANNELS), tl.float32)
    if HAS_BIAS:
        acc += tl.load(bias + e, e < dim, 0.0).to(tl.float32)[None, :]
    for lag in tl.static_range(WIDTH):
        tap = tl.load(weight + e * WIDTH + (WIDTH - 1 - lag), e < dim, 0.0).to(tl.float32)
        seen = ((t >= lag) & (t < length))[:, None] & (e < dim)[None, :]
        value = tl.load(x + image * stride_b + (t - lag)[:, None] * stride_t + e[None, :], seen, 0.0)
        acc += tap[None, :] * value.to(tl.float32)
    where = (image * length + t)[:, None] * dim + e[None, :]
    tl.store(out + where, acc.to(out.dtype.element_ty), (t < length)[:, None] & (e < dim)[None, :])


@triton.jit
def _conv_backward_kernel(
    grad, x, weight, to_x, parts, length, dim, stride_b, stride_t,
    WIDTH: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, triton.next_power_of_2(WIDTH + 1))
    sums = tl.zeros((triton.next_power_of_2(WIDTH + 1), CHANNELS), tl.float32)  # the taps', in their order; the bias's
    for first in tl.range(0, length, TOKENS):
        t = first + tl.arange(0, TOKENS)
        live = (t < length)[:, None] & (e < dim)[None, :]
        here = tl.load(x + image * stride_b + t[:, None] * stride_t + e[None, :], live, 0.0).to(tl.float32)
        acc = tl.zeros((TOKENS, CHANNELS), tl.float32)
        for lag in tl.static_range(WIDTH):
            tap = tl.load(weight + e * WIDTH + (WIDTH - 1 - lag), e < dim, 0.0).to(tl.float32)
            later = (t + lag < length)[:, None] & (e < dim)[None, :]
            slope = tl.load(grad + (image * length + t + lag)[:, None] * dim + e[None, :], later, 0.0).to(tl.float32)
            acc += tap[None, :] * slope
            sums += tl.where(row[:, None] == WIDTH - 1 - lag, tl.sum(slope * here, 0)[None, :], 0.0)
            if lag == 0:
                sums += tl.where(row[:, None] == WIDTH, tl.sum(slope, 0)[None, :], 0.0)
        tl.store(to_x + (image * length + t)[:, None] * dim + e[None, :], acc.to(to_x.dtype.element_ty), live)
    where = (image * (WIDTH + 1) + row)[:, None] * dim + e[None, :]
    tl.store(parts + where, sums, (row <= WIDTH)[:, None] & (e < dim)[None, :])
