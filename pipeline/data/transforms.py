"""uint8 images and clips -> the float tensors a model is trained on.

What is random depends on (seed, epoch, index, repeat) alone: not on the worker, the rank, or what was loaded before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.data.augment import Recipe, apply, build_augmentation, build_test_crop
from pipeline.recipe import Augment, AugmentConfig

CROP_PAD_FRAC = 1 / 8  # of the side: how far an image is shifted at most
GREY: Sequence[float] = (0.5, 0.5, 0.5)  # mean and deviation of channels from 0 to 1 that take bytes 0..255 to -1..1


@dataclass(frozen=True)
class Transform:
    """Augment or crop, then normalise.

    Args:
        augment: `train.augment` of the suite.
        img_size: Side in pixels of what the model reads; of no effect, and may be left out, where `augment` is a word.
        training: Draw at random; else images are cropped as in tests, and a word does nothing.
    """

    augment: Augment = "none"
    seed: int = 0
    epoch: int = 0
    img_size: int = 0
    training: bool = True

    @property
    def takes_pictures(self) -> bool:
        """Whether it works on Pillow's pictures, and may be given them."""
        return isinstance(self.augment, AugmentConfig)

    def __call__(self, pixels: np.ndarray | Image.Image, index: int, repeat: int = 0) -> torch.Tensor:
        """Sample `index` of the split -> (C, H, W) float32 of an image, (C, T, H, W) of a clip.

        All frames of a clip are drawn alike: it is one view of one scene.

        Args:
            pixels: (H, W) or (H, W, C) uint8 of an image, (T, H, W, C) of a clip; a picture if it takes them.
            repeat: Which of the times that the sample comes in this epoch.
        """
        if isinstance(pixels, np.ndarray) and pixels.ndim == 4:
            return torch.stack([self._view(frame, index, repeat) for frame in pixels], 1)
        return self._view(pixels, index, repeat)

    def _view(self, image: np.ndarray | Image.Image, index: int, repeat: int) -> torch.Tensor:
        if isinstance(self.augment, AugmentConfig):
            return apply(self._recipe, image, [self.seed, self.epoch, index, repeat])
        assert isinstance(image, np.ndarray)
        if self.training and self.augment == "flip_crop":
            image = flip_crop(image, np.random.default_rng([self.seed, self.epoch, index]))
        return normalise(image)

    @cached_property
    def _recipe(self) -> Recipe:
        assert isinstance(self.augment, AugmentConfig)
        build = build_augmentation if self.training else build_test_crop
        return build(self.augment, self.img_size)


def recorded_views(science: Mapping[str, Any]) -> dict[str, Any]:
    """`augment` and `img_size` of a `Transform`, from the record of a run (`Trial.science`)."""
    augment = science["train"]["augment"]
    parsed = AugmentConfig.model_validate(augment) if isinstance(augment, Mapping) else augment
    return {"augment": parsed, "img_size": science["model"]["img_size"]}


def normalise(image: np.ndarray, mean: Sequence[float] = GREY, std: Sequence[float] = GREY) -> torch.Tensor:
    """(H, W) or (H, W, C) uint8 -> (C, H, W) float32, by default from -1 to 1.

    Args:
        mean: Of at least C channels, from 0 to 1.
        std: Likewise.
    """
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    centre, scale = (255 * np.array(channels[: len(planes)])[:, None, None] for channels in (mean, std))
    values = np.subtract(planes, centre.astype(np.float32), dtype=np.float32, order="C")
    values *= (1 / scale).astype(np.float32)
    return torch.from_numpy(values)


def denormalise(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `normalise` with its defaults: float -> uint8, same shape."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def flip_crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift by up to CROP_PAD_FRAC of the side, zeros coming in, and mirror one time in two; same shape."""
    height, width = image.shape[:2]
    draw_y, draw_x, draw_flip = rng.random(3)
    down, right = _shift(draw_y, height), _shift(draw_x, width)
    moved = np.zeros_like(image)
    seen = image[max(0, -down) : height - down, max(0, -right) : width - right]
    moved[max(0, down) : height + down, max(0, right) : width + right] = seen
    return moved[:, ::-1] if draw_flip < 0.5 else moved


def _shift(draw: float, side: int) -> int:
    """A number in [0, 1) -> whole pixels from -pad to pad."""
    pad = round(side * CROP_PAD_FRAC)
    return int(draw * (2 * pad + 1)) - pad
