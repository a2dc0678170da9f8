"""Whole shards from elsewhere on this machine's disk: each downloaded once, the folder never above its limit.

A shard is NAME.tar with its sha256 for a name, so suites and versions of a data set share what they share. Whoever
has one open holds a lock on it, and it is not removed; the least recently opened of the others goes first. All locks
die with their process.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from filelock import FileLock

from pipeline.data.hashes import hash_file
from pipeline.data.index import ShardInfo

log = logging.getLogger(__name__)

FOLDER, LIMIT_GB = "DART_SHARD_CACHE", "DART_SHARD_CACHE_GB"
DEFAULT_GB = 50.0
Fill = Callable[[Path], None]  # writes a shard to a path


class WrongBytes(Exception):
    """What was downloaded has not the sha256 of the manifest."""


class ShardCache:
    """A folder of shards.

    Args:
        limit_bytes: Of all files in it, those that are being downloaded included.
        kept: sha256 of shards that are not removed for one another: a data set that is larger than the limit would
            else push itself out, over and over.
    """

    def __init__(self, folder: Path, limit_bytes: int, kept: Collection[str] = ()) -> None:
        self.folder, self.limit_bytes, self.kept = folder, limit_bytes, frozenset(kept)

    def open(self, shard: ShardInfo, fill: Fill) -> int | None:
        """A descriptor of the shard's file, downloaded with `fill` where it is not there; None: there is no room.

        Raises:
            WrongBytes: what `fill` wrote is not the shard. Nothing is kept of it.
        """
        found = self._open_locked(self._path(shard))
        if found is not None:
            return found
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self.folder / f"{shard.sha256[:2]}.lock"):  # another process may be downloading it
            found = self._open_locked(self._path(shard))
            return self._download(shard, fill) if found is None else found

    def remove(self, shard: ShardInfo, file: int) -> None:
        """Close the descriptor that `open` gave and remove its file, unless another has taken its place already."""
        try:
            with contextlib.suppress(OSError), self._room():
                if os.path.samestat(os.fstat(file), self._path(shard).stat()):
                    self._path(shard).unlink()
        finally:
            os.close(file)

    def trim(self) -> None:
        """Remove what nobody uses, oldest first, until the limit is kept: it may have been higher before."""
        if self.folder.is_dir():
            with contextlib.suppress(OSError), self._room():
                self._make_room(0)

    def _room(self) -> FileLock:
        return FileLock(self.folder / "room.lock")

    def _path(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _open_locked(self, path: Path) -> int | None:
        """Open and lock for reading; None if it is not there, or was removed before the lock was ours."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file).st_nlink == 0:
            os.close(file)
            return None
        os.utime(file)
        return file

    def _download(self, shard: ShardInfo, fill: Fill) -> int | None:
        part = self._path(shard).with_suffix(".part")
        reserved = self._reserve(part, shard.num_bytes)
        if reserved is None:
            return None
        try:
            fill(part)
            if part.stat().st_size != shard.num_bytes or hash_file(part) != shard.sha256:
                raise WrongBytes
            os.fsync(reserved)
            with self._room():  # who counts what is in the folder sees it under one of its names
                os.replace(part, self._path(shard))
            fcntl.flock(reserved, fcntl.LOCK_SH)  # the lock that kept others from removing it keeps it from now on
            return reserved
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(reserved)
            raise

    def _reserve(self, part: Path, num_bytes: int) -> int | None:
        """A locked file of that length, which holds the place while it is filled; None if there is no room."""
        with self._room():
            if not self._make_room(num_bytes):
                return None
            part.unlink(missing_ok=True)  # a killed process's: no living one downloads this shard now
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            os.truncate(file, num_bytes)
            return file

    def _make_room(self, num_bytes: int) -> bool:
        """Remove what nobody uses, oldest first, until so many more bytes fit."""
        if num_bytes > self.limit_bytes:
            return False
        files = list(_files(self.folder))
        room = self.limit_bytes - sum(status.st_size for _, status in files)
        for path, status in sorted(files, key=lambda pair: pair[1].st_mtime_ns):
            if room >= num_bytes:
                break
            own = path.suffix == ".tar" and path.stem in self.kept
            if not own and _remove_unused(path):
                log.info("%s: removed from the shard cache to make room", path.name)
                room += status.st_size
        return room >= num_bytes


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """What counts; a failed download may vanish while one looks."""
    for path in folder.iterdir():
        if path.suffix in (".tar", ".part"):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat()


def _remove_unused(path: Path) -> bool:
    """Remove a file that no process holds a lock on; False too if it is gone."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(file)
