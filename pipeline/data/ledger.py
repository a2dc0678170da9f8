"""The ledger of a run: which samples every step read, written while training and checked against the arithmetic.

    python -m pipeline.data.ledger check runs/SUITE/FINGERPRINT --shards data/SUITE/shards
    python -m pipeline.data.ledger write --shards data/SUITE/shards --seed 0 --epoch 3

Each rank appends to a file of its own. A resumed run repeats steps, on other ranks perhaps: the last record counts.
"""

import argparse
import dataclasses
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.cli import run_stage
from pipeline.data.index import load_manifest, load_split_index
from pipeline.data.order import GlobalBatches, keep, kept_indices
from pipeline.errors import UserError, problem
from pipeline.files import append_bytes
from pipeline.recipe import AugmentConfig

FOLDER, SPLIT = "ledger", "train"
HEADER = struct.Struct("<QII")  # step, number of indices, CRC-32 of the step's low 32 bits and the indices
INDEX = np.dtype("<u4")


class Ledger:
    """The writer's end; one per rank. A record torn by a crash is cut off when the ledger is opened again."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.path = run_dir / FOLDER / f"rank-{rank:05d}.bin"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        _cut_torn_record(self.path)

    def append(self, step: int, indices: Sequence[int]) -> None:
        """What this rank reads of global batch `step`, counted from 0 over all epochs; its indices in the split."""
        payload = np.asarray(indices, INDEX).tobytes()
        record = HEADER.pack(step, len(indices), _sum(step, payload)) + payload
        append_bytes(self.path, record)  # a kill tears the last record at most


class Place(NamedTuple):
    """Where the indices of a step lie in a rank's file."""

    offset: int
    num: int  # of indices


class RankLedger:
    """The reader's end of one rank's file; indices stay on the disk."""

    def __init__(self, path: Path) -> None:
        self.data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        records = list(_records(self.data))
        self.places, self.last = dict(records), records[-1][0] if records else -1  # where the rank stands

    def indices(self, step: int) -> np.ndarray | None:
        """(n,) uint32 of what was last read for a step; None: nothing."""
        place = self.places.get(step)
        if place is None:
            return None
        return self.data[place.offset : place.offset + place.num * INDEX.itemsize].view(INDEX)


class Plan(NamedTuple):
    """What a run was to read, from its spec.json and the manifest."""

    num_samples: int  # of the split
    dropped: tuple[int, ...]
    epochs: int
    batches: GlobalBatches  # of epoch 0 and one rank; of the samples that are not dropped

    def epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """The samples of the epoch's global batches, in their order."""
        every = dataclasses.replace(self.batches, epoch=epoch)
        return (np.array(batch) % self.num_samples for batch in keep(every, self.num_samples, self.dropped))


