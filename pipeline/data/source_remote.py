"""Shards in a folder elsewhere (https, s3, gs, a mounted disk), through fsspec: cached whole, or read in ranges.

Both give the same bytes. A shard that has no room in the cache, or is not what the manifest says, is read in ranges;
in either case the CRC of every sample decides whether what came is what was written.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from pipeline.data.addresses import check_folder, shown
from pipeline.data.cache import DEFAULT_GB, FOLDER, LIMIT_GB, ShardCache, WrongBytes
from pipeline.data.index import ShardError, ShardInfo
from pipeline.data.source import MAX_OPEN
from pipeline.data.source_http import BoundedHttp, checked_client
from pipeline.errors import UserError, problem

log = logging.getLogger(__name__)

PIECE_BYTES = 2**23  # of a download: what a broken connection loses at most
WAITS_S = (0.5, 2.0)  # before each further try of what a network may do better next time
LIBRARIES = {"s3": "s3fs", "gs": "gcsfs"}
T = TypeVar("T")
_SIZES: dict[tuple[str, str], int] = {}  # of (folder, shard), asked once per process: every epoch opens them anew


def open_remote(url: str, shards: Sequence[ShardInfo]) -> "RemoteShards":
    """The shards in the folder `url`, through the cache that the environment describes.

    Raises:
        UserError: the address is refused, a library for it is missing, or the environment says nonsense.
    """
    check_folder(url)
    limit = _limit_bytes()
    folder = Path(os.environ.get(FOLDER) or Path.home() / ".cache/dart-lab/shards")
    cache = None
    if limit:
        ShardCache(folder, limit).trim()  # of this data set too, which may have been given more
        cache = ShardCache(folder, limit, {shard.sha256 for shard in shards})
    source = RemoteShards(url, cache)
    source.connect()
    return source


def read_file(url: str, file: str, max_bytes: int) -> bytes:
    """All of a file of the folder `url`; raises UserError if it is missing, larger, or cannot be read."""
    check_folder(url)
    data = RemoteShards(url, None).ask(file, lambda system, path: system.cat_file(path, start=0, end=max_bytes + 1))
    if len(data) > max_bytes:
        raise UserError(f"{shown(url)}/{file}: has more than {max_bytes} bytes, which are not read")
    return data


def _limit_bytes() -> int:
    text = os.environ.get(LIMIT_GB) or str(DEFAULT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = -1
    if not 0 <= limit < float("inf"):
        raise UserError(problem(LIMIT_GB, text, "must be a number of gigabytes", "0: no cache, read in ranges"))
    return int(limit * 1e9)


class RemoteShards:
    """The shards of one data set, elsewhere."""

    def __init__(self, url: str, cache: ShardCache | None) -> None:
        self.url, self.cache = url.rstrip("/"), cache
        self._files: dict[str, int] = {}  # descriptors of cached shards, whose locks keep them there
        self._uncached: set[str] = set()  # shards for which the cache was tried in vain
        self._filesystem: tuple[int, Any, str] | None = None  # of this process, and the folder as it calls it

    def where(self, shard: ShardInfo) -> str:
        return f"{shown(self.url)}/{shard.file}"

    def num_bytes(self, shard: ShardInfo) -> int | None:
        known = (self.url, shard.file)
        if known not in _SIZES:
            size = self._size(shard)
            if size is None:
                return None
            _SIZES[known] = size
        return _SIZES[known]

    def sha256(self, shard: ShardInfo) -> str | None:
        return None  # it is compared when the shard comes into the cache

    def read(self, shard: ShardInfo, start: int, length: int) -> bytes:
        file = self._files.get(shard.file)
        if file is None and self.cache and shard.file not in self._uncached:
            file = self._open(shard, self.cache)
        if file is not None:
            try:
                return os.pread(file, length, start)
            except OSError as error:
                log.warning("%s: %s: read in ranges", self.where(shard), error.strerror)
                self.distrust(shard)
        return self._range(shard, start, length)

    def distrust(self, shard: ShardInfo) -> bool:
        file = self._files.pop(shard.file, None)
        if file is None or self.cache is None:
            return False
        log.warning("%s: its cached copy is damaged: removed, read in ranges", self.where(shard))
        self.cache.remove(shard, file)
        self._uncached.add(shard.file)  # whoever opens the shards next downloads it anew
        return True

    def connect(self) -> tuple[Any, str]:
        """fsspec's file system in this process, for its connections do not survive a fork."""
        if self._filesystem is None or self._filesystem[0] != os.getpid():
            self._filesystem = (os.getpid(), *_file_system(self.url))
        return self._filesystem[1:]

    def ask(self, file: str, question: Callable[[Any, str], T]) -> T:
        """An answer of the file system about a file of the folder, asked again where the network may be at fault.

        Raises:
            ShardError: it is missing.
            UserError: there is no answer, or the address is refused.
        """
        where = f"{shown(self.url)}/{file}"
        for wait_s in (*WAITS_S, None):
            system, folder = self.connect()
            try:
                return question(system, f"{folder}/{file}")
            except (UserError, MemoryError):
                raise
            except FileNotFoundError:
                raise ShardError(f"{where}: no such file; is the folder the right one?") from None
            except Exception as error:  # gcsfs, google.auth and botocore have their own, of no common class
                if wait_s is None or _is_final(error):
                    raise UserError(f"{where}: cannot be read: {_reason(error)}") from None
            time.sleep(wait_s)
        raise AssertionError("not reached")

    def _size(self, shard: ShardInfo) -> int | None:
        try:
            try:
                size = self.ask(shard.file, lambda system, path: system.size(path))
            except ShardError:  # which fsspec also says of a server that is busy
                self._range(shard, 0, 1)
                size = self.ask(shard.file, lambda system, path: system.size(path))
        except ShardError:
            return None
        return shard.num_bytes if size is None else size  # not every server tells

    def _range(self, shard: ShardInfo, start: int, length: int) -> bytes:
        return self.ask(shard.file, lambda system, path: system.cat_file(path, start=start, end=start + length))

    def _open(self, shard: ShardInfo, cache: ShardCache) -> int | None:
        try:
            file = cache.open(shard, lambda path: self._download(shard, path))
        except WrongBytes:
            log.warning("%s: its sha256 is not the manifest's: read sample by sample", self.where(shard))
            file = None
        except OSError as error:  # a full disk, a folder that is none; what the network does is no OSError here
            log.warning("%s: %s: read in ranges", cache.folder, error.strerror)
            file = None
        if file is None:
            self._uncached.add(shard.file)
            return None
        if len(self._files) >= MAX_OPEN:
            os.close(self._files.pop(next(iter(self._files))))
        self._files[shard.file] = file
        return file

    def _download(self, shard: ShardInfo, path: Path) -> None:
        with path.open("r+b") as out:
            for start in range(0, shard.num_bytes, PIECE_BYTES):
                out.write(self._range(shard, start, min(PIECE_BYTES, shard.num_bytes - start)))

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_filesystem": None}

    def __del__(self) -> None:
        self.close()


def _file_system(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    # What fsspec lists it may remember, and a shard that is replaced must be seen.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("http", "https"):
        return BoundedHttp(get_client=checked_client, **options), url
    try:
        return url_to_fs(url, **options)
    except ImportError:
        library = LIBRARIES.get(scheme, scheme)
        remedy = f"install {library} on every node: .venv/bin/uv pip install {library}"
        raise UserError(problem("url", shown(url), f"needs the library {library}", remedy)) from None


def _is_final(error: Exception) -> bool:
    """Whether asking again is of no use."""
    status = getattr(error, "status", None)
    return isinstance(error, PermissionError) or (status is not None and 400 <= status < 500 and status != 429)


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    status = getattr(error, "status", None)
    if status is not None:
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    return f"{type(error).__name__}{': ' if first else ''}{first}; is the network up?"
