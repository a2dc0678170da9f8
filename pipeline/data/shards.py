"""Samples -> WebDataset tars with a manifest and an index; the same samples give the same bytes, whoever writes them.

Shards are parts of the work: written side by side, each is whole or not there, and a stage that was killed goes on
behind those that are.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import webdataset
from tqdm import tqdm

from pipeline.data.catalog import DATASETS, SPLITS, Encoded, Sample
from pipeline.data.hashes import hash_file
from pipeline.data.index import (
    INDEX_FILE,
    MANIFEST_FILE,
    Manifest,
    Members,
    ShardInfo,
    SplitInfo,
    encode_index,
    load_manifest,
    sum_members,
)
from pipeline.data.members import count_classes, encode_members, locate_members, size_of
from pipeline.data.options import DatasetOptions
from pipeline.data.parts import anchored, check_space, identify, keeping_parts, open_samples
from pipeline.errors import UserError
from pipeline.files import building_dir, explaining_disk, write_bytes_atomic, write_text_atomic
from pipeline.placement import Placement
from pipeline.spread import run_here, spread

LITTLE = 5000  # samples of the user's own that one process writes sooner than Ray has started


class Work(NamedTuple):
    """What every worker knows: where samples come from and finished shards go to."""

    options: DatasetOptions
    raw_dir: Path
    finished: Path
    num_classes: int


class Part(NamedTuple):
    """A shard to be written."""

    split: str
    number: int
    start: int  # samples of the split
    stop: int

    @property
    def file(self) -> str:
        """The shard's name."""
        return f"{self.split}-{self.number:06d}.tar"


class Written(NamedTuple):
    """A shard that is on disk; as JSON it lies beside the shards until all of them are."""

    info: dict[str, Any]  # of `ShardInfo`
    members: list[tuple[str, Members]]
    crc32: list[int]
    num_frames: list[int]  # of every clip; empty for images
    class_counts: list[int]
    sizes: list[tuple[int, int]]  # (H, W) of the images, each once, sorted


def write_shards(
    options: DatasetOptions,
    raw_dir: Path,
    out_dir: Path,
    samples_per_shard: int,
    placement: Placement | None = None,
) -> Manifest:
    """Turn raw data into shards of `samples_per_shard` samples, manifest.json and index.json.

    `out_dir` appears, or is replaced, when all of it is on disk. Called again after a kill, with the same arguments and
    raw data, it keeps the shards that are whole.

    Args:
        placement: Where a user's own data is read and written, side by side; None: in this process.

    Raises:
        UserError: if the raw data is missing or unusable, or the disk is full or too small.
    """
    entry = DATASETS[options.name]
    if not raw_dir.is_dir():
        raise UserError(f"{raw_dir}: no such directory; run the stage `fetch` first")
    ready = entry.write_ready(options, raw_dir, out_dir)
    if ready is not None:
        return ready
    options, raw_dir, out_dir = anchored(options), raw_dir.absolute(), out_dir.absolute()  # workers stand elsewhere
    identity = identify(options, raw_dir, samples_per_shard)
    try:
        splits = {split: open_samples(options, raw_dir, split) for split in SPLITS}
        class_names = entry.class_names(options, raw_dir)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; run the stage `fetch` again") from None
    parts = plan_parts({split: len(samples) for split, samples in splits.items()}, samples_per_shard)
    little = not entry.own_files or sum(map(len, splits.values())) <= LITTLE
    with keeping_parts(out_dir, identity) as finished:
        check_space(finished, list(splits.values()))
        work = Work(options, raw_dir, finished, len(class_names))
        written = dict(zip(parts, write_parts(work, parts, None if little else placement), strict=True))
        publish(out_dir, written, work, class_names)
    return load_manifest(out_dir)


def plan_parts(num_samples: dict[str, int], samples_per_shard: int) -> list[Part]:
    """The shards of all splits, in order."""
    return [
        Part(split, number, start, min(start + samples_per_shard, total))
        for split, total in num_samples.items()
        for number, start in enumerate(range(0, total, samples_per_shard))
    ]


