"""Images with a class for every pixel in shards: the same bytes twice, read back by anyone, the same batches always."""

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
from PIL import Image

from pipeline.data.catalog import DATASETS
from pipeline.data.clips import ClipSampling
from pipeline.data.dataset import ShardDataset
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import ShardError, load_manifest, load_split_index
from pipeline.data.loader import eval_dataset, eval_loader, train_loader
from pipeline.data.masks import MaskTransform
from pipeline.data.options import DigitsSegmentationOptions
from pipeline.data.shards import write_shards
from pipeline.data.transforms import Transform, denormalise
from pipeline.errors import UserError
from pipeline.mask_rules import MasksConfig
from tests.pipeline.data.batches import assert_one_order, assert_same, load_members

OPTIONS = DigitsSegmentationOptions(
    name="digits-segmentation",
    img_size=24,
    num_digits=3,
    digit_px=[30, 60],
    num_clutter=2,
    label="digit",
    train_samples=23,
    val_samples=5,
    test_samples=11,
    seed=0,
)
RECIPE = MasksConfig(
    short_side=24, ratio=[0.5, 2.0], cat_max_frac=0.75, hflip=0.5, photometric=True, mean=[0.5] * 3, std=[0.5] * 3
)


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw_dir = tmp_path_factory.mktemp("segmentation") / "raw"
    fetch_dataset(OPTIONS, raw_dir)
    return raw_dir


@pytest.fixture(scope="module")
def shards(raw_dir: Path) -> Path:
    """Read only: shards of 4 images."""
    write_shards(OPTIONS, raw_dir, raw_dir.parent / "shards", samples_per_shard=4)
    return raw_dir.parent / "shards"


def test_the_same_raw_data_gives_the_same_bytes(raw_dir, shards, tmp_path):
    write_shards(OPTIONS, raw_dir, tmp_path / "again", samples_per_shard=4)
    again, first = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (tmp_path / "again", shards))
    assert again == first


def test_the_manifest_counts_the_pixels_of_every_class(raw_dir, shards):
    manifest = load_manifest(shards)
    assert (manifest.task, manifest.num_classes, manifest.image_size, manifest.in_chans) == (
        "segmentation", 11, (24, 24), 1,
    )  # fmt: skip
    for name, split in manifest.splits.items():
        classes = np.stack([s.classes for s in DATASETS[OPTIONS.name].samples(OPTIONS, raw_dir, name)])
        assert split.class_counts == tuple(np.bincount(classes.ravel(), minlength=11).tolist())
        assert sum(split.class_counts) == split.num_samples * 24 * 24


def test_labels_are_what_other_manifests_have_always_said(tiny_shards):
    assert load_manifest(tiny_shards).task == "classification"
    assert "task" not in json.loads((tiny_shards / "manifest.json").read_text())
    index = load_split_index(tiny_shards, "val")
    assert index.mask_spans is None
    assert index.label_spans.shape == (5, 2)


def test_webdataset_and_the_index_read_back_what_was_written(raw_dir, shards):
    written = list(DATASETS[OPTIONS.name].samples(OPTIONS, raw_dir, "test"))
    files = [str(shards / shard.file) for shard in load_manifest(shards).split("test").shards]
    stock = list(webdataset.WebDataset(files, shardshuffle=False))
    ours = eval_dataset(shards, "test")
    assert len(stock) == len(ours) == len(written)
    for index, (sample, read) in enumerate(zip(written, stock, strict=True)):
        assert "cls" not in read
        assert np.array_equal(sample.image, np.asarray(Image.open(io.BytesIO(read["png"]))))
        assert np.array_equal(sample.classes, np.asarray(Image.open(io.BytesIO(read["seg.png"]))))
        image, classes, number = ours[index]
        assert np.array_equal(denormalise(image)[0].numpy(), sample.image)
        assert np.array_equal(classes.numpy(), sample.classes)
        assert (classes.dtype, number) == (torch.uint8, index)
        assert [list(box) for box in sample.box] == json.loads(read["box.json"])


