"""kinetics400 and ssv2 from copies as people keep them; every unusable clip named with its reason, and counted."""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.data import video_folder
from pipeline.data.catalog import DATASETS, SPLITS
from pipeline.data.checking import CHECKED
from pipeline.data.clips import ClipSampling, Views, short_clips
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import Dropped, load_manifest, load_split_index
from pipeline.data.listed import count_reasons
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.options import Kinetics400Options, Ssv2Options
from pipeline.data.shards import write_shards
from pipeline.errors import UserError
from tests.pipeline.data.clip_files import ramp, write_clip

CLIP = ClipSampling(4, "sparse", None)


def kinetics(path: Path, **changes) -> Kinetics400Options:
    values = {"val_samples": 2, "max_bad_frac": 0.0, "seed": 0, **changes}
    return Kinetics400Options(name="kinetics400", path=str(path), **values)


def ssv2(path: Path, **changes) -> Ssv2Options:
    values = {"val_samples": 2, "max_bad_frac": 0.0, "seed": 0, **changes}
    return Ssv2Options(name="ssv2", path=str(path), **values)


@pytest.fixture(scope="session")
def clip_bytes(tmp_path_factory) -> list[bytes]:
    """Twelve different clips of 9 to 20 frames, 48 x 64 and 64 x 48."""
    folder = tmp_path_factory.mktemp("clips")
    sizes = itertools.cycle([(48, 64), (64, 48)])
    return [
        write_clip(folder / f"{i}.mp4", ramp(9 + i, *size, seed=i)) for i, size in zip(range(12), sizes, strict=False)
    ]


