"""digits-segmentation: whole digits apart from each other, their ink named pixel by pixel, no leak between splits."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.data import digits
from pipeline.data.catalog import DATASETS, SPLITS
from pipeline.data.digits_segmentation import INK, compose, place_apart
from pipeline.data.options import DigitsSegmentationOptions, Planned

OPTIONS = DigitsSegmentationOptions(
    name="digits-segmentation",
    img_size=48,
    num_digits=5,
    digit_px=[16, 40],
    num_clutter=4,
    label="digit",
    train_samples=60,
    val_samples=30,
    test_samples=30,
    seed=0,
)


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw_dir = tmp_path_factory.mktemp("digits")
    DATASETS["digits-segmentation"].fetch(OPTIONS, raw_dir)
    return raw_dir


def samples(raw_dir: Path, split: str = "train", **changes):
    return DATASETS["digits-segmentation"].samples(OPTIONS.model_copy(update=changes), raw_dir, split)


sides_of_squares = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@given(sides=sides_of_squares, seed=st.integers(0, 2**32))
def test_squares_are_inside_apart_and_the_largest_is_always_placed(sides, seed):
    tries = np.random.default_rng(seed).random((len(sides), 6, 2))
    boxes = place_apart(sides, 20, tries)
    assert sides.index(max(sides)) in boxes
    painted = np.zeros((20, 20), int)
    for i, (x0, y0, x1, y1) in boxes.items():
        assert (x1 - x0, y1 - y0) == (sides[i], sides[i])
        assert 0 <= x0 < x1 <= 20
        assert 0 <= y0 < y1 <= 20
        painted[y0:y1, x0:x1] += 1
    assert painted.max() == 1


def test_what_finds_no_place_is_left_out_and_what_has_room_is_not():
    corner = np.zeros((3, 4, 2))
    assert place_apart([8, 8, 8], 16, corner) == {0: (0, 0, 8, 8)}
    apart = np.array([[[0.0, 0.0]], [[0.0, 0.99]], [[0.99, 0.0]]])
    assert place_apart([8, 8, 8], 16, apart) == {0: (0, 0, 8, 8), 1: (0, 8, 8, 16), 2: (8, 0, 16, 8)}


def test_without_clutter_the_classes_are_where_the_ink_is(raw_dir):
    for sample in samples(raw_dir, num_clutter=0):
        assert sample.label is None
        assert np.array_equal(sample.classes > 0, sample.image >= INK)
        inside = np.zeros_like(sample.classes, bool)
        for x0, y0, x1, y1 in sample.box:
            inside[y0:y1, x0:x1] = True
            assert len(np.unique(sample.classes[y0:y1, x0:x1])) == 2  # the background and one digit
        assert not sample.image[~inside].any()


def test_clutter_is_background_and_takes_the_pixels_that_it_covers(raw_dir):
    """Digits are drawn before clutter: the same ones lie in the same places with and without it."""
    source = digits.load_source(raw_dir, "train")
    covered = 0
    for index in range(60):
        drawn = compose(OPTIONS, source, "train", index)
        assert ((drawn.classes == 0) | (drawn.image >= INK)).all()
        outside = np.ones_like(drawn.classes, bool)
        for x0, y0, x1, y1 in drawn.box:
            outside[y0:y1, x0:x1] = False
        assert not drawn.classes[outside].any()
        covered += int(((drawn.image >= INK) & (drawn.classes == 0)).sum())
    assert covered > 0


def test_every_digit_has_its_class_and_sizes_are_in_proportion_to_the_canvas(raw_dir):
    found = list(samples(raw_dir, train_samples=200, img_size=96, num_clutter=0))
    sides = {x1 - x0 for sample in found for x0, _, x1, _ in sample.box}
    assert (min(sides), max(sides)) == (16, 40)
    counts = np.bincount(np.concatenate([np.unique(sample.classes) for sample in found]), minlength=11)
    assert len(counts) == 11
    assert counts[1:].min() > 30
    halved = {x1 - x0 for sample in samples(raw_dir) for x0, _, x1, _ in sample.box}
    assert min(halved) >= 8
    assert max(halved) <= 20


def test_splits_share_no_source_digit(raw_dir):
    used = {split: {s for sample in samples(raw_dir, split) for s in sample.sources} for split in SPLITS}
    assert all(used[a].isdisjoint(used[b]) for a, b in itertools.combinations(SPLITS, 2))


def test_a_canvas_is_a_function_of_options_split_and_index(raw_dir):
    forward = list(samples(raw_dir))
    for index in (41, 3, 59):
        again = samples(raw_dir)[index]
        assert np.array_equal(again.image, forward[index].image)
        assert np.array_equal(again.classes, forward[index].classes)
        assert again.box == forward[index].box
    others = [samples(raw_dir, seed=1)[0], samples(raw_dir, "test")[0], samples(raw_dir, num_clutter=2)[0]]
    assert len({forward[0].image.tobytes(), *(sample.image.tobytes() for sample in others)}) == 4


def test_digits_may_be_one_class_in_the_same_pictures(raw_dir):
    for one, apart in zip(samples(raw_dir, label="object"), samples(raw_dir), strict=True):
        assert np.array_equal(one.image, apart.image)
        assert np.array_equal(one.classes, apart.classes > 0)


@pytest.mark.parametrize(("label", "expected"), [("digit", list("0123456789")), ("object", ["digit"])])
def test_classes_are_named_and_counted_in_advance(raw_dir, label, expected):
    options = OPTIONS.model_copy(update={"label": label})
    names = DATASETS["digits-segmentation"].class_names(options, raw_dir)
    assert names == ["background", *expected]
    assert options.planned() == Planned(len(names), 60)


def test_sides_must_increase():
    with pytest.raises(ValidationError, match=r"digit_px = \[40, 12\]: must be the smallest and the largest side"):
        DigitsSegmentationOptions(**{**OPTIONS.model_dump(), "digit_px": [40, 12]})