def write_parts(work: Work, parts: Sequence[Part], placement: Placement | None) -> list[Written]:
    """Those that are not there yet, by this process or side by side; all of them in order."""
    num_samples = sum(part.stop - part.start for part in parts)
    with tqdm(total=num_samples, desc="shard", unit="sample", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(num_samples * done // total - bar.n)

        task = functools.partial(write_part, work)
        if placement is None:
            return [written for _, written in run_here(task, parts, progress, gpus=0)]
        return [written for _, written in spread(task, lambda slots: parts, placement, progress, gpus=0)]


def write_part(work: Work, part: Part, device: str) -> Written:
    """One shard, unless it is there already and whole."""
    path = work.finished / part.file
    record = path.with_suffix(".json")
    if record.is_file() and path.is_file():
        known = Written(*json.loads(record.read_text()))
        if hash_file(path) == known.info["sha256"]:
            return known
    with explaining_disk(work.finished):
        record.unlink(missing_ok=True)
        samples = open_samples(work.options, work.raw_dir, part.split)
        written = write_shard(path, samples, range(part.start, part.stop), work.num_classes)
        write_text_atomic(record, json.dumps(written))  # indented, json takes ten times as long
    return written


def publish(out_dir: Path, written: dict[Part, Written], work: Work, class_names: Sequence[str]) -> None:
    """Describe the shards and put all of it in the place of `out_dir`."""
    index = encode_index(
        {part.file: w.members for part, w in written.items()},
        {part.file: w.crc32 for part, w in written.items()},
        {part.file: w.num_frames for part, w in written.items()},
    )
    counts = [count for w in written.values() for count in w.num_frames]
    sizes = {(height, width) for w in written.values() for height, width in w.sizes}
    entry = DATASETS[work.options.name]
    manifest = Manifest(
        dataset=work.options.name,
        source=entry.source,
        licence=entry.licence,
        class_names=tuple(class_names),
        in_chans=entry.in_chans,
        image_size=sizes.pop() if len(sizes) == 1 else None,
        num_frames=(min(counts), max(counts)) if counts else None,
        index_sha256=hashlib.sha256(index).hexdigest(),
        splits={split: describe_split(split, written, work.num_classes) for split in SPLITS},
        dropped=tuple(entry.dropped(work.options, work.raw_dir)),
        task="segmentation" if entry.masks else "classification",
    )
    with building_dir(out_dir) as directory:
        write_bytes_atomic(directory / INDEX_FILE, index)
        write_bytes_atomic(directory / MANIFEST_FILE, (json.dumps(manifest.to_json(), indent=2) + "\n").encode())
        for part in written:
            _place(work.finished / part.file, directory / part.file)


def _place(finished: Path, path: Path) -> None:
    """A finished shard where it belongs; where the file system has links, it stays a finished one until the end."""
    try:
        os.link(finished, path)
    except OSError:
        os.replace(finished, path)


def describe_split(split: str, written: dict[Part, Written], num_classes: int) -> SplitInfo:
    """What the manifest says of a split."""
    found = [w for part, w in written.items() if part.split == split]
    shards = tuple(ShardInfo(**w.info) for w in found)
    counts = np.zeros(num_classes, np.int64) + sum(np.array(w.class_counts) for w in found)
    return SplitInfo(sum(shard.num_samples for shard in shards), tuple(counts.tolist()), shards)


def write_shard(path: Path, samples: Sequence[Sample], span: range, num_classes: int) -> Written:
    """The samples of `span` in a tar, which appears when it is on disk."""
    members: list[tuple[str, Members]] = []
    crc32, frames, sizes, counts = [], [], set(), np.zeros(num_classes, np.int64)
    part = path.with_suffix(".part")
    # Owner and time are fixed: they are not data, and webdataset would write the current ones.
    with (
        part.open("wb") as file,
        webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as tar,
    ):
        for index in span:
            sample = samples[index]
            encoded = encode_members(sample)
            members.append((sample.key, locate_members(tar.tarstream.offset, encoded)))
            crc32.append(sum_members(encoded))
            tar.write({"__key__": sample.key, **encoded})
            counts += count_classes(sample, num_classes)
            sizes.add(size_of(sample.image))
            if isinstance(sample.image, Encoded) and sample.image.num_frames is not None:
                frames.append(sample.image.num_frames)
        tar.close()
        file.flush()
        os.fsync(file.fileno())
    info = ShardInfo(path.name, len(span), part.stat().st_size, hash_file(part))
    os.replace(part, path)
    return Written(asdict(info), members, crc32, frames, counts.tolist(), sorted(sizes))