def check_ledger(run_dir: Path, directory: Path) -> str:
    """Compare what a run has read with what the arithmetic says it reads.

    Returns:
        A sentence that says what was found right.

    Raises:
        UserError: naming the first global batch that differs; there is no ledger, or the shards are not the run's.
    """
    plan, ranks = load_plan(run_dir, directory), _load_ranks(run_dir)
    steps_per_epoch = plan.batches.num_batches
    last, total = max((step for rank in ranks for step in rank.places), default=-1), plan.epochs * steps_per_epoch
    if last >= total:
        raise UserError(f"{run_dir}: global batch {last} was read, but the run has {total}")
    done = run_dir / "done.json"
    stop = json.loads(done.read_text())["num_steps"] if done.is_file() else _reached(plan, ranks)
    for epoch in range(-(-stop // steps_per_epoch)):
        found = []
        for batch, expected in enumerate(plan.epoch(epoch)):
            step = epoch * steps_per_epoch + batch
            if step < stop:
                found.append(_check_batch(run_dir, plan, ranks, step, expected))
        _check_epoch(run_dir, plan, epoch, np.concatenate(found), whole=len(found) == steps_per_epoch)
    return _told(run_dir, plan, stop, total)


def load_plan(run_dir: Path, directory: Path) -> Plan:
    """What the run in `run_dir` reads of the shards in `directory`; raises UserError if these are not its shards."""
    path, manifest = run_dir / "spec.json", load_manifest(directory)
    if not path.is_file():
        raise UserError(f"{path}: no such file; is {run_dir} the folder of a run?")
    spec: Mapping[str, Any] = json.loads(path.read_text())
    if spec["dataset"]["manifest_sha256"] != manifest.sha256:
        raise UserError(f"{directory}: not the shards that the run {run_dir} was trained on")
    train, dropped = spec["science"]["train"], tuple(spec.get("dropped", {}).get(SPLIT, ()))
    augment = AugmentConfig.model_validate(train["augment"]) if isinstance(train["augment"], dict) else None
    num_samples = manifest.split(SPLIT).num_samples
    batches = GlobalBatches(
        num_samples - len(dropped),
        train["global_batch_size"],
        spec["seed"],
        epoch=0,
        aug_repeats=augment.aug_repeats if augment else 1,
        paired=bool(augment and augment.mixes),
    )
    return Plan(num_samples, dropped, train["epochs"], batches)


def _load_ranks(run_dir: Path) -> list[RankLedger]:
    paths = sorted((run_dir / FOLDER).glob("rank-*.bin"))
    if not paths or [path.name for path in paths] != [f"rank-{rank:05d}.bin" for rank in range(len(paths))]:
        rule = f"has {len(paths)} files, not those of ranks 0, 1, ..." if paths else "no such folder"
        raise UserError(problem("ledger", str(run_dir / FOLDER), rule, "train with placement.ledger: true"))
    return [RankLedger(path) for path in paths]


def _reached(plan: Plan, ranks: list[RankLedger]) -> int:
    """How many global batches an unfinished run has read. Ranks meet in every step: some may lack the last one only."""
    step = max(0, ranks[0].last)
    return step + (_global_batch(ranks, step, plan.batches.global_batch_size, plan.batches.paired) is not None)


def _check_batch(run_dir: Path, plan: Plan, ranks: list[RankLedger], step: int, expected: np.ndarray) -> np.ndarray:
    found = _global_batch(ranks, step, len(expected), plan.batches.paired)
    where = f"{run_dir}: global batch {step} (epoch {step // plan.batches.num_batches})"
    if found is None:
        raise UserError(f"{where}: the ledger lacks it, or some rank's share of it")
    if not np.array_equal(found, expected):
        place = int(np.flatnonzero(found != expected)[0])
        rule = f"sample {found[place]} at place {place}, the arithmetic says {expected[place]}"
        raise UserError(f"{where}: {rule}")
    return found


def _global_batch(ranks: list[RankLedger], step: int, size: int, paired: bool) -> np.ndarray | None:
    """What the ranks read together; their number, which a resume may change, follows from the first one's share."""
    first = ranks[0].indices(step)
    if first is None or not len(first) or size % len(first) or size // len(first) > len(ranks):
        return None
    shares = [rank.indices(step) for rank in ranks[: size // len(first)]]
    whole = [share for share in shares if share is not None and len(share) == len(first)]
    if len(whole) < len(shares):
        return None
    if not paired:
        return np.concatenate(whole).astype(np.int64)
    half = len(first) // 2  # see `GlobalBatches.paired`
    return np.concatenate([*(s[:half] for s in whole), *(s[half:] for s in reversed(whole))]).astype(np.int64)


def _check_epoch(run_dir: Path, plan: Plan, epoch: int, found: np.ndarray, whole: bool) -> None:
    """That it is a permutation, counted without the arithmetic that has just agreed."""
    times = np.bincount(found, minlength=plan.num_samples)
    most = plan.batches.aug_repeats
    if times.max(initial=0) > most:
        raise UserError(f"{run_dir}: epoch {epoch}: sample {times.argmax()} came {times.max()} times")
    if len(plan.dropped) and times[list(plan.dropped)].any():
        raise UserError(f"{run_dir}: epoch {epoch}: a sample came that is left out")
    missed = int((times[kept_indices(plan.num_samples, plan.dropped)] == 0).sum())
    if whole and most == 1 and missed != _rest(plan):
        raise UserError(f"{run_dir}: epoch {epoch}: {missed} samples never came, {_rest(plan)} do not fill a batch")


def _rest(plan: Plan) -> int:
    return plan.batches.num_samples % plan.batches.global_batch_size


def _told(run_dir: Path, plan: Plan, stop: int, total: int) -> str:
    batches = plan.batches
    often = "twice" if batches.aug_repeats == 1 else f"more than {batches.aug_repeats} times"
    rest = f" but the {_rest(plan)} that do not fill a batch" if _rest(plan) else ""
    missed = f", none was missed{rest}" if batches.aug_repeats == 1 and stop >= batches.num_batches else ""
    dropped = f", the {len(plan.dropped)} damaged ones never" if plan.dropped else ""
    counts = f"{stop} of {total} global batches of {batches.global_batch_size}"
    return f"{run_dir}: {counts}, each as seed {batches.seed} says; no sample came {often} in an epoch{missed}{dropped}"


def _records(data: np.ndarray) -> Iterator[tuple[int, Place]]:
    """(step, place) of the whole records of a file, up to the first that is torn."""
    offset = 0
    while offset + HEADER.size <= len(data):
        step, count, crc = HEADER.unpack(data[offset : offset + HEADER.size].tobytes())
        offset += HEADER.size
        payload = data[offset : offset + count * INDEX.itemsize].tobytes()
        if len(payload) < count * INDEX.itemsize or _sum(step, payload) != crc:
            return
        yield step, Place(offset, count)
        offset += len(payload)


def _cut_torn_record(path: Path) -> None:
    if not path.is_file() or not path.stat().st_size:
        return
    end = max(
        (place.offset + place.num * INDEX.itemsize for _, place in _records(np.memmap(path, np.uint8, "r"))),
        default=0,
    )
    if end < path.stat().st_size:
        os.truncate(path, end)


def _sum(step: int, payload: bytes) -> int:
    return zlib.crc32(payload, step & 0xFFFFFFFF)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.data.ledger", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="whether a run has read what the arithmetic says; exit 1 if not")
    check.add_argument("run_dir", type=Path, help="runs/SUITE/FINGERPRINT, of a run with placement.ledger: true")
    write = verbs.add_parser("write", help="print the keys of an epoch in their order")
    write.add_argument("--seed", type=int, required=True)
    write.add_argument("--epoch", type=int, required=True)
    for verb in (check, write):
        verb.add_argument("--shards", type=Path, required=True, help="data/SUITE/shards")
    args = parser.parse_args()
    if args.verb == "check":
        print(check_ledger(args.run_dir, args.shards))
    else:
        keys = load_split_index(args.shards, SPLIT).keys
        batches = GlobalBatches(len(keys), 1, args.seed, args.epoch)
        print("\n".join(keys[index] for (index,) in batches))


if __name__ == "__main__":
    run_stage(main)
