"""Squares of images and of the classes of their pixels: they move together, no class is made up."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.catalog import IGNORE
from pipeline.data.masks import MaskTransform, draw_square, recorded_masks, resize
from pipeline.data.transforms import normalise
from pipeline.mask_rules import MasksConfig

PLAIN = {
    "short_side": 24, "ratio": [1.0, 1.0], "cat_max_frac": 1.0, "hflip": 0.0, "photometric": False,
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip
STRONG = {**PLAIN, "ratio": [0.5, 2.0], "cat_max_frac": 0.75, "hflip": 0.5, "photometric": True}
PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
KNOWN = np.random.default_rng(1).integers(0, 5, (30, 40)).astype(np.uint8)


def drawn(image=PHOTO, classes=KNOWN, recipe=None, side=16, index=3, repeat=0, seed=1, epoch=2, **changes):
    config = MasksConfig(**{**(recipe or STRONG), **changes})
    return MaskTransform(config, seed, epoch, img_size=side)(image, classes, index, repeat)


def seen_in_tests(image, classes, seed, **changes):
    return MaskTransform(MasksConfig(**{**STRONG, **changes}), seed, training=False)(image, classes, 0)


def ramp(height: int, width: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture that says along `axis` of which pixel it is: class i, twice as bright."""
    classes = np.broadcast_to(
        np.arange((height, width)[axis])[:, None] if axis == 0 else np.arange(width), (height, width)
    )
    return (2 * classes).astype(np.uint8), classes.astype(np.uint8)


def brightness(image: torch.Tensor) -> torch.Tensor:
    """The first channel in bytes again."""
    return (image[0] * PLAIN["std"][0] + PLAIN["mean"][0]) * 255


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ratio", [1 / 3, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_every_pixel_keeps_its_class_wherever_it_goes(axis, ratio, hflip):
    """At u on the axis the ramp is 2 (u - 1/2) bright and of class floor(u): never further apart than 1."""
    image, classes = ramp(60, 90, axis)
    for index in range(10):
        found, known = drawn(image, classes, PLAIN, 24, index, short_side=60, ratio=[ratio, ratio], hflip=hflip)
        inside = (known != IGNORE) & (known > 2) & (known < classes.max() - 2)  # the border is repeated, and bends it
        assert inside.float().mean() > 0.3
        assert (brightness(found) - 2 * known)[inside].abs().max() <= 1.6  # and rounding to bytes


@given(
    height=st.integers(3, 50), width=st.integers(3, 50), side=st.integers(1, 40), short=st.integers(1, 40),
    index=st.integers(0, 10**6), grey=st.booleans(), some=st.sets(st.integers(0, 255), min_size=1),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_pictures_of_any_size_become_squares_and_no_class_is_made_up(height, width, side, short, index, grey, some):
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (height, width) if grey else (height, width, 3), np.uint8)
    classes = rng.choice(sorted(some), (height, width)).astype(np.uint8)
    found, known = drawn(image, classes, STRONG, side, index, short_side=short)
    assert found.shape == (1 if grey else 3, side, side)
    assert known.shape == (side, side)
    assert (found.dtype, known.dtype) == (torch.float32, torch.int64)
    assert torch.isfinite(found).all()
    assert set(known.unique().tolist()) <= {*some, IGNORE}


@pytest.mark.parametrize("shape", [(24, 24, 3), (24, 24)])
def test_a_recipe_without_change_gives_what_is_stored(shape):
    image = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    classes = np.random.default_rng(3).integers(0, 256, (24, 24)).astype(np.uint8)
    found, known = drawn(image, classes, PLAIN, side=24)
    assert torch.equal(found, normalise(image, PLAIN["mean"], PLAIN["std"]))
    assert np.array_equal(known.numpy(), classes)


def test_no_recipe_gives_what_is_stored_from_minus_one_to_one():
    for training in (True, False):
        found, known = MaskTransform(None, training=training)(PHOTO, KNOWN, 0)
        assert torch.equal(found, normalise(PHOTO))
        assert np.array_equal(known.numpy(), KNOWN)
        assert known.dtype == (torch.int64 if training else torch.uint8)


def test_what_is_stored_stays_as_it_is():
    """Decoded pictures are remembered: nobody may write into them."""
    image, classes = PHOTO.copy(), KNOWN.copy()
    found, known = MaskTransform(None)(image, classes, 0)
    found.zero_(), known.zero_()
    drawn(image, classes)
    assert np.array_equal(image, PHOTO)
    assert np.array_equal(classes, KNOWN)


def test_mirroring_mirrors_both():
    found, known = drawn(recipe=PLAIN, side=12)
    mirrored, other = drawn(recipe=PLAIN, side=12, hflip=1.0)
    assert torch.equal(mirrored, found.flip(-1))
    assert torch.equal(other, known.flip(-1))


def test_a_small_picture_is_filled_up_with_the_mean_colour_and_no_class():
    """30 x 40 px to 12 x 16, in a square of 20."""
    found, known = drawn(recipe=PLAIN, side=20, short_side=12)
    assert (known[:12, :16] != IGNORE).all()
    assert (known[12:] == IGNORE).all()
    assert (known[:, 16:] == IGNORE).all()
    assert not found[:, 12:].any()
    assert not found[:, :, 16:].any()


