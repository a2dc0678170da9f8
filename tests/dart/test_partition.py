"""Theorems of the partition: it tiles the image, in equal masses, for any density, size and budget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dart.partition import flow_partition, invert_cdf, overlap, plan_rows, uniform_partition


@st.composite
def cases(draw):
    grid = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    budget = draw(st.integers(1, 70))
    rows = draw(st.integers(1, budget))
    img_size = draw(st.integers(8, 300)), draw(st.integers(8, 300))
    density = torch.rand(2, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(budget)) ** 3 + 1e-3
    return density / density.sum((1, 2), keepdim=True), plan_rows(budget, rows), img_size


@given(cases())
@settings(max_examples=60, deadline=None)
def test_regions_tile_the_image(case):
    density, counts, (height, width) = case
    partition = flow_partition(density, counts, (height, width))
    regions = partition.regions()
    assert regions.shape == (2, sum(counts), 4)
    x0, y0, x1, y1 = regions.unbind(-1)
    assert (x1 > x0).all()
    assert (y1 > y0).all()
    torch.testing.assert_close(((x1 - x0) * (y1 - y0)).sum(1), torch.full((2,), float(height * width)).double())
    # In reading order each token begins where the one before it ends, or at the left of the next row.
    starts = torch.cumsum(torch.tensor((0, *counts)), 0)
    for row in range(len(counts)):
        tokens = slice(int(starts[row]), int(starts[row + 1]))
        assert (x0[:, tokens][:, 0] == 0).all()
        assert (x1[:, tokens][:, -1] == width).all()
        assert torch.equal(x0[:, tokens][:, 1:], x1[:, tokens][:, :-1])
    assert (partition.row_edges[:, 0] == 0).all()
    assert (partition.row_edges[:, -1] == height).all()


@given(cases())
@settings(max_examples=60, deadline=None)
def test_every_token_holds_the_same_mass(case):
    density, counts, img_size = case
    regions = flow_partition(density, counts, img_size).regions()
    for b in range(len(density)):
        x0, y0, x1, y1 = regions[b].unbind(-1)
        cells_y = density.shape[1] / img_size[0] * torch.stack([y0, y1], -1)
        cells_x = density.shape[2] / img_size[1] * torch.stack([x0, x1], -1)
        rows, cols = overlap(cells_y, density.shape[1])[:, 0], overlap(cells_x, density.shape[2])[:, 0]
        mass = torch.einsum("ny,nx,yx->n", rows, cols, density[b])
        torch.testing.assert_close(mass, torch.full_like(mass, 1 / sum(counts)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("budget", [1, 7, 16, 36, 63, 121, 196])
def test_constant_density_gives_the_uniform_partition(budget):
    counts = plan_rows(budget)
    density = torch.full((1, 12, 12), 1 / 144, dtype=torch.float64)
    ours = flow_partition(density, counts, (96, 80))
    closed = uniform_partition(counts, (96, 80), density.device, density.dtype)
    torch.testing.assert_close(ours.row_edges, closed.row_edges)
    torch.testing.assert_close(ours.col_edges, closed.col_edges)


def test_an_empty_cell_is_crossed_without_nan():
    mass = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.5, 0.0]], requires_grad=True)
    position = invert_cdf(mass, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(position.detach(), torch.tensor([[1.5, 2.0, 4.5]]))
    position.sum().backward()
    assert torch.isfinite(mass.grad).all()


def test_gradients_are_exact():
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(2, 5, 7, dtype=torch.float64, generator=generator) + 0.2
    density.requires_grad_()

    def edges(density):
        partition = flow_partition(density, plan_rows(11, 3), (40, 56))
        return partition.row_edges, partition.col_edges

    assert torch.autograd.gradcheck(edges, (density,))


def test_more_density_makes_smaller_regions():
    density = torch.full((1, 8, 8), 1.0)
    density[0, 2, 5] = 30.0
    regions = flow_partition(density / density.sum(), plan_rows(36), (64, 64)).regions()[0]
    x0, y0, x1, y1 = regions.unbind(-1)
    inside = (x0 < 44) & (x1 > 44) & (y0 < 20) & (y1 > 20)
    area = (x1 - x0) * (y1 - y0)
    assert area[inside].item() < 0.1 * area.mean()


def test_plan_rows():
    assert plan_rows(36) == (6,) * 6
    assert plan_rows(196) == (14,) * 14
    assert sum(plan_rows(37, 6)) == 37
    assert max(plan_rows(37, 6)) - min(plan_rows(37, 6)) == 1
    with pytest.raises(ValueError, match=r"num_rows = 5: must be from 1 to num_patches \(4\)"):
        plan_rows(4, 5)
