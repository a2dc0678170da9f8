"""The bytes of a shard's members -> pixels; small ones are decoded once per process, over all epochs and trials."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

from pipeline.data.video import decode_clip

# Images and clips of this many bytes are small: at most 512 MiB of them are remembered, and as much of their classes.
SMALL_BYTES = 32 * 2**10
NUM_REMEMBERED = 2**14
# A few kilobytes of PNG may unfold to gigabytes. No picture that a model is trained on is larger than this.
MAX_PIXELS = 2**26
FORMATS = ("PNG", "JPEG")
# What Pillow and its codecs raise on bytes that are no picture.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, TypeError, struct.error, zlib.error)


class BadImage(ValueError):
    """Bytes that are no usable picture; the message is the reason, to be said behind the picture's name."""


def decode(data: bytes) -> np.ndarray:
    """PNG or JPEG -> (H, W) or (H, W, 3) uint8, read-only.

    Raises:
        BadImage: it is neither, is damaged, or has more than `MAX_PIXELS`.
    """
    return np.asarray(_open(data))


def decode_picture(data: bytes) -> Image.Image | np.ndarray:
    """For an augmentation that works on Pillow's pictures: one of them, the same pixels without copying them twice."""
    image = _open(data)
    return image if image.mode in ("RGB", "L") else np.asarray(image)


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImage(f"has {width} x {height} pixels, at most {MAX_PIXELS} are read")
        image.load()
        return image
    except BadImage:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from None


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
