"""The bytes of a shard's members -> pixels; small ones are decoded once per process, over all epochs and trials."""

import functools

import numpy as np
from PIL import Image

from pipeline.data.pictures import BadPicture, open_picture
from pipeline.data.video import decode_clip

# Images and clips of this many bytes are small: at most 512 MiB of them are remembered, and as much of their classes.
SMALL_BYTES = 32 * 2**10
NUM_REMEMBERED = 2**14
FORMATS = ("PNG", "JPEG")
MODES = ("L", "RGB")


class BadImage(ValueError):
    """Bytes that are no usable picture; the message is the reason, to be said behind the picture's name."""


def decode(data: bytes) -> np.ndarray:
    """PNG or JPEG -> (H, W) or (H, W, 3) uint8, read-only.

    Raises:
        BadImage: it is neither, is damaged, has more than `pictures.MAX_PIXELS`, or is neither grey nor RGB.
    """
    return np.asarray(decode_picture(data))


def decode_picture(data: bytes) -> Image.Image:
    """As `decode`, for an augmentation that works on Pillow's pictures: the same pixels without copying them twice."""
    try:
        return open_picture(data, FORMATS, _load, quiet=False)
    except BadPicture as error:
        raise BadImage(" ".join(str(error).split())) from None


def _load(image: Image.Image) -> Image.Image:
    if image.mode not in MODES:
        raise BadPicture(f"is neither grey nor RGB, of 8 bits: mode {image.mode}")
    image.load()
    return image


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
