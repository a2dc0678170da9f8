"""ade20k from a copy as people keep it; every picture that cannot be used is named with its reason, and counted."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import pictures
from pipeline.data.catalog import DATASETS, IGNORE, SPLITS, Encoded
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import load_manifest
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.options import Ade20kOptions, Planned
from pipeline.data.shards import write_shards
from pipeline.errors import UserError
from pipeline.mask_rules import MasksConfig
from tests.pipeline.data.scenes import image_path, mask_path, save, write_scenes

NUM_TRAIN, NUM_TEST = 8, 4
NUM_TRAIN, NUM_TEST = 8, 4
RECIPE = MasksConfig(
    short_side=32, ratio=[0.5, 2.0], cat_max_frac=0.75, hflip=0.5, photometric=True, mean=[0.5] * 3, std=[0.2] * 3
)


def ade20k(path: Path, **changes) -> Ade20kOptions:
    values = {"val_samples": 2, "max_bad_frac": 0.0, "seed": 0, **changes}
    return Ade20kOptions(name="ade20k", path=str(path), **values)


def image_of(root: Path, number: int) -> Path:
    """The scenes in one row: those for training, then those for validation."""
    part = "training" if number < NUM_TRAIN else "validation"
    return image_path(root, part, number - NUM_TRAIN * (part == "validation"))


def mask_of(root: Path, number: int) -> Path:
    """Of that scene."""
    part = "training" if number < NUM_TRAIN else "validation"
    return mask_path(root, part, number - NUM_TRAIN * (part == "validation"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve scenes of different sizes: eight for training, four that are published for validation."""
    root = tmp_path / "ADEChallengeData2016"
    write_scenes(root, NUM_TRAIN, NUM_TEST)
    (root / "images/training/._ADE_train_00000000.jpg").write_bytes(b"as macOS leaves them")
    return root


def shard(options: Ade20kOptions, tmp_path: Path):
    fetch_dataset(options, tmp_path / "raw")
    return write_shards(options, tmp_path / "raw", tmp_path / "shards", 3)


