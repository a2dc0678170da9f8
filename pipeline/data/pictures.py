"""The bytes of a picture of the user's -> pixels, or the JPEG that is stored. Nothing of them is trusted."""

import contextlib
import hashlib
import io
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pipeline.data.catalog import Encoded
from pipeline.data.options import StoreOptions

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no other decoder ever sees a byte of the user's
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_BYTES = 1 << 28  # of one picture's file
# A few kilobytes may unfold to gigabytes. What Pillow too thinks safe: a quarter of a gigabyte in RGB.
MAX_PIXELS = 2**30 // 4 // 3
MAX_JPEG_SIDE = 65_500  # of libjpeg
Made = TypeVar("Made")


class BadPicture(Exception):
    """The bytes are no picture that can be used; the message says why."""


def check_picture(data: bytes, store: StoreOptions | None = None) -> tuple[str, str]:
    """(its sha256, "") of a picture that can be decoded to its end and stored, ("", why not) of any other."""
    try:
        image = decode(data)
        if store is not None and not _keeps_bytes(data, image.size, store):
            _stored_size(image.size, store)
    except BadPicture as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), ""


def decode(data: bytes) -> Image.Image:
    """Bytes -> RGB, upright. Raises BadPicture."""
    return open_picture(data, FORMATS, lambda image: ImageOps.exif_transpose(image).convert("RGB"))


def open_picture(
    data: bytes, formats: tuple[str, ...], make: Callable[[Image.Image], Made], quiet: bool = True
) -> Made:
    """`make` of the picture, which is refused before its pixels take any memory where they are too many.

    Args:
        quiet: Nothing is said of sizes that `_check_size` refuses, nor of odd notes beside the pixels. Python then
            forgets which warnings it has shown, of all modules: not for what is done a million times beside training.

    Raises:
        BadPicture: if it is none of `formats`, damaged, or has more than `MAX_PIXELS`.
    """
    if not data:
        raise BadPicture("is empty")
    try:
        with (
            warnings.catch_warnings(action="ignore") if quiet else contextlib.nullcontext(),
            Image.open(io.BytesIO(data), formats=formats) as image,
        ):
            _check_size(image.size)
            return make(image)
    except Image.DecompressionBombError:
        raise BadPicture("is too large: more pixels than is safe") from None
    except (BadPicture, MemoryError):  # the latter is no fault of the picture
        raise
    except Exception as error:  # damaged headers break Pillow's decoders in whatever way they find
        raise BadPicture(f"cannot be decoded ({_first_words(error)})") from None


def to_stored(data: bytes, img_size: int | None, store: StoreOptions | None) -> np.ndarray | Encoded:
    """The bytes of a picture as they are stored: a square of pixels, or a whole JPEG. Raises BadPicture."""
    if store is not None:
        return to_jpeg(data, store)
    assert img_size is not None
    return to_square(decode(data), img_size)


def to_square(image: Image.Image, side: int) -> np.ndarray:
    """Resize the shorter side to `side` (bicubic) and keep the centre: (side, side, 3) uint8."""
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))


def to_jpeg(data: bytes, store: StoreOptions) -> Encoded:
    """The picture as a JPEG whose shorter side is at most `shorter_side`; one that is so already keeps its bytes."""
    image = decode(data)
    if _keeps_bytes(data, image.size, store):
        return Encoded(data, store.format, (image.height, image.width))
    size = _stored_size(image.size, store)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=store.quality)
    return Encoded(buffer.getvalue(), store.format, (image.height, image.width))


def _keeps_bytes(data: bytes, size: tuple[int, int], store: StoreOptions) -> bool:
    return min(size) <= store.shorter_side and is_plain_jpeg(data)


def _stored_size(size: tuple[int, int], store: StoreOptions) -> tuple[int, int]:
    """(W, H) of the JPEG that is made of a picture of `size`; raises BadPicture where there can be none."""
    scale = store.shorter_side / min(size)
    width, height = (round(size[0] * scale), round(size[1] * scale)) if scale < 1 else size
    if max(width, height) > MAX_JPEG_SIDE:
        raise BadPicture(f"is too long: {width} x {height} pixels as it is stored, a JPEG ends with {MAX_JPEG_SIDE}")
    return width, height


def is_plain_jpeg(data: bytes) -> bool:
    """Whether the bytes are a JPEG in RGB that nothing says to turn: every reader sees the same in it."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return image.format == "JPEG" and image.mode == "RGB" and upright


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise BadPicture(f"is too large: {size[0]} x {size[1]} pixels, at most {MAX_PIXELS} are safe")


def _first_words(error: Exception) -> str:
    """What a decoder says, without the memory addresses that it may show."""
    return str(error).split("<")[0].strip() or type(error).__name__
