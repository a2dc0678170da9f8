"""What a directory of shards contains: the manifest (identity, counts, hashes) and the index (byte offsets).

Both are JSON, read without opening a single shard.
"""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

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
    crc32: np.ndarray  # (n,) int64, `sum_members` of every sample


def load_manifest(directory: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        ShardError: if it is missing or damaged.
    """
    data = _read(directory / MANIFEST_FILE)
    return _parse(directory / MANIFEST_FILE, data, _parse_manifest)


def load_members(directory: Path) -> dict[str, list[tuple[str, Members]]]:
    """Shard file -> its samples in order, each with all its members.

    Raises:
        ShardError: if index.json is missing, damaged or not the one the manifest was written with.
    """
    return _load_index(directory)["shards"]


def encode_index(
    members: dict[str, list[tuple[str, Members]]], crc32: dict[str, list[int]], num_frames: dict[str, list[int]]
) -> bytes:
    """What index.json says: shard file -> its samples' keys and members, their sums, and clips' numbers of frames."""
    clips = {"num_frames": num_frames} if any(num_frames.values()) else {}
    return json.dumps({"shards": members, "crc32": crc32, **clips}, separators=(",", ":")).encode()


def sum_members(members: Mapping[str, bytes]) -> int:
    """The CRC-32 of a sample: of its members' data, one behind the other by extension."""
    return functools.reduce(lambda crc, extension: zlib.crc32(members[extension], crc), sorted(members), 0)


def load_split_index(directory: Path, split: str) -> SplitIndex:
    """Where the images and labels, or classes, of `split` lie. Remembered: every epoch opens the same split anew.

    Raises:
        ShardError: as `load_members`.
    """
    path = directory / INDEX_FILE
    state = path.stat() if path.is_file() else None
    changed = (state.st_size, state.st_mtime_ns, state.st_ino) if state else None
    return _load_split_index(directory, split, load_manifest(directory).sha256, changed)


@functools.lru_cache(maxsize=8)
def _load_split_index(directory: Path, split: str, *state: object) -> SplitIndex:
    index, manifest = _load_index(directory), load_manifest(directory)
    files = tuple(shard.file for shard in manifest.split(split).shards)
    samples = [(i, key, where) for i, file in enumerate(files) for key, where in index["shards"][file]]
    counts, by_pixel = index.get("num_frames"), manifest.task == "segmentation"
    return SplitIndex(
        files=files,
        keys=tuple(key for _, key, _ in samples),
        shards=np.array([i for i, _, _ in samples], np.int32),
        image_spans=_spans([where[media_extension(where)] for _, _, where in samples]),
        label_spans=None if by_pixel else _spans([where["cls"] for _, _, where in samples]),
        mask_spans=_spans([where[CLASSES] for _, _, where in samples]) if by_pixel else None,
        num_frames=None if counts is None else np.array([n for file in files for n in counts[file]], np.int32),
        crc32=np.array([crc for file in files for crc in index["crc32"][file]], np.int64),
    )


def _spans(found: list[tuple[int, int]]) -> np.ndarray:
    return np.array(found, np.int64).reshape(-1, 2)


def media_extension(members: Iterable[str]) -> str:
    """Which of a sample's members is the image or the clip; raises KeyError if none is."""
    for extension in members:
        if extension in IMAGES or extension in CLIPS:
            return extension
    raise KeyError("no image or clip")


def _load_index(directory: Path) -> dict[str, Any]:
    path = directory / INDEX_FILE
    data = _read(path)
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
    except (ValueError, KeyError, TypeError) as error:
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
