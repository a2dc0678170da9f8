"""The user's own pictures: no picture in two splits, every unusable folder one sentence, nothing written."""

import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.data.catalog import DATASETS, SPLITS
from pipeline.data.dataset import ShardDataset
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import load_manifest
from pipeline.data.options import ExpectOptions, ImageFolderOptions, StoreOptions
from pipeline.data.pictures import to_jpeg, to_square
from pipeline.data.shards import write_shards
from pipeline.data.transforms import Transform
from pipeline.errors import UserError
from pipeline.recipe import AugmentConfig


def options(folder: Path, **changes) -> ImageFolderOptions:
    values = {"img_size": 16, "val_frac": 0.2, "test_frac": 0.2, "seed": 0, **changes}
    return ImageFolderOptions(name="image-folder", path=str(folder), **values)


def save(path: Path, seed: int, size=(30, 20), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten cats as JPEG, five dogs as PNG of another shape and mode, and files that are no pictures."""
    root = tmp_path / "pets"
    for i in range(10):
        save(root / "cat" / f"{i}.jpg", i)
    for i in range(5):
        save(root / "dog" / f"{i}.PNG", 100 + i, size=(20, 40), mode="L")
    (root / "dog" / "notes.txt").write_text("no picture")
    (root / ".cache").mkdir()
    return root


def shard(folder: Path, tmp_path: Path, **changes):
    fetch_dataset(options(folder, **changes), tmp_path / "raw")
    return write_shards(options(folder, **changes), tmp_path / "raw", tmp_path / "shards", 4)


def refuse(folder: Path, tmp_path: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fetch_dataset(options(folder), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    assert not any(path.name.startswith(".raw") for path in tmp_path.iterdir())


def test_every_class_is_divided_by_the_fractions(folder, tmp_path):
    manifest = shard(folder, tmp_path)
    assert manifest.class_names == ("cat", "dog")
    counts = {name: split.class_counts for name, split in manifest.splits.items()}
    assert counts == {"train": (6, 3), "val": (2, 1), "test": (2, 1)}
    assert (manifest.image_size, manifest.in_chans) == ((16, 16), 3)
    assert ShardDataset(tmp_path / "shards", "train", Transform())[0][0].shape == (3, 16, 16)


def test_copies_of_a_picture_share_a_split(folder, tmp_path):
    for i in range(10):
        shutil.copy(folder / "cat" / f"{i}.jpg", folder / "cat" / f"copy-{i}.jpg")
        shutil.copy(folder / "cat" / f"{i}.jpg", folder / "dog" / f"cat-{i}.jpg")
    for seed in range(3):
        fetch_dataset(options(folder, seed=seed), tmp_path / "raw")
        entry = DATASETS["image-folder"]
        used = [
            {s for sample in entry.samples(options(folder), tmp_path / "raw", split) for s in sample.sources}
            for split in SPLITS
        ]
        assert all(a.isdisjoint(b) for a, b in itertools.combinations(used, 2))
        assert all(used)


def test_seed_changes_the_split_and_nothing_else_does(folder, tmp_path):
    listings = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fetch_dataset(options(folder, seed=seed), tmp_path / name)
        listings.append((tmp_path / name / "listing.json").read_bytes())
    assert listings[0] == listings[1] != listings[2]


def test_given_splits_are_kept(folder, tmp_path):
    for i, split in enumerate(SPLITS):
        for j, name in enumerate(("cat", "dog")):
            save(tmp_path / "given" / split / name / "0.png", 2 * i + j)
    manifest = shard(tmp_path / "given", tmp_path)
    assert {name: split.class_counts for name, split in manifest.splits.items()} == dict.fromkeys(SPLITS, (1, 1))


def test_a_picture_in_two_given_splits_is_refused(tmp_path):
    for i, split in enumerate(SPLITS):
        save(tmp_path / "given" / split / "cat" / "0.png", i)
    shutil.copy(tmp_path / "given/train/cat/0.png", tmp_path / "given/test/cat/leak.png")
    refuse(tmp_path / "given", tmp_path, r"train/cat/0\.png = .*: the same picture is test/cat/leak\.png")


def test_half_a_split_is_refused(tmp_path):
    save(tmp_path / "given/train/cat/0.png", 0)
    save(tmp_path / "given/test/cat/0.png", 1)
    refuse(tmp_path / "given", tmp_path, "must have train/, val/ and test/")


def test_no_folder_is_refused(tmp_path):
    refuse(tmp_path / "nowhere", tmp_path, r"dataset.path = '.*nowhere': no such directory")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", tmp_path, r"dataset.path = '.*empty': is empty; put one folder of pictures per class")


def test_classes_without_a_picture_are_all_named(folder, tmp_path):
    (folder / "fish").mkdir()
    (folder / "bird").mkdir()
    refuse(folder, tmp_path, r"2 problems(.|\n)*bird': class without a picture(.|\n)*fish': class without a picture")


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"\0" * 500, lambda data: b""])
def test_corrupt_pictures_are_named(folder, tmp_path, damage):
    path = folder / "dog" / "3.PNG"
    path.write_bytes(damage(path.read_bytes()))
    refuse(
        folder,
        tmp_path,
        r"max_bad_frac = 0\.0: 1 of 15 pictures cannot be used .*: dog/3\.PNG (is empty|cannot be dec)",
    )


def test_an_enormous_picture_is_refused_without_decoding_it(folder, tmp_path):
    Image.new("1", (20_000, 6_000)).save(folder / "cat" / "bomb.png")
    refuse(folder, tmp_path, r"cat/bomb\.png is too large: 20000 x 6000 pixels, at most \d+ are safe")


def test_as_many_bad_pictures_as_are_allowed_are_left_out_and_listed(folder, tmp_path):
    (folder / "dog" / "3.PNG").write_bytes(b"")
    (folder / "cat" / "9.jpg").write_bytes(b"GIF89a")
    manifest = shard(folder, tmp_path, max_bad_frac=0.14)
    assert {dropped.file: dropped.reason.split(" (")[0] for dropped in manifest.dropped} == {
        "cat/9.jpg": "cannot be decoded",
        "dog/3.PNG": "is empty",
    }
    assert sum(split.num_samples for split in manifest.splits.values()) == 13


def test_too_few_pictures_for_three_splits_are_refused(tmp_path):
    save(tmp_path / "few/cat/0.png", 0)
    save(tmp_path / "few/cat/1.png", 1)
    refuse(tmp_path / "few", tmp_path, "no picture for the split val")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(lambda path: save(path, 77), "has changed"), (Path.unlink, "is gone")],
)
def test_a_picture_changed_after_fetch_is_refused(folder, tmp_path, change, sentence):
    fetch_dataset(options(folder), tmp_path / "raw")
    change(folder / "cat" / "4.jpg")
    with pytest.raises(UserError, match=rf"4\.jpg: picture {sentence} since it was listed"):
        write_shards(options(folder), tmp_path / "raw", tmp_path / "shards", 4)
    assert not (tmp_path / "shards").exists()


def test_squares_are_the_centre_of_the_picture():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (to_square(Image.fromarray(pixels), 10) == 200).all()


def test_shards_of_a_folder_are_the_same_bytes_twice(folder, tmp_path):
    first = shard(folder, tmp_path)
    assert shard(folder, tmp_path) == first == load_manifest(tmp_path / "shards")
    assert json.loads((tmp_path / "raw/listing.json").read_text())["class_names"] == ["cat", "dog"]


STORE = {"shorter_side": 24, "format": "jpg", "quality": 95}


def whole(folder: Path, **changes) -> ImageFolderOptions:
    return options(folder, img_size=None, store=StoreOptions(**STORE), **changes)


def test_whole_pictures_are_stored_as_jpeg_no_larger_than_asked(folder, tmp_path):
    """30 x 20 px JPEGs are small enough and keep their bytes; 20 x 40 px PNGs become JPEGs; 90 x 60 are resized."""
    save(folder / "dog" / "large.png", 7, size=(90, 60))
    fetch_dataset(whole(folder), tmp_path / "raw")
    entry = DATASETS["image-folder"]
    samples = [s for split in SPLITS for s in entry.samples(whole(folder), tmp_path / "raw", split)]
    originals = {p.read_bytes() for p in folder.rglob("*.jpg")}
    assert {s.image.data for s in samples if s.label == 0} == originals
    assert {s.image.size for s in samples if s.label == 0} == {(20, 30)}
    assert sorted({s.image.size for s in samples if s.label == 1}) == [(24, 36), (40, 20)]
    for sample in samples:
        with Image.open(io.BytesIO(sample.image.data)) as image:
            assert (image.format, image.mode, image.size[::-1]) == ("JPEG", "RGB", sample.image.size)


def test_a_turned_picture_is_stored_upright():
    image, buffer = Image.new("RGB", (20, 10)), io.BytesIO()
    exif = image.getexif()
    exif[274] = 6  # to be turned by 90 degrees
    image.save(buffer, "jpeg", exif=exif)
    stored = to_jpeg(buffer.getvalue(), StoreOptions(**STORE))
    assert stored.size == (20, 10)
    with Image.open(io.BytesIO(stored.data)) as image:
        assert image.size == (10, 20)


def test_shards_of_whole_pictures_are_read_and_cropped(folder, tmp_path):
    fetch_dataset(whole(folder), tmp_path / "raw")
    manifest = write_shards(whole(folder), tmp_path / "raw", tmp_path / "shards", 4)
    assert manifest.image_size is None
    augment = AugmentConfig(
        scale=[0.3, 1.0], hflip=0.5, interpolation="bicubic", auto_augment=None, color_jitter=0.0, reprob=0.0,
        aug_repeats=1, mixup=0.0, cutmix=0.0, crop_pct=0.875, mean=[0.5] * 3, std=[0.5] * 3,
    )  # fmt: skip
    for training in (True, False):
        dataset = ShardDataset(tmp_path / "shards", "train", Transform(augment, img_size=16, training=training))
        assert {dataset[i][0].shape for i in range(len(dataset))} == {(3, 16, 16)}


@pytest.fixture
def published(tmp_path) -> Path:
    """train/ and val/ as ImageNet has them: 10 and 2 pictures per class, one of val's in train too."""
    root = tmp_path / "published"
    for c, name in enumerate(("cat", "dog")):
        for i in range(10):
            save(root / "train" / name / f"{i}.jpg", 100 * c + i)
        for i in range(2):
            save(root / "val" / name / f"{i}.jpg", 1000 + 100 * c + i)
    shutil.copy(root / "val/cat/0.jpg", root / "train/cat/double.jpg")
    return root


def test_a_published_val_is_the_test_split_and_val_comes_out_of_train(published, tmp_path):
    manifest = shard(published, tmp_path, test_frac=None)
    counts = {name: split.class_counts for name, split in manifest.splits.items()}
    assert counts == {"train": (8, 8), "val": (2, 2), "test": (2, 2)}
    assert [tuple(dropped) for dropped in manifest.dropped] == [("train/cat/double.jpg", "also in the test split")]


def test_an_incomplete_copy_is_refused(published, tmp_path):
    expect = ExpectOptions(num_classes=3, num_train=21, num_test=5)
    with pytest.raises(UserError) as error:
        fetch_dataset(options(published, test_frac=None, expect=expect), tmp_path / "raw")
    assert "dataset.expect.num_classes = 3: the folder has 2" in str(error.value)
    assert "dataset.expect.num_test = 5: the folder has 4; complete it" in str(error.value)
    assert "num_train" not in str(error.value)


def test_a_complete_copy_whose_tests_lie_in_test_is_taken(published, tmp_path):
    for c, name in enumerate(("cat", "dog")):
        for i in range(3):
            save(published / "test" / name / f"{i}.jpg", 3000 + 100 * c + i)
    (published / "train/cat/double.jpg").unlink()
    expect = ExpectOptions(num_classes=2, num_train=24, num_test=6)
    manifest = shard(published, tmp_path, test_frac=None, expect=expect)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 20, "val": 4, "test": 6}


def test_a_folder_without_splits_needs_a_fraction_for_tests(folder, tmp_path):
    with pytest.raises(UserError, match=r"dataset\.test_frac = None: the folder has no split of its own"):
        fetch_dataset(options(folder, test_frac=None), tmp_path / "raw")


def test_squares_or_whole_pictures_and_something_to_train_on(folder):
    with pytest.raises(ValidationError, match="write one of img_size"):
        options(folder, store=StoreOptions(**STORE))
    with pytest.raises(ValidationError, match="write one of img_size"):
        options(folder, img_size=None)
    with pytest.raises(ValidationError, match="leaves nothing to train on"):
        options(folder, val_frac=0.6, test_frac=0.4)
