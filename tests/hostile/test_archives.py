"""Tars that were made to harm: nothing is unpacked, no name is a path, and what is wrong is told."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from pipeline.data import devkit
from pipeline.data.archives import Damage, Member, walk_tar
from pipeline.data.fetch import fetch_dataset
from pipeline.data.imagenet_layouts import TRAIN_TAR, VAL_TAR
from pipeline.data.index import MANIFEST_FILE, ShardError, load_manifest
from pipeline.data.options import WebdatasetOptions
from pipeline.data.shards import write_shards
from pipeline.errors import UserError
from tests.hostile.corpus import CLIMBING, bad_tars, climbing_tar, encoded, header
from tests.pipeline.data.imagenets import make_pictures, tar_of, write_archives
from tests.pipeline.data.test_imagenet import options as imagenet

TARS = bad_tars()


def options(path: Path, max_bad_frac: float) -> WebdatasetOptions:
    return WebdatasetOptions(name="webdataset", path=str(path), label="cls", img_size=16, max_bad_frac=max_bad_frac)


@pytest.mark.parametrize("name", TARS)
def test_what_is_wrong_is_told_and_no_member_lies_outside(name):
    data = TARS[name]
    entries = list(walk_tar(io.BytesIO(data)))
    assert any(isinstance(entry, Damage) for entry in entries)
    for entry in entries:
        if isinstance(entry, Member):
            assert 0 <= entry.offset <= entry.offset + entry.size <= len(data)


def test_what_cannot_be_counted_is_marked_as_such():
    assert {"cut.tar", "endless.tar", "behind.tar", "packed.tar", "text.tar"} <= REST_LOST
    assert not {"link.tar", "device.tar", "pipe.tar", "sparse.tar"} & REST_LOST
    whole = tar_of(samples(0, 4))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        offsets = [member.offset for member in tar]
    for offset in offsets:  # a header whose name is altered costs its member, the last one's too
        data = bytearray(whole)
        data[offset + 3] ^= 1
        assert [e.rest_lost for e in walk_tar(io.BytesIO(data)) if isinstance(e, Damage)] == [False]
    data[offsets[-1] + 125] ^= 1  # its size: who knows what was behind it
    assert [e.rest_lost for e in walk_tar(io.BytesIO(data)) if isinstance(e, Damage)] == [True]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_links_and_folders_hide_nothing_whatever_their_size(kind):
    """Nothing is stored for them, as tarfile reads: what follows is the next member."""
    data, end = b"x".ljust(512, b"\0"), bytes(1024)
    tar = header(b"a", b"4000", kind) + header(b"b.jpg", b"1") + data + header(b"b.cls", b"1") + data + end
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        stock = [member.name for member in opened if member.isfile()]
    assert [e.name for e in walk_tar(io.BytesIO(tar)) if isinstance(e, Member)] == stock == ["b.jpg", "b.cls"]


@pytest.mark.parametrize("kind", [b"1", b"2", b"5"])
def test_the_long_name_of_a_link_goes_to_no_other_member(kind):
    data, end = b"x".ljust(512, b"\0"), bytes(1024)
    long = header(b"././@LongLink", b"6", b"L") + b"a.png\0".ljust(512, b"\0")
    tar = long + header(b"b", b"0", kind) + header(b"c.png", b"1") + data + end
    assert [e.name for e in walk_tar(io.BytesIO(tar)) if isinstance(e, Member)] == ["c.png"]


def test_a_tar_inside_a_tar_cannot_reach_out_of_it():
    """The inner one says that its member is as long as the outer one, which goes on with somebody else's data."""
    inner = TARS["larger-than-the-file.tar"]
    outer = tar_of({"n00000000.tar": inner, "secret": bytes(100_000)})
    (first, _) = (entry for entry in walk_tar(io.BytesIO(outer)) if isinstance(entry, Member))
    inside = list(walk_tar(io.BytesIO(outer), first.offset, first.offset + first.size))
    assert [type(entry) for entry in inside] == [Damage]


def samples(start: int, count: int) -> dict[str, bytes]:
    pictures = [encoded("png", (16 + start + i, 20)) for i in range(count)]
    return {f"s{i}.{kind}": data for i, p in enumerate(pictures) for kind, data in (("cls", b"1"), ("png", p))}


