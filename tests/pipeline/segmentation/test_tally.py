"""The metrics of segmentation are those of their definitions, and sums over images in any order."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from torch import Tensor

from pipeline.data.masks import IGNORE
from pipeline.segmentation.tally import BAND_FRAC, Tally, contour_band, count, measure

NAMES = ("background", "a", "b", "c")
SMALL = 0.05


def picture(seed: int, size: tuple[int, int] = (30, 41), ignored: bool = True) -> Tensor:
    """Blobs of the four classes, and some that do not count."""
    rng = np.random.default_rng(seed)
    found = ndimage.zoom(rng.integers(0, 5, (6, 6)), (size[0] / 6, size[1] / 6), order=0).astype(np.uint8)
    found[found == 4] = IGNORE if ignored else 0
    return torch.from_numpy(found)


def said(seed: int) -> Tensor:
    return picture(1000 + seed, ignored=False)


def band(classes: Tensor) -> Tensor:
    return torch.from_numpy(contour_band(classes.numpy()))


@given(st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_the_metrics_are_those_of_scikit_learn(seed: int) -> None:
    truth, predicted = picture(seed), said(seed)
    found = count(truth, predicted, NAMES, SMALL)
    valid = truth != IGNORE
    pairs = truth[valid].numpy(), predicted[valid].numpy()
    assert found.confusion.tolist() == confusion_matrix(*pairs, labels=range(4)).tolist()
    present = np.union1d(*pairs)
    scores = measure(found)
    assert scores["miou"] == pytest.approx(jaccard_score(*pairs, labels=present, average="macro"))
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(*pairs))


@pytest.mark.parametrize("size", [(30, 41), (96, 96), (200, 130)])
def test_bands_are_masks_without_their_erosions(size: tuple[int, int]) -> None:
    classes = picture(3, size)
    width = max(1, round(BAND_FRAC * float(np.hypot(*size))))
    expected, ignored = np.zeros(size, bool), classes.numpy() == IGNORE
    for label in range(4):
        mask = classes.numpy() == label
        expected |= mask & ~ndimage.binary_erosion(mask | ignored, np.ones((3, 3)), iterations=width)
    assert (band(classes).numpy() & ~ignored).tolist() == expected.tolist()


def test_pixels_that_do_not_count_make_no_contour() -> None:
    """Where they are not known, their neighbours are no contour, and where they cover one, it is still one around."""
    size, width = (40, 60), 1
    plain = torch.zeros(size, dtype=torch.uint8)
    hidden = plain.clone()
    hidden[10:20, 10:20] = IGNORE
    known = hidden != IGNORE
    assert torch.equal(band(hidden)[known], band(plain)[known])
    halves = plain.clone()
    halves[:, 30:] = 1
    halves[:, 29:31] = IGNORE
    assert not band(halves)[width:-width, 20:29].any()
    perfect = count(hidden, plain, NAMES, SMALL)
    assert perfect.band[0].sum() == band(plain).sum()


def test_boundary_iou_is_that_of_the_bands_by_class() -> None:
    truth, predicted = picture(5, ignored=False), said(5)
    ratios = []
    for label in range(4):
        ours, theirs = ((c == label) & band(c) for c in (truth, predicted))
        ratios.append(float((ours & theirs).sum() / (ours | theirs).sum()))
    assert measure(count(truth, predicted, NAMES, SMALL))["boundary_iou"] == pytest.approx(np.mean(ratios))


def test_a_perfect_prediction_has_ones_and_a_shifted_one_fewer() -> None:
    truth = picture(1, ignored=False)
    truth[2:4, 2:4] = 3  # a small object
    assert set(measure(count(truth, truth, NAMES, SMALL)).values()) == {1.0}
    assert all(0 <= value < 1 for value in measure(count(truth, truth.roll(2, 1), NAMES, SMALL)).values())


def test_what_is_said_of_ignored_pixels_counts_nowhere() -> None:
    truth, predicted = picture(2), said(2)
    other = torch.where(truth == IGNORE, (predicted + 1) % 4, predicted)
    assert not torch.equal(other, predicted)
    for mine, theirs in zip(*(count(truth, p, NAMES, SMALL) for p in (predicted, other)), strict=True):
        assert torch.equal(mine, theirs)


def test_images_are_summed_in_any_order_and_grouping() -> None:
    tallies = [count(picture(i), said(i), NAMES, SMALL) for i in range(6)]
    one = reduce(Tally.plus, tallies, Tally.zero(4))
    other = reduce(Tally.plus, [reduce(Tally.plus, tallies[i::3][::-1]) for i in (2, 0, 1)])
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    everything = count(*(torch.cat([f(i) for i in range(6)]) for f in (picture, said)), NAMES, SMALL)
    assert torch.equal(one.confusion, everything.confusion)


def scene() -> Tensor:
    """A large and a small object of class a, and a small one of b; the digit's hole is background."""
    truth = torch.zeros(40, 40, dtype=torch.uint8)
    truth[2:20, 2:20] = 1
    truth[30:34, 30:34] = 1
    truth[31, 31] = 0
    truth[30:33, 5:9] = 2
    return truth


def test_only_what_is_near_small_objects_counts_as_small() -> None:
    truth, names = scene(), ("background", "a", "b")
    spoilt = truth.clone()
    spoilt[2:20, 2:20] = 2  # the large object
    assert measure(count(truth, spoilt, names, SMALL))["miou_small"] == 1.0
    spoilt = truth.clone()
    spoilt[30:32, 30:34] = 0  # 7 of the 15 pixels of the small one
    assert measure(count(truth, spoilt, names, SMALL))["miou_small"] == pytest.approx((8 / 15 + 1) / 2)
    spoilt = truth.clone()
    spoilt[29, 5:9] = 2  # beside the other small one
    assert measure(count(truth, spoilt, names, SMALL))["miou_small"] == pytest.approx((1 + 12 / 16) / 2)
    assert measure(count(truth, spoilt, names, 1e-6))["miou_small"] is None


def test_an_image_without_a_pixel_that_counts_says_nothing() -> None:
    truth = torch.full((8, 9), IGNORE, dtype=torch.uint8)
    assert set(measure(count(truth, torch.zeros_like(truth), NAMES, SMALL)).values()) == {None}