def test_the_index_is_what_tarfile_finds(shards):
    for file, samples in load_members(shards).items():
        with tarfile.open(shards / file) as tar:
            found = [[m.name, m.offset_data, m.size] for m in tar]
        assert found == [[f"{key}.{ext}", *span] for key, members in samples for ext, span in members.items()]


def read_train(directory, **options):
    options = {"global_batch_size": 6, "seed": 3, "epoch": 2, "img_size": 16, "masks": RECIPE, **options}
    return list(train_loader(directory, **options))


def test_loader_workers_ranks_and_resume_change_no_byte(shards):
    expected = read_train(shards)
    assert [tuple(images.shape) for images, *_ in expected] == [(6, 1, 16, 16)] * 3
    assert [tuple(classes.shape) for _, classes, _ in expected] == [(6, 16, 16)] * 3
    assert {images.dtype for images, *_ in expected} == {torch.float32}
    assert {classes.dtype for _, classes, _ in expected} == {torch.int64}
    assert_one_order(partial(read_train, shards), expected)


def test_without_a_recipe_images_and_classes_come_as_they_are_stored(shards):
    expected = read_train(shards, masks=None)
    assert_same(read_train(shards, masks=None, loader_workers=2), expected)
    stored = eval_dataset(shards, "train")
    kept = {image.numpy().tobytes() + classes.numpy().tobytes() for image, classes, _ in (stored[i] for i in range(23))}
    for images, classes, _ in expected:
        for image, known in zip(images, classes, strict=True):
            assert image.numpy().tobytes() + known.to(torch.uint8).numpy().tobytes() in kept


def test_epochs_differ_and_tests_do_not(shards):
    assert not torch.equal(read_train(shards, epoch=3)[0][0], read_train(shards)[0][0])
    first, second = (list(eval_loader(shards, "test", 4, masks=RECIPE)) for _ in range(2))
    for (images, classes, indices), (others, known, numbers) in zip(first, second, strict=True):
        assert_same([tuple(images), tuple(classes), (indices,)], [tuple(others), tuple(known), (numbers,)])


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_two_ranks_evaluate_every_image_once_its_classes_as_they_are_stored(shards, loader_workers):
    stored, seen = eval_dataset(shards, "test"), []
    small = RECIPE.model_copy(update={"short_side": 12})
    for rank in range(2):
        for images, classes, indices in eval_loader(shards, "test", 3, rank, 2, loader_workers, masks=small):
            assert [tuple(image.shape) for image in images] == [(1, 12, 12)] * len(indices)
            assert all(torch.equal(known, stored[i][1]) for known, i in zip(classes, indices.tolist(), strict=True))
            seen += indices.tolist()
    assert sorted(seen) == list(range(11))


def test_reading_leaves_the_global_random_state_alone(shards):
    before = torch.get_rng_state()
    read_train(shards)
    assert torch.equal(torch.get_rng_state(), before)


def test_damaged_classes_that_passed_the_size_check_are_named(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "shards")
    path = tmp_path / "shards/test-000000.tar"
    offset, length = dict(load_members(shards)["test-000000.tar"])["test-000001"]["seg.png"]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = bytes(length)
    path.write_bytes(data)
    dataset = eval_dataset(tmp_path / "shards", "test", "samples")
    dataset[0]
    with pytest.raises(ShardError, match=r"test-000000\.tar: sample test-000001: its bytes are not those"):
        dataset[1]


def test_labels_classes_and_clips_are_not_mistaken_for_each_other(shards, tiny_shards):
    with pytest.raises(UserError, match="Transform: the shards have a class for every pixel; use MaskTransform"):
        ShardDataset(shards, "test", Transform())
    with pytest.raises(UserError, match="MaskTransform: the shards have labels; use Transform"):
        ShardDataset(tiny_shards, "test", MaskTransform())
    with pytest.raises(UserError, match=r"train\.masks = {.*}: the shards have labels; leave it out"):
        read_train(tiny_shards)
    with pytest.raises(UserError, match="ClipTransform: the shards have a class for every pixel"):
        eval_dataset(shards, "test", clips=ClipSampling(4, "sparse", None))
