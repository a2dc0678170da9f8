"""The bytes of a shard's members -> pixels; small ones are decoded once per process, over all epochs and trials."""

import functools
import io

import numpy as np
from PIL import Image

from pipeline.data.video import decode_clip

# Images and clips of this many bytes are small: at most 512 MiB of them are remembered, and as much of their classes.
SMALL_BYTES = 32 * 2**10
NUM_REMEMBERED = 2**14


def decode(data: bytes) -> np.ndarray:
    """PNG or JPEG -> (H, W) or (H, W, 3) uint8, read-only."""
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG", "JPEG")))


@functools.lru_cache(NUM_REMEMBERED)
def decode_once(data: bytes) -> np.ndarray:
    """As `decode`, and remembered."""
    return decode(data)


@functools.lru_cache(NUM_REMEMBERED)
def decode_classes_once(data: bytes) -> np.ndarray:
    """The classes of an image's pixels, (H, W) uint8, remembered apart from the images."""
    return decode(data)


@functools.lru_cache(NUM_REMEMBERED)
def decode_clip_once(data: bytes, num_frames: int, grey: bool) -> np.ndarray:
    """A whole clip, remembered."""
    return decode_clip(data, range(num_frames), grey)
