"""Pictures that were made to harm: each is refused with a reason, none takes more memory than a large honest one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.pictures import check_picture
from tests.hostile.corpus import bad_pictures, encoded

ROOT = Path(__file__).resolve().parents[2]
LARGEST_MIB = 600  # an honest picture of as many pixels as are allowed, as RGB, and its copy


@pytest.fixture(scope="module")
def found() -> dict:
    command = [sys.executable, "-m", "tests.hostile.look"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning either
    return json.loads(done.stdout)


def test_every_bad_picture_is_refused_with_a_reason(found):
    assert len(found["reasons"]) >= 25
    for name, (sha256, reason) in found["reasons"].items():
        assert sha256 == "", name
        assert reason, name
        assert "\n" not in reason, name


def test_headers_that_lie_are_refused_for_their_size(found):
    for name in ("square.png", "huge.jpg", "huge.gif", "huge.tif", "huge.ppm", "line.png"):
        assert found["reasons"][name][1].startswith("is too large"), name


def test_no_decoder_but_those_of_the_list_is_asked(found):
    """Pillow could read icons and PostScript; the latter runs a program."""
    for name in ("icon.ico", "other.icns", "script.eps", "document.pdf", "vector.svg"):
        assert found["reasons"][name][1].startswith("cannot be decoded (cannot identify image file"), name


def test_memory_stays_bounded(found):
    assert found["grown_mib"] < LARGEST_MIB


@pytest.mark.parametrize("kind", ["bmp", "gif", "jpeg", "png", "ppm", "tiff", "webp"])
def test_honest_pictures_of_every_format_are_taken(kind):
    """Else the tests above would pass for a reader that refuses everything."""
    sha256, reason = check_picture(encoded(kind, (40, 30)))
    assert len(sha256) == 64
    assert reason == ""


def test_a_cut_anywhere_never_breaks_out(tmp_path):
    """Whatever is left of a picture, it is a picture or has a reason."""
    for kind in ("bmp", "gif", "jpeg", "png", "tiff", "webp"):
        data = encoded(kind, (24, 24))
        for stop in range(0, len(data), max(1, len(data) // 40)):
            sha256, reason = check_picture(data[:stop])
            assert bool(sha256) != bool(reason)


def test_a_flipped_byte_anywhere_never_breaks_out():
    for kind in ("bmp", "gif", "jpeg", "png", "tiff", "webp"):
        data = encoded(kind, (24, 24))
        for at in range(0, min(len(data), 600), 5):
            broken = bytearray(data)
            broken[at] ^= 0xFF
            sha256, reason = check_picture(bytes(broken))
            assert bool(sha256) != bool(reason)


def test_the_corpus_is_small():
    assert sum(map(len, bad_pictures().values())) < 2 << 20