def test_sizes_are_drawn_between_the_two_factors():
    heights = set()
    for index in range(200):
        _, known = drawn(recipe=PLAIN, side=60, index=index, short_side=10, ratio=[0.5, 2.0])
        heights.add(int((known != IGNORE).any(1).sum()))
    assert heights == set(range(5, 21))


def test_all_places_are_drawn():
    """20 x 30 px have eleven places for a square of 20, and one line of them."""
    image, classes = ramp(20, 30, axis=1)
    starts = {int(drawn(image, classes, PLAIN, 20, index, short_side=20)[1][0, 0]) for index in range(200)}
    assert starts == set(range(11))


def test_distortions_change_colours_alone_and_one_time_in_sixteen_not_even_them():
    plain, known = drawn(recipe=PLAIN, side=24)
    same = 0
    for index in range(160):
        found, other = drawn(recipe=PLAIN, side=24, index=index, cat_max_frac=1.0, photometric=True, short_side=24)
        undistorted, classes = drawn(recipe=PLAIN, side=24, index=index)
        assert torch.equal(other, classes)
        assert found.shape == plain.shape
        same += torch.equal(found, undistorted)
    assert 2 <= same <= 25
    assert known.shape == (24, 24)


def test_squares_of_many_classes_are_preferred():
    classes = torch.zeros(20, 200, dtype=torch.uint8)
    classes[:, 150:] = 1

    def accepted(limit: float) -> float:
        torch.manual_seed(0)
        squares = [classes[draw_square(classes, 20, limit)] for _ in range(200)]
        return float(np.mean([0.25 <= float(square.float().mean()) <= 0.75 for square in squares]))

    assert accepted(1.0) < 0.12
    assert accepted(0.75) > 0.3
    assert draw_square(torch.full((9, 9), IGNORE, dtype=torch.uint8), 4, 0.5)[0].stop <= 9  # none is good: the last


def test_pixels_without_a_class_do_not_count_as_one():
    classes = torch.full((20, 20), IGNORE, dtype=torch.uint8)
    classes[:, :2], classes[:, 18:] = 0, 1
    torch.manual_seed(0)
    for _ in range(20):
        assert draw_square(classes, 20, 0.5) == (slice(0, 20), slice(0, 20))
    starts = [draw_square(classes, 4, 1.0)[1].start for _ in range(300)]
    counting = np.mean([start < 2 or start > 14 for start in starts])  # in the others no pixel does
    assert counting > 0.8  # of one try it were 4 in 17


@pytest.mark.parametrize("recipe", [STRONG, {**STRONG, "photometric": False}])
def test_a_square_is_a_function_of_seed_epoch_index_and_repeat(recipe):
    first = drawn(recipe=recipe)
    random.random(), np.random.rand(), torch.rand(1)  # other users of the shared generators change nothing
    for found, expected in zip(drawn(recipe=recipe), first, strict=True):
        assert torch.equal(found, expected)
    for key in ("seed", "epoch", "index", "repeat"):
        assert not torch.equal(drawn(recipe=recipe, **{key: 7})[0], first[0])


def test_drawing_leaves_the_shared_generators_as_they_were():
    def generators() -> list:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    before = generators()
    drawn()
    assert generators() == before


@pytest.mark.parametrize(("shape", "expected"), [((30, 40), (24, 32)), ((90, 30), (72, 24)), ((24, 24), (24, 24))])
def test_in_tests_images_are_resized_and_classes_stay_and_nothing_is_drawn(shape, expected):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    classes = np.random.default_rng(1).integers(0, 9, shape).astype(np.uint8)
    (found, known), (other, _) = (seen_in_tests(image, classes, seed) for seed in (0, 1))
    assert found.shape == (3, *expected)
    assert torch.equal(found, other)
    assert np.array_equal(known.numpy(), classes)
    assert known.dtype == torch.uint8


def test_pixels_are_normalised_by_the_statistics_of_the_recipe():
    image = np.broadcast_to(np.array([0, 128, 255], np.uint8), (30, 40, 3))
    expected = torch.tensor((image[0, 0] / 255 - PLAIN["mean"]) / PLAIN["std"], dtype=torch.float32)[:, None, None]
    for found, _ in (seen_in_tests(image, KNOWN, 0), drawn(image, KNOWN, PLAIN)):
        torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=1e-5)


@given(height=st.integers(1, 60), width=st.integers(1, 60), short=st.integers(1, 60), nearest=st.booleans())
@settings(deadline=None)
def test_the_shorter_side_is_what_is_asked_for_and_proportions_are_kept(height, width, short, nearest):
    found = resize(torch.full((1, height, width), 7, dtype=torch.uint8), short, nearest)
    assert min(found.shape[1:]) == short
    wanted = torch.tensor([height, width]) * short / min(height, width)
    assert (torch.tensor(found.shape[1:]) - wanted).abs().max() <= 0.5
    assert (found == 7).all()


def test_a_record_says_how_images_are_seen():
    recipe = MasksConfig(**STRONG)
    assert recorded_masks({"train": {"masks": recipe.model_dump(mode="json")}}) == recipe
    assert recorded_masks({"train": {}}) is None
