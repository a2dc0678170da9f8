"""digits-segmentation: handwritten digits of very different sizes, apart from each other, among pieces of other digits.

The source digits and their split are those of cluttered-digits. What is to be found is the class of every pixel: the
digit whose ink is seen there, else the background, which the clutter belongs to. Every canvas is a function of
(options, split, index) alone.
"""

from pathlib import Path

import numpy as np

from pipeline.data import digits
from pipeline.data.catalog import SPLITS, Box, Sample
from pipeline.data.lazy import LazySamples
from pipeline.data.options import DigitsSegmentationOptions

INK = 64  # of 255: from here on a pixel is the digit's
NUM_TRIES = 32  # places that are tried for a digit

fetch = digits.fetch


def load_class_names(options: DigitsSegmentationOptions, raw_dir: Path) -> list[str]:
    """What is no digit, then '0' to '9', or all of them as one."""
    return ["background", *(map(str, range(10)) if options.label == "digit" else ["digit"])]


def load_samples(options: DigitsSegmentationOptions, raw_dir: Path, split: str) -> LazySamples:
    """The canvases of a split."""
    source = digits.load_source(raw_dir, split)
    num_samples = getattr(options, f"{split}_samples")
    return LazySamples(num_samples, lambda index: compose(options, source, split, index))


def compose(options: DigitsSegmentationOptions, source: digits.SourceDigits, split: str, index: int) -> Sample:
    """Canvas number `index`: the digits, then the clutter, joined by the maximum."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split), index])
    num_drawn = options.num_digits + options.num_clutter
    drawn = digits.draw_digits(source, num_drawn, options.img_size, rng, options.digit_px)
    tries = rng.random((options.num_digits, NUM_TRIES, 2))
    boxes = place_apart([len(digit) for digit in drawn.digits[: options.num_digits]], options.img_size, tries)
    ink = np.zeros((options.img_size, options.img_size), np.uint8)
    classes = np.zeros_like(ink)
    for i, (x0, y0, x1, y1) in boxes.items():
        ink[y0:y1, x0:x1] = drawn.digits[i]
        classes[y0:y1, x0:x1] = 1 + (source.labels[drawn.rows[i]] if options.label == "digit" else 0)
    canvas = ink.copy()
    digits.place_clutter(canvas, drawn, num_targets=options.num_digits)
    classes[(ink < INK) | (ink < canvas)] = 0  # paper, or clutter over it
    sources = tuple(str(source.ids[row]) for row in drawn.rows)
    return Sample(f"{split}-{index:06d}", canvas, None, sources, box=tuple(boxes.values()), classes=classes)


def place_apart(sides: list[int], img_size: int, tries: np.ndarray) -> dict[int, Box]:
    """Boxes of squares inside the canvas, none of which meets another; the largest squares are placed first.

    Args:
        sides: Of the squares, pixels.
        tries: (len(sides), T, 2) numbers in [0, 1): the places that are tried for each, x and y.

    Returns:
        Square -> its box, for those that found a free place; in the order of `sides`.
    """
    taken = np.zeros((img_size, img_size), bool)
    boxes: dict[int, Box] = {}
    for i in sorted(range(len(sides)), key=lambda i: -sides[i]):
        side = sides[i]
        for x, y in (tries[i] * (img_size - side + 1)).astype(int).tolist():
            if not taken[y : y + side, x : x + side].any():
                taken[y : y + side, x : x + side] = True
                boxes[i] = (x, y, x + side, y + side)
                break
    return dict(sorted(boxes.items()))