def save(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def folders(tmp_path, clip_bytes) -> Path:
    """PATH/{train,val}/CLASS/*.mp4: eight training clips of two classes, four for tests."""
    root = tmp_path / "k400"
    for i, data in enumerate(clip_bytes):
        part, name = ("train" if i < 8 else "val"), ("archery", "zumba")[i % 2]
        save(root / part / name / f"{i:02d}.mp4", data)
    save(root / "train/archery/notes.txt", b"no clip")
    return root


def shard(options, tmp_path: Path):
    fetch_dataset(options, tmp_path / "raw")
    return write_shards(options, tmp_path / "raw", tmp_path / "shards", 3)


def refuse(options, tmp_path: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fetch_dataset(options, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_published_val_is_our_test_and_val_comes_out_of_train(folders, tmp_path):
    manifest = shard(kinetics(folders), tmp_path)
    assert manifest.class_names == ("archery", "zumba")
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 6, "val": 2, "test": 4}
    assert manifest.splits["test"].class_counts == (2, 2)
    assert (manifest.num_frames, manifest.image_size, manifest.in_chans) == ((9, 20), None, 3)
    assert manifest.dropped == ()
    assert load_manifest(tmp_path / "shards") == manifest
    again = write_shards(kinetics(folders), tmp_path / "raw", tmp_path / "again", 3)
    assert again == manifest  # sha256 of all that is in it, the shards' included


def test_no_clip_is_in_two_splits_and_the_files_bytes_are_kept(folders, tmp_path, clip_bytes):
    options = kinetics(folders)
    fetch_dataset(options, tmp_path / "raw")
    samples = {split: list(DATASETS["kinetics400"].samples(options, tmp_path / "raw", split)) for split in SPLITS}
    stored = {split: {sample.image.data for sample in samples[split]} for split in SPLITS}
    assert all(stored[a].isdisjoint(stored[b]) for a, b in itertools.combinations(SPLITS, 2))
    assert set().union(*stored.values()) == set(clip_bytes)


def test_clips_of_any_size_become_batches(folders, tmp_path):
    shard(kinetics(folders), tmp_path)
    batches = list(
        train_loader(tmp_path / "shards", global_batch_size=3, seed=0, epoch=0, img_size=32, clips=CLIP,
                     augment="flip_crop")
    )  # fmt: skip
    assert [tuple(clips.shape) for clips, *_ in batches] == [(3, 3, 4, 32, 32)] * 2
    views = list(eval_loader(tmp_path / "shards", "test", 3, img_size=32, clips=CLIP, views=Views(2, 3)))
    assert [tuple(clips.shape) for clips, _, _ in views] == [(3, 6, 3, 4, 32, 32), (1, 6, 3, 4, 32, 32)]
    # The crops of a wide clip are its left, its middle and its right: brighter from one to the next.
    wide = views[0][0][0, :3].mean((1, 2, 3, 4))
    assert wide[0] < wide[1] < wide[2]


def test_a_clip_of_fewer_frames_than_asked_is_read_with_its_frames_repeated(folders, tmp_path):
    shard(kinetics(folders), tmp_path)
    many = ClipSampling(40, "sparse", None)
    clips, _, _ = next(iter(eval_loader(tmp_path / "shards", "test", 1, img_size=32, clips=many)))
    assert clips.shape == (1, 3, 40, 32, 32)
    changes = (clips[0, :, 1:] != clips[0, :, :-1]).flatten(2).any(2).any(0).sum()
    assert changes + 1 == 9 + 8  # the frames of the first test clip


def test_clips_of_fewer_frames_than_asked_are_counted_and_the_shortest_named(folders, tmp_path):
    """Those of the test split have 17, 18, 19 and 20 frames, others down to 9."""
    shard(kinetics(folders), tmp_path)
    directory = tmp_path / "shards"
    assert short_clips(directory, "test", ClipSampling(17, "sparse", None)) is None
    key = load_split_index(directory, "test").keys[0]
    said = f"test: 2 of 4 clips have fewer than 19 frames, {key} 17: they are "
    assert short_clips(directory, "test", ClipSampling(19, "sparse", None)) == said + "repeated"
    assert short_clips(directory, "test", ClipSampling(10, "dense", 2)) == said + "spread over what there is"


def test_annotations_name_the_clips_wherever_they_lie(tmp_path, clip_bytes):
    root = tmp_path / "k400"
    rows = {part: ["label,youtube_id,time_start,time_end,split,is_cc"] for part in ("train", "val")}
    for i, data in enumerate(clip_bytes):
        part = "train" if i < 8 else "val"
        rows[part].append(f"{('zumba', 'archery, with a bow')[i % 2]},-id.{i},{i},{i + 10},{part},0".replace(
            "archery, with a bow", '"archery, with a bow"'))  # fmt: skip
        save(root / "videos" / f"-id.{i}_{i:06d}_{i + 10:06d}.mp4", data)
    for part, lines in rows.items():
        name = {"train": "train", "val": "validate"}[part]
        save(root / "annotations" / f"{name}.csv", "\n".join(lines).encode("utf-8-sig"))  # as spreadsheets write
    manifest = shard(kinetics(root), tmp_path)
    assert manifest.class_names == ("archery, with a bow", "zumba")
    assert manifest.splits["test"].class_counts == (2, 2)

    (root / "videos/-id.3_000003_000013.mp4").unlink()
    refuse(kinetics(root), tmp_path / "new", r"1 of 12 clips .*: -id\.3_000003_000013 is missing; mend")
    head = rows["val"][0].encode()
    odd_rows = (b"caf\xe9,a,0,1,val,0", b"a" * 2**18 + b",a,0,1,val,0", b"zumba,a,0,inf,val,0")
    for odd in (b"id,class\n1,2\n", *(head + b"\n" + row for row in odd_rows)):
        save(root / "annotations/val.csv", odd)
        refuse(kinetics(root), tmp_path / "new", "val.csv: not Kinetics' annotation; it needs the columns label, you")


def test_a_fetch_goes_on_from_the_clips_that_were_found_whole(folders, tmp_path):
    """A known clip is not read again: a file that was exchanged behind its size and its time is not noticed."""
    bad, known = folders / "train/archery/00.mp4", folders / "val/zumba/09.mp4"
    whole = bad.read_bytes()
    save(bad, whole[:100])
    refuse(kinetics(folders), tmp_path, "1 of 12 clips")
    (memory,) = (tmp_path / ".raw.kinetics400" / CHECKED).iterdir()
    save(memory.with_name(f".{memory.name}.7.tmp"), b'[["killed while it wro')
    stat = known.stat()
    save(known, bytes(stat.st_size))
    os.utime(known, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    refuse(kinetics(folders), tmp_path, "1 of 12 clips .*: train/archery/00.mp4 ")
    os.utime(known, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    refuse(kinetics(folders), tmp_path, "2 of 12 clips .*: train/archery/00.mp4 .* val/zumba/09.mp4 ")
    os.utime(known, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    save(bad, whole)
    fetch_dataset(kinetics(folders), tmp_path / "raw")
    assert os.listdir(tmp_path / "raw") == ["listing.json"]
    with pytest.raises(UserError, match="clip has changed since it was listed"):
        write_shards(kinetics(folders), tmp_path / "raw", tmp_path / "shards", 3)


@pytest.fixture
def somethings(tmp_path, clip_bytes) -> Path:
    """The layout of ssv2's download: numbered clips, labels beside them."""
    root = tmp_path / "ssv2"
    labels = {"Putting something on something": "1", "Approaching something with your camera": "0"}
    templates = ["Approaching [something] with your camera", "Putting [something] on [something]"]
    parts: dict[str, list] = {"train": [], "validation": []}
    for i, data in enumerate(clip_bytes):
        save(root / "20bn-something-something-v2" / f"{100 + i}.mp4", data)
        record = {"id": str(100 + i), "label": "putting a cup on a table", "template": templates[i % 2]}
        parts["train" if i < 8 else "validation"].append(record)
    for name, content in {"labels": labels, **parts}.items():
        save(root / "labels" / f"something-something-v2-{name}.json", json.dumps(content).encode())
    return root


def test_ssv2_is_read_by_its_templates(somethings, tmp_path):
    manifest = shard(ssv2(somethings), tmp_path)
    assert manifest.class_names == ("Approaching something with your camera", "Putting something on something")
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 6, "val": 2, "test": 4}


def test_a_copy_of_something_else_is_one_sentence(somethings, tmp_path):
    refuse(ssv2(tmp_path / "nowhere"), tmp_path, r"dataset.path = '.*nowhere': no such directory")
    refuse(kinetics(somethings), tmp_path, r"ssv2': is no copy of kinetics400; it needs PATH/\{train,val\}/CLASS")
    labels = somethings / "labels/something-something-v2-labels.json"
    labels.write_text('{"Putting something on something": "0"}')
    refuse(ssv2(somethings), tmp_path, "template = 'Approaching something with your camera': not in .*labels.json")
    labels.write_text("[1, 2")
    refuse(ssv2(somethings), tmp_path, r"labels\.json: not JSON")
    labels.unlink()
    refuse(ssv2(somethings), tmp_path, "is no copy of ssv2, it has no something-something-v2-labels.json")


def damage(root: Path) -> None:
    """One clip each: empty, cut short, no video, of another clip's bytes."""
    (root / "train/archery/00.mp4").write_bytes(b"")
    half = root / "train/zumba/01.mp4"
    half.write_bytes(half.read_bytes()[:1000])
    (root / "train/archery/02.mp4").write_bytes(b"<html>gone</html>")
    shutil.copy(root / "val/zumba/09.mp4", root / "train/zumba/03.mp4")


REASONS = {
    "train/archery/00.mp4": "is empty",
    "train/archery/02.mp4": "cannot be decoded (Invalid data found when processing input)",
    "train/zumba/01.mp4": "cannot be decoded (Invalid data found when processing input)",
    "train/zumba/03.mp4": "is a copy of another clip: val/zumba/09.mp4",
}


def test_bad_clips_are_named_and_stop_the_work_by_default(folders, tmp_path):
    damage(folders)
    sentence = (
        r"dataset\.max_bad_frac = 0\.0: 4 of 12 clips cannot be used \(2 x cannot be decoded, "
        r"1 x is a copy of another clip, 1 x is empty\): train/archery/00\.mp4 is empty, .*; mend or remove them"
    )
    refuse(kinetics(folders), tmp_path, sentence)
    refuse(kinetics(folders, max_bad_frac=0.33), tmp_path, "max_bad_frac = 0.33: 4 of 12")


def test_as_many_as_are_allowed_are_left_out_and_listed(folders, tmp_path):
    damage(folders)
    manifest = shard(kinetics(folders, max_bad_frac=0.34), tmp_path)
    assert dict(manifest.dropped) == REASONS
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 2, "val": 2, "test": 4}
    assert load_manifest(tmp_path / "shards").dropped == manifest.dropped


def test_a_clip_that_is_too_large_is_not_read(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(video_folder, "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"cannot be read \(\d+ bytes, more than 100 are not read\)"):
        fetch_dataset(kinetics(folders), tmp_path / "raw")


def test_only_some_are_named_and_all_are_counted(folders, tmp_path):
    for path in folders.rglob("*.mp4"):
        path.write_bytes(b"")
    refuse(kinetics(folders), tmp_path, r"12 of 12 clips cannot be used \(12 x is empty\): .*, and 7 more; mend")


def test_reasons_are_counted_without_their_details():
    dropped = [Dropped("a", "is damaged at frame 3"), Dropped("b", "is damaged at frame 9"), Dropped("c", "is empty"),
               Dropped("d", "is cut short: frames for 1.0 s of 3.0 s")]  # fmt: skip
    assert count_reasons(dropped) == {"is damaged": 2, "is cut short": 1, "is empty": 1}


def test_a_clip_changed_after_fetch_is_refused(folders, tmp_path, clip_bytes):
    fetch_dataset(kinetics(folders), tmp_path / "raw")
    path = folders / "val/zumba/09.mp4"
    path.write_bytes(clip_bytes[0])
    with pytest.raises(UserError, match=r"09\.mp4: clip has changed since it was listed; run the stage `fetch` again"):
        write_shards(kinetics(folders), tmp_path / "raw", tmp_path / "shards", 3)
    path.unlink()
    with pytest.raises(UserError, match=r"09\.mp4: clip is gone since it was listed"):
        write_shards(kinetics(folders), tmp_path / "raw", tmp_path / "shards", 3)
    assert not (tmp_path / "shards").exists()


def test_val_must_leave_something_to_train_on(folders, tmp_path):
    refuse(kinetics(folders, val_samples=8), tmp_path, "val_samples = 8: leaves nothing to train on, .* are 8")


def test_the_seed_chooses_val(folders, tmp_path):
    listings = []
    for i, seed in enumerate((0, 0, 1, 2)):
        fetch_dataset(kinetics(folders, seed=seed), tmp_path / str(i))
        listings.append((tmp_path / str(i) / "listing.json").read_bytes())
    assert listings[0] == listings[1]
    assert len(set(listings)) > 1


def test_a_fraction_is_a_fraction():
    with pytest.raises(ValidationError, match="max_bad_frac"):
        kinetics(Path(), max_bad_frac=1.0)
    assert np.isclose(kinetics(Path(), max_bad_frac=0.1).max_bad_frac, 0.1)
