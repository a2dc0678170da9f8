"""uint8 images -> the float tensors a model is trained on.

What is random depends on (seed, epoch, index) alone: not on the worker, the rank, or what was loaded before.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Augment = Literal["none", "flip_crop"]
CROP_PAD_FRAC = 1 / 8  # of the side: how far an image is shifted at most
CENTRE = 127.5  # bytes 0..255 become -1..1


@dataclass(frozen=True)
class Transform:
    """Augment, then normalise."""

    augment: Augment = "none"
    seed: int = 0
    epoch: int = 0

    def __call__(self, image: np.ndarray, index: int) -> torch.Tensor:
        """(H, W) or (H, W, C) uint8 of sample `index` -> (C, H, W) float32."""
        if self.augment == "flip_crop":
            image = flip_crop(image, np.random.default_rng([self.seed, self.epoch, index]))
        return normalise(image)


def normalise(image: np.ndarray) -> torch.Tensor:
    """(H, W) or (H, W, C) uint8 -> (C, H, W) float32 from -1 to 1."""
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    values = np.subtract(planes, np.float32(CENTRE), dtype=np.float32, order="C")
    values *= np.float32(1 / CENTRE)
    return torch.from_numpy(values)


def denormalise(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `normalise`, for pictures of what a model sees: float -> uint8, same shape."""
    return ((images + 1) * CENTRE).round().clamp(0, 255).to(torch.uint8)


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
