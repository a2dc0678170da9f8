"""What a directory of shards contains: the manifest (identity, counts, hashes) and the index (byte offsets).

Both are JSON, read without opening a single shard.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.data.hashes import crc32
from pipeline.errors import UserError

MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.json"
# The member of a sample that is the sample itself, by its extension; label, mask and box are beside it.
IMAGES = ("png", "jpg")
CLASSES = "seg.png"  # the member that says the class of every pixel
CLIPS = ("apng", "avi", "mkv", "mov", "mp4", "webm")
Task = Literal["classification", "segmentation"]
Members = dict[str, tuple[int, int]]  # extension -> (offset, length) of the member's data in the tar, bytes


class ShardError(UserError):
    """A shard, the manifest or the index is missing or not what it was when written; the message names it."""


class Dropped(NamedTuple):
    """A file of the user's that was left out, and why."""

    file: str  # relative to the data set's folder, with /
    reason: str


@dataclass(frozen=True)
class ShardInfo:
    """One tar file."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if "/" in self.file + self.sha256:  # both become names of files
            raise ValueError(f"{self.file!r} is no file name")


@dataclass(frozen=True)
class SplitInfo:
    """One split: its shards in order; sample i is the i-th of their concatenation."""

    num_samples: int
    class_counts: tuple[int, ...]  # samples of each label; for segmentation pixels of each class
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True)
class Manifest:
    """A sharded data set; `sha256` (of manifest.json's bytes) is its identity."""

    dataset: str
    source: str
    licence: str
    class_names: tuple[str, ...]
    in_chans: int
    image_size: tuple[int, int] | None  # (H, W) of the images or frames, None where they differ
    num_frames: tuple[int, int] | None  # fewest and most frames of a clip; None: images
    index_sha256: str
    splits: dict[str, SplitInfo]
    dropped: tuple[Dropped, ...] = ()  # what of the user's files is not here
    task: Task = "classification"  # a label for every sample, or a class for every pixel
    sha256: str = ""

    @property
    def num_classes(self) -> int:
        """How many labels, or classes of pixels, there are."""
        return len(self.class_names)

    def split(self, name: str) -> SplitInfo:
        """The split `name`: train, val or test."""
        return self.splits[name]

    def to_json(self) -> dict[str, Any]:
        """What manifest.json says."""
        fields = asdict(self)
        del fields["sha256"]
        if self.task == "classification":
            del fields["task"]  # shards of before there were others keep their identity
        return fields


class SplitIndex(NamedTuple):
    """Where the samples of one split lie."""

    files: tuple[str, ...]
    keys: tuple[str, ...]
    shards: np.ndarray  # (n,) int32 into `files`
    image_spans: np.ndarray  # (n, 2) int64: offset and length of the image or clip, bytes
    label_spans: np.ndarray | None  # (n, 2) int64; None for segmentation
    mask_spans: np.ndarray | None  # (n, 2) int64, the class of every pixel; None for classification
    num_frames: np.ndarray | None  # (n,) int32; None: images
    extents: np.ndarray  # (n, 2) int64: offset and length of the piece of the tar that has all the sample's members
    members: np.ndarray  # (n, m, 2) int64: the spans of all members by extension, (0, 0) for one that it has not
    crc32: np.ndarray  # (n,) int64, `sum_members` of every sample

    def sum_sample(self, index: int, data: bytes) -> int:
        """The CRC-32 of sample `index`, as `sum_members`, of the bytes that were found at its extent."""
        start, crc, view = int(self.extents[index, 0]), 0, memoryview(data)
        for offset, size in self.members[index].tolist():
            crc = crc32(view[offset - start : offset - start + size] if size else b"", crc)
        return crc


def load_manifest(directory: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        ShardError: if it is missing or damaged.
    """
    return _parse(path := directory / MANIFEST_FILE, _read(path), _parse_manifest)


def encode_index(
    members: dict[str, list[tuple[str, Members]]], crc32: dict[str, list[int]], num_frames: dict[str, list[int]]
) -> bytes:
    """What index.json says: shard file -> its samples' keys and members, their sums, and clips' numbers of frames."""
    clips = {"num_frames": num_frames} if any(num_frames.values()) else {}
    return json.dumps({"shards": members, "crc32": crc32, **clips}, separators=(",", ":")).encode()


def sum_members(members: Mapping[str, bytes]) -> int:
    """The CRC-32 of a sample: of its members' data, one behind the other by extension."""
    return functools.reduce(lambda crc, extension: crc32(members[extension], crc), sorted(members), 0)


def load_split_index(directory: Path, split: str) -> SplitIndex:
    """Where the images and labels, or classes, of `split` lie. Remembered: every epoch opens the same split anew.

    Raises:
        ShardError: if index.json is missing, damaged or not the one the manifest was written with.
    """
    path = directory / INDEX_FILE
    state = path.stat() if path.is_file() else None
    changed = state and (state.st_size, state.st_mtime_ns, state.st_ino)
    return _load_split_index(directory, split, load_manifest(directory).sha256, changed)


@functools.lru_cache(maxsize=8)
def _load_split_index(directory: Path, split: str, *state: object) -> SplitIndex:
    index, manifest = _load_index(directory), load_manifest(directory)
    try:
        return _to_split_index(directory / INDEX_FILE, index, manifest, split)
    except ShardError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ShardError(f"{directory / INDEX_FILE}: damaged ({error!r}); run the stage `shard` again") from None


def _to_split_index(path: Path, index: dict[str, Any], manifest: Manifest, split: str) -> SplitIndex:
    by_pixel, counts = manifest.task == "segmentation", index.get("num_frames")
    files = tuple(shard.file for shard in manifest.split(split).shards)
    stored = [index["shards"][file] for file in files]
    extensions, members = _all_members([where for shard in stored for _, where in shard])

    def spans_of(*wanted: str) -> np.ndarray:
        """Of each sample's first member that is one of `wanted`."""
        found = [members[:, i] for i, extension in enumerate(extensions) if extension in wanted]
        found = found or [np.zeros((len(members), 2), np.int64)]
        spans = functools.reduce(lambda first, other: np.where(first[:, :1] > 0, first, other), found)
        if (spans[:, 0] == 0).any():
            raise ShardError(f"{path}: a sample of {split} has no {' or '.join(wanted)}")
        return spans

    return SplitIndex(
        files=files,
        keys=tuple(key for shard in stored for key, _ in shard),
        shards=np.repeat(np.arange(len(files), dtype=np.int32), [len(shard) for shard in stored]),
        image_spans=spans_of(*IMAGES, *CLIPS),
        label_spans=None if by_pixel else spans_of("cls"),
        mask_spans=spans_of(CLASSES) if by_pixel else None,
        num_frames=None if counts is None else np.array([n for file in files for n in counts[file]], np.int32),
        extents=_extents(members),
        members=members,
        crc32=np.array([crc for file in files for crc in index["crc32"][file]], np.int64),
    )


def _all_members(samples: list[Members]) -> tuple[list[str], np.ndarray]:
    """All extensions in order, and the spans (n, m, 2) int64 of each sample's."""
    extensions = sorted(set().union(*samples))
    if all(list(where) == extensions for where in samples):  # as a rule; a million samples take a while else
        flat = np.fromiter((n for where in samples for span in where.values() for n in span), np.int64)
    else:
        flat = np.array([[where.get(extension, (0, 0)) for extension in extensions] for where in samples], np.int64)
    return extensions, flat.reshape(len(samples), len(extensions), 2)


def _extents(members: np.ndarray) -> np.ndarray:
    """From the first byte of a sample's first member to the last of its last: (n, 2) int64."""
    far = np.iinfo(np.int64).max
    starts = np.where(members[..., 0] > 0, members[..., 0], far).min(1, initial=far)
    return np.stack([starts, members.sum(-1).max(1, initial=0) - starts], 1).reshape(-1, 2)


def _load_index(directory: Path) -> dict[str, Any]:
    data = _read(path := directory / INDEX_FILE)
    if hashlib.sha256(data).hexdigest() != load_manifest(directory).index_sha256:
        raise ShardError(f"{path}: not the index that {MANIFEST_FILE} was written with; run the stage `shard` again")
    return _parse(path, data, json.loads)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ShardError(f"{path}: no such file; run the stage `shard` first")
    return path.read_bytes()


def _parse(path: Path, data: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{path}: damaged ({error}); run the stage `shard` again") from None


def _parse_manifest(data: bytes) -> Manifest:
    raw = json.loads(data)
    splits = {
        name: SplitInfo(
            num_samples=split["num_samples"],
            class_counts=tuple(split["class_counts"]),
            shards=tuple(ShardInfo(**shard) for shard in split["shards"]),
        )
        for name, split in raw.pop("splits").items()
    }
    size, frames, names, dropped = (raw.pop(key) for key in ("image_size", "num_frames", "class_names", "dropped"))
    return Manifest(
        **raw,
        class_names=tuple(names),
        image_size=None if size is None else (size[0], size[1]),
        num_frames=None if frames is None else (frames[0], frames[1]),
        splits=splits,
        dropped=tuple(Dropped(*pair) for pair in dropped),
        sha256=hashlib.sha256(data).hexdigest(),
    )
