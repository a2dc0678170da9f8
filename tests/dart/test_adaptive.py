"""Budgets that follow the image: totals are held, more need is never less tokens, and nobody's mates matter twice."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dart.models
from dart.adaptive import (
    Ladder,
    budgets_of,
    fit_scale,
    forward_bucketed,
    measure_need,
    share_total,
    spread,
    uncertainty,
)

LADDER = Ladder(16, 64, 4)
NEEDS = st.lists(st.floats(0, 1), min_size=1, max_size=40)
MEAN = st.sampled_from(LADDER.rungs)


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=40)
@given(needs=NEEDS, mean=MEAN, extra=st.integers(0, 5))
def test_a_batch_spends_its_total_on_the_ladder_and_never_less_where_more_is_needed(
    needs: list[float], mean: int, extra: int
) -> None:
    total = min(mean * len(needs) + extra * LADDER.step, LADDER.high * len(needs))
    budgets = share_total(tensor(needs), total, LADDER)
    assert int(budgets.sum()) == total
    assert set(budgets.tolist()) <= set(LADDER.rungs)
    order = sorted(range(len(needs)), key=lambda i: (needs[i], -i))
    assert budgets[order].diff().min() >= 0 if len(needs) > 1 else True


@settings(max_examples=40)
@given(needs=st.lists(st.floats(1e-3, 1), min_size=1, max_size=40, unique=True), mean=MEAN, data=st.data())
def test_the_order_and_the_unit_of_needs_change_nothing(needs: list[float], mean: int, data: st.DataObject) -> None:
    """Equivariance under permutations, exactly, whatever the rounding of sums."""
    order, total = data.draw(st.permutations(range(len(needs)))), mean * len(needs)
    budgets = share_total(tensor(needs), total, LADDER)
    assert share_total(tensor(needs)[order], total, LADDER).tolist() == budgets[order].tolist()
    assert share_total(4 * tensor(needs), total, LADDER).tolist() == budgets.tolist()


def test_images_of_equal_need_differ_by_one_step_and_the_first_have_it() -> None:
    assert share_total(torch.ones(4), 4 * 36 + 8, LADDER).tolist() == [40, 40, 36, 36]
    assert share_total(torch.zeros(3), 3 * 16 + 4, LADDER).tolist() == [20, 16, 16]


def test_needs_within_the_ladder_are_met_in_proportion() -> None:
    assert share_total(tensor([0.2, 0.3, 0.4]), 90, Ladder(5, 85, 5)).tolist() == [20, 30, 40]
    assert share_total(tensor([0.001, 0.3, 0.4]), 90, Ladder(20, 60, 5)).tolist() == [20, 30, 40]


@settings(max_examples=40)
@given(needs=NEEDS, mean=st.floats(16, 64))
def test_a_rule_spends_no_more_than_its_mean_where_it_was_chosen_and_cannot_spend_more(
    needs: list[float], mean: float
) -> None:
    scale = fit_scale(tensor(needs), mean, LADDER)
    budgets = budgets_of(tensor(needs), scale, LADDER)
    assert int(budgets.sum()) <= mean * len(needs)
    more = budgets_of(tensor(needs), scale * (1 + 1e-9), LADDER)
    assert int(more.sum()) > mean * len(needs) or bool((budgets == LADDER.high).all()) or len(set(more.tolist())) == 1


@settings(max_examples=30)
@given(needs=NEEDS, scale=st.floats(1, 1000))
def test_a_rule_gives_every_image_what_it_gives_it_alone(needs: list[float], scale: float) -> None:
    together = budgets_of(tensor(needs), scale, LADDER).tolist()
    assert together == [int(budgets_of(tensor([need]), scale, LADDER)) for need in needs]


def test_spread_is_the_share_of_cells_that_a_density_lies_on() -> None:
    density = torch.zeros(3, 4, 4)
    density[0] = 7.0
    density[1, 2, 3] = 5.0
    density[2, :2] = 0.1
    torch.testing.assert_close(spread(density), tensor([1, 1 / 16, 1 / 2]))
    torch.testing.assert_close(spread(density.flip(1, 2) * 3), spread(density))


def test_uncertainty_is_none_where_one_class_has_all_and_whole_where_all_have_the_same() -> None:
    logits = torch.tensor([[0.0, 1000.0, 0.0], [3.0, 3.0, 3.0], [0.0, 0.0, -1000.0]])
    expected = tensor([0, 1, math.log(2) / math.log(3)])  # of three classes, two have the same
    torch.testing.assert_close(uncertainty(logits), expected, atol=1e-7, rtol=0)
    assert uncertainty(torch.randn(4, 1)).tolist() == [0, 0, 0, 0]


@torch.no_grad()
def small(tokenizer: str, scorer: str | None = None) -> Any:
    """A model of images of 32 px whose weights say something."""
    torch.manual_seed(0)
    name, options = f"{tokenizer}_vit_nano", {"img_size": 32, "patch_size": 4, "in_chans": 1, "scorer": scorer}
    model = dart.models.build(name, **options, num_classes=5, token_budget=9).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_the_need_is_of_the_density_or_of_the_answer_with_the_lowest_budget() -> None:
    model, images = small("dart"), torch.randn(3, 1, 32, 32)
    density = model.patch_embed.inspect(images, 16).density
    torch.testing.assert_close(measure_need(model, images, "spread", 4), spread(density))
    expected = uncertainty(model(images, num_patches=4))
    torch.testing.assert_close(measure_need(model, images, "uncertainty", 4), expected)
    assert len(set(expected.tolist())) == 3


@torch.no_grad()
def test_an_image_in_a_bucket_is_answered_as_it_is_alone() -> None:
    model = small("dart")
    images, budgets = torch.randn(6, 1, 32, 32), torch.tensor([[9, 16, 4, 16, 9, 4], [4, 4, 4, 9, 9, 9]])
    found = forward_bucketed(model, images, budgets)
    alone = [[model(images[i : i + 1], num_patches=int(n))[0] for i, n in enumerate(row)] for row in budgets]
    torch.testing.assert_close(found, torch.stack([torch.stack(row) for row in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(forward_bucketed(model, images, budgets[0]), found[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: share_total(torch.ones(3), 51, LADDER), "total = 51: not the sum of 3 budgets .* try 52"),
        (lambda: share_total(torch.ones(3), 1000, LADDER), "total = 1000: .* try 192"),
        (lambda: share_total(torch.tensor([1.0, float("nan")]), 64, LADDER), "needs = .*numbers of at least 0"),
        (lambda: share_total(torch.tensor([1.0, -1.0]), 64, LADDER), "needs = .*numbers of at least 0"),
        (lambda: fit_scale(torch.ones(3), 8, LADDER), "mean_budget = 8: must be from 16 to 64"),
        (lambda: fit_scale(torch.ones(0), 20, LADDER), "no images to fit a rule to"),
        (lambda: budgets_of(torch.ones(3), 20, Ladder(16, 63, 4)), "ladder = 16 to 63 by 4: .* whole steps"),
        (lambda: measure_need(None, torch.ones(1), "entropy", 4), "signal = 'entropy': unknown; known: spread, unc"),
        (lambda: measure_need(small("uniform"), torch.ones(1), "spread", 4), "signal = 'spread': .* no density"),
        (lambda: measure_need(small("quadtree"), torch.ones(1), "spread", 4), "signal = 'spread': .* no density"),
        (lambda: measure_need(small("deformable"), torch.ones(1), "spread", 4), "signal = 'spread': .* no density"),
        (lambda: measure_need(small("dart", "constant"), torch.ones(1), "spread", 4), "but 'constant'; use 'uncert"),
        (lambda: forward_bucketed(torch.nn.Identity(), torch.ones(3, 1), torch.ones(2)), "budgets = .* 3 images"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
