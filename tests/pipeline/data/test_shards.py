"""Shards: the same bytes twice, everything read back, every damage named."""

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.data import shards as writing
from pipeline.data import source
from pipeline.data.catalog import DATASETS, SPLITS
from pipeline.data.dataset import ShardDataset
from pipeline.data.index import (
    Members,
    ShardError,
    encode_index,
    load_manifest,
    load_split_index,
    sum_members,
)
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.shards import write_shards
from pipeline.data.transforms import Transform
from pipeline.data.verify import verify_shards
from pipeline.errors import UserError
from tests.pipeline.data.batches import load_members


@pytest.fixture
def shards(tiny_shards, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_shards, tmp_path / "shards"))


def read_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_same_raw_data_gives_the_same_bytes(tiny, digits_raw, tiny_shards, tmp_path):
    write_shards(tiny, digits_raw, tmp_path / "again", samples_per_shard=4)
    assert read_bytes(tmp_path / "again") == read_bytes(tiny_shards)


def test_the_manifest_describes_the_files(tiny, tiny_shards):
    manifest = load_manifest(tiny_shards)
    assert manifest.sha256 == hashlib.sha256((tiny_shards / "manifest.json").read_bytes()).hexdigest()
    assert (manifest.dataset, manifest.num_classes, manifest.image_size) == (tiny.name, 10, (24, 24))
    assert manifest.source
    assert manifest.licence
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 23, "val": 5, "test": 11}
    for split in manifest.splits.values():
        assert sum(shard.num_samples for shard in split.shards) == sum(split.class_counts) == split.num_samples
        for shard in split.shards:
            data = (tiny_shards / shard.file).read_bytes()
            assert (shard.num_bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert verify_shards(tiny_shards) == manifest


@pytest.mark.parametrize("split", SPLITS)
def test_webdataset_and_the_index_read_back_what_was_written(tiny, digits_raw, tiny_shards, split):
    written = list(DATASETS[tiny.name].samples(tiny, digits_raw, split))
    files = [str(tiny_shards / shard.file) for shard in load_manifest(tiny_shards).split(split).shards]
    stock = list(webdataset.WebDataset(files, shardshuffle=False))
    ours = ShardDataset(tiny_shards, split, Transform())
    assert len(stock) == len(ours) == len(written)
    for index, (sample, read) in enumerate(zip(written, stock, strict=True)):
        assert sample.key == read["__key__"] == ours.sample_key(index)
        assert sample.label == int(read["cls"]) == ours[index][1]
        assert np.array_equal(sample.image, np.asarray(Image.open(io.BytesIO(read["png"]))))
        assert np.array_equal(sample.image, ours.image(index))
        assert np.array_equal(sample.mask, np.asarray(Image.open(io.BytesIO(read["mask.png"]))))
        assert sample.box == tuple(json.loads(read["box.json"]))


def test_the_index_is_what_tarfile_finds(tiny_shards):
    for file, samples in load_members(tiny_shards).items():
        with tarfile.open(tiny_shards / file) as tar:
            found = [[m.name, m.offset_data, m.size] for m in tar]
        assert found == [[f"{key}.{ext}", *span] for key, members in samples for ext, span in members.items()]


def test_shard_size_changes_no_sample(tiny, digits_raw, tiny_shards, tmp_path):
    write_shards(tiny, digits_raw, tmp_path / "one", samples_per_shard=1000)
    few, many = (ShardDataset(d, "train", Transform()) for d in (tmp_path / "one", tiny_shards))
    assert all(np.array_equal(few.image(i), many.image(i)) for i in range(len(few)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [(truncate, "truncated"), (flip_a_bit, "has been altered"), (Path.unlink, "is missing")],
)
def test_a_damaged_shard_is_named_before_training(shards, damage, sentence):
    damage(shards / "train-000002.tar")
    expected = rf"train-000002\.tar: shard {sentence}|train-000002\.tar: shard is {sentence}"
    with pytest.raises(ShardError, match=expected):
        verify_shards(shards)
    with pytest.raises(ShardError, match=expected):
        train_loader(shards, global_batch_size=4, seed=0, epoch=0)
    eval_loader(shards, "val", 4)  # its shards are whole


def test_damage_is_found_although_the_shard_was_whole_earlier_in_this_process(shards):
    verify_shards(shards)
    flip_a_bit(shards / "val-000000.tar")
    with pytest.raises(ShardError, match=r"val-000000\.tar: shard has been altered"):
        verify_shards(shards)


def test_a_damaged_picture_is_named_when_it_is_read(shards):
    offset, length = dict(load_members(shards)["train-000000.tar"])["train-000001"]["png"]
    data = bytearray((shards / "train-000000.tar").read_bytes())
    data[offset : offset + length] = bytes(length)
    (shards / "train-000000.tar").write_bytes(data)
    dataset = ShardDataset(shards, "train", Transform(), verify="samples")
    dataset[0]
    with pytest.raises(ShardError, match=r"train-000000\.tar: sample train-000001"):
        dataset[1]


@pytest.mark.parametrize("file", ["manifest.json", "index.json"])
def test_manifest_and_index_are_named_too(shards, file):
    whole = (shards / file).read_bytes()
    (shards / file).write_bytes(whole[:-20])
    with pytest.raises(ShardError, match=file):
        verify_shards(shards)
    (shards / file).unlink()
    with pytest.raises(ShardError, match=rf"{file}: no such file; run the stage `shard` first"):
        verify_shards(shards)


def write_index(directory: Path, members: list[tuple[str, Members]], file: str = "train-000000.tar") -> Path:
    """Manifest and index of one shard with these samples; there is no tar."""
    index = encode_index({file: members}, {file: [0] * len(members)}, {})
    shard = {"file": file, "num_samples": len(members), "num_bytes": 9999, "sha256": "0" * 64}
    split = {"num_samples": len(members), "class_counts": [len(members)], "shards": [shard]}
    manifest = {
        "dataset": "x", "source": "", "licence": "", "class_names": ["a"], "in_chans": 1, "image_size": None,
        "num_frames": None, "index_sha256": hashlib.sha256(index).hexdigest(), "splits": {"train": split},
        "dropped": [],
    }  # fmt: skip
    (directory / "index.json").write_bytes(index)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_samples_need_not_have_the_same_members(tmp_path):
    samples = [
        ("a", {"box.json": (512, 3), "cls": (1536, 1), "png": (2560, 700)}),
        ("b", {"cls": (4096, 1), "jpg": (5120, 90)}),
    ]
    index = load_split_index(write_index(tmp_path, samples), "train")
    assert index.image_spans.tolist() == [[2560, 700], [5120, 90]]
    assert index.label_spans.tolist() == [[1536, 1], [4096, 1]]
    assert index.extents.tolist() == [[512, 2560 + 700 - 512], [4096, 5120 + 90 - 4096]]
    data = bytes(range(256)) * 11
    expected = sum_members({"box.json": data[:3], "cls": data[1024:1025], "png": data[2048:2748]})
    assert index.sum_sample(0, data[:2748]) == expected


def test_an_index_without_labels_or_images_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"index\.json: a sample of train has no cls"):
        load_split_index(write_index(tmp_path, [("a", {"png": (512, 3)})]), "train")
    with pytest.raises(ShardError, match=r"index\.json: a sample of train has no png or jpg"):
        load_split_index(write_index(tmp_path, [("a", {"cls": (512, 3)})]), "train")


def test_a_manifest_that_points_out_of_its_folder_is_refused(tmp_path):
    with pytest.raises(ShardError, match=r"manifest\.json: damaged \('\.\./train\.tar' is no file name\)"):
        load_manifest(write_index(tmp_path, [("a", {"cls": (512, 3), "png": (1536, 3)})], "../train.tar"))


def test_few_files_are_open_at_a_time(tiny_shards, monkeypatch):
    monkeypatch.setattr(source, "MAX_OPEN", 2)
    dataset, expected = (ShardDataset(tiny_shards, "train", Transform()) for _ in range(2))
    for index in (0, 22, 5, 10, 1, 20, 0):
        assert np.array_equal(dataset.image(index), expected.image(index))
        assert len(dataset._source._files) <= 2


def test_a_disk_that_is_full_at_the_end_costs_no_finished_shard(tiny, digits_raw, tiny_shards, tmp_path, monkeypatch):
    write = writing.write_bytes_atomic

    def fill(path, data):
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(writing, "write_bytes_atomic", fill)
    with pytest.raises(UserError, match="no space left on the disk"):
        write_shards(tiny, digits_raw, tmp_path / "out", samples_per_shard=4)
    kept = {path.name: path.stat().st_ino for path in next(tmp_path.glob(".out.parts-*")).glob("*.tar")}
    assert len(kept) == 11
    monkeypatch.undo()
    write_shards(tiny, digits_raw, tmp_path / "out", samples_per_shard=4)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.tar")} == kept
    assert read_bytes(tmp_path / "out") == read_bytes(tiny_shards)
    assert os.listdir(tmp_path) == ["out"]


def test_missing_raw_data_is_one_sentence_and_writes_nothing(tiny, tmp_path):
    with pytest.raises(UserError, match="raw: no such directory; run the stage `fetch` first"):
        write_shards(tiny, tmp_path / "raw", tmp_path / "out", 4)
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match=r"digits\.npz: no such file; run the stage `fetch` again"):
        write_shards(tiny, tmp_path / "raw", tmp_path / "out", 4)
    assert os.listdir(tmp_path) == ["raw"]
