"""Theorems of the sampling: exact box means, exact interpolation, exact gradients."""

import pytest
import torch
from torch.nn import functional as F

from dart.kernels import sample_regions
from dart.partition import flow_regions, overlap, uniform_regions

CPU = torch.device("cpu")


def random_regions(batch: int, num_patches: int, num_rows: int, img_size: tuple[int, int], seed: int = 0):
    density = torch.rand(batch, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    return flow_regions(density, num_patches, num_rows, img_size)


def cell_edges(start, stop, parts: int):
    return start + (stop - start) * torch.arange(parts + 1, dtype=torch.float64) / parts


@pytest.mark.parametrize("sampling", ["area", "point"])
def test_uniform_regions_of_patch_size_are_the_patches(sampling):
    images = torch.rand(2, 3, 32, 48)
    patches = sample_regions(images, uniform_regions(24, 4, (32, 48), CPU, torch.float32), 8, sampling)
    expected = F.unfold(images, 8, stride=8).transpose(1, 2).reshape(2, 24, 3, 8, 8)
    torch.testing.assert_close(patches, expected, rtol=1e-5, atol=1e-5)


def test_area_sampling_is_the_exact_box_filter():
    images = torch.rand(2, 2, 30, 44, dtype=torch.float64)
    regions = random_regions(2, 13, 3, (30, 44))
    patches = sample_regions(images, regions, 4)
    for b in range(2):
        for n, (x0, y0, x1, y1) in enumerate(regions[b]):
            x, y = cell_edges(x0, x1, 4), cell_edges(y0, y1, 4)
            wx, wy = overlap(x, 44) / x.diff()[:, None], overlap(y, 30) / y.diff()[:, None]
            torch.testing.assert_close(patches[b, n], torch.einsum("ph,chw,qw->cpq", wy, images[b], wx))


def test_float32_keeps_the_precision_of_a_large_bright_image():
    images = torch.rand(1, 1, 448, 448) + 10
    regions = random_regions(1, 196, 14, (448, 448))
    exact = sample_regions(images.double(), regions, 16)
    torch.testing.assert_close(sample_regions(images, regions.float(), 16), exact.float(), rtol=0, atol=2e-4)


def test_point_sampling_is_bilinear_interpolation():
    images = torch.rand(2, 2, 30, 44, dtype=torch.float64)
    regions = random_regions(2, 13, 3, (30, 44))
    patches = sample_regions(images, regions, 4, "point")
    for b in range(2):
        for n, (x0, y0, x1, y1) in enumerate(regions[b]):
            x, y = (((e[1:] + e[:-1]) / 2 - 0.5) for e in (cell_edges(x0, x1, 4), cell_edges(y0, y1, 4)))
            wx, wy = tent(x.clamp(0, 43), 44), tent(y.clamp(0, 29), 30)
            torch.testing.assert_close(patches[b, n], torch.einsum("ph,chw,qw->cpq", wy, images[b], wx))


def tent(positions, size: int):
    """The weights of linear interpolation at positions counted from the centre of pixel 0."""
    return (1 - (positions[:, None] - torch.arange(size)).abs()).clamp(min=0)


@pytest.mark.parametrize("sampling", ["area", "point"])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_exact(sampling, shared):
    images = torch.rand(2, 2, 12, 15, dtype=torch.float64, requires_grad=True)
    # Inside the image and off the pixel grid: at borders the derivative has two sides.
    regions = (random_regions(1 if shared else 2, 7, 3, (12, 15)) * 0.9 + 0.53).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, r: sample_regions(i, r, 3, sampling), (images, regions))


@pytest.mark.parametrize("sampling", ["area", "point"])
def test_shared_regions_are_those_of_each_image(sampling):
    images = torch.rand(3, 2, 20, 20, dtype=torch.float64)
    regions = random_regions(1, 5, 2, (20, 20))
    expected = sample_regions(images, regions.expand(3, -1, -1), 4, sampling)
    torch.testing.assert_close(sample_regions(images, regions, 4, sampling), expected)


@pytest.mark.parametrize("sampling", ["area", "point"])
@pytest.mark.parametrize("side", [1e-6, 1e-3, 0.5, 40])
def test_a_constant_image_stays_constant(sampling, side):
    images = torch.full((1, 1, 40, 40), 3.5)
    regions = torch.tensor([[[7.3, 9.1, 7.3 + side, 9.1 + side], [0, 0, 40, 40]]]).clamp(max=40)
    patches = sample_regions(images, regions, 5, sampling)
    torch.testing.assert_close(patches, torch.full((1, 2, 1, 5, 5), 3.5))


def test_area_sampling_does_not_alias():
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)[None, None]
    quarters = uniform_regions(4, 2, (32, 32), CPU, torch.float32)
    assert sample_regions(checkerboard, quarters, 8).abs().max() < 1e-5
    shifted = uniform_regions(1, 1, (32, 32), CPU, torch.float32) + 0.5
    assert sample_regions(checkerboard, shifted, 4, "point").abs().max() > 0.9


@pytest.mark.parametrize("sampling", ["area", "point"])
def test_regions_that_are_not_numbers_do_not_read_wild_addresses(sampling):
    patches = sample_regions(torch.rand(1, 1, 16, 16), torch.full((1, 2, 4), torch.nan), 4, sampling)
    assert patches.shape == (1, 2, 1, 4, 4)


def test_an_unknown_sampling_is_refused():
    with pytest.raises(ValueError, match="sampling = 'box': unknown; known: 'area', 'point'"):
        sample_regions(torch.rand(1, 1, 8, 8), torch.tensor([[[0.0, 0, 8, 8]]]), 2, "box")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(2, 3, 37, 53), (1, 1, 1, 9), (2, 1, 9, 1), (0, 3, 8, 8)])
def test_images_with_and_without_a_gradient_are_summed_to_the_same_bits(size, dtype):
    images = torch.rand(size).to(dtype)
    regions = torch.tensor([[[0.0, 0.0, size[3], size[2]], [0.3, 0.1, 0.9, 0.8]]]).expand(size[0], -1, -1)
    with_gradient = sample_regions(images.clone().requires_grad_(), regions, 4, "area")
    assert torch.equal(sample_regions(images, regions, 4, "area"), with_gradient)
