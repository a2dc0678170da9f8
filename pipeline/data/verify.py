"""Are the shards the ones that were written? Found out before anything is trained on them."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pipeline.data.index import Manifest, ShardError, ShardInfo, load_manifest, load_split_index

Verify = Literal["sha256", "size"]
REMEDY = "run the stage `shard` again"


def verify_shards(directory: Path, verify: Verify = "sha256", splits: Iterable[str] | None = None) -> Manifest:
    """Check manifest, index and the shards of `splits` (all by default) and return the manifest.

    Args:
        verify: "sha256" reads every byte, once per process; "size" looks at the lengths only.

    Raises:
        ShardError: naming the first file that is missing, cut short or altered.
    """
    manifest = load_manifest(directory)
    for split in manifest.splits if splits is None else splits:
        load_split_index(directory, split)
        for shard in manifest.split(split).shards:
            check_shard(directory / shard.file, shard, verify)
    return manifest


def check_shard(path: Path, expected: ShardInfo, verify: Verify) -> None:
    """Compare one shard with what the manifest says of it; raises ShardError naming it."""
    if not path.is_file():
        raise ShardError(f"{path}: shard is missing; {REMEDY}")
    status = path.stat()
    if status.st_size != expected.num_bytes:
        sizes = f"{status.st_size} bytes, the manifest says {expected.num_bytes}"
        raise ShardError(f"{path}: shard is truncated or overwritten: {sizes}; {REMEDY}")
    if verify == "sha256" and hash_once(path, status.st_size, status.st_mtime_ns, status.st_ino) != expected.sha256:
        raise ShardError(f"{path}: shard has been altered: its sha256 is not the manifest's; {REMEDY}")


@functools.lru_cache(maxsize=1 << 14)
def hash_once(path: Path, *state: int) -> str:
    """sha256 of a file; the same file in the same `state` (size, mtime, inode) is read once per process."""
    return hash_file(path)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
