"""cluttered-digits: no leak between splits, every canvas a function of (options, split, index)."""

import itertools

import numpy as np
import pytest
from PIL import Image

from pipeline.data import digits
from pipeline.data.catalog import DATASETS, SPLITS


def test_splits_share_no_source_digit(tiny, digits_raw):
    options = tiny.model_copy(update={f"{split}_samples": 300 for split in SPLITS})
    used = {
        split: {source for sample in digits.load_samples(options, digits_raw, split) for source in sample.sources}
        for split in SPLITS
    }
    assert all(used[a].isdisjoint(used[b]) for a, b in itertools.combinations(SPLITS, 2))


def test_the_sources_are_all_there_and_every_class_is_divided_alike(tiny, digits_raw):
    parts = [digits.load_source(digits_raw, split) for split in SPLITS]
    assert sorted(i for part in parts for i in part.ids) == list(range(1797))
    for part, frac in zip(parts, digits.SPLIT_FRACS.values(), strict=True):
        counts = np.bincount(part.labels)
        assert np.abs(counts / counts.sum() - 0.1).max() < 0.01
        assert abs(len(part.ids) / 1797 - frac) < 0.01


@pytest.mark.parametrize("size", [1, 5, 8, 20, 33])
def test_digits_upscaled_together_are_those_upscaled_one_by_one(size):
    images = np.random.default_rng(size).integers(0, 256, (7, 8, 8), np.uint8)
    one_by_one = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in images]
    assert np.array_equal(digits.upscale(images, size), one_by_one)


def test_a_canvas_does_not_depend_on_what_was_made_before(tiny, digits_raw):
    forward = list(DATASETS[tiny.name].samples(tiny, digits_raw, "train"))
    samples = digits.load_samples(tiny, digits_raw, "train")
    for index in (7, 3, 22):
        assert np.array_equal(samples[index].image, forward[index].image)
        assert samples[index].label == forward[index].label


def test_seed_and_split_change_the_canvas(tiny, digits_raw):
    images = [
        digits.load_samples(tiny.model_copy(update={"seed": seed}), digits_raw, split)[0].image.tobytes()
        for seed in (0, 1)
        for split in ("train", "test")
    ]
    assert len(set(images)) == 4


def test_the_mask_is_the_digit_alone_inside_its_box(tiny, digits_raw):
    for sample in digits.load_samples(tiny, digits_raw, "train"):
        assert sample.mask is not None
        assert sample.box is not None
        x0, y0, x1, y1 = sample.box
        assert 0 <= x0 < x1 <= tiny.img_size
        assert 0 <= y0 < y1 <= tiny.img_size
        assert sample.mask[y0:y1, x0:x1].sum() == sample.mask.sum() > 0
        assert (sample.image >= sample.mask).all()  # joined by the maximum


def test_without_clutter_the_canvas_is_the_mask(tiny, digits_raw):
    plain = digits.load_samples(tiny.model_copy(update={"num_clutter": 0}), digits_raw, "val")
    assert all(np.array_equal(sample.image, sample.mask) for sample in plain)


def test_the_digit_keeps_its_proportion_to_the_canvas(tiny, digits_raw):
    options = tiny.model_copy(update={"img_size": 96, "train_samples": 300})
    sides = {s.box[2] - s.box[0] for s in digits.load_samples(options, digits_raw, "train") if s.box}
    assert (min(sides), max(sides)) == digits.DIGIT_PX
