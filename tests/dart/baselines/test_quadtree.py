"""Theorems of the entropy quadtree: it tiles, it has N leaves, it is APT's rule, and with one level it is the grid."""

import math
from bisect import bisect_left

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dart.models  # noqa: F401 (registers the models)
from dart.baselines.quadtree import (
    NUM_BINS,
    QuadtreeTokenizer,
    StartGrid,
    cell_boxes,
    cell_entropies,
    count_levels,
    plan_quadtree,
    quadtree_regions,
    z_order,
)
from dart.partition import uniform_regions

CPU, F64 = torch.device("cpu"), torch.float64


def build(**kwargs) -> QuadtreeTokenizer:
    torch.manual_seed(0)
    kwargs = {"img_size": 96, "patch_size": 8, "in_chans": 1, "embed_dim": 24, "token_budget": 36, **kwargs}
    return QuadtreeTokenizer(scorer=None, **kwargs)


def draw_importance(grid: StartGrid, num_levels: int, batch: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [grid.rows * grid.cols * 4**level for level in range(num_levels + 1)]
    return [torch.rand(batch, size, dtype=F64, generator=generator) for size in sizes]


def split_by_threshold(importance: list[torch.Tensor], image: int, threshold: float) -> list[tuple[int, int]]:
    """APT's rule, cell by cell: the leaves (level, node) of the tree split wherever a cell exceeds the threshold."""
    leaves, waiting = [], [(0, node) for node in range(importance[0].shape[1])]
    while waiting:
        level, node = waiting.pop()
        if level + 1 < len(importance) and importance[level][image, node] > threshold:
            waiting += [(level + 1, 4 * node + i) for i in range(4)]
        else:
            leaves.append((level, node))
    return leaves


@given(budget=st.integers(1, 500), aspect=st.sampled_from([1.0, 0.4, 1.7, 8.0, 0.1]))
@settings(deadline=None, max_examples=150)
def test_every_budget_has_a_start_grid_of_about_square_cells(budget, aspect):
    grid = plan_quadtree(budget, None, aspect)
    assert grid.rows * grid.cols + 3 * grid.num_splits == budget
    if aspect == 1.0:
        assert (grid.rows == grid.cols) == (budget % 3 != 2 and budget not in (3, 6))


def test_a_budget_that_its_rows_do_not_allow_is_one_sentence():
    assert plan_quadtree(36, 6) == StartGrid(6, 6, 0)
    with pytest.raises(ValueError, match=r"token_budget = 37: a quadtree over 3 rows of cells .*; try 36, or another"):
        plan_quadtree(37, 3)
    with pytest.raises(ValueError, match="try 39"):
        plan_quadtree(38, 3)
    with pytest.raises(ValueError, match=r"num_rows = 37: must be from 1 to num_patches \(36\)"):
        build(num_rows=37)
    with pytest.raises(ValueError, match="token_budget = 37: a quadtree over 3 rows"):
        build(token_budget=37, num_rows=3)


@pytest.mark.parametrize("size", [(96, 96), (64, 130), (41, 30), (448, 448)])
@pytest.mark.parametrize("budget", [1, 2, 9, 36, 64, 121, 196])
def test_regions_tile_the_image_and_are_as_many_as_asked(size, budget):
    found = build().inspect(torch.rand(2, 1, *size), num_patches=budget)
    x0, y0, x1, y1 = found.regions.double().unbind(-1)
    assert found.regions.shape == (2, budget, 4)
    assert ((x0 >= 0) & (y0 >= 0) & (x1 <= size[1]) & (y1 <= size[0]) & (x0 < x1) & (y0 < y1)).all()
    torch.testing.assert_close(((x1 - x0) * (y1 - y0)).sum(1), torch.full((2,), float(size[0] * size[1]), dtype=F64))
    width = torch.minimum(x1[:, :, None], x1[:, None]) - torch.maximum(x0[:, :, None], x0[:, None])
    height = torch.minimum(y1[:, :, None], y1[:, None]) - torch.maximum(y0[:, :, None], y0[:, None])
    common = (width.clamp(min=0) * height.clamp(min=0)).triu(1)
    assert common.max() < 1e-2  # rounding: no two regions share a pixel
    torch.testing.assert_close(found.density.sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize("budget", [9, 36, 144])
def test_a_quadtree_with_one_level_is_the_uniform_grid(budget):
    """With as many start cells as tokens nothing is split: regions, their order and so the tokens are the grid's."""
    quadtree = timm.create_model(
        "quadtree_vit_micro", in_chans=1, num_classes=10, token_budget=budget, num_rows=math.isqrt(budget)
    ).double()
    uniform = timm.create_model("uniform_vit_micro", in_chans=1, num_classes=10, token_budget=budget).double()
    uniform.load_state_dict(quadtree.state_dict(), strict=True)
    images = torch.rand(2, 1, 96, 96, dtype=F64)
    regions = quadtree.patch_embed.inspect(images).regions
    torch.testing.assert_close(regions[:1], uniform_regions(budget, None, (96, 96), CPU, F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(quadtree.eval()(images), uniform.eval()(images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("budget", [16, 36, 64, 121])
def test_it_is_the_threshold_rule_with_every_images_own_threshold(budget):
    grid = plan_quadtree(budget)
    num_levels = count_levels(grid, budget, (96, 96), 8)
    importance = draw_importance(grid, num_levels, batch=20, seed=budget)
    regions = quadtree_regions(importance, grid, (96, 96))
    boxes = [cell_boxes(grid, level, (96, 96), CPU, F64) for level in range(num_levels + 1)]
    compared = 0
    for image in range(20):
        values = torch.cat([level[image] for level in importance[:-1]]).sort().values
        thresholds = values.tolist()  # the higher, the fewer leaves
        found = bisect_left(thresholds, -budget, key=lambda t: -len(split_by_threshold(importance, image, t)))
        leaves = split_by_threshold(importance, image, thresholds[min(found, len(thresholds) - 1)])
        if len(leaves) == budget:
            expected = {tuple(boxes[level][node].tolist()) for level, node in leaves}
            assert {tuple(box.tolist()) for box in regions[image]} == expected
            compared += 1
    assert compared >= 5, "with a threshold alone an image may have no tree of exactly that size"


def test_ties_are_split_from_coarse_to_fine_and_parents_always_before_children():
    grid = StartGrid(2, 2, 4)
    flat = [torch.ones(1, 4 * 4**level) for level in range(3)]
    regions = quadtree_regions(flat, grid, (32, 32))
    torch.testing.assert_close(regions[0, :, 2] - regions[0, :, 0], torch.full((16,), 8.0))
    # A child that is more important than its parents waits for them.
    hidden = [torch.tensor([[0.0, 3.0, 2.0, 1.0]]), torch.zeros(1, 16), torch.zeros(1, 64)]
    hidden[1][0, 0] = 100
    sides = quadtree_regions(hidden, StartGrid(2, 2, 3), (32, 32))[0]
    assert (sides[:, 2] - sides[:, 0]).tolist() == [16.0] + [8.0] * 12


@pytest.mark.parametrize("size", [(40, 40), (24, 40)])
def test_entropies_are_those_of_the_cells_histograms(size):
    images = torch.rand(2, 3, *size, dtype=F64).round(decimals=1)
    grid, levels = StartGrid(2, 3, 5), 2
    found = cell_entropies(images, grid, levels)
    grey = images.mean(1)
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    bins = ((grey - low) / (high - low) * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    centres = [torch.arange(side, dtype=F64) + 0.5 for side in size]
    for level in range(levels + 1):
        for node, (x0, y0, x1, y1) in enumerate(cell_boxes(grid, level, size, CPU, F64).tolist()):
            inside = ((centres[0] >= y0) & (centres[0] < y1))[:, None] & (centres[1] >= x0) & (centres[1] < x1)
            for image in range(2):
                share = torch.bincount(bins[image][inside], minlength=NUM_BINS) / inside.sum()
                expected = -torch.special.xlogy(share, share).sum().item() / math.log(2)
                assert found[level][image, node].item() == pytest.approx(expected, abs=1e-5)


def test_entropies_do_not_know_brightness_or_contrast():
    images = (torch.rand(2, 1, 96, 96, dtype=F64) * 255).round()
    tokenizer = build(in_chans=1).double()
    for other in (images * 0.5, images + 100):  # exact in binary: no value changes its bin by rounding
        assert torch.equal(tokenizer.inspect(images).regions, tokenizer.inspect(other).regions)


def test_tokens_go_where_the_detail_is():
    images = torch.full((1, 1, 96, 96), 0.5)
    images[..., 64:, :32] = torch.rand(32, 32)  # the last row's first start cell
    regions = build().inspect(images).regions[0]
    inside = ((regions[:, 0] < 32) & (regions[:, 1] >= 64)).sum()
    assert inside == 16  # as fine as a patch; the others hold the rest


def test_an_image_does_not_depend_on_its_batch_mates():
    tokenizer = build().train()
    images = torch.rand(7, 1, 96, 96)
    images[3:] *= 5
    together = tokenizer.inspect(images).regions
    assert all(torch.equal(tokenizer.inspect(images[i : i + 1]).regions[0], together[i]) for i in range(7))


def test_z_order_keeps_children_together():
    grid = StartGrid(2, 3, 1)
    for level in range(4):
        order = z_order(grid, level, CPU)
        assert sorted(order.flatten().tolist()) == list(range(6 * 4**level))
        finer = z_order(grid, level + 1, CPU)
        assert torch.equal(finer // 4, order.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_gradients_reach_the_projection_and_positions():
    model = timm.create_model("quadtree_vit_micro", in_chans=1, num_classes=10)
    model(torch.rand(2, 1, 96, 96)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 96, 96), torch.full((1, 1, 40, 96), 1e6)])
def test_blank_images_are_no_special_case(images):
    found = build().inspect(images)
    assert found.regions.isfinite().all()
    assert found.tokens.isfinite().all()
    assert found.regions.shape[1] == 36


def test_what_it_does_not_read_is_one_sentence():
    with pytest.raises(ValueError, match="partition = 'grid': quadtree_vit_micro has no such choice; leave it out"):
        timm.create_model("quadtree_vit_micro", partition="grid")
    with pytest.raises(ValueError, match="scorer = 'conv': quadtree_vit_micro has no scorer; leave it out"):
        timm.create_model("quadtree_vit_micro", scorer="conv")
