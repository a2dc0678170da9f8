"""sha256 of files, the identity of shards; CRC-32, the check of every sample that is read."""

import functools
import hashlib
from pathlib import Path

from isal.isal_zlib import crc32  # the same sums as zlib's, several times as fast: reading is else mostly this

__all__ = ["crc32", "hash_file", "hash_once"]


@functools.lru_cache(maxsize=1 << 14)
def hash_once(path: Path, *state: int) -> str:
    """sha256 of a file; the same file in the same `state` (size, mtime, inode) is read once per process."""
    return hash_file(path)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