def refuse(options: Ade20kOptions, tmp_path: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fetch_dataset(options, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def published(root: Path, number: int) -> np.ndarray:
    """The mask's file, our way: 0 does not count, 1 to 150 are 0 to 149."""
    return np.asarray(Image.open(mask_of(root, number))).astype(int) - 1


def test_published_validation_is_our_test_and_val_comes_out_of_training(folder, tmp_path):
    manifest = shard(ade20k(folder), tmp_path)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 6, "val": 2, "test": 4}
    assert (manifest.task, manifest.image_size, manifest.in_chans, manifest.dropped) == ("segmentation", None, 3, ())
    assert manifest.num_classes == 150
    assert manifest.class_names[:3] == ("wall", "building", "3")
    assert manifest.class_names[7] == "bed"
    masks = np.concatenate([published(folder, number).ravel() for number in range(NUM_TRAIN, NUM_TRAIN + NUM_TEST)])
    assert manifest.splits["test"].class_counts == tuple(np.bincount(masks[masks >= 0], minlength=150).tolist())
    assert manifest.splits["test"].class_counts[149] == NUM_TEST
    again = write_shards(ade20k(folder), tmp_path / "raw", tmp_path / "again", 3)
    assert again == manifest == load_manifest(tmp_path / "shards")


def test_no_picture_is_in_two_splits_and_files_keep_their_bytes(folder, tmp_path):
    options = ade20k(folder)
    fetch_dataset(options, tmp_path / "raw")
    samples = {split: list(DATASETS["ade20k"].samples(options, tmp_path / "raw", split)) for split in SPLITS}
    stored = {split: {sample.image.data for sample in samples[split]} for split in SPLITS}
    assert all(stored[a].isdisjoint(stored[b]) for a, b in itertools.combinations(SPLITS, 2))
    assert set().union(*stored.values()) == {image_of(folder, i).read_bytes() for i in range(NUM_TRAIN + NUM_TEST)}
    for number, sample in enumerate(samples["test"], NUM_TRAIN):
        expected = published(folder, number)
        assert np.array_equal(np.where(sample.classes == IGNORE, -1, sample.classes.astype(int)), expected)
        assert (sample.label, sample.image.size) == (None, expected.shape)


def test_scenes_of_any_size_become_batches_and_tests_see_them_whole(folder, tmp_path):
    shard(ade20k(folder), tmp_path)
    batches = list(train_loader(tmp_path / "shards", global_batch_size=3, seed=0, epoch=0, img_size=24, masks=RECIPE))
    assert [(tuple(images.shape), tuple(classes.shape)) for images, classes, _ in batches] == [
        ((3, 3, 24, 24), (3, 24, 24))
    ] * 2
    ((images, classes, indices),) = eval_loader(tmp_path / "shards", "test", 4, img_size=24, masks=RECIPE)
    assert indices.tolist() == [0, 1, 2, 3]
    for number, image, known in zip(range(NUM_TRAIN, NUM_TRAIN + NUM_TEST), images, classes, strict=True):
        height, width = published(folder, number).shape
        assert tuple(known.shape) == (height, width)
        assert image.shape[0] == 3
        assert min(image.shape[1:]) == 32
        assert (image.shape[1] > image.shape[2]) == (height > width)


def resave(path: Path, **options) -> None:
    """The picture as grey, in CMYK, or with a note that says how to turn it."""
    image = Image.open(path).convert(options.pop("mode", "RGB"))
    image.save(path, "jpeg", **options)


def test_what_not_every_reader_sees_alike_is_stored_as_pixels_that_lie_under_the_mask(folder, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter of a turn
    changes = [{"mode": "L"}, {"mode": "CMYK"}, {"exif": turned}]
    for number, change in enumerate(changes, NUM_TRAIN):
        resave(image_of(folder, number), **change)
    options = ade20k(folder)
    fetch_dataset(options, tmp_path / "raw")
    samples = DATASETS["ade20k"].samples(options, tmp_path / "raw", "test")
    for number, sample in zip(range(NUM_TRAIN, NUM_TRAIN + 3), samples, strict=False):
        with Image.open(image_of(folder, number)) as image:
            assert np.array_equal(sample.image, np.asarray(image.convert("RGB")))
        assert sample.image.shape == (*sample.classes.shape, 3)
    assert isinstance(samples[3].image, Encoded)


def test_masks_with_a_palette_are_masks(folder, tmp_path):
    path = mask_of(folder, NUM_TRAIN)
    expected = published(folder, NUM_TRAIN)
    image = Image.open(path)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)
    assert Image.open(path).mode == "P"
    options = ade20k(folder)
    fetch_dataset(options, tmp_path / "raw")
    found = DATASETS["ade20k"].samples(options, tmp_path / "raw", "test")[0].classes
    assert np.array_equal(np.where(found == IGNORE, -1, found.astype(int)), expected)


def damage(root: Path) -> dict[str, str]:
    """Ten bad scenes of twelve, each with its own reason; what is to be said of each file."""
    size = np.asarray(Image.open(mask_of(root, 0))).shape
    save(mask_of(root, 0), np.ones((size[0], size[1] + 1), np.uint8))
    unknown = np.asarray(Image.open(mask_of(root, 1))).copy()
    unknown[3, 3] = 151
    save(mask_of(root, 1), unknown)
    mask_of(root, 2).unlink()
    save(mask_of(root, 3), np.zeros_like(np.asarray(Image.open(mask_of(root, 3)))))
    data = image_of(root, 4).read_bytes()
    image_of(root, 4).write_bytes(data[: len(data) // 2])
    mask_of(root, 5).write_bytes(b"<html>gone</html>")
    shutil.copy(image_of(root, 8), image_of(root, 6))
    shutil.copy(mask_of(root, 8), mask_of(root, 6))
    save(mask_of(root, 9), np.repeat(unknown[..., None], 3, 2))
    image_of(root, 10).write_bytes(b"")
    image_of(root, 11).unlink()
    first = "images/validation/ADE_val_00000000.jpg"
    return {
        "annotations/training/ADE_train_00000000.png": (
            f"is a mask of another size than its picture: {size[0]} x {size[1] + 1} instead of {size[0]} x {size[1]}"
        ),
        "annotations/training/ADE_train_00000001.png": "has an unknown class: 151, they end with 150",
        "images/training/ADE_train_00000002.jpg": "has no mask",
        "annotations/training/ADE_train_00000003.png": "has no pixel with a class",
        "images/training/ADE_train_00000004.jpg": "cannot be decoded (image file is truncated",
        "annotations/training/ADE_train_00000005.png": "cannot be decoded (cannot identify image file",
        "images/training/ADE_train_00000006.jpg": f"is a copy of another picture: {first}",
        "annotations/validation/ADE_val_00000001.png": "is no mask of one byte per pixel: mode RGB",
        "images/validation/ADE_val_00000002.jpg": "is empty",
        "annotations/validation/ADE_val_00000003.png": "has no picture",
    }


def test_bad_scenes_are_named_and_stop_the_work_by_default(folder, tmp_path):
    damage(folder)
    sentence = (
        r"dataset\.max_bad_frac = 0\.0: 10 of 12 pictures cannot be used \(2 x cannot be decoded, 1 x has an unknown "
        r"class, 1 x has no mask, .*\): annotations/training/ADE_train_00000000\.png is a mask of another size than "
        r"its picture: 40 x 31 instead of 40 x 30 pixels, .*, and 5 more; mend or remove them, or allow more"
    )
    refuse(ade20k(folder), tmp_path, sentence)
    refuse(ade20k(folder, max_bad_frac=0.83), tmp_path, "max_bad_frac = 0.83: 10 of 12")


def test_as_many_as_are_allowed_are_left_out_and_listed(folder, tmp_path):
    rng = np.random.default_rng(1)
    for number in range(100, 103):  # in training, so that something is left
        image = rng.integers(0, 256, (30, 30, 3), np.uint8)
        save(folder / f"images/training/ADE_train_{number:08d}.jpg", image)
        save(folder / f"annotations/training/ADE_train_{number:08d}.png", np.ones((30, 30), np.uint8))
    reasons = damage(folder)
    manifest = shard(ade20k(folder, max_bad_frac=0.7), tmp_path)
    found = dict(manifest.dropped)
    assert found.keys() == reasons.keys()
    assert all(found[file].startswith(reason) for file, reason in reasons.items())
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 2, "val": 2, "test": 1}
    assert load_manifest(tmp_path / "shards").dropped == manifest.dropped


def test_a_copy_of_something_else_is_one_sentence(folder, tmp_path):
    refuse(ade20k(tmp_path / "nowhere"), tmp_path, r"dataset\.path = '.*nowhere': no such directory")
    (tmp_path / "empty").mkdir()
    sentence = r"is no copy of ade20k; it needs images/\{training,validation\}/\*\.jpg and annotations/"
    refuse(ade20k(tmp_path / "empty"), tmp_path, sentence)
    shutil.rmtree(folder / "images/validation")
    shutil.rmtree(folder / "annotations/validation")
    refuse(ade20k(folder), tmp_path, "no picture for the split test; add pictures")
    refuse(ade20k(folder, val_samples=8), tmp_path, "val_samples = 8: leaves nothing to train on, .* are 8")


@pytest.mark.parametrize(("path_of", "what"), [(image_of, "picture"), (mask_of, "mask")])
def test_a_file_changed_after_fetch_is_refused(folder, tmp_path, path_of, what):
    options = ade20k(folder)
    fetch_dataset(options, tmp_path / "raw")
    path = path_of(folder, NUM_TRAIN)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"{path.name}: {what} has changed since it was listed; run the stage `fetch`"):
        write_shards(options, tmp_path / "raw", tmp_path / "shards", 3)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: {what} is gone since it was listed"):
        write_shards(options, tmp_path / "raw", tmp_path / "shards", 3)
    assert not (tmp_path / "shards").exists()


def test_without_their_names_classes_have_their_published_numbers(folder, tmp_path):
    (folder / "objectInfo150.txt").unlink()
    assert shard(ade20k(folder), tmp_path).class_names == tuple(str(number) for number in range(1, 151))


def test_the_seed_chooses_val_and_the_plan_counts_without_data(folder, tmp_path):
    listings = []
    for i, seed in enumerate((0, 0, 1, 2)):
        fetch_dataset(ade20k(folder, seed=seed), tmp_path / str(i))
        listings.append((tmp_path / str(i) / "listing.json").read_bytes())
    assert listings[0] == listings[1]
    assert len(set(listings)) > 1
    assert ade20k(folder, val_samples=500).planned() == Planned(150, 19_710)


def test_pictures_that_would_fill_the_memory_are_damaged(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1300)
    refuse(ade20k(folder), tmp_path, r"is too large: \d+ x \d+ pixels, at most 1300 are safe")
