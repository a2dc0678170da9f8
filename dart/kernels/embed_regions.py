"""Regions -> tokens: every region is read at P x P pixels and projected, without keeping the patches where it pays.

# B batch, C channels, H W image pixels, N tokens, P patch side, D embedding
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels.dispatch import use_triton
from dart.kernels.sample_regions import sample_regions_reference


def embed_regions(
    images: Tensor, regions: Tensor, weight: Tensor, bias: Tensor | None = None, sampling: str = "area"
) -> Tensor:
    """Read each region at patch resolution and project it, as a P x P convolution of stride P does on a grid.

    Args:
        images: (B, C, H, W).
        regions: (B, N, 4) x0, y0, x1, y1 in pixels, or (1, N, 4) that all images share.
        weight: (D, C, P, P), the layout of timm's `patch_embed.proj`.
        bias: (D,) or None.
        sampling: "area" or "point", see `sample_regions`.

    Returns:
        (B, N, D) in the dtype of `weight`, or autocast's; differentiable in every tensor.
    """
    if use_triton(images, regions, weight):
        from dart.kernels.embed_regions_triton import embed_regions_triton

        return embed_regions_triton(images, regions, *_autocast(weight, bias), sampling)
    return embed_regions_reference(images, regions, weight, bias, sampling)


def embed_regions_reference(
    images: Tensor, regions: Tensor, weight: Tensor, bias: Tensor | None, sampling: str
) -> Tensor:
    """The plain PyTorch twin: one look-up, one matrix product."""
    patches = sample_regions_reference(images, regions, weight.shape[-1], sampling)
    return F.linear(patches.flatten(2).to(weight.dtype), weight.flatten(1), bias)


def _autocast(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The projection in autocast's dtype, as `F.linear` would have it. Images and regions stay as they are."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device):
        return weight, bias
    dtype = torch.get_autocast_dtype(device)
    return weight.to(dtype), None if bias is None else bias.to(dtype)
