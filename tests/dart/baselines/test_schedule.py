"""How many tokens a reducer leaves is arithmetic, and goes as its paper goes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart.baselines.schedule import _leave, plan_counts, plan_stages
from dart.registry import REDUCERS

SIZES = {"num_tokens": st.integers(1, 400), "depth": st.integers(1, 24), "keep": st.floats(0.01, 1.0)}


@given(name=st.sampled_from(sorted(REDUCERS)), **SIZES)
def test_counts_never_rise_and_end_at_the_share(name: str, keep: float, num_tokens: int, depth: int) -> None:
    try:
        counts = plan_counts(name, keep, num_tokens, depth)
    except ValueError:
        assert name == "tome"
        return
    assert len(counts) == depth
    assert all(1 <= after <= before for before, after in itertools.pairwise((num_tokens, *counts)))
    assert counts[-1] == max(1, round(keep * num_tokens))


@given(**SIZES)
def test_tome_merges_as_many_in_every_block_or_half_of_what_comes(keep: float, num_tokens: int, depth: int) -> None:
    try:
        counts = plan_counts("tome", keep, num_tokens, depth)
    except ValueError as error:
        least = int(str(error).rsplit("at least ", 1)[1].split(" /")[0])
        assert least > round(keep * num_tokens)
        counts = plan_counts("tome", least / num_tokens, num_tokens, depth)  # the remedy is one
        assert counts[-1] == least
    steps = list(itertools.pairwise((num_tokens, *counts)))
    most = max(before - after for before, after in steps)
    for before, after in steps[:-1]:  # the last may be what remains to be done
        assert most - 1 <= before - after or after in ((before + 1) // 2, counts[-1])
    assert all(2 * after >= before for before, after in steps)


@given(**SIZES)
def test_tome_spreads_no_more_than_it_must(keep: float, num_tokens: int, depth: int) -> None:
    """The fewest tokens that, spread over the blocks, leave what is wanted: whoever tries them one by one agrees."""
    left = max(1, round(keep * num_tokens))
    tried = (_leave(gone, left, num_tokens, depth) for gone in range(num_tokens - left, depth * num_tokens + 1))
    try:
        counts = plan_counts("tome", keep, num_tokens, depth)
    except ValueError:
        counts = None
    assert counts == next((found for found in tried if found[-1] == left), None)


def test_tome_with_16_merges_in_each_of_12_blocks_halves_what_the_last_one_finds() -> None:
    assert plan_counts("tome", 10 / 196, 196, 12) == (*range(180, 19, -16), 10)


def test_the_stages_of_a_deit_are_those_of_the_papers() -> None:
    assert plan_stages("evit", 12) == plan_stages("dynamicvit", 12) == plan_stages("ats", 12) == (3, 6, 9)
    assert plan_stages("evit", 3) == (0, 1, 2)
    assert plan_stages("dynamicvit", 3) == (1, 2)  # before a block, and never before the first
    # 0.7 of 196 tokens at each of three stages, as EViT and DynamicViT publish it.
    assert plan_counts("evit", 0.7**3, 196, 12) == (196,) * 3 + (137,) * 3 + (96,) * 3 + (67,) * 3


@pytest.mark.parametrize(
    ("name", "keep", "sentence"),
    [
        ("tom", 0.5, "reducer.name = 'tom': unknown; known: tome, evit, dynamicvit, ats"),
        ("ats", 0.0, "reducer.keep = 0.0: must be above 0 and at most 1"),
        ("evit", 1.5, "reducer.keep = 1.5: must be above 0 and at most 1"),
        ("tome", 0.1, "reducer.keep = 0.1: tome merges at most half .* in each of 3 blocks; use at least 8 / 64"),
    ],
)
def test_bad_choices_have_their_sentence(name: str, keep: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan_counts(name, keep, 64, 3)