@pytest.fixture
def tars(tmp_path) -> Path:
    root = tmp_path / "in/tars"
    for split, start in (("train", 0), ("val", 10), ("test", 20)):
        (root / split).mkdir(parents=True)
        (root / split / "0.tar").write_bytes(tar_of(samples(start, 4)))
    return root


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_names_that_climb_stay_names(tars, tmp_path):
    """They are samples like others; nothing appears anywhere but the listing and the shards, with names of ours."""
    named = {}
    for i, name in enumerate(CLIMBING):
        named |= {f"{name}.cls": b"0", f"{name}.png": encoded("png", (100 + i, 20))}
    (tars / "train/1.tar").write_bytes(climbing_tar(named))
    (tars / "train/2.tar").write_bytes(climbing_tar({"\x1b[2Jbad\n.cls": b"0", "\x1b[2Jbad\n.png": b"x"}))
    before = everything_in(tmp_path)
    with pytest.raises(UserError) as refused:
        fetch_dataset(options(tars, 0.0), tmp_path / "raw")
    assert "\x1b" not in str(refused.value)
    assert "\n" not in str(refused.value)
    fetch_dataset(options(tars, 0.2), tmp_path / "raw")
    manifest = write_shards(options(tars, 0.2), tmp_path / "raw", tmp_path / "shards", 5)
    assert manifest.splits["train"].num_samples == 4 + len(CLIMBING)
    new = everything_in(tmp_path) - before
    assert {name.split("/")[0] for name in new} == {"raw", "shards"}
    assert all(name.rpartition("/")[2].split("-")[0].split(".")[0] in
               ("raw", "shards", "listing", "train", "val", "test", "manifest", "index") for name in new)  # fmt: skip
    assert not Path("owned").exists()


REST_LOST = {name for name, data in TARS.items() if any(getattr(e, "rest_lost", 0) for e in walk_tar(io.BytesIO(data)))}


@pytest.mark.parametrize("name", TARS)
def test_a_bad_tar_among_good_ones_is_refused_or_left_out(name, tars, tmp_path):
    """Left out if what is lost can be counted; members behind a cut cannot, and one cut tar is no one sample."""
    (tars / "train/bad.tar").write_bytes(TARS[name])
    with pytest.raises(UserError, match=r"cannot be (used|counted).* train/bad\.tar"):
        fetch_dataset(options(tars, 0.0), tmp_path / "raw")
    if name in REST_LOST:
        with pytest.raises(UserError, match=r"what is lost cannot be counted: train/bad\.tar at \d+"):
            fetch_dataset(options(tars, 0.99), tmp_path / "raw")
        return
    fetch_dataset(options(tars, 0.5), tmp_path / "raw")
    manifest = write_shards(options(tars, 0.5), tmp_path / "raw", tmp_path / "shards", 5)
    assert manifest.splits["train"].num_samples == 4
    assert {dropped.file.split(" ")[0].rstrip(":") for dropped in manifest.dropped} == {"train/bad.tar"}


def test_imagenets_archives_are_read_with_the_same_care(tmp_path):
    root = write_archives(tmp_path / "copy", make_pictures())
    whole = (root / VAL_TAR).read_bytes()
    for name, data in TARS.items():
        (root / VAL_TAR).write_bytes(data)
        with pytest.raises(UserError):
            fetch_dataset(imagenet(root), tmp_path / "raw")
        assert everything_in(tmp_path) == {"copy", *(f"copy/{file}" for file in os.listdir(root))}, name
    (root / VAL_TAR).write_bytes(whole)
    (root / TRAIN_TAR).write_bytes(tar_of({"n01440764.tar": TARS["link.tar"], "../../n01443537.tar": b""}))
    with pytest.raises(UserError):
        fetch_dataset(imagenet(root), tmp_path / "raw")


def test_a_development_kit_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(devkit, "MAX_BYTES", 1 << 20)
    (tmp_path / devkit.ARCHIVE).write_bytes(gzip.compress(bytes(50 << 20)))
    with pytest.raises(UserError, match="unpacks to more than 1048576 bytes; it is not the development kit"):
        devkit.read_truth(tmp_path / devkit.ARCHIVE)
    (tmp_path / devkit.ARCHIVE).write_bytes(
        gzip.compress(tar_of({"d/data/meta.mat": b"MATLAB 5.0 MAT-file" + b"\xff" * 500}))
    )
    with pytest.raises(UserError, match=r"has no meta\.mat that can be read"):
        devkit.read_names(tmp_path / devkit.ARCHIVE)


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "a/b.tar"])
def test_a_manifest_cannot_name_files_outside_its_folder(file, tiny_shards, tmp_path):
    text = (tiny_shards / MANIFEST_FILE).read_text()
    (tmp_path / MANIFEST_FILE).write_text(text.replace("train-000000.tar", file))
    with pytest.raises(ShardError, match="damaged"):
        load_manifest(tmp_path)
