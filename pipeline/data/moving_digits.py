"""moving-digits: one handwritten digit moves with constant velocity over pieces of other digits that stand still.

The source digits and their split are those of cluttered-digits; the pieces are larger, so that one frame alone hardly
tells the digit from them. Which it is, and where it goes, is in the change from frame to frame. Every clip is a
function of (options, split, index) alone, and the digit never leaves the frame.
"""

from pathlib import Path

import numpy as np

from pipeline.data import digits
from pipeline.data.catalog import SPLITS, Box, Encoded, Sample
from pipeline.data.lazy import LazySamples
from pipeline.data.options import MovingDigitsOptions
from pipeline.data.video import EXTENSION, encode_clip

CLUTTER_FRAC = 0.6  # side of a piece, as a share of the digit it is cut from
MOTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}  # x to the right, y downwards
# How far a digit goes, as a share of the way that is free. Short, so that where it starts does not give it away.
PATH_FRACS = (0.3, 0.6)

fetch = digits.fetch


def load_class_names(options: MovingDigitsOptions, raw_dir: Path) -> list[str]:
    """The four motions, or every digit with every motion: "3 right"."""
    if options.label == "motion":
        return list(MOTIONS)
    return [f"{digit} {motion}" for digit in range(10) for motion in MOTIONS]


def load_samples(options: MovingDigitsOptions, raw_dir: Path, split: str) -> LazySamples:
    """The clips of a split."""
    source = digits.load_source(raw_dir, split)
    num_samples = getattr(options, f"{split}_samples")
    return LazySamples(num_samples, lambda index: compose(options, source, split, index))


def compose(options: MovingDigitsOptions, source: digits.SourceDigits, split: str, index: int) -> Sample:
    """Clip number `index`: the clutter in every frame, and the digit on its way, joined by the maximum."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split), index])
    drawn = digits.draw_digits(source, 1 + options.num_clutter, options.img_size, rng)
    motion = int(rng.integers(len(MOTIONS)))
    side = options.img_size
    still = np.zeros((side, side), np.uint8)
    digits.place_clutter(still, drawn, CLUTTER_FRAC)
    frames = np.repeat(still[None], options.num_frames, 0)
    target = drawn.digits[0]
    corners = plan_path(list(MOTIONS.values())[motion], side - len(target), options.num_frames, drawn.draws[0][1:4])
    boxes: list[Box] = []
    for frame, (x, y) in zip(frames, corners.tolist(), strict=True):
        window = frame[y : y + len(target), x : x + len(target)]
        np.maximum(window, target, out=window)
        boxes.append((x, y, x + len(target), y + len(target)))
    digit = int(source.labels[drawn.rows[0]])
    label = motion if options.label == "motion" else digit * len(MOTIONS) + motion
    clip = Encoded(encode_clip(frames), EXTENSION, (side, side), options.num_frames)
    sources = tuple(str(source.ids[row]) for row in drawn.rows)
    return Sample(f"{split}-{index:06d}", clip, label, sources, box=tuple(boxes))


def plan_path(direction: tuple[int, int], room_px: int, num_frames: int, draws: list[float]) -> np.ndarray:
    """Where the digit's top-left corner is in every frame: (T, 2) int64 from 0 to `room_px`, x and y.

    Args:
        direction: A step to the side or down, as in MOTIONS.
        room_px: The frame's side less the digit's.
        draws: Three numbers in [0, 1): where it starts on its way, where beside it, and how far it goes.
    """
    along, across, far = draws
    low, high = PATH_FRACS
    length = (low + far * (high - low)) * room_px
    way = along * (room_px - length) + np.linspace(0, length, num_frames)  # increasing
    corners = np.full((num_frames, 2), across * room_px)
    axis = 0 if direction[0] else 1
    corners[:, axis] = way if sum(direction) > 0 else way[::-1]
    return np.rint(corners).astype(np.int64)
