"""ImageNet-1k from archives, folders and parquet: the same samples; every incomplete or damaged copy one sentence."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.catalog import DATASETS, SPLITS
from pipeline.data.fetch import fetch_dataset
from pipeline.data.options import ExpectOptions, Imagenet1kOptions, StoreOptions
from pipeline.data.shards import write_shards
from pipeline.errors import UserError
from tests.pipeline.data.imagenets import (
    WNIDS,
    make_pictures,
    picture,
    write_archives,
    write_devkit,
    write_folders,
    write_parquet,
)

WRITERS = {"folders": write_folders, "archives": write_archives, "parquet": write_parquet}
COMPLETE = ExpectOptions(num_classes=4, num_train=20, num_test=8)


def options(path: Path, **changes) -> Imagenet1kOptions:
    store = StoreOptions(shorter_side=24, format="jpg", quality=95)
    values = {"store": store, "val_frac": 0.2, "seed": 0, "max_bad_frac": 0.0, **changes}
    return Imagenet1kOptions(name="imagenet1k", path=str(path), **values)


def shard(path: Path, tmp_path: Path, name: str = "shards", **changes):
    fetch_dataset(options(path, **changes), tmp_path / f"{name}-raw")
    return write_shards(options(path, **changes), tmp_path / f"{name}-raw", tmp_path / name, 6)


def refuse(path: Path, tmp_path: Path, sentence: str, **changes) -> None:
    with pytest.raises(UserError, match=sentence):
        fetch_dataset(options(path, **changes), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_every_form_of_a_copy_gives_the_same_shards(tmp_path):
    """Same labels, keys, order and bytes: the tars are equal, and so is all that is said of them but the names."""
    pictures = make_pictures()
    manifests = {
        form: shard(write(tmp_path / form, pictures), tmp_path, f"s-{form}") for form, write in WRITERS.items()
    }
    files = {form: {p.name: p.read_bytes() for p in (tmp_path / f"s-{form}").glob("*.tar")} for form in WRITERS}
    assert files["folders"] == files["archives"] == files["parquet"]
    assert len(files["folders"]) == 3 + 1 + 2
    for manifest in manifests.values():
        counts = {name: split.class_counts for name, split in manifest.splits.items()}
        assert counts == {"train": (4,) * 4, "val": (1,) * 4, "test": (2,) * 4}
        assert manifest.splits == manifests["folders"].splits
        assert manifest.index_sha256 == manifests["folders"].index_sha256
    assert manifests["folders"].class_names == WNIDS
    names = ("tench", "goldfish", "crane (n02012849)", "crane (n03126707)")
    assert manifests["archives"].class_names == names


def test_no_picture_changes_its_label_on_the_way(tmp_path):
    """What is stored as it came can be found in the original, under its class."""
    pictures = make_pictures()
    labels = {data: WNIDS.index(wnid) for wnid, data in pictures.values()}
    for form, write in WRITERS.items():
        chosen = options(write(tmp_path / form, pictures), store=StoreOptions(shorter_side=99, format="jpg", quality=9))
        fetch_dataset(chosen, tmp_path / "raw")
        samples = [s for split in SPLITS for s in DATASETS["imagenet1k"].samples(chosen, tmp_path / "raw", split)]
        kept = [sample for sample in samples if sample.image.data in labels]
        assert len(kept) == 12  # the plain JPEGs
        assert all(labels[sample.image.data] == sample.label for sample in kept)


def test_names_come_from_a_development_kit_beside_any_form(tmp_path):
    root = write_folders(tmp_path / "copy", make_pictures())
    write_devkit(root, [])
    assert shard(root, tmp_path).class_names[:2] == ("tench", "goldfish")


@pytest.mark.parametrize("form", WRITERS)
def test_a_picture_of_val_is_not_trained_on(form, tmp_path):
    pictures = make_pictures()
    leak = "train/n01443537/n01443537_77.JPEG"
    pictures[leak] = "n01443537", pictures["val/n01440764/ILSVRC2012_val_00000001.JPEG"][1]
    manifest = shard(WRITERS[form](tmp_path / "copy", pictures), tmp_path)
    assert [tuple(dropped) for dropped in manifest.dropped] == [(leak, "also in the test split")]
    assert sum(split.num_samples for split in manifest.splits.values()) == len(pictures) - 1


@pytest.mark.parametrize("form", WRITERS)
def test_bad_pictures_are_named_and_counted(form, tmp_path):
    pictures = make_pictures()
    for name, data in (("train/n01440764/n01440764_3.JPEG", b""), ("val/n01443537/ILSVRC2012_val_00000002.JPEG", b"x")):
        pictures[name] = pictures[name][0], data
    root = WRITERS[form](tmp_path / "copy", pictures)
    sentence = r"2 of 28 pictures cannot be used \(1 x cannot be decoded, 1 x is empty\): train/n01440764/n0144"
    refuse(root, tmp_path, sentence)
    manifest = shard(root, tmp_path, max_bad_frac=0.1)
    assert [dropped.file for dropped in manifest.dropped] == [
        "train/n01440764/n01440764_3.JPEG",
        "val/n01443537/ILSVRC2012_val_00000002.JPEG",
    ]


def test_an_incomplete_copy_is_refused(tmp_path):
    expect = ExpectOptions(num_classes=4, num_train=21, num_test=8)
    root = write_archives(tmp_path / "copy", make_pictures())
    refuse(root, tmp_path, r"dataset\.expect\.num_train = 21: the folder has 20; complete it", expect=expect)
    (root / "ILSVRC2012_img_val.tar").unlink()
    refuse(root, tmp_path, r"has no ILSVRC2012_img_val\.tar")
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    refuse(root, tmp_path, "has no ILSVRC2012_devkit_t12.tar.gz, which says what the pictures of val show")
    (tmp_path / "empty").mkdir()
    refuse(
        tmp_path / "empty", tmp_path, "is no copy of imagenet1k: it has no picture of train; it needs ILSVRC2012_img"
    )
    refuse(tmp_path / "nowhere", tmp_path, "no such directory")


def test_a_cut_archive_is_told_even_where_bad_pictures_are_allowed(tmp_path):
    root = write_archives(tmp_path / "copy", make_pictures())
    train = root / "ILSVRC2012_img_train.tar"
    train.write_bytes(train.read_bytes()[:-20_000])
    sentence = r"ILSVRC2012_img_train\.tar at \d+ is cut off inside n01440764\.tar"
    refuse(root, tmp_path, sentence, max_bad_frac=0.9, expect=COMPLETE)
    refuse(root, tmp_path, sentence)


def test_a_damaged_header_is_one_bad_picture_of_a_complete_copy(tmp_path):
    root = write_archives(tmp_path / "copy", make_pictures())
    tar = root / "ILSVRC2012_img_val.tar"
    with tarfile.open(tar) as file:
        offset = file.getmembers()[1].offset
    data = bytearray(tar.read_bytes())
    data[offset + 3] ^= 1  # in the name
    tar.write_bytes(data)
    sentence = rf"1 of 28 pictures cannot be used .*: ILSVRC2012_img_val\.tar at {offset} has a damaged header"
    refuse(root, tmp_path, sentence, expect=COMPLETE)
    one_more = ExpectOptions(num_classes=4, num_train=20, num_test=9)
    refuse(root, tmp_path, "expect.num_test = 9: the folder has 7", max_bad_frac=0.1, expect=one_more)
    manifest = shard(root, tmp_path, max_bad_frac=0.1, expect=COMPLETE)
    assert sum(split.num_samples for split in manifest.splits.values()) == 27


def test_a_damaged_development_kit_is_one_sentence(tmp_path):
    root = write_archives(tmp_path / "copy", make_pictures())
    kit = root / "ILSVRC2012_devkit_t12.tar.gz"
    whole = kit.read_bytes()
    kit.write_bytes(whole[: len(whole) // 2])
    refuse(root, tmp_path, r"devkit_t12\.tar\.gz: damaged; download it again")
    write_devkit(root, list(WNIDS))  # of fewer pictures than val has
    refuse(root, tmp_path, "has no class in the development kit", max_bad_frac=0.1)


def test_a_parquet_copy_of_other_labels_is_refused(tmp_path):
    pictures = make_pictures()
    del_class = {name: p for name, p in pictures.items() if p[0] != WNIDS[0]}  # labels then begin with 1
    refuse(write_parquet(tmp_path / "copy", del_class), tmp_path, "label 1 is not the number of n0144")
    (tmp_path / "copy/data/train-00000-of-00002.parquet").write_bytes(b"PAR1 no PAR1")
    refuse(tmp_path / "copy", tmp_path, "train-00000-of-00002.parquet: not a parquet file of image and label")


@pytest.mark.parametrize("form", WRITERS)
def test_a_picture_changed_after_fetch_is_refused(form, tmp_path):
    pictures = make_pictures()
    root = WRITERS[form](tmp_path / "copy", pictures)
    fetch_dataset(options(root), tmp_path / "raw")
    name = "train/n01440764/n01440764_3.JPEG"
    other = {**pictures, name: (pictures[name][0], picture(np.random.default_rng(9), 0))}
    shutil.rmtree(root)
    WRITERS[form](root, other)
    with pytest.raises(UserError, match=r"picture (has changed|cannot be read).*run the stage `fetch` again"):
        write_shards(options(root), tmp_path / "raw", tmp_path / "shards", 6)
    assert not (tmp_path / "shards").exists()
