"""Shards that were published as such: manifest and index are brought here, the tars stay where they are.

The manifest's sha256 is written in the suite; it has the index's, and both have those of every shard and sample.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from pipeline.data.index import (
    INDEX_FILE,
    MANIFEST_FILE,
    Manifest,
    SplitIndex,
    SplitInfo,
    load_manifest,
    load_split_index,
)
from pipeline.data.options import PublishedShardsOptions
from pipeline.data.source import write_source
from pipeline.errors import UserError, problem
from pipeline.files import building_dir, write_bytes_atomic
from pipeline.schema import Strict

MAX_MANIFEST_BYTES, MAX_INDEX_BYTES = 1 << 26, 1 << 31  # of 1.28 million samples the index has 115 MB
MAX_SAMPLE_BYTES = 1 << 30
Whole = Annotated[int, Field(ge=0, lt=1 << 62)]
Printed = Annotated[str, Field(max_length=1000)]


class PublishedShard(Strict):
    """A tar; both names become names of files."""

    file: Annotated[str, Field(pattern=r"^\w[\w.-]{0,199}$")]
    num_samples: Whole
    num_bytes: Whole
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PublishedSplit(Strict):
    """See `SplitInfo`."""

    num_samples: Annotated[int, Field(ge=1, lt=1 << 31)]
    class_counts: list[Whole]
    shards: list[PublishedShard]


class PublishedManifest(Strict):
    """See `Manifest`."""

    dataset: Printed
    source: Printed
    licence: Printed
    class_names: Annotated[list[Printed], Field(min_length=1, max_length=100_000)]
    in_chans: Literal[1, 3]
    image_size: Annotated[list[Annotated[int, Field(ge=1, le=1 << 20)]], Field(min_length=2, max_length=2)] | None
    num_frames: list[int] | None
    index_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    splits: Annotated[dict[Literal["train", "val", "test"], PublishedSplit], Field(min_length=3)]
    dropped: list[list[str]]
    task: str = "classification"


def fetch(options: PublishedShardsOptions, raw_dir: Path) -> None:
    """Bring manifest.json and index.json, and look whether they describe what a suite can use.

    Raises:
        UserError: they cannot be read, are not the published ones, or describe clips or classes of pixels.
    """
    from pipeline.data.source_remote import read_file  # fsspec

    manifest = read_file(options.url, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    _check_sha256(options, manifest)
    check_manifest(options.url, manifest)
    write_bytes_atomic(raw_dir / MANIFEST_FILE, manifest)
    write_bytes_atomic(raw_dir / INDEX_FILE, read_file(options.url, INDEX_FILE, MAX_INDEX_BYTES))
    found = load_manifest(raw_dir)
    for split in found.splits:
        check_index(options.url, split, found.split(split), load_split_index(raw_dir, split))


def check_manifest(url: str, data: bytes) -> None:
    """Raise UserError where a stranger's manifest is not what ours are, or is of clips or classes of pixels."""
    try:
        found = PublishedManifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        rule = f"its {MANIFEST_FILE} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(problem("dataset.url", url, rule)) from None
    if found.task != "classification" or found.num_frames is not None:
        rule = "has clips or classes of pixels; of published shards, images with labels are read"
        raise UserError(problem("dataset.url", url, rule))
    for name, split in found.splits.items():
        counts = {split.num_samples, sum(split.class_counts), sum(shard.num_samples for shard in split.shards)}
        if len(counts) > 1 or len(split.class_counts) != len(found.class_names):
            rule = f"its {MANIFEST_FILE} is damaged: the counts of {name} contradict each other"
            raise UserError(problem("dataset.url", url, rule))


def check_index(url: str, split: str, described: SplitInfo, index: SplitIndex) -> None:
    """Raise UserError where a stranger's index has other samples than the manifest, or places outside the shards."""
    counts = np.array([shard.num_samples for shard in described.shards], np.int64)
    found = np.bincount(index.shards, minlength=len(counts))
    rule = ""
    if not np.array_equal(counts, found) or len(index.crc32) != len(index.keys):
        rule = f"{MANIFEST_FILE} and {INDEX_FILE} have other numbers of samples of {split}"
    elif not all(isinstance(key, str) and key.isprintable() for key in index.keys):
        rule = f"its {INDEX_FILE} is damaged: a key of {split} is no name"
    else:
        ends = np.array([shard.num_bytes for shard in described.shards], np.int64)[index.shards, None]
        offsets, lengths = index.members[..., 0], index.members[..., 1]
        inside = (offsets >= 0) & (lengths >= 0) & (offsets <= ends) & (lengths <= ends - offsets)
        if not inside.all() or ((offsets == 0) & (lengths > 0)).any() or (index.extents[:, 1] > MAX_SAMPLE_BYTES).any():
            rule = f"its {INDEX_FILE} is damaged: a sample of {split} lies outside its shard, or is too large"
    if rule:
        raise UserError(problem("dataset.url", url, rule))


def write_shards(options: PublishedShardsOptions, raw_dir: Path, out_dir: Path) -> Manifest:
    """Manifest, index and source.json in `out_dir`, which appears, or is replaced, when all of it is on disk."""
    with building_dir(out_dir) as directory:
        manifest = (raw_dir / MANIFEST_FILE).read_bytes()
        _check_sha256(options, manifest)
        write_bytes_atomic(directory / INDEX_FILE, (raw_dir / INDEX_FILE).read_bytes())
        write_source(directory, options.url)
        write_bytes_atomic(directory / MANIFEST_FILE, manifest)
    return load_manifest(out_dir)


def _check_sha256(options: PublishedShardsOptions, manifest: bytes) -> None:
    found = hashlib.sha256(manifest).hexdigest()
    if found != options.manifest_sha256:
        rule = f"the manifest in {options.url} has {found}"
        raise UserError(problem("dataset.manifest_sha256", options.manifest_sha256, rule, "is it the right version?"))
