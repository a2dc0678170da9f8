"""Shards that were published as such: manifest and index are brought here, the tars stay where they are.

The manifest's sha256 is written in the suite; it has the index's, and both have those of every shard and sample.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.catalog import Sample
from pipeline.data.index import INDEX_FILE, MANIFEST_FILE, Manifest, load_manifest, load_split_index
from pipeline.data.options import PublishedShardsOptions
from pipeline.data.source import write_source
from pipeline.errors import UserError, problem
from pipeline.files import building_dir, write_bytes_atomic


def fetch(options: PublishedShardsOptions, raw_dir: Path) -> None:
    """Bring manifest.json and index.json, and look whether they describe what a suite can use.

    Raises:
        UserError: they cannot be read, are not the published ones, or describe clips or classes of pixels.
    """
    from pipeline.data.source_remote import read_file  # fsspec

    manifest = read_file(options.url, MANIFEST_FILE)
    _check_sha256(options, manifest)
    write_bytes_atomic(raw_dir / MANIFEST_FILE, manifest)
    write_bytes_atomic(raw_dir / INDEX_FILE, read_file(options.url, INDEX_FILE))
    found = load_manifest(raw_dir)
    for split in found.splits:
        load_split_index(raw_dir, split)  # its sha256 is the manifest's
    if found.task != "classification" or found.num_frames is not None:
        rule = "has clips or classes of pixels; of published shards, images with labels are read"
        raise UserError(problem("dataset.url", options.url, rule))


def write_shards(options: PublishedShardsOptions, raw_dir: Path, out_dir: Path) -> Manifest:
    """Manifest, index and source.json in `out_dir`, which appears, or is replaced, when all of it is on disk."""
    with building_dir(out_dir) as directory:
        manifest = (raw_dir / MANIFEST_FILE).read_bytes()
        _check_sha256(options, manifest)
        write_bytes_atomic(directory / INDEX_FILE, (raw_dir / INDEX_FILE).read_bytes())
        write_source(directory, options.url)
        write_bytes_atomic(directory / MANIFEST_FILE, manifest)
    return load_manifest(out_dir)


def load_samples(options: PublishedShardsOptions, raw_dir: Path, split: str) -> Sequence[Sample]:
    """None: nothing is made of samples."""
    raise UserError(problem("dataset.name", options.name, "its shards are there already"))


def load_class_names(options: PublishedShardsOptions, raw_dir: Path) -> list[str]:
    """As the manifest says."""
    return list(load_manifest(raw_dir).class_names)


def _check_sha256(options: PublishedShardsOptions, manifest: bytes) -> None:
    found = hashlib.sha256(manifest).hexdigest()
    if found != options.manifest_sha256:
        rule = f"the manifest in {options.url} has {found}"
        raise UserError(problem("dataset.manifest_sha256", options.manifest_sha256, rule, "is it the right version?"))
