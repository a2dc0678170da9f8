"""Theorems of the partitions: they tile the image, in the promised masses, for any density, size and budget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dart.kernels import invert_cdf
from dart.partition import flow_regions, grid_regions, overlap, partition_image, plan_grid, plan_rows, uniform_regions
from dart.pos_embed import region_shares

F64 = torch.float64


@st.composite
def cases(draw):
    grid = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    budget = draw(st.integers(1, 70))
    rows = draw(st.integers(1, budget))
    img_size = draw(st.integers(8, 300)), draw(st.integers(8, 300))
    density = torch.rand(2, *grid, dtype=F64, generator=torch.Generator().manual_seed(budget)) ** 3 + 1e-3
    return density / density.sum((1, 2), keepdim=True), budget, rows, img_size


def masses(regions, density, img_size):
    """The density in each region: (B, N)."""
    return region_shares(regions, img_size, tuple(density.shape[1:])) @ density.flatten(1)[..., None]


@given(cases(), st.sampled_from(["mass", "density"]))
@settings(max_examples=80, deadline=None)
def test_flow_regions_tile_the_image(case, row_weight):
    density, budget, rows, (height, width) = case
    regions = flow_regions(density, budget, rows, (height, width), row_weight)
    assert regions.shape == (2, budget, 4)
    for x0, y0, x1, y1 in (image.unbind(-1) for image in regions):
        assert (x1 > x0).all()
        assert (y1 > y0).all()
        begins = torch.nonzero(x0 == 0).flatten().tolist()  # in reading order, a row begins at the left edge
        assert len(begins) == rows
        for first, last in zip(begins, [*begins[1:], budget], strict=True):
            assert x1[last - 1] == width
            assert torch.equal(x0[first + 1 : last], x1[first : last - 1])
            assert y0[first:last].unique().numel() == y1[first:last].unique().numel() == 1
            assert y1[first] == (y0[last] if last < budget else height)
        assert y0[0] == 0


@given(cases())
@settings(max_examples=60, deadline=None)
def test_by_row_mass_every_token_holds_the_same_mass(case):
    density, budget, rows, img_size = case
    held = masses(flow_regions(density, budget, rows, img_size), density, img_size)
    torch.testing.assert_close(held, torch.full_like(held, 1 / budget), rtol=1e-9, atol=1e-12)


def test_by_row_density_dense_rows_get_more_tokens():
    density = torch.ones(1, 8, 8, dtype=F64)
    density[:, 2:4] = 10  # a quarter of the height holds three quarters of the mass
    regions = flow_regions(density / density.sum(), 64, 8, (64, 64), "density")[0]
    inside = (regions[:, 1] >= 16) & (regions[:, 3] <= 32)
    assert inside.sum() > 50, "48 tokens by mass"
    # Inside one row the tokens still hold equal masses.
    held = masses(regions[None], density / density.sum(), (64, 64))[0, :, 0]
    for y0 in regions[:, 1].unique():
        row = held[regions[:, 1] == y0]
        torch.testing.assert_close(row, row.mean().expand_as(row))


@given(cases())
@settings(max_examples=40, deadline=None)
def test_grid_regions_are_the_product_of_equal_margins(case):
    density, rows, _, (height, width) = case
    rows, cols = rows % 9 + 1, rows % 7 + 1
    regions = grid_regions(density, (rows, cols), (height, width))
    x0, y0, x1, y1 = regions.unflatten(1, (rows, cols)).unbind(-1)
    assert (x0 == x0[:, :1]).all()
    assert (y1 == y1[:, :, :1]).all()
    assert (x0[..., 0] == 0).all()
    assert (x1[..., -1] == width).all()
    assert (y0[:, 0] == 0).all()
    assert (y1[:, -1] == height).all()
    assert torch.equal(x0[..., 1:], x1[..., :-1])
    assert torch.equal(y0[:, 1:], y1[:, :-1])
    held = masses(regions, density, (height, width)).view(2, rows, cols)
    torch.testing.assert_close(held.sum(2), torch.full_like(held.sum(2), 1 / rows))
    torch.testing.assert_close(held.sum(1), torch.full_like(held.sum(1), 1 / cols))


@pytest.mark.parametrize("budget", [1, 7, 16, 36, 63, 121, 196])
@pytest.mark.parametrize("partition", ["flow", "grid"])
def test_constant_density_gives_the_uniform_partition(budget, partition):
    density = torch.full((1, 12, 12), 1 / 144, dtype=F64)
    ours = partition_image(density, (96, 80), budget, partition=partition)
    closed = uniform_regions(budget, None, (96, 80), density.device, density.dtype, partition)
    torch.testing.assert_close(ours, closed)


def test_an_empty_cell_is_crossed_without_nan():
    mass = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.5, 0.0]], requires_grad=True)
    position = invert_cdf(mass, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(position.detach(), torch.tensor([[1.5, 2.0, 4.5]]))
    position.sum().backward()
    assert torch.isfinite(mass.grad).all()


@pytest.mark.parametrize("options", [{}, {"row_weight": "density"}, {"partition": "grid", "num_rows": 3}])
def test_gradients_are_exact(options):
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(2, 5, 7, dtype=F64, generator=generator) + 0.2
    density.requires_grad_()
    assert torch.autograd.gradcheck(lambda d: partition_image(d, (40, 56), 12, **options), (density,))


def test_more_density_makes_smaller_regions():
    density = torch.full((1, 8, 8), 1.0)
    density[0, 2, 5] = 30.0
    x0, y0, x1, y1 = flow_regions(density / density.sum(), 36, 6, (64, 64))[0].unbind(-1)
    inside = (x0 < 44) & (x1 > 44) & (y0 < 20) & (y1 > 20)
    area = (x1 - x0) * (y1 - y0)
    assert area[inside].item() < 0.1 * area.mean()


def test_overlap_is_a_partition_of_unity():
    edges = torch.tensor([0.0, 0.4, 2.7, 3.0])
    shares = overlap(edges, 3)
    torch.testing.assert_close(shares.sum(0), torch.ones(3))
    torch.testing.assert_close(shares.sum(1), edges.diff())


def test_plans():
    assert plan_rows(36) == 6
    assert plan_rows(392) == 20
    assert plan_rows(37, 6) == 6
    assert plan_grid(196) == (14, 14)
    assert plan_grid(392) == (14, 28)
    assert plan_grid(36, 4) == (4, 9)
    with pytest.raises(ValueError, match=r"num_rows = 5: must be from 1 to num_patches \(4\)"):
        plan_rows(4, 5)
    with pytest.raises(ValueError, match="num_rows = 5: a grid of 36 tokens needs a divisor; try 4"):
        plan_grid(36, 5)


@pytest.mark.parametrize("options", [{"partition": "quad"}, {"row_weight": "height"}])
def test_unknown_names_are_refused(options):
    with pytest.raises(ValueError, match=r"= '(quad|height)': unknown; known: "):
        partition_image(torch.ones(1, 2, 2), (8, 8), 4, **options)
