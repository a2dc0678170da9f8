"""timm's augmentation and test crop, with randomness that is arithmetic.

timm draws from the generators of `random`, numpy and torch that a whole process shares. They are seeded around each
picture and put back after it, so that what a picture looks like does not depend on what was drawn before it.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from PIL import Image
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.transforms_factory import create_transform

from pipeline.recipe import AugmentConfig

ERASE_WITH = "pixel"  # noise, the fill that the published recipes use
HOLDERS = ("transforms", "ops", "policy")  # attributes that timm keeps the parts of a transform under

_OURS = np.random.MT19937()  # what `np.random` draws from while a picture is augmented; seeded anew for each

Recipe = Callable[[Image.Image], torch.Tensor]


def build_augmentation(config: AugmentConfig, img_size: int) -> Recipe:
    """Training: an RGB picture of any size -> (3, img_size, img_size) float32, drawn at random.

    Raises:
        ValueError: timm does not understand `auto_augment`.
    """
    try:
        found = create_transform(
            (3, img_size, img_size),
            is_training=True,
            scale=tuple(config.scale),
            hflip=config.hflip,
            interpolation=config.interpolation,
            auto_augment=config.auto_augment,
            color_jitter=config.color_jitter or None,
            re_prob=config.reprob,
            re_mode=ERASE_WITH,
            mean=config.mean,
            std=config.std,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"train.augment.auto_augment = {config.auto_augment!r}: timm cannot read it") from error
    for op in _ops(found):
        if op.aug_fn is posterize:
            op.aug_fn = posterize_to_black
    return found


def posterize_to_black(image: Image.Image, bits: int, **others: object) -> Image.Image:
    """timm's `posterize`; 0 bits, which timm draws at its greatest magnitude, are black, as in Pillow before 13.

    Pillow 13 refuses them. To be removed when timm no longer asks for them.
    """
    return posterize(image, bits, **others) if bits else Image.new(image.mode, image.size)


def build_test_crop(config: AugmentConfig, img_size: int) -> Recipe:
    """Tests: the picture's shorter side is resized to img_size / crop_pct, and the centre square kept."""
    return create_transform(
        (3, img_size, img_size),
        is_training=False,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        mean=config.mean,
        std=config.std,
    )


def apply(recipe: Recipe, picture: np.ndarray | Image.Image, keys: list[int]) -> torch.Tensor:
    """One picture through a recipe, its draws a function of `keys` alone.

    Args:
        picture: (H, W) or (H, W, C) uint8 with C = 1 or 3, or Pillow's of mode L or RGB.

    Returns:
        (C, img_size, img_size) float32.
    """
    if isinstance(picture, np.ndarray):
        grey = picture.ndim == 2 or picture.shape[2] == 1
        picture = Image.fromarray(picture.reshape(picture.shape[:2]) if grey else picture)
    grey, image = picture.mode == "L", picture.convert("RGB")
    with seeded(keys):
        found = recipe(image)
    return found[:1] if grey else found


def _ops(part: object) -> Iterator[AugmentOp]:
    """The single operations of a transform, whichever way timm nests them."""
    if isinstance(part, AugmentOp):
        yield part
    inner = part if isinstance(part, list | tuple) else [getattr(part, name, None) for name in HOLDERS]
    for some in inner:
        if some is not None:
            yield from _ops(some)


@contextmanager
def seeded(keys: list[int]) -> Iterator[None]:
    """The shared generators of `random`, numpy and torch (CPU) start from `keys`, and afterwards go on as before."""
    seeds = [int(word) for word in np.random.SeedSequence(keys).generate_state(3)]
    before = random.getstate(), get_bit_generator(), torch.default_generator.get_state()
    set_bit_generator(_OURS)  # numpy's own is put aside whole: its state takes long to copy
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])  # torch.manual_seed would touch the GPUs' too
    try:
        yield
    finally:
        random.setstate(before[0])
        set_bit_generator(before[1])
        torch.default_generator.set_state(before[2])
