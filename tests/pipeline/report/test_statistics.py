"""Intervals cover, tests are exact where they say so, and no order of the data matters."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.statistics import (
    Interval,
    Seeds,
    difference_interval,
    difference_p,
    half_width,
    holm,
    mcnemar,
    mean_interval,
    nested_bootstrap,
    percentiles,
    resampled_means,
    sign_flip,
)

COUNTS = st.integers(min_value=0, max_value=60)


def within(interval: Interval | None, value: float) -> bool:
    assert interval is not None
    return interval.low <= value <= interval.high


@pytest.mark.parametrize("num", [2, 3, 5])
def test_students_interval_covers_the_true_mean_as_often_as_it_says(num: int) -> None:
    values = np.random.default_rng(num).normal(0.7, 0.1, (4000, num))
    covered = np.mean([within(mean_interval(Seeds.of(row)), 0.7) for row in values])
    assert covered == pytest.approx(0.95, abs=0.012)  # three standard errors


def test_welchs_interval_covers_the_true_difference_though_one_recipe_spreads_more() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.75, 0.10, (3000, 4)), rng.normal(0.60, 0.05, (3000, 3))
    pairs = [(Seeds.of(a), Seeds.of(b)) for a, b in zip(ours, theirs, strict=True)]
    assert np.mean([within(difference_interval(a, b), 0.15) for a, b in pairs]) == pytest.approx(0.95, abs=0.02)


def test_three_seeds_reach_two_and_a_half_deviations() -> None:
    """t(0.975, 2) = 4.302653, of any table of Student's distribution."""
    interval = mean_interval(Seeds(0.5, 0.1, 3))
    assert interval is not None
    assert (interval.high - interval.low) / 2 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_one_seed_has_no_interval_and_no_test() -> None:
    one, three = Seeds.of([0.5]), Seeds.of([0.5, 0.6, 0.7])
    assert one == Seeds(0.5, None, 1)
    assert mean_interval(one) is None
    assert difference_interval(one, three) is difference_interval(three, one) is difference_p(one, three) is None
    assert np.isnan(half_width([0.0, np.nan], [1, 0])).all()


def test_the_interval_of_a_difference_excludes_zero_where_its_p_is_below_five_per_cent() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        ours, theirs = Seeds.of(rng.normal(0.3, 1, 4)), Seeds.of(rng.normal(-0.3, 2, 3))
        interval, p = difference_interval(ours, theirs), difference_p(ours, theirs)
        assert p is not None
        assert within(interval, 0.0) == (p >= 0.05)
        swapped = difference_interval(theirs, ours)
        assert interval is not None
        assert swapped == pytest.approx((-interval.high, -interval.low))


def test_equal_deterministic_figures_do_not_differ_and_others_do() -> None:
    same, other = Seeds(0.5, 0.0, 3), Seeds(0.6, 0.0, 3)
    assert difference_interval(same, same) == Interval(0.0, 0.0)
    assert (difference_p(same, same), difference_p(same, other)) == (1.0, 0.0)


@given(COUNTS, COUNTS, COUNTS)
@settings(max_examples=60, deadline=None)
def test_with_one_seed_the_flip_test_is_mcnemars(ours: int, theirs: int, ties: int) -> None:
    differences = np.repeat([1.0, -1.0, 0.0], [ours, theirs, ties])
    assert sign_flip(differences, 1) == pytest.approx(max(mcnemar(ours, theirs), 1e-10), rel=1e-6)
    assert mcnemar(ours, theirs) == mcnemar(theirs, ours)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
@settings(max_examples=60, deadline=None)
def test_the_exact_flip_test_counts_all_signs(steps: list[int]) -> None:
    """By brute force: every combination of signs is one outcome."""
    signs = itertools.product([-1, 1], repeat=len(steps))
    sums = [abs(sum(sign * step for sign, step in zip(choice, steps, strict=True))) for choice in signs]
    expected = np.mean([value >= abs(sum(steps)) for value in sums])
    assert sign_flip(np.array(steps) / 3, 3) == pytest.approx(expected, rel=1e-9)


def test_drawn_flips_agree_with_all_of_them_and_repeat() -> None:
    differences = np.random.default_rng(2).integers(-2, 4, 300) / 3 - 0.1
    exact = sign_flip(np.rint(differences * 30) / 30, 30)
    assert sign_flip(differences) == pytest.approx(exact, abs=0.02)
    assert sign_flip(differences) == sign_flip(differences)


def test_models_that_answer_alike_have_p_one_and_the_roles_can_be_swapped() -> None:
    differences = np.random.default_rng(3).integers(-3, 4, 500) / 3
    for denominator in (None, 3):
        assert sign_flip(np.zeros(50), denominator) == 1.0
        assert sign_flip(np.empty(0), denominator) == 1.0
        assert sign_flip(differences, denominator) == pytest.approx(sign_flip(-differences, denominator), abs=0.02)
    assert sign_flip(differences, 3) == pytest.approx(sign_flip(differences[::-1], 3))


def test_equal_models_are_told_apart_no_more_often_than_agreed() -> None:
    """Under the hypothesis, p is at most 5 % no more than every twentieth time."""
    rng = np.random.default_rng(4)
    rejected = [sign_flip(rng.integers(-1, 2, 200), 1) <= 0.05 for _ in range(800)]
    assert np.mean(rejected) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 800)


def test_the_bootstrap_over_samples_has_the_standard_error_of_a_share() -> None:
    right = np.random.default_rng(5).random((1500, 1)) < 0.7
    means = resampled_means(right)
    assert means.std() == pytest.approx(math.sqrt(right.mean() * (1 - right.mean()) / 1500), rel=0.06)
    assert np.array_equal(means, resampled_means(right))


def test_the_bootstrap_draws_the_same_samples_for_all_models() -> None:
    right = np.random.default_rng(6).random((200, 1)) < 0.5
    means = resampled_means(np.concatenate([right, right, ~right], axis=1))
    assert np.array_equal(means[:, 0], means[:, 1])
    np.testing.assert_allclose(means[:, 0] + means[:, 2], 1)


def test_a_nested_bootstrap_adds_the_spread_of_seeds() -> None:
    """Variance of a mean over S drawn of S values: (S - 1) / S of what the sample variance would give."""
    seeds = np.array([0.5, 0.6, 0.85])
    draws = nested_bootstrap(np.tile(seeds, (40_000, 1)))
    assert draws.var() == pytest.approx(seeds.var(ddof=1) / 3 * 2 / 3, rel=0.03)
    low, high = percentiles(draws)
    assert seeds.min() <= low < high <= seeds.max()


def test_holms_correction_by_hand_and_in_any_order() -> None:
    """0.01 x 4, 0.02 x 3, and from there on no less than before: 0.03 x 2 = 0.06, 0.5."""
    p, corrected = np.array([0.03, 0.01, 0.5, 0.02]), np.array([0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm(p), corrected)
    for order in itertools.permutations(range(4)):
        np.testing.assert_allclose(holm(p[list(order)]), corrected[list(order)])
    assert holm([]).size == 0
    assert list(holm([0.2])) == [0.2]
    assert holm([0.9, 0.8]).max() == 1.0
