"""`embed_regions` in Triton: samples are gathered from the image as operands of the projection; patches never exist.

# B batch, C channels, N tokens, M = B N, P patch side, K = C P P, D embedding
One program makes a tile (tokens, embedding): it gathers (tokens, BLOCK_K) samples at a time and multiplies them by the
same columns of the weight. Fusing pays where tensor cores multiply: float32 without TF32 is left to torch's product. In
either case the backward pass gathers the patches again, for as long as it takes to use them.
"""

# mypy: disable-error-code="no-untyped-def"
# The parameters of a kernel are pointers and numbers that Triton types by itself.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from dart.kernels.sample_regions_triton import backward_of_patches, cells, is_area, layout, read, sample

# As many programs as a large GPU has processors: below it tiles shrink, above it they grow.
MIN_PROGRAMS = 128


def embed_regions_triton(images: Tensor, regions: Tensor, weight: Tensor, bias: Tensor | None, sampling: str) -> Tensor:
    """See `dart.kernels.embed_regions`."""
    return _embed(images, regions, weight, bias, is_area(sampling))


@torch.library.custom_op("dart::embed_regions", mutates_args=())
def _embed(images: Tensor, regions: Tensor, weight: Tensor, bias: Tensor | None, area: bool) -> Tensor:
    """(B, C, H, W) of any strides, (B or 1, N, 4), (D, C, P, P), (D,) -> (B, N, D)."""
    regions, weight = regions.contiguous(), weight.contiguous()
    out = _empty_tokens(images, regions, weight, bias, area)
    if not out.numel():
        return out
    if weight.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        patches = sample(images, regions, weight.shape[-1], area).flatten(2)
        return F.linear(patches.to(weight.dtype), weight.flatten(1), bias)
    num_tokens, dim = out.shape[0] * out.shape[1], out.shape[2]
    tile = _tile(num_tokens, dim, weight.itemsize)
    grid = (triton.cdiv(num_tokens, tile["BLOCK_M"]) * triton.cdiv(dim, tile["BLOCK_D"]),)
    with torch.cuda.device_of(images):
        _embed_kernel[grid](
            images, regions, weight, weight if bias is None else bias, out, num_tokens, dim, *layout(images, regions),
            CHANNELS=weight.shape[1], PATCH=weight.shape[2], AREA=area, HAS_BIAS=bias is not None,
            WIDE=triton.knobs.runtime.interpret, **tile,
        )  # fmt: skip
    return out


@_embed.register_fake
def _empty_tokens(images: Tensor, regions: Tensor, weight: Tensor, bias: Tensor | None, area: bool) -> Tensor:
    return weight.new_empty(images.shape[0], regions.shape[1], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
    images, regions, weight, _, ctx.area = inputs
    ctx.save_for_backward(images, regions, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    images, regions, weight = ctx.saved_tensors
    rows = grad.flatten(0, 1)  # (M, D)
    to_images = to_regions = to_weight = to_bias = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        patches = (rows @ weight.flatten(1)).view(*grad.shape[:2], *weight.shape[1:])
        to_images, to_regions = backward_of_patches(ctx, patches, images, regions, ctx.area)
    if ctx.needs_input_grad[2]:
        patches = sample(images, regions, weight.shape[-1], ctx.area).flatten(2).flatten(0, 1)  # (M, K)
        to_weight = (rows.mT @ patches.to(rows.dtype)).view(weight.shape)
    if ctx.needs_input_grad[3]:
        to_bias = rows.sum(0)
    return to_images, to_regions, to_weight, to_bias, None


_embed.register_autograd(_backward, setup_context=_save)


def _tile(num_tokens: int, dim: int, itemsize: int) -> dict[str, int]:
    """One tile as wide as the embedding gathers each sample once; few tokens are shared out among more programs.

    The largest tiles are those that compile for sm_90 without spilling registers; how fast they are is not measured.
    """
    tokens, width = 32, min(max(triton.next_power_of_2(dim), 16), 1024 // itemsize)

    def programs() -> int:
        return triton.cdiv(num_tokens, tokens) * triton.cdiv(dim, width)

    if programs() < MIN_PROGRAMS:
        tokens = 16
    while programs() < MIN_PROGRAMS and width > 64:
        width //= 2
    warps = 8 if tokens * width >= 4096 else 4
    return {"BLOCK_M": tokens, "BLOCK_D": width, "BLOCK_K": 32, "num_warps": warps, "num_stages": 2}


@triton.jit
def _embed_kernel(
    images, regions, weight, bias, out, all_tokens, dim,
    num_tokens, height, width, stride_b, stride_c, stride_y, stride_x, stride_r,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr, AREA: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(dim, BLOCK_D)
    token = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(0) % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    live = token < all_tokens
    b, n = token // num_tokens, token % num_tokens
    region = regions + b * stride_r + n * 4
    left = tl.load(region, live, 0.0)[:, None]
    top = tl.load(region + 1, live, 0.0)[:, None]
    right = tl.load(region + 2, live, 0.0)[:, None]
    bottom = tl.load(region + 3, live, 0.0)[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in tl.range(0, CHANNELS * PATCH * PATCH, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)  # runs through (C, P, P)
        inside = k < CHANNELS * PATCH * PATCH
        y, y0, y1 = cells(top, bottom, (k // PATCH % PATCH)[None, :], PATCH)
        x, x0, x1 = cells(left, right, (k % PATCH)[None, :], PATCH)
        image = images + (b * stride_b)[:, None] + (k // (PATCH * PATCH) * stride_c)[None, :]
        mask = live[:, None] & inside[None, :]
        value = read(image, mask, height, width, stride_y, stride_x, y, y0, y1, x, x0, x1, AREA)
        columns = weight + d[None, :] * (CHANNELS * PATCH * PATCH) + k[:, None]
        w = tl.load(columns, (d < dim)[None, :] & inside[:, None], 0.0)  # (BLOCK_K, BLOCK_D)
        value = value.to(w.dtype)
        if WIDE:  # the interpreter multiplies bfloat16 as if it were integers
            value, w = value.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(value, w, acc, input_precision="tf32")  # says nothing of 16 bits
    if HAS_BIAS:
        acc += tl.load(bias + d, d < dim, 0.0).to(tl.float32)[None, :]
    where = out + token[:, None] * dim + d[None, :]
    tl.store(where, acc.to(out.dtype.element_ty), live[:, None] & (d < dim)[None, :])
