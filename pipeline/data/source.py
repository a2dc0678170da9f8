"""Where the bytes of shards come from: tars beside the manifest, or a folder elsewhere that source.json names."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

from pipeline.data.hashes import hash_once
from pipeline.data.index import ShardError, ShardInfo, SplitIndex, load_manifest
from pipeline.files import write_json_atomic

SOURCE_FILE = "source.json"
REMEDY = "run the stage `shard` again"
MAX_OPEN = 256  # files at a time: processes may often open no more than 1024


class ShardSource(Protocol):
    """The shards of one data set; it may be used after a fork, and sent to another process."""

    def where(self, shard: ShardInfo) -> str:
        """What people call the shard: its path or its URL."""

    def num_bytes(self, shard: ShardInfo) -> int | None:
        """Its length, None if it is missing; raises UserError if that cannot be found out."""

    def sha256(self, shard: ShardInfo) -> str | None:
        """Of its bytes, None if it is not here."""

    def read(self, shard: ShardInfo, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer where it ends; raises ShardError if it is missing or cannot be read."""

    def distrust(self, shard: ShardInfo) -> bool:
        """Give up a copy of the shard that is read instead of it; False: there is none, reading again is of no use."""


def open_source(directory: Path) -> ShardSource:
    """The source of the shards whose manifest lies in `directory`.

    Raises:
        ShardError: source.json is damaged.
        UserError: what it names is refused or needs a library.
    """
    url = load_url(directory)
    if url is None:
        return LocalShards(directory)
    from pipeline.data.source_remote import open_remote

    manifest = load_manifest(directory)
    return open_remote(url, [shard for split in manifest.splits.values() for shard in split.shards])


def read_sample(source: ShardSource, shard: ShardInfo, index: SplitIndex, sample: int) -> tuple[bytes, bool]:
    """The bytes at the extent of a sample of the split, and whether they are those that were written.

    Raises:
        ShardError: the shard is missing or cannot be read.
    """
    start, length = index.extents[sample].tolist()

    def read() -> tuple[bytes, bool]:
        data = source.read(shard, start, length)
        return data, len(data) == length and index.sum_sample(sample, data) == index.crc32[sample]

    data, whole = read()
    return read() if not whole and source.distrust(shard) else (data, whole)


def load_url(directory: Path) -> str | None:
    """The folder that source.json names; None where there is none, and the tars lie beside the manifest."""
    path = directory / SOURCE_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_bytes())["url"])
    except (ValueError, KeyError, TypeError):
        raise ShardError(f"{path}: damaged; {REMEDY}") from None


def write_source(directory: Path, url: str) -> None:
    """Say that the tars are in the folder `url`."""
    write_json_atomic(directory / SOURCE_FILE, {"url": url})


class LocalShards:
    """Tars on this machine, or on a disk that it mounts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, int] = {}  # file descriptors, the first opened first

    def where(self, shard: ShardInfo) -> str:
        return str(self.directory / shard.file)

    def num_bytes(self, shard: ShardInfo) -> int | None:
        path = self.directory / shard.file
        return path.stat().st_size if path.is_file() else None

    def sha256(self, shard: ShardInfo) -> str | None:
        path = self.directory / shard.file
        try:
            status = path.stat()
            return hash_once(path, status.st_size, status.st_mtime_ns, status.st_ino)
        except OSError as error:
            raise self._unreadable(shard, error) from None

    def read(self, shard: ShardInfo, start: int, length: int) -> bytes:
        # Reading at an offset leaves no trace in the file's position: a fork shares the descriptor without harm.
        file = self._files.get(shard.file)
        try:
            return os.pread(self._open(shard) if file is None else file, length, start)
        except OSError as error:
            raise self._unreadable(shard, error) from None

    def distrust(self, shard: ShardInfo) -> bool:
        return False

    def _open(self, shard: ShardInfo) -> int:
        if len(self._files) >= MAX_OPEN:
            os.close(self._files.pop(next(iter(self._files))))
        file = os.open(self.directory / shard.file, os.O_RDONLY | os.O_CLOEXEC)
        self._files[shard.file] = file
        return file

    def _unreadable(self, shard: ShardInfo, error: OSError) -> ShardError:
        return ShardError(f"{self.where(shard)}: shard cannot be read: {error.strerror}; {REMEDY}")

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # open files do not travel to another process

    def __del__(self) -> None:
        self.close()
