"""Damaged samples in shards: found before anything starts, left out within a budget, the same ones everywhere.

Who starts the work decides once and tells every process the indices, so that no two ranks can differ.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.index import Manifest, ShardError, ShardInfo, SplitIndex, load_manifest, load_split_index
from pipeline.data.source import REMEDY, ShardSource, open_source, read_sample
from pipeline.data.verify import check_bytes, check_shard, verify_shards
from pipeline.errors import UserError, problem

NUM_NAMED = 5  # samples that an error names; the rest it counts
CUT_OFF, ALTERED, GONE, UNREADABLE = "is cut off", "has other bytes", "is gone with its shard", "cannot be read"


class Drop(NamedTuple):
    """A sample that is left out, and why."""

    split: str
    shard: str
    key: str
    sample: int  # its index in the split
    reason: str


@dataclass(frozen=True)
class Drops:
    """What is left out of a data set's shards, in the order of splits and samples.

    `notes` names the shards that are not what was written, whether or not that touched a sample: of a shard whose
    headers alone are altered no sample is lost, for they are not read.
    """

    drops: tuple[Drop, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.drops or self.notes)

    def indices(self, split: str) -> tuple[int, ...]:
        """Which samples of `split` are left out, increasing."""
        return tuple(sorted(drop.sample for drop in self.drops if drop.split == split))

    @property
    def sha256(self) -> str:
        """Of the list: part of what a result depends on. "" where nothing is left out, as if nobody had looked."""
        text = json.dumps([list(drop) for drop in self.drops])
        return hashlib.sha256(text.encode()).hexdigest() if self.drops else ""

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return {"drops": [list(drop) for drop in self.drops], "notes": list(self.notes)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Drops":
        """The inverse of `to_json`."""
        return cls(tuple(Drop(*drop) for drop in record["drops"]), tuple(record["notes"]))


def find_drops(directory: Path, max_bad_frac: float, splits: Iterable[str] | None = None) -> Drops:
    """Check the shards of `splits` (all by default); of one that is altered, every sample.

    Args:
        max_bad_frac: The largest share of a split's samples that may be left out. 0: no shard may differ at all, as in
            `verify_shards`; more: the bytes of shards that are elsewhere are read too, all of them.

    Raises:
        ShardError: max_bad_frac is 0 and a shard is not what was written; manifest or index are damaged.
        UserError: more is damaged than is allowed, naming the shards and the first samples.
    """
    if max_bad_frac == 0:
        verify_shards(directory, "sha256", splits)
        return Drops()
    manifest, source = load_manifest(directory), open_source(directory)
    drops: list[Drop] = []
    notes: list[str] = []
    for split in manifest.splits if splits is None else splits:
        found = list(_of_split(directory, manifest, split, source, notes))
        _refuse_too_many(max_bad_frac, split, manifest.split(split).num_samples, found)
        drops += found
    return Drops(tuple(drops), tuple(notes))


def _of_split(directory: Path, manifest: Manifest, split: str, source: ShardSource, notes: list[str]) -> Iterator[Drop]:
    index, first = load_split_index(directory, split), 0
    for shard in manifest.split(split).shards:
        here = range(first, first + shard.num_samples)
        first = here.stop
        found = list(_of_shard(index, split, shard, here, source, notes))
        if found:
            notes[-1] += f": {len(found)} of its {len(here)} samples are left out"
        yield from found


def _of_shard(
    index: SplitIndex, split: str, shard: ShardInfo, here: range, source: ShardSource, notes: list[str]
) -> Iterator[Drop]:
    """The bad samples of a shard, which are its samples `here`; nothing is read twice of one that is whole."""
    try:
        check_shard(source, shard)
        check_bytes(source, shard)
        return
    except ShardError as error:
        notes.append(str(error).removesuffix(f"; {REMEDY}"))
    missing = source.num_bytes(shard) is None
    for i in here:
        reason = GONE if missing else _reason(index, i, source, shard)
        if reason:
            yield Drop(split, shard.file, index.keys[i], i, reason)


def _reason(index: SplitIndex, i: int, source: ShardSource, shard: ShardInfo) -> str | None:
    """What is wrong with sample `i` of the split; None: nothing, all its members are as they were written."""
    try:
        data, whole = read_sample(source, shard, index, i)
    except ShardError:
        return UNREADABLE
    if whole:
        return None
    return CUT_OFF if len(data) < index.extents[i, 1] else ALTERED


def _refuse_too_many(max_bad_frac: float, split: str, total: int, found: list[Drop]) -> None:
    if len(found) <= max_bad_frac * total:
        return
    shards = Counter(drop.shard for drop in found)
    counts = ", ".join(f"{file} {count}" for file, count in shards.items())
    named = ", ".join(f"{drop.key} {drop.reason}" for drop in found[:NUM_NAMED])
    more = f", and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
    rule = f"{len(found)} of {total} samples of {split} are damaged in their shards ({counts}): {named}{more}"
    raise UserError(problem("max_bad_frac", max_bad_frac, rule, f"{REMEDY}, or allow more"))
