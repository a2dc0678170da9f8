"""Checks and shards as parts of work: one process or many write the same bytes, and a kill loses no finished one."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import parts
from pipeline.data.checking import How, check_all
from pipeline.data.fetch import fetch_dataset
from pipeline.data.shards import write_shards
from pipeline.errors import UserError
from tests.pipeline.data.side_by_side import SIZE, options

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(25):
        path = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return tmp_path / "pets"


@pytest.fixture(autouse=True)
def few_tried(monkeypatch) -> None:
    """Only the first sample of a split is looked at before shards are written: damage is found on the way."""
    monkeypatch.setattr(parts, "NUM_TRIED", 3)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_workers_on_ray_write_what_one_process_writes(folder, tmp_path):
    command = [sys.executable, "-m", "tests.pipeline.data.side_by_side", str(folder), str(tmp_path / "ray")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    fetch_dataset(options(folder), tmp_path / "raw")
    write_shards(options(folder), tmp_path / "raw", tmp_path / "shards", SIZE)
    assert read(tmp_path / "ray/raw") == read(tmp_path / "raw")
    assert read(tmp_path / "ray/shards") == read(tmp_path / "shards")
    assert {path.name for path in (tmp_path / "ray").iterdir()} == {"raw", "shards"}


def test_finished_shards_are_kept_and_damaged_ones_written_again(folder, tmp_path):
    fetch_dataset(options(folder), tmp_path / "raw")
    write_shards(options(folder), tmp_path / "raw", tmp_path / "whole", SIZE)
    victim = max(folder.rglob("*.png"))  # the last of train, or of a later split
    data = victim.read_bytes()
    victim.unlink()
    with pytest.raises(UserError, match="is gone since it was listed"):
        write_shards(options(folder), tmp_path / "raw", tmp_path / "shards", SIZE)
    assert not (tmp_path / "shards").exists()
    (kept,) = tmp_path.glob(".shards.parts-*")
    finished = {path.name: path.stat().st_ino for path in sorted(kept.glob("*.tar"))}
    assert len(finished) >= 2
    damaged = next(iter(finished))
    (kept / damaged).write_bytes((kept / damaged).read_bytes()[:-512])
    victim.write_bytes(data)
    write_shards(options(folder), tmp_path / "raw", tmp_path / "shards", SIZE)
    assert read(tmp_path / "shards") == read(tmp_path / "whole")
    again = {name for name, inode in finished.items() if (tmp_path / "shards" / name).stat().st_ino != inode}
    assert again == {damaged}
    assert not list(tmp_path.glob(".shards*"))


def test_shards_of_other_options_are_not_taken(folder, tmp_path):
    fetch_dataset(options(folder), tmp_path / "raw")
    names = []
    for seed_of in (options(folder), options(folder).model_copy(update={"img_size": 24})):
        victim = max(folder.rglob("*.png"))
        data = victim.read_bytes()
        victim.unlink()
        with pytest.raises(UserError, match="is gone"):
            write_shards(seed_of, tmp_path / "raw", tmp_path / "shards", SIZE)
        victim.write_bytes(data)
        names += [path.name for path in tmp_path.glob(".shards.parts-*")]
    assert len(names) == len(set(names)) == 2  # and the first was deleted when the second came


def test_too_small_a_disk_is_found_before_a_shard_is_written(folder, tmp_path, monkeypatch):
    fetch_dataset(options(folder), tmp_path / "raw")
    monkeypatch.setattr(parts, "TAR_FRAC", 1e15)  # as if there were as many more samples
    with pytest.raises(UserError, match=r"not enough disk space: about \d+\.\d GB of shards, .* GB free"):
        write_shards(options(folder), tmp_path / "raw", tmp_path / "shards", SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "raw"]


def test_the_estimate_of_the_room_is_near_what_is_written(folder, tmp_path):
    fetch_dataset(options(folder), tmp_path / "raw")
    write_shards(options(folder), tmp_path / "raw", tmp_path / "shards", SIZE)
    samples = [parts.open_samples(options(folder), tmp_path / "raw", split) for split in ("train", "val", "test")]
    guess = sum(parts._measure(sample) for split in samples for sample in split)
    found = sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    assert 0.3 < guess / found < 1.5  # tars of three samples are half padding


def look(log: Path, stop_at: str, item: tuple[str]) -> tuple[str, str]:
    if item[0] == stop_at:
        raise KeyboardInterrupt
    with log.open("a") as file:
        file.write(f"{item[0]}\n")
    return ("", "is bad") if item[0] == "bad" else (f"sha of {item[0]}", "")


def files_of(folder: Path, item: tuple[str]) -> list[Path]:
    return [folder / item[0]]


def test_a_check_goes_on_behind_the_groups_that_were_finished(tmp_path):
    items = [("a",), ("bad",), ("b",), ("c",), ("d",)]
    for (name,) in items:
        (tmp_path / name).write_text(name)
    log, how, memory = tmp_path / "log", How("file", group_size=2, little=0), tmp_path / "memory"
    where = functools.partial(files_of, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        check_all(functools.partial(look, log, "d"), items, where, how, memory, None)
    log.unlink()
    found = check_all(functools.partial(look, log, ""), items, where, how, memory, None)
    assert [tuple(pair) for pair in found] == [
        ("sha of a", ""), ("", "is bad"), ("sha of b", ""), ("sha of c", ""), ("sha of d", ""),
    ]  # fmt: skip
    assert log.read_text().split() == ["bad", "d"]  # what was bad is looked at again
    log.unlink()
    os.utime(tmp_path / "c", ns=(1, 1))
    check_all(functools.partial(look, log, ""), items, where, how, memory, None)
    assert log.read_text().split() == ["bad", "c"]
