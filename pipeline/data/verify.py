"""Are the shards the ones that were written? Found out before anything is trained on them."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pipeline.data.index import Manifest, ShardError, ShardInfo, load_manifest, load_split_index
from pipeline.data.source import REMEDY, ShardSource, open_source

PIECE_BYTES = 2**23
AT_ONCE = 8
Verify = Literal["sha256", "samples"]


def verify_shards(directory: Path, verify: Verify = "sha256", splits: Iterable[str] | None = None) -> Manifest:
    """Check manifest, index and the shards of `splits` (all by default) and return the manifest.

    Args:
        verify: "sha256" reads every byte, once per process; of shards that are elsewhere it is checked where they come
            into the cache, and here their lengths. "samples" looks at no shard: a sample's CRC is compared when it is
            read, whatever is chosen here.

    Raises:
        ShardError: naming the first file that is missing, cut short or altered.
        UserError: they are elsewhere and cannot be reached.
    """
    manifest = load_manifest(directory)
    source = open_source(directory)
    shards: list[ShardInfo] = []
    for split in manifest.splits if splits is None else splits:
        load_split_index(directory, split)
        shards += manifest.split(split).shards if verify != "samples" else ()
    if shards:
        with ThreadPoolExecutor(min(AT_ONCE, len(shards))) as threads:  # they wait for a disk, or for a network
            list(threads.map(lambda shard: check_shard(source, shard), shards))
    return manifest


def check_shard(source: ShardSource, expected: ShardInfo) -> None:
    """Compare one shard with what the manifest says of it; raises ShardError naming it."""
    num_bytes, where = source.num_bytes(expected), source.where(expected)
    if num_bytes is None:
        raise ShardError(f"{where}: shard is missing; {REMEDY}")
    if num_bytes != expected.num_bytes:
        sizes = f"{num_bytes} bytes, the manifest says {expected.num_bytes}"
        raise ShardError(f"{where}: shard is truncated or overwritten: {sizes}; {REMEDY}")
    if source.sha256(expected) not in (None, expected.sha256):
        raise ShardError(f"{where}: shard has been altered: its sha256 is not the manifest's; {REMEDY}")


def _hash(source: ShardSource, shard: ShardInfo) -> str:
    found = hashlib.sha256()
    for start in range(0, shard.num_bytes, PIECE_BYTES):
        found.update(source.read(shard, start, min(PIECE_BYTES, shard.num_bytes - start)))
    return found.hexdigest()


def check_bytes(source: ShardSource, expected: ShardInfo) -> None:
    """Read all of a shard that is elsewhere, piece by piece; raises ShardError if it is not what was written."""
    if source.sha256(expected) is not None:
        return
    if _hash(source, expected) != expected.sha256 and not (
        source.distrust(expected) and _hash(source, expected) == expected.sha256
    ):
        raise ShardError(f"{source.where(expected)}: shard has been altered: its sha256 is not the manifest's")
