"""The plain twin of `embed_regions`."""

import pytest
import torch
from torch.nn import functional as F

from dart.kernels import embed_regions, sample_regions


@pytest.mark.parametrize("sampling", ["area", "point"])
@pytest.mark.parametrize(("patch_size", "height", "width"), [(5, 15, 20), (8, 24, 16), (16, 32, 48)])
def test_a_grid_gives_timms_patch_embed(patch_size: int, height: int, width: int, sampling: str) -> None:
    """timm's `PatchEmbed` is this convolution."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, height, width)
    weight, bias = torch.randn(7, 3, patch_size, patch_size), torch.randn(7)
    corner = torch.cartesian_prod(torch.arange(0, height, patch_size), torch.arange(0, width, patch_size)).flip(-1)
    regions = torch.cat([corner, corner + patch_size], -1)[None].float()
    expected = F.conv2d(images, weight, bias, stride=patch_size).flatten(2).mT
    torch.testing.assert_close(embed_regions(images, regions, weight, bias, sampling), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("sampling", ["area", "point"])
def test_it_is_the_projection_of_the_sampled_patches(sampling: str) -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(2, 4, 9, 13), torch.randn(6, 4, 5, 5)
    regions = torch.rand(2, 7, 2, 2).sort(2).values.flatten(2) * 9
    patches = sample_regions(images, regions, 5, sampling)
    expected = torch.einsum("bncij,dcij->bnd", patches, weight)
    torch.testing.assert_close(embed_regions(images, regions, weight, None, sampling), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling", ["area", "point"])
def test_gradcheck(sampling: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor([[[0.3, 0.7, 4.15, 5.2], [2.6, 1.45, 6.3, 3.35]]], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: embed_regions(*t, sampling), (images, regions, weight, bias))


def test_autocast_sets_the_dtype() -> None:
    images, regions, weight = torch.ones(1, 3, 8, 8), torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), torch.ones(2, 3, 4, 4)
    assert embed_regions(images, regions, weight).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert embed_regions(images, regions, weight).dtype == torch.bfloat16


def test_unknown_sampling() -> None:
    with pytest.raises(ValueError, match="sampling = 'nearest': unknown"):
        embed_regions(torch.ones(1, 3, 8, 8), torch.ones(1, 1, 4), torch.ones(2, 3, 4, 4), None, "nearest")
