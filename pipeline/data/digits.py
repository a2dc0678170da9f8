"""cluttered-digits: one whole handwritten digit at a random place among pieces of other digits.

The cluttered, translated digits of Mnih et al. (2014, arXiv 1406.6247) in small, from the 1797 digits of
8 x 8 pixels that scikit-learn brings along. Source digits are split before anything is composed, so a test digit
never appears in training, neither as target nor as clutter. Every canvas is a function of (options, split,
index) alone.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.data.catalog import SPLITS, Sample
from pipeline.data.lazy import LazySamples
from pipeline.data.options import DigitsOptions

RAW_FILE = "digits.npz"
SPLIT_FRACS = {"train": 0.60, "val": 0.15, "test": 0.25}  # of the source digits of every class
DIGIT_PX = (20, 32)  # sides of upscaled digits, see `draw_size`
REFERENCE_PX = 96
CLUTTER_FRAC = 0.35  # side of a piece, as a share of the digit it is cut from


class Drawn(NamedTuple):
    """Digits that a canvas is made of: the target or targets, then those that its clutter is cut from."""

    rows: np.ndarray  # (n,) int64 into the source digits, all different
    digits: list[np.ndarray]  # (side, side) uint8, upscaled
    draws: list[list[float]]  # for each: five numbers in [0, 1), the first of which is used up


class SourceDigits(NamedTuple):
    """The digits of one split."""

    upscaled: Callable[[int], np.ndarray]  # a side in pixels -> all of them, (n, side, side) uint8
    labels: np.ndarray  # (n,) int64
    ids: np.ndarray  # (n,) row in scikit-learn's table


def fetch(options: DigitsOptions, raw_dir: Path) -> None:
    """Write the source digits, as bytes 0 to 255, with the split each belongs to."""
    from sklearn.datasets import load_digits  # slow to import, and wanted here only

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    np.savez(raw_dir / RAW_FILE, images=images, labels=labels, splits=split_sources(labels, options.seed))


def split_sources(labels: np.ndarray, seed: int) -> np.ndarray:
    """Index into SPLITS for every source digit; every class is divided by SPLIT_FRACS.

    Args:
        labels: (n,) class of every source digit.
    """
    splits = np.empty(len(labels), np.int64)
    cuts = np.cumsum([SPLIT_FRACS[name] for name in SPLITS])[:-1]
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        for split, part in enumerate(np.split(members, np.rint(cuts * len(members)).astype(int))):
            splits[part] = split
    return splits


def load_class_names(options: DigitsOptions, raw_dir: Path) -> list[str]:
    """'0' to '9'."""
    return [str(digit) for digit in range(10)]


def load_samples(options: DigitsOptions, raw_dir: Path, split: str) -> LazySamples:
    """The canvases of a split."""
    source = load_source(raw_dir, split)
    num_samples = getattr(options, f"{split}_samples")
    return LazySamples(num_samples, lambda index: compose(options, source, split, index))


def load_source(raw_dir: Path, split: str) -> SourceDigits:
    """The source digits that the canvases of `split` are made of."""
    with np.load(raw_dir / RAW_FILE) as raw:
        ids = np.flatnonzero(raw["splits"] == SPLITS.index(split))
        # Remembered: every digit is used many times, at few sizes.
        return SourceDigits(functools.cache(functools.partial(upscale, raw["images"][ids])), raw["labels"][ids], ids)


def compose(options: DigitsOptions, source: SourceDigits, split: str, index: int) -> Sample:
    """Canvas number `index`: the digit, then its clutter, joined by the maximum."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split), index])
    drawn = draw_digits(source, 1 + options.num_clutter, options.img_size, rng)
    mask = np.zeros((options.img_size, options.img_size), np.uint8)
    box = place(mask, drawn.digits[0], *drawn.draws[0][1:3])
    canvas = mask.copy()
    place_clutter(canvas, drawn)
    label, sources = int(source.labels[drawn.rows[0]]), tuple(str(source.ids[row]) for row in drawn.rows)
    return Sample(f"{split}-{index:06d}", canvas, label, sources, mask, box)


def draw_digits(
    source: SourceDigits,
    num_digits: int,
    img_size: int,
    rng: np.random.Generator,
    digit_px: Sequence[int] = DIGIT_PX,
) -> Drawn:
    """Distinct digits, of sides as `draw_size` has them: a digit is not cluttered with itself."""
    rows = rng.choice(len(source.labels), num_digits, replace=False)
    draws = rng.random((num_digits, 5)).tolist()  # all at once: a call costs more than the numbers
    sizes = [draw_size(img_size, draw[0], digit_px) for draw in draws]
    digits = [source.upscaled(size)[row] for row, size in zip(rows.tolist(), sizes, strict=True)]
    return Drawn(rows, digits, draws)


def place_clutter(canvas: np.ndarray, drawn: Drawn, side_frac: float = CLUTTER_FRAC, num_targets: int = 1) -> None:
    """Join a piece of every digit but the targets into `canvas`, in place; `side_frac` as in `cut_piece`."""
    others = zip(drawn.digits[num_targets:], drawn.draws[num_targets:], strict=True)
    for digit, (_, place_x, place_y, cut_x, cut_y) in others:
        place(canvas, cut_piece(digit, cut_x, cut_y, side_frac), place_x, place_y)


def draw_size(img_size: int, draw: float, digit_px: Sequence[int] = DIGIT_PX) -> int:
    """The side of an upscaled digit in pixels, in proportion to the canvas, from a number in [0, 1).

    Args:
        digit_px: The smallest and the largest side, both included, on a canvas of REFERENCE_PX.
    """
    smallest, largest = (round(px * img_size / REFERENCE_PX) for px in digit_px)
    return smallest + int(draw * (largest - smallest + 1))


def upscale(digits: np.ndarray, size: int) -> np.ndarray:
    """(n, 8, 8) -> (n, size, size) uint8, bicubic.

    First along x and then along y, as Pillow does with one picture, but with all of them at once: one below the other,
    then one beside the other.
    """
    wide = _resize(digits.reshape(-1, 8), size, 8 * len(digits))
    beside = wide.reshape(-1, 8, size).swapaxes(0, 1).reshape(8, -1)
    high = _resize(beside, len(digits) * size, size)
    return np.ascontiguousarray(high.reshape(size, -1, size).swapaxes(0, 1))


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def cut_piece(digit: np.ndarray, draw_x: float, draw_y: float, side_frac: float) -> np.ndarray:
    """A square of `side_frac` of the digit's side, from a place given by two numbers in [0, 1)."""
    side = max(1, round(side_frac * len(digit)))
    x, y = (int(draw * (len(digit) - side + 1)) for draw in (draw_x, draw_y))
    return digit[y : y + side, x : x + side]


def place(canvas: np.ndarray, piece: np.ndarray, draw_x: float, draw_y: float) -> tuple[int, int, int, int]:
    """Join `piece` into `canvas` (in place) by the maximum, wholly inside, and return its box.

    The place is given by two numbers in [0, 1).
    """
    side = len(piece)
    x, y = (int(draw * (len(canvas) - side + 1)) for draw in (draw_x, draw_y))
    window = canvas[y : y + side, x : x + side]
    np.maximum(window, piece, out=window)
    return x, y, x + side, y + side
