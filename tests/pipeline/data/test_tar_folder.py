"""The user's own tars: what a usual reader loses or mixes up is left out by name, or refused; never silently."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from pydantic import ValidationError

from pipeline.data.archives import BLOCK
from pipeline.data.catalog import SPLITS
from pipeline.data.dataset import ShardDataset
from pipeline.data.fetch import fetch_dataset
from pipeline.data.options import TarPatterns, WebdatasetOptions
from pipeline.data.shards import write_shards
from pipeline.data.transforms import Transform
from pipeline.errors import UserError
from tests.pipeline.data.imagenets import add, tar_of


def options(path: Path, **changes) -> WebdatasetOptions:
    values = {"label": "cls", "img_size": 16, "max_bad_frac": 0.0, **changes}
    return WebdatasetOptions(name="webdataset", path=str(path), **values)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def members(start: int, count: int) -> dict[str, bytes]:
    samples: dict[str, bytes] = {}
    for i in range(start, start + count):
        label = {"label": ("cat", "dog")[i % 2], "width": 16}
        samples |= {
            f"dir/s{i:03d}.cls": str(i % 3).encode(),
            f"dir/s{i:03d}.json": json.dumps(label).encode(),
            f"dir/s{i:03d}.png": png(i),
        }
    return samples


@pytest.fixture
def tars(tmp_path) -> Path:
    """Two tars of six samples for training, one of four for val and for test each."""
    root = tmp_path / "tars"
    for file, start, count in (
        ("train/0.tar", 0, 6),
        ("train/1.tar", 6, 6),
        ("val/0.tar", 20, 4),
        ("test/0.tar", 30, 4),
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(tar_of(members(start, count)))
    return root


def shard(path: Path, tmp_path: Path, **changes):
    fetch_dataset(options(path, **changes), tmp_path / "raw")
    return write_shards(options(path, **changes), tmp_path / "raw", tmp_path / "shards", 5)


def refuse(path: Path, tmp_path: Path, sentence: str, **changes) -> None:
    with pytest.raises(UserError, match=sentence):
        fetch_dataset(options(path, **changes), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def dropped(path: Path, tmp_path: Path) -> dict[str, str]:
    return {d.file.split("/")[-1]: d.reason for d in shard(path, tmp_path, max_bad_frac=0.9).dropped}


def test_the_samples_are_those_that_webdataset_reads_in_its_order(tars, tmp_path):
    manifest = shard(tars, tmp_path)
    assert manifest.class_names == ("0", "1", "2")
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 12, "val": 4, "test": 4}
    for split in SPLITS:
        stock = list(
            webdataset.WebDataset([str(path) for path in sorted((tars / split).iterdir())], shardshuffle=False)
        )
        ours = ShardDataset(tmp_path / "shards", split, Transform())
        assert [int(sample["cls"]) for sample in stock] == [ours[i][1] for i in range(len(ours))]
        for i, sample in enumerate(stock):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), ours.image(i))


def test_labels_may_be_names_in_a_json_member(tars, tmp_path):
    manifest = shard(tars, tmp_path, label="json:label")
    assert manifest.class_names == ("cat", "dog")
    assert manifest.splits["train"].class_counts == (6, 6)
    refuse(tars, tmp_path / "other", r"20 of 20 samples cannot be used \(20 x has no label in \.json\)", label="json:x")


def labelled(path: Path, labels: list) -> None:
    """All three splits with samples of these labels."""
    for number, split in enumerate(SPLITS):
        named = {}
        for i, label in enumerate(labels):
            named |= {f"s{i}.json": json.dumps({"label": label}).encode(), f"s{i}.png": png(100 * number + i)}
        (path / split / "0.tar").write_bytes(tar_of(named))


def test_names_of_digits_are_numbers_only_where_all_are_written_as_such(tars, tmp_path):
    (tars / "train/1.tar").unlink()
    for labels, names in (
        (["00", "01"], ("00", "01")),
        (["1", 3], ("0", "1", "2", "3")),
        (["3000000", "999999999999"], ("3000000", "999999999999")),
        (["\u0663", "4"], ("4", "\u0663")),
    ):
        labelled(tars, labels)
        assert shard(tars, tmp_path, label="json:label").class_names == names


def test_a_name_is_never_cut_and_one_that_cannot_be_shown_is_left_out(tars, tmp_path):
    (tars / "train/1.tar").unlink()
    labelled(tars, ["a" * 99 + "b", "a" * 99 + "c", "a" * 101, "a\x1b[2J", "\ud800"])
    manifest = shard(tars, tmp_path, label="json:label", max_bad_frac=0.6)
    assert manifest.class_names == ("a" * 99 + "b", "a" * 99 + "c")
    assert {d.reason for d in manifest.dropped} == {
        "has a label that is longer than 100 characters, or cannot be printed"
    }


@pytest.mark.parametrize("pattern", ["", ".", "/data/*.tar", "a/**b/*.tar", "a\0"])
def test_a_pattern_that_cannot_be_below_the_folder_is_refused(pattern):
    with pytest.raises(ValidationError, match="must be a pattern of files below"):
        TarPatterns(train=pattern)


def test_the_tars_may_lie_anywhere_below_the_folder(tars, tmp_path):
    patterns = TarPatterns(train="train/0.tar", val="v*/**/*.tar", test="test/*")
    assert shard(tars, tmp_path, tars=patterns).splits["train"].num_samples == 6
    refuse(tars, tmp_path / "x", r"dataset\.tars\.val = 'no/\*\.tar': no such file", tars=TarPatterns(val="no/*.tar"))


def test_a_truncated_tar_is_told_wherever_it_ends(tars, tmp_path):
    """Stock webdataset gives 1 to 5 samples, some of them halves, and for some ends no error."""
    path = tars / "train/0.tar"
    whole = path.read_bytes()
    for length in range(BLOCK, len(whole) - 8 * 1024, BLOCK * 3 + 100):
        path.write_bytes(whole[:length])
        sentence = r"train/0\.tar at \d+ (is cut off inside|has no end: members may be missing)"
        refuse(tars, tmp_path, sentence, max_bad_frac=0.0)
        refuse(tars, tmp_path, sentence, max_bad_frac=0.99)  # who knows of how many samples that is


def test_a_flipped_byte_in_any_header_costs_one_sample_and_is_told(tars, tmp_path):
    path = tars / "train/0.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = {member.name: member.offset for member in tar}
    for name, offset in offsets.items():
        data = bytearray(whole)
        data[offset + 3] ^= 1  # in the name
        path.write_bytes(data)
        manifest = shard(tars, tmp_path, max_bad_frac=0.2)
        reasons = {d.file.split("/")[-1]: d.reason for d in manifest.dropped}
        assert reasons.pop(f"0.tar at {offset}") == "has a damaged header"
        lost = {"dir": 0, "json": 0, "cls": 1, "png": 1}[name.rpartition(".")[2]]
        assert len(reasons) == lost
        assert manifest.splits["train"].num_samples == 12 - lost


def test_interleaved_and_doubled_members_are_never_mixed(tars, tmp_path):
    a, b, c = ({k: v for k, v in members(i, 1).items() if not k.endswith("json")} for i in (40, 41, 42))
    (a_cls, a_png), (b_cls, b_png) = a.items(), b.items()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (a_cls, b_cls, a_png, b_png, *c.items(), *c.items(), ("d.cls", b"1"), ("d.cls", b"2")):
            add(tar, name, data)
    (tars / "train/2.tar").write_bytes(buffer.getvalue())
    reasons = dropped(tars, tmp_path)
    assert reasons["s040"] == reasons["s041"] == "has members that lie apart, or two samples have its key"
    assert reasons["s042"].startswith("has two members .")
    assert reasons["2.tar: d"] == "has two members .cls"


def test_a_key_of_another_tar_and_an_image_of_another_split_are_left_out(tars, tmp_path):
    double = members(0, 1) | {
        "dir/leak.cls": b"0",
        "dir/leak.png": png(30),
        "dir/half.cls": b"1",
        "dir/none.png": png(70),
    }
    double |= {"dir/word.cls": b"cat", "dir/word.png": png(71), "dir/minus.cls": b"-1", "dir/minus.png": png(72)}
    double |= {"dir/two.cls": b"1", "dir/two.png": png(73), "dir/two.jpg": png(74)}
    double |= {"dir/bad.cls": b"1", "dir/bad.png": png(75)[:200], "dir/zero.cls": b"1", "dir/zero.png": b""}
    (tars / "train/2.tar").write_bytes(tar_of(double))
    reasons = dropped(tars, tmp_path)
    assert reasons.pop("bad").startswith("cannot be decoded (")
    assert reasons == {
        "s000": "has the key of a sample of another tar",
        "leak": "also in the test split",
        "half": "has no image",
        "none": "has no member .cls",
        "word": "has no label in .cls",
        "minus": "has a label that is not from 0 to 99999",
        "two": "has two images",
        "zero": "is empty",
    }


def test_tars_that_were_joined_or_packed_are_told(tars, tmp_path):
    path = tars / "val/0.tar"
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    refuse(tars, tmp_path, r"val/0\.tar at \d+ goes on behind its end")
    path.write_bytes(gzip.compress(whole))
    refuse(tars, tmp_path, r"val/0\.tar at 0 is compressed: unpack it")


def test_options_say_which_label_and_which_size(tars):
    with pytest.raises(ValidationError, match="must be cls, or json:KEY"):
        options(tars, label="json:")
    with pytest.raises(ValidationError, match="write one of img_size"):
        options(tars, img_size=None)
