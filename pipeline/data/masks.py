"""Images with a class for every pixel -> what a segmenter is trained and tested on.

# C channels, H W pixels of the stored image, h w pixels of the image as a test sees it, S side of the model's square

What is random depends on (seed, epoch, index, repeat) alone, as in `pipeline.data.transforms`. Classes are never mixed:
they are resized to those of the nearest pixels, and in tests not at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize as resize_to

from pipeline.data.augment import seeded
from pipeline.data.catalog import IGNORE
from pipeline.data.transforms import normalise
from pipeline.mask_rules import MasksConfig

NUM_SQUARES = 10  # that are tried for one without a class that covers too much of it
# The photometric distortions of SSD (Liu et al. 2016, arXiv 1512.02325), each one time in two; its order of channels
# stays, as in the published recipes of segmentation.
DISTORTIONS = ({"brightness": 32 / 255}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 18 / 360})


def recorded_masks(science: Mapping[str, Any]) -> MasksConfig | None:
    """`train.masks`, from what `Trial.science` returns, or the record of it; None where it says nothing."""
    recipe = science["train"].get("masks")
    return None if recipe is None else MasksConfig.model_validate(recipe)


@dataclass(frozen=True)
class MaskTransform:
    """Cut a random square in training, resize in tests; then normalise.

    Args:
        recipe: `train.masks` of the suite; None: images and classes as they are stored, from -1 to 1.
        img_size: S; of no effect, and may be left out, where the recipe is None or in tests.
        training: Draw at random; else nothing is random.
    """

    recipe: MasksConfig | None = None
    seed: int = 0
    epoch: int = 0
    img_size: int = 0
    training: bool = True

    def __call__(self, image: np.ndarray, classes: np.ndarray, index: int, repeat: int = 0) -> tuple[Tensor, Tensor]:
        """Sample `index` of the split.

        Args:
            image: (H, W) or (H, W, C) uint8.
            classes: (H, W) uint8.
            repeat: Which of the times that the sample comes in this epoch.

        Returns:
            In training (C, S, S) float32 and (S, S) int64, filled up with the mean colour and IGNORE to the right and
            below; in tests (C, h, w) float32 and (H, W) uint8.
        """
        known = torch.tensor(classes)  # a copy: what is stored may be remembered, and is read-only
        if self.recipe is None:
            return normalise(image), known.long() if self.training else known
        pixels = torch.tensor(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1)
        if not self.training:
            return self._normalise(resize(pixels, self.recipe.short_side)), known
        with seeded([self.seed, self.epoch, index, repeat]):
            pixels, known = self._draw(pixels, known[None], self.recipe)
        right, below = self.img_size - pixels.shape[2], self.img_size - pixels.shape[1]
        square = pad(self._normalise(pixels), (0, right, 0, below))
        return square, pad(known[0], (0, right, 0, below), value=IGNORE).long()

    def _draw(self, pixels: Tensor, classes: Tensor, recipe: MasksConfig) -> tuple[Tensor, Tensor]:
        """A random part of (C, H, W) and (1, H, W) uint8, at most S x S, mirrored and distorted at random."""
        low, high = recipe.ratio
        short_px = max(1, round(recipe.short_side * (low + float(torch.rand(())) * (high - low))))
        pixels, classes = resize(pixels, short_px), resize(classes, short_px, nearest=True)
        rows, cols = draw_square(classes[0], self.img_size, recipe.cat_max_frac)
        pixels, classes = pixels[:, rows, cols], classes[:, rows, cols]
        if float(torch.rand(())) < recipe.hflip:
            pixels, classes = pixels.flip(-1), classes.flip(-1)
        return self._distort(pixels) if recipe.photometric else pixels, classes

    def _normalise(self, pixels: Tensor) -> Tensor:
        assert self.recipe is not None
        return normalise(pixels.permute(1, 2, 0).numpy(), self.recipe.mean, self.recipe.std)

    @cached_property
    def _distort(self) -> v2.Transform:
        return v2.Compose([v2.RandomApply([v2.ColorJitter(**change)], p=0.5) for change in DISTORTIONS])


def resize(pixels: Tensor, short_px: int, nearest: bool = False) -> Tensor:
    """(C, H, W) uint8 -> the shorter side `short_px`, the proportions kept.

    Args:
        nearest: The value at the place of every new pixel's centre, instead of a mean.
    """
    height, width = pixels.shape[1:]
    scale = short_px / min(height, width)
    size = [max(short_px, round(height * scale)), max(short_px, round(width * scale))]
    # Not `NEAREST`, the default for masks: it looks at the pixels' corners and shifts what it shrinks by half a pixel.
    method = v2.InterpolationMode.NEAREST_EXACT if nearest else v2.InterpolationMode.BILINEAR
    return resize_to(pixels, size, method, antialias=not nearest)


def draw_square(classes: Tensor, side_px: int, cat_max_frac: float) -> tuple[slice, slice]:
    """Rows and columns of a random square of (H, W) uint8, whole or as large as there is room.

    One in which no class has more than `cat_max_frac` of the pixels that count, if one of the first few is so.
    """
    for _ in range(NUM_SQUARES):
        rows, cols = (_draw_span(extent, side_px) for extent in classes.shape)
        counts = classes[rows, cols].flatten().bincount(minlength=IGNORE + 1)[:IGNORE]
        if 0 < counts.max() <= cat_max_frac * counts.sum():
            break
    return rows, cols


def _draw_span(extent: int, side_px: int) -> slice:
    start = int(torch.randint(max(0, extent - side_px) + 1, ()))
    return slice(start, start + side_px)
