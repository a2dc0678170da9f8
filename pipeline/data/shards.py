"""Samples -> WebDataset tars with a manifest and an index; the same samples give the same bytes."""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from tqdm import tqdm

from pipeline.data.catalog import DATASETS, SPLITS, Encoded, Sample
from pipeline.data.index import (
    CLASSES,
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
from pipeline.data.options import DatasetOptions
from pipeline.data.verify import hash_file, verify_shards
from pipeline.errors import UserError
from pipeline.files import building_dir, write_bytes_atomic

__all__ = ["verify_shards", "write_shards"]

ShardMembers = list[tuple[str, Members]]


def write_shards(options: DatasetOptions, raw_dir: Path, out_dir: Path, samples_per_shard: int) -> Manifest:
    """Turn raw data into shards of `samples_per_shard` samples, manifest.json and index.json.

    `out_dir` appears, or is replaced, when all of it is on disk.

    Raises:
        UserError: if the raw data is missing or unusable, or the disk is full.
    """
    entry = DATASETS[options.name]
    if not raw_dir.is_dir():
        raise UserError(f"{raw_dir}: no such directory; run the stage `fetch` first")
    try:
        splits = {split: entry.samples(options, raw_dir, split) for split in SPLITS}
        class_names = entry.class_names(options, raw_dir)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; run the stage `fetch` again") from None
    with building_dir(out_dir) as directory:
        total = sum(map(len, splits.values()))
        with tqdm(total=total, desc="shard", unit="img", disable=None) as progress:
            writer = _Writer(directory, len(class_names), progress)
            infos = {name: writer.write_split(name, split, samples_per_shard) for name, split in splits.items()}
        index = encode_index(writer.members, writer.crc32, writer.num_frames)
        counts = [count for shard in writer.num_frames.values() for count in shard]
        manifest = Manifest(
            dataset=options.name,
            source=entry.source,
            licence=entry.licence,
            class_names=tuple(class_names),
            in_chans=entry.in_chans,
            image_size=writer.sizes.pop() if len(writer.sizes) == 1 else None,
            num_frames=(min(counts), max(counts)) if counts else None,
            index_sha256=hashlib.sha256(index).hexdigest(),
            splits=infos,
            dropped=tuple(entry.dropped(options, raw_dir)),
            task="segmentation" if entry.masks else "classification",
        )
        write_bytes_atomic(directory / INDEX_FILE, index)
        write_bytes_atomic(directory / MANIFEST_FILE, (json.dumps(manifest.to_json(), indent=2) + "\n").encode())
    return load_manifest(out_dir)


def encode_members(sample: Sample) -> dict[str, bytes]:
    """Extension -> bytes: the image or clip, cls or seg.png, and where the sample has them mask.png and box.json."""
    image = sample.image
    extension, data = (image.extension, image.data) if isinstance(image, Encoded) else ("png", encode_png(image))
    members = {extension: data}
    if sample.label is not None:
        members["cls"] = str(sample.label).encode()
    if sample.classes is not None:
        members[CLASSES] = encode_png(sample.classes)
    if sample.mask is not None:
        members["mask.png"] = encode_png(sample.mask)
    if sample.box is not None:
        members["box.json"] = json.dumps(sample.box).encode()
    return members


def encode_png(image: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 -> PNG."""
    buffer = io.BytesIO()
    # Run-length coding of the filtered rows: written and read a third faster than the default, no larger.
    Image.fromarray(image).save(buffer, "png", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


class _Writer:
    """Writes the splits one after the other and gathers what index and manifest need to know."""

    def __init__(self, directory: Path, num_classes: int, progress: tqdm) -> None:
        self.directory = directory
        self.num_classes = num_classes
        self.members: dict[str, ShardMembers] = {}
        self.crc32: dict[str, list[int]] = {}
        self.num_frames: dict[str, list[int]] = {}  # of every clip; empty lists for images
        self.sizes: set[tuple[int, int]] = set()  # (H, W) of all images seen
        self.progress = progress

    def write_split(self, split: str, samples: Sequence[Sample], samples_per_shard: int) -> SplitInfo:
        """Write {split}-000000.tar, {split}-000001.tar, ..."""
        counts = np.zeros(self.num_classes, np.int64)
        shards = []
        for number, start in enumerate(range(0, len(samples), samples_per_shard)):
            path = self.directory / f"{split}-{number:06d}.tar"
            span = range(start, min(start + samples_per_shard, len(samples)))
            self.members[path.name], self.crc32[path.name], self.num_frames[path.name] = [], [], []
            self._write_shard(path, samples, span, counts)
            shards.append(ShardInfo(path.name, len(span), path.stat().st_size, hash_file(path)))
        return SplitInfo(len(samples), tuple(counts.tolist()), tuple(shards))

    def _write_shard(self, path: Path, samples: Sequence[Sample], span: range, counts: np.ndarray) -> None:
        # Owner and time are fixed: they are not data, and webdataset would write the current ones.
        with (
            path.open("wb") as file,
            webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as tar,
        ):
            for index in span:
                sample = samples[index]
                members = encode_members(sample)
                self.members[path.name].append((sample.key, locate_members(tar.tarstream.offset, members)))
                self.crc32[path.name].append(sum_members(members))
                tar.write({"__key__": sample.key, **members})
                counts += count_classes(sample, self.num_classes)
                self._note(path.name, sample.image)
                self.progress.update()
            tar.close()
            file.flush()
            os.fsync(file.fileno())

    def _note(self, shard: str, image: np.ndarray | Encoded) -> None:
        """What index and manifest say of all images or clips."""
        if isinstance(image, Encoded):
            self.sizes.add(image.size)
            self.num_frames[shard] += [] if image.num_frames is None else [image.num_frames]
        else:
            self.sizes.add((image.shape[0], image.shape[1]))


def count_classes(sample: Sample, num_classes: int) -> np.ndarray:
    """What a sample adds to `SplitInfo.class_counts`: (num_classes,) int64; pixels of class IGNORE count nowhere."""
    found = sample.label if sample.classes is None else sample.classes.ravel()
    assert found is not None
    return np.bincount(np.atleast_1d(found), minlength=num_classes)[:num_classes]


def locate_members(position: int, members: dict[str, bytes]) -> Members:
    """Where the data of `members` will lie in a tar that ends at byte `position`.

    webdataset writes them by extension; each is a header of one block, then the data padded to whole blocks.
    """
    spans: Members = {}
    for extension, data in sorted(members.items()):
        spans[extension] = (position + tarfile.BLOCKSIZE, len(data))
        position += tarfile.BLOCKSIZE * (1 + -(-len(data) // tarfile.BLOCKSIZE))
    return spans
