"""Theorems of the sampling: exact box means, exact interpolation, exact gradients."""

import pytest
import torch
from torch.nn import functional as F

from dart.partition import flow_partition, overlap, plan_rows, uniform_partition
from dart.sampling import sample_patches, subdivide


def random_partition(batch: int, counts: tuple[int, ...], img_size: tuple[int, int], seed: int = 0):
    density = torch.rand(batch, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    return flow_partition(density, counts, img_size)


def test_uniform_regions_of_patch_size_are_the_patches():
    images = torch.rand(2, 3, 32, 48)
    partition = uniform_partition(plan_rows(24, 4), (32, 48), images.device, torch.float32)
    patches = sample_patches(images, partition, 8)
    expected = F.unfold(images, 8, stride=8).transpose(1, 2).reshape(2, 24, 3, 8, 8)
    torch.testing.assert_close(patches, expected, rtol=1e-5, atol=1e-5)


def test_area_sampling_is_the_exact_box_filter():
    images = torch.rand(2, 2, 30, 44, dtype=torch.float64)
    counts, patch = plan_rows(13, 3), 4
    partition = random_partition(2, counts, (30, 44))
    patches = sample_patches(images, partition, patch)
    regions = partition.regions()
    for b in range(2):
        for n in range(13):
            x = subdivide(regions[b, n, [0, 2]], patch)
            y = subdivide(regions[b, n, [1, 3]], patch)
            wx, wy = overlap(x, 44) / x.diff()[:, None], overlap(y, 30) / y.diff()[:, None]
            torch.testing.assert_close(patches[b, n], torch.einsum("ph,chw,qw->cpq", wy, images[b], wx))


def test_point_sampling_is_bilinear_interpolation():
    images = torch.rand(2, 2, 30, 44, dtype=torch.float64)
    counts, patch = plan_rows(13, 3), 4
    partition = random_partition(2, counts, (30, 44))
    patches = sample_patches(images, partition, patch, "point")
    regions = partition.regions()
    offsets = (torch.arange(patch, dtype=torch.float64) + 0.5) / patch
    for n in range(13):
        x = regions[:, n, :1] + (regions[:, n, 2:3] - regions[:, n, :1]) * offsets
        y = regions[:, n, 1:2] + (regions[:, n, 3:] - regions[:, n, 1:2]) * offsets
        where = torch.stack([2 * x / 44 - 1, 2 * y / 30 - 1], -1)
        grid = torch.stack([where[:, None, :, 0].expand(-1, patch, -1), where[:, :, None, 1].expand(-1, -1, patch)], -1)
        expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        torch.testing.assert_close(patches[:, n], expected)


@pytest.mark.parametrize("sampling", ["area", "point"])
def test_gradients_are_exact(sampling):
    images = torch.rand(2, 1, 12, 15, dtype=torch.float64, requires_grad=True)
    density = (torch.rand(2, 4, 4, dtype=torch.float64) + 0.3).requires_grad_()

    def patches(images, density):
        partition = flow_partition(density, plan_rows(7, 3), (12, 15))
        return sample_patches(images, partition, 3, sampling)

    assert torch.autograd.gradcheck(patches, (images, density))


@pytest.mark.parametrize("sampling", ["area", "point"])
def test_a_constant_image_stays_constant(sampling):
    images = torch.full((1, 1, 40, 40), 3.5)
    partition = random_partition(1, plan_rows(9), (40, 40))
    torch.testing.assert_close(
        sample_patches(images.double(), partition, 5, sampling), torch.full((1, 9, 1, 5, 5), 3.5).double()
    )


def test_area_sampling_does_not_alias():
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)[None, None]
    partition = uniform_partition(plan_rows(4), (32, 32), checkerboard.device, torch.float32)
    area, point = (sample_patches(checkerboard, partition, 8, kind) for kind in ("area", "point"))
    assert area.abs().max() < 1e-5
    shifted = uniform_partition(plan_rows(1), (32, 32), checkerboard.device, torch.float32)
    moved = shifted._replace(row_edges=shifted.row_edges + 0.5, col_edges=shifted.col_edges + 0.5)
    assert sample_patches(checkerboard, moved, 4, "point").abs().max() > 0.9
    assert point.shape == area.shape
