"""Pictures that were made to harm: each is refused with a reason, none takes more memory than a large honest one."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import decoding, pictures, places
from pipeline.data.options import StoreOptions
from pipeline.data.pictures import BadPicture, check_picture, to_jpeg
from pipeline.data.places import list_rows, read_place
from pipeline.errors import UserError
from tests.hostile.corpus import bad_pictures, encoded, png

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


JPEG = StoreOptions(shorter_side=256, format="jpg", quality=90)


def test_a_picture_that_is_too_long_for_a_jpeg_is_refused_before_it_is_stored():
    long = png(70_000, 8, zlib.compress(bytes(8 * (3 * 70_000 + 1))))
    sha256, reason = check_picture(long, JPEG)
    assert (sha256, reason) == ("", "is too long: 70000 x 8 pixels as it is stored, a JPEG ends with 65500")
    assert len(check_picture(long)[0]) == 64  # as a square it can be stored
    with pytest.raises(BadPicture, match="is too long"):
        to_jpeg(long, JPEG)
    small = png(70_000, 600, zlib.compress(bytes(600 * (3 * 70_000 + 1))))  # it becomes 29867 x 256
    assert len(check_picture(small, JPEG)[0]) == 64


def test_whatever_passes_the_check_can_be_read_in_training():
    """One limit for both: 8200 x 8200 once passed here and ended the training."""
    assert decoding.open_picture is pictures.open_picture
    side = 8200
    data = png(side, side, zlib.compress(bytes(side * (side + 1)), 1), colour=0)
    assert check_picture(data)[1] == ""
    assert decoding.decode(data).shape == (side, side)


def test_too_little_memory_is_no_fault_of_the_picture():
    def fail(image):
        raise MemoryError

    with pytest.raises(MemoryError):
        pictures.open_picture(encoded("png"), ("PNG",), fail)


def test_a_parquet_file_that_repeats_a_value_takes_the_room_of_one(tmp_path):
    """100 rows of 2 MB that are one value in the file, of which at least 200 MB were made."""
    picture = encoded("png") + bytes(2 << 20)
    table = pa.table({"image": [{"bytes": picture, "path": "n.jpg"}] * 100, "label": [1] * 100})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    code = (
        "import sys; from pathlib import Path; from pipeline.data.places import *; root = Path(sys.argv[1])\n"
        "import pyarrow.parquet, resource\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = list_rows(root / 'a.parquet', 'a.parquet')\n"
        "print(len({len(read_place(root, row.place, 1 << 28)) for row in rows}), end=' ')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    sizes, grown_mib = map(int, done.stdout.split())
    assert sizes == 1
    assert grown_mib < 100
    with pytest.raises(OSError, match="more than 1000 are not read"):
        read_place(tmp_path, ["a.parquet", 0, 0], 1000)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ({"bytes": b"x", "path": 7}, 1),
        ({"bytes": "x", "path": "a"}, 1),
        ({"bytes": b"x", "path": b"a"}, 1),
        ({"path": "a"}, 1),
        (b"x", 1),
        ({"bytes": b"x", "path": "a"}, 1.7),
        ({"bytes": b"x", "path": "a"}, float("inf")),
        ({"bytes": b"x", "path": "a"}, None),
    ],
)
def test_a_parquet_file_of_other_columns_is_refused(image, label, tmp_path):
    pq.write_table(pa.table({"image": [image], "label": [label]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="not a parquet file of image and label"):
        list_rows(tmp_path / "a.parquet", "a.parquet")


def test_a_row_group_that_is_too_large_is_called_that(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": [{"bytes": bytes(999), "path": "a"}], "label": [0]}), tmp_path / "a.parquet")
    monkeypatch.setattr(places, "MAX_GROUP_BYTES", 100)
    with pytest.raises(OSError, match="row group too large") as error:
        read_place(tmp_path, ["a.parquet", 0, 0], 1000)
    assert "damaged" not in str(error.value)
