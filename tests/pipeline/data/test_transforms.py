"""Transforms: values, shapes, and randomness from (seed, epoch, index, repeat) alone."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.augment import posterize_to_black
from pipeline.data.transforms import Transform, denormalise, flip_crop, normalise, recorded_views
from pipeline.recipe import AugmentConfig

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


def test_a_word_does_nothing_in_tests():
    image = IMAGES[1]
    assert torch.equal(Transform("flip_crop", seed=1, epoch=2, training=False)(image, 3), normalise(image))


STRONG = {
    "scale": [0.3, 1.0], "hflip": 0.5, "interpolation": "bicubic", "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.0, "reprob": 0.5, "aug_repeats": 3, "mixup": 0.8, "cutmix": 1.0, "crop_pct": 0.875,
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip
PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def strong(**changes) -> AugmentConfig:
    return AugmentConfig(**{**STRONG, **changes})


def drawn(picture, seed=1, epoch=2, index=3, repeat=0, **changes) -> torch.Tensor:
    return Transform(strong(**changes), seed, epoch, img_size=16)(picture, index, repeat)


def generators() -> list:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("changes", [{}, {"auto_augment": None, "color_jitter": 0.4}])
def test_augmentation_is_a_function_of_seed_epoch_index_and_repeat(changes):
    first = drawn(PHOTO, **changes)
    random.random(), np.random.rand(), torch.rand(1)  # other users of the shared generators change nothing
    assert torch.equal(drawn(PHOTO, **changes), first)
    for key in ("seed", "epoch", "index", "repeat"):
        assert not torch.equal(drawn(PHOTO, **{key: 7}, **changes), first)


def test_augmentation_leaves_the_shared_generators_as_they_were():
    before = generators()
    drawn(PHOTO)
    assert generators() == before


def undo(views):
    """Normalised views (N, 3, H, W) -> channels from 0 to 1."""
    mean, std = (torch.tensor(channels)[:, None, None] for channels in (strong().mean, strong().std))
    return views * std + mean


def test_augmented_pictures_of_any_size_and_depth_are_squares_in_range():
    for picture in (PHOTO, PHOTO[:, :, 0], PHOTO[:9, :33]):
        views = torch.stack([drawn(picture, index=i, reprob=0.0) for i in range(20)])
        assert views.shape == (20, 1 if picture.ndim == 2 else 3, 16, 16)
        assert views.dtype == torch.float32
        pixels = undo(views.expand(-1, 3, -1, -1))[:, : views.shape[1]]  # a grey one is its first channel
        assert pixels.min() >= -1e-6
        assert pixels.max() <= 1 + 1e-6


def test_frames_of_a_clip_are_augmented_alike():
    clip = np.stack([PHOTO, PHOTO, PHOTO[::-1]])
    views = drawn(clip)
    assert views.shape == (3, 3, 16, 16)  # C, T, H, W
    assert torch.equal(views[:, 0], views[:, 1])
    assert torch.equal(views[:, 0], drawn(PHOTO))
    assert not torch.equal(views[:, 0], views[:, 2])


def test_in_tests_the_centre_is_cropped_and_nothing_drawn():
    """Shorter side to 16 / 0.5 = 32 px, then the centre 16: a square in the middle fills it, and edges are unseen."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[16:48, 32:64] = 255
    views = [Transform(strong(crop_pct=0.5), seed, img_size=16, training=False)(picture, 0) for seed in (0, 1)]
    assert torch.equal(views[0], views[1])
    assert views[0].shape == (3, 16, 16)
    white = torch.tensor([(1 - mean) / std for mean, std in zip(strong().mean, strong().std, strict=True)])
    assert (views[0][:, 2:-2, 2:-2] - white[:, None, None]).abs().max() < 0.02


def test_pixels_are_normalised_by_the_statistics_of_the_recipe():
    picture = np.broadcast_to(np.array([0, 128, 255], np.uint8), (16, 16, 3))
    recipe = strong(crop_pct=1.0)
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    expected = torch.tensor((picture[0, 0] / 255 - mean) / std, dtype=torch.float32)
    seen = Transform(recipe, img_size=16, training=False)(picture, 0)
    for found in (seen, normalise(picture, recipe.mean, recipe.std)):
        torch.testing.assert_close(found, expected[:, None, None].expand(3, 16, 16), rtol=0, atol=1e-5)


def test_a_policy_that_timm_cannot_read_has_its_sentence():
    with pytest.raises(ValueError, match=r"auto_augment = 'rand-x9': timm cannot read it"):
        drawn(PHOTO, auto_augment="rand-x9")


def test_a_record_says_how_its_pictures_are_seen():
    for augment in ("flip_crop", strong()):
        train = {"augment": augment if isinstance(augment, str) else augment.model_dump(mode="json")}
        views = recorded_views({"train": train, "model": {"img_size": 16}})
        assert views == {"augment": augment, "img_size": 16}


@pytest.mark.parametrize("policy", ["rand-m10-mstd0.5-inc1", "rand-m0-n4", "augmix-m10", "original", "v0"])
def test_every_policy_draws_at_its_extremes_too(policy):
    for index in range(100):
        assert torch.isfinite(drawn(PHOTO, index=index, auto_augment=policy)).all()


def test_no_bits_are_black():
    assert np.array_equal(posterize_to_black(Image.fromarray(PHOTO), 0), np.zeros_like(PHOTO))
    assert np.array_equal(posterize_to_black(Image.fromarray(PHOTO), 3), PHOTO & 0b11100000)
