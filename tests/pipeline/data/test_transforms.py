"""Transforms: values, shapes, and randomness from (seed, epoch, index) alone."""

import numpy as np
import pytest
import torch

from pipeline.data.transforms import Transform, denormalise, flip_crop, normalise

IMAGES = [
    np.arange(8 * 6, dtype=np.uint8).reshape(8, 6),
    np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3),
]


@pytest.mark.parametrize("image", IMAGES)
def test_normalise_is_channels_first_from_minus_one_to_one_and_invertible(image):
    values = normalise(image)
    assert values.shape == (1 if image.ndim == 2 else 3, 8, 6)
    assert values.dtype == torch.float32
    assert values.is_contiguous()
    back = denormalise(values).numpy()
    assert np.array_equal(back[0] if image.ndim == 2 else back.transpose(1, 2, 0), image)


def test_black_is_minus_one_and_white_is_one():
    assert normalise(np.array([[0, 255]], np.uint8)).tolist() == [[[-1.0, 1.0]]]


@pytest.mark.parametrize("image", IMAGES)
def test_flip_crop_is_a_function_of_seed_epoch_and_index(image):
    first = Transform("flip_crop", seed=1, epoch=2)(image, 3)
    Transform("flip_crop", seed=1, epoch=2)(image, 4)  # another sample in between changes nothing
    assert torch.equal(Transform("flip_crop", seed=1, epoch=2)(image, 3), first)
    others = [Transform("flip_crop", seed=s, epoch=e)(image, i) for s, e, i in [(0, 2, 3), (1, 0, 3), (1, 2, 9)]]
    assert any(not torch.equal(other, first) for other in others)


def test_flip_crop_shifts_and_mirrors_and_keeps_the_shape():
    image = np.zeros((16, 16), np.uint8)
    image[8, 8] = 255
    places = {tuple(np.argwhere(flip_crop(image, np.random.default_rng(i)))[0]) for i in range(300)}
    assert {y for y, _ in places} == set(range(6, 11))
    assert {x for _, x in places} == set(range(5, 11))  # mirrored: 15 - x


def test_no_augmentation_means_the_image_itself():
    image = IMAGES[0]
    assert torch.equal(Transform("none", seed=5, epoch=1)(image, 2), normalise(image))
