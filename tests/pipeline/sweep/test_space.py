"""Points of a search space: drawn by arithmetic, inside the space, different, and a larger draw contains a smaller."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search_rules import Interval
from pipeline.sweep.space import MAX_CORNERS, at, corners, num_points, sample_points

SPACE = {
    "tokenizer.name": ["uniform", "dart"],
    "tokenizer.token_budget": Interval(low=9, high=64, log=True),
    "train.lr": Interval(low=1e-4, high=1e-2, log=True),
}


def test_the_points_of_a_seed_are_these_on_every_machine() -> None:
    assert [tuple(point.values()) for point in sample_points(SPACE, 3, seed=0)] == [
        ("dart", 39, 0.0006937),
        ("uniform", 24, 0.0006455),
        ("dart", 16, 0.0008978),
    ]
    assert sample_points(SPACE, 3, seed=1) != sample_points(SPACE, 3, seed=0)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**32))
def test_the_first_points_do_not_depend_on_how_many_are_drawn(few: int, more: int, seed: int) -> None:
    assert sample_points(SPACE, few + more, seed)[:few] == sample_points(SPACE, few, seed)


def test_all_points_of_a_small_space_are_found_once() -> None:
    space = {"a": [1, 2, 3], "b": Interval(low=4, high=7)}
    points = sample_points(space, 12, seed=5)
    assert num_points(space) == 12
    assert len({tuple(point.values()) for point in points}) == 12
    assert len(sample_points(space, 50, seed=5)) == 12  # and the search ends


def test_an_interval_too_narrow_for_its_digits_ends() -> None:
    assert len(sample_points({"train.lr": Interval(low=0.001, high=0.0010001)}, 9, seed=0)) <= 2


@given(
    st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.booleans(), st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_a_value_is_inside_its_interval_and_grows_with_its_share(low: float, more: float, log: bool, u: float) -> None:
    interval = Interval(low=low, high=low + more, log=log) if low + more > low else Interval(low=low, high=2 * low)
    value = at(interval, u)
    assert interval.low <= value <= interval.high
    assert at(interval, u / 2) <= value


def test_whole_numbers_are_equally_likely_and_with_log_so_are_doublings() -> None:
    shares = [(i + 0.5) / 9000 for i in range(9000)]
    even = Counter(at(Interval(low=4, high=6), u) for u in shares)
    assert even == {4: 3000, 5: 3000, 6: 3000}
    doubled = Counter(at(Interval(low=8, high=63, log=True), u).bit_length() for u in shares)
    total = math.log2(63.5 / 7.5)
    for bits, low, high in ((4, 7.5, 15.5), (5, 15.5, 31.5), (6, 31.5, 63.5)):
        assert doubled[bits] / 9000 == pytest.approx(math.log2(high / low) / total, abs=1e-3)


def test_corners_are_all_combinations_of_ends_or_each_end_by_itself() -> None:
    assert len(list(corners(SPACE))) == 8
    assert {point["tokenizer.token_budget"] for point in corners(SPACE)} == {9, 64}
    wide = {f"k{i}": [0, 1, 2] for i in range(6)}
    points = list(corners(wide))
    assert len(points) == 18 < MAX_CORNERS
    assert {(key, value) for point in points for key, value in point.items()} == {
        (key, value) for key in wide for value in (0, 1, 2)
    }
