"""Clips in shards: the same bytes twice, read back by anyone, the same batches for any ranks, workers and resumes."""

import io
import json
import shutil
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from pipeline.data.catalog import DATASETS
from pipeline.data.clips import ClipSampling, ClipTransform, Views
from pipeline.data.dataset import ShardDataset
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import ShardError, load_manifest
from pipeline.data.loader import eval_dataset, eval_loader, train_loader
from pipeline.data.options import MovingDigitsOptions
from pipeline.data.shards import write_shards
from pipeline.data.transforms import Transform, denormalise
from pipeline.data.video import check_clip, decode_clip
from pipeline.errors import UserError
from tests.pipeline.data.batches import assert_one_order, assert_same, load_members

OPTIONS = MovingDigitsOptions(
    name="moving-digits",
    img_size=20,
    num_frames=6,
    num_clutter=2,
    label="digit-motion",
    train_samples=23,
    val_samples=5,
    test_samples=11,
    seed=0,
)
CLIP = ClipSampling(4, "sparse", None)


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw_dir = tmp_path_factory.mktemp("moving") / "raw"
    fetch_dataset(OPTIONS, raw_dir)
    return raw_dir


@pytest.fixture(scope="module")
def shards(raw_dir: Path) -> Path:
    """Read only: shards of 4 clips."""
    write_shards(OPTIONS, raw_dir, raw_dir.parent / "shards", samples_per_shard=4)
    return raw_dir.parent / "shards"


def test_the_same_raw_data_gives_the_same_bytes(raw_dir, shards, tmp_path):
    write_shards(OPTIONS, raw_dir, tmp_path / "again", samples_per_shard=4)
    again, first = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (tmp_path / "again", shards))
    assert again == first


def test_the_manifest_says_what_the_clips_are(shards):
    manifest = load_manifest(shards)
    assert (manifest.num_frames, manifest.image_size, manifest.in_chans) == ((6, 6), (20, 20), 1)
    assert manifest.num_classes == 40
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 23, "val": 5, "test": 11}


def test_webdataset_and_the_index_read_back_what_was_written(raw_dir, shards):
    written = list(DATASETS["moving-digits"].samples(OPTIONS, raw_dir, "test"))
    files = [str(shards / shard.file) for shard in load_manifest(shards).split("test").shards]
    stock = list(webdataset.WebDataset(files, shardshuffle=False))
    ours = eval_dataset(shards, "test", img_size=20, clips=ClipSampling(6, "sparse", None))
    assert len(stock) == len(ours) == len(written)
    for index, (sample, read) in enumerate(zip(written, stock, strict=True)):
        assert sample.image.data == read["apng"]
        assert check_clip(io.BytesIO(read["apng"])) == (6, (20, 20))
        frames = decode_clip(read["apng"], range(6), grey=True)
        clip, label, _ = ours[index]
        assert np.array_equal(denormalise(clip)[0].numpy(), frames)
        assert np.array_equal(ours.frames(index, [5, 0])[..., 0], frames[[5, 0]])
        assert label == sample.label == int(read["cls"])
        assert [list(box) for box in sample.box] == json.loads(read["box.json"])


def test_the_index_is_what_tarfile_finds(shards):
    for file, samples in load_members(shards).items():
        with tarfile.open(shards / file) as tar:
            found = [[m.name, m.offset_data, m.size] for m in tar]
        assert found == [[f"{key}.{ext}", *span] for key, members in samples for ext, span in members.items()]


def read_train(directory, **options):
    options = {"global_batch_size": 6, "seed": 3, "epoch": 2, "augment": "flip_crop", "img_size": 16, **options}
    return list(train_loader(directory, clips=CLIP, **options))


def test_loader_workers_ranks_and_resume_change_no_byte(shards):
    expected = read_train(shards)
    assert [tuple(clips.shape) for clips, *_ in expected] == [(6, 1, 4, 16, 16)] * 3
    assert all(clips.dtype == torch.float32 for clips, *_ in expected)
    assert_one_order(partial(read_train, shards), expected)


def test_epochs_differ_and_tests_do_not(shards):
    assert not torch.equal(read_train(shards, epoch=3)[0][0], read_train(shards)[0][0])
    first, second = (list(eval_loader(shards, "test", 4, clips=CLIP, img_size=16)) for _ in range(2))
    assert_same(second, first)


@pytest.mark.parametrize("views", [None, Views(2, 1)])
def test_two_ranks_evaluate_every_clip_once(shards, views):
    seen = []
    for rank in range(2):
        for clips, _, indices in eval_loader(shards, "test", 3, rank, 2, clips=CLIP, img_size=16, views=views):
            assert clips.shape[1:] == ((1, 4, 16, 16) if views is None else (2, 1, 4, 16, 16))
            seen += indices.tolist()
    assert sorted(seen) == list(range(11))


def test_large_clips_which_are_not_remembered_read_the_same(shards):
    small, large = (eval_dataset(shards, "test", img_size=20, clips=CLIP) for _ in range(2))
    assert small._small
    large._small = False
    assert all(torch.equal(small[i][0], large[i][0]) for i in range(len(small)))


def test_a_damaged_clip_that_passed_the_size_check_is_named(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "shards")
    path = tmp_path / "shards/test-000000.tar"
    offset, length = dict(load_members(shards)["test-000000.tar"])["test-000001"]["apng"]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = bytes(length)
    path.write_bytes(data)
    dataset = eval_dataset(tmp_path / "shards", "test", "samples", img_size=20, clips=CLIP)
    dataset[0]
    with pytest.raises(ShardError, match=r"test-000000\.tar: sample test-000001: its bytes are not those"):
        dataset[1]


def test_images_and_clips_are_not_mistaken_for_each_other(shards, tiny_shards):
    with pytest.raises(UserError, match=r"model\.num_frames = None: the shards have clips; say how many frames"):
        ShardDataset(shards, "test", Transform())
    with pytest.raises(UserError, match=r"model\.num_frames = 4: the shards have images; leave it out"):
        ShardDataset(tiny_shards, "test", ClipTransform(Transform(), CLIP, 16))
