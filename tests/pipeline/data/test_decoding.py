"""Bytes of shards that are no picture, or too large a one, are refused before they cost memory."""

import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data import decoding, pictures
from pipeline.data.dataset import ShardDataset
from pipeline.data.decoding import BadImage, decode, decode_picture
from pipeline.data.index import ShardError
from pipeline.data.transforms import Transform


def encode(image: np.ndarray, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces that many pixels, behind which a few kilobytes unfold to as many zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(width + 1, 10**6) * 10), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(9460, 9460), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_enormous_pictures_are_refused_before_memory_is_taken(width, height):
    data = bomb(width, height)
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match=r"pixels"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_picture_just_small_enough_is_read(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 600)
    assert np.array_equal(decode(encode(PICTURE)), PICTURE)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 599)
    with pytest.raises(BadImage, match="is too large: 30 x 20 pixels, at most 599"):
        decode(encode(PICTURE))


@pytest.mark.parametrize("kind", ["gif", "bmp", "tiff", "webp", "ppm"])
def test_other_formats_are_refused(kind):
    with pytest.raises(BadImage, match="cannot identify"):
        decode(encode(PICTURE, kind))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_whatever_the_damage_it_is_the_same_error(kind):
    whole, rng = encode(PICTURE, kind), np.random.default_rng(1)
    refused = []
    for _ in range(300):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        try:
            decode(bytes(data))
        except BadImage as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in reason for reason in refused)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_a_picture_has_the_pixels_of_the_array(shape):
    data = encode(np.resize(PICTURE, shape))
    assert np.array_equal(np.asarray(decode_picture(data)), decode(data))


def test_a_picture_in_a_shard_that_is_too_large_is_named(tiny_shards, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    decoding.decode_once.cache_clear()
    with pytest.raises(ShardError, match=r"sample train-000002: is too large: 24 x 24 pixels, at most 100"):
        ShardDataset(tiny_shards, "train", Transform())[2]


def test_a_warning_is_shown_once_however_many_pictures_are_read():
    data = encode(PICTURE)
    with warnings.catch_warnings(record=True, action="default") as shown:
        for _ in range(3):
            decode(data)
            warnings.warn("the same", stacklevel=1)
    assert len(shown) == 1


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_what_is_neither_grey_nor_rgb_is_refused(mode):
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "jpeg" if mode == "CMYK" else "png")
    with pytest.raises(BadImage, match="is neither grey nor RGB, of 8 bits: mode "):
        decode(buffer.getvalue())
