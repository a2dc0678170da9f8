"""What fits on the nodes of a cluster: workers side by side, runs that could never start, batches that do not split."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.config import absurd_precision, indivisible_batch
from pipeline.errors import ConfigError, UserError, problem
from pipeline.placement import Placement
from pipeline.train.run import Run

PATIENCE_S = 20.0  # that a cluster may be too small; Ray has waited half a minute before it calls a node dead
Nodes = Sequence[Mapping[str, float]]  # of every node that is alive, Ray's resources by name


def num_workers(run: Run, placement: Placement) -> int:
    """The workers of a run: its experiment's subject, or a matter of placement."""
    return run.trial.num_workers or placement.num_workers


def min_workers(run: Run, placement: Placement) -> int:
    """The fewest workers that a run goes on with; a number that is its subject does not change."""
    return run.trial.num_workers or placement.min_workers or placement.num_workers


def resolve_gpus(placement: Placement, nodes: Nodes) -> float:
    """GPUs of each worker; `auto` is one where any node has one."""
    if placement.gpus_per_worker == "auto":
        return 1.0 if any(node.get("GPU") for node in nodes) else 0.0
    return float(placement.gpus_per_worker)


def count_slots(nodes: Nodes, cpus: int, gpus: float) -> int:
    """How many workers of this size fit on the nodes at once; none is split over nodes."""
    a_little = 1e-9  # 1 // 0.1 is 9
    return sum(
        min(int(node.get("CPU", 0) // cpus), int(node.get("GPU", 0) / gpus + a_little) if gpus else 10**9)
        for node in nodes
    )


class Capacity(NamedTuple):
    """GPUs of each worker, and how many workers fit at once."""

    gpus: float
    slots: int


def check_capacity(runs: Sequence[Run], placement: Placement, nodes: Nodes) -> Capacity:
    """What these nodes have room for.

    Raises:
        ConfigError: naming every run that could never start on them, or would train absurdly slowly.
    """
    gpus = resolve_gpus(placement, nodes)
    slots = count_slots(nodes, placement.cpus_per_worker, gpus)
    problems: dict[str, None] = {}
    for run in runs:
        workers = min_workers(run, placement)
        if workers > slots:
            problems[_too_many(run, workers, slots, room(nodes, placement, gpus), placement)] = None
        problems |= dict.fromkeys(absurd_precision(run.trial, "cuda" if gpus else "cpu"))
    if problems:
        raise ConfigError("placement", problems)
    return Capacity(gpus, slots)


def room(nodes: Nodes, placement: Placement, gpus: float) -> str:
    """What the nodes have room for, in words."""
    slots = count_slots(nodes, placement.cpus_per_worker, gpus)
    has = ", ".join(f"{math.floor(sum(node.get(kind, 0) for node in nodes))} {kind}s" for kind in ("CPU", "GPU"))
    each = f"{placement.cpus_per_worker} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    return f"the cluster has room for {slots} workers of {each}: {has} on {len(nodes)} nodes"


def _too_many(run: Run, workers: int, slots: int, has: str, placement: Placement) -> str:
    where = "placement.num_workers" if placement.min_workers is None else "placement.min_workers"
    if run.trial.num_workers:
        where = f"experiments.{run.trial.name}.num_workers"
    return problem(where, workers, has, f"at most {slots}" if slots else "lower *_per_worker")


def check_batches(runs: Sequence[Run], placement: Placement) -> None:
    """Every global batch must split equally over any number of workers it may get, in pairs where pairs are mixed."""
    problems: dict[str, None] = {}
    for run in runs:
        fewest, most = min_workers(run, placement), num_workers(run, placement)
        batch, paired = run.trial.train.global_batch_size, run.trial.train.mixing is not None
        if fewest < most:
            problems |= dict.fromkeys(_unelastic_batch(batch, range(fewest, most + 1), paired))
        else:
            problems |= dict.fromkeys(indivisible_batch("train.global_batch_size", batch, most, paired))
    if problems:
        raise ConfigError("placement", problems)


def _unelastic_batch(batch: int, counts: range, paired: bool) -> list[str]:
    """At most one line: that a batch cannot be split equally over every one of these numbers of workers."""
    every = math.lcm(*counts) * (2 if paired else 1)
    if batch % every == 0:
        return []
    fits = [str(count) for count in counts if not indivisible_batch("", batch, count, paired)]
    rule = f"not a multiple of every world_size from {counts[0]} to {counts[-1]}, that is of {every}"
    remedy = f"try {max(1, round(batch / every)) * every}, or as many placement.min_workers as num_workers"
    said = f" ({', '.join(fits)} would do)" if fits else ""
    return [problem("train.global_batch_size", batch, rule, remedy + said)]


class Shortage:
    """Ends what a cluster has become too small for, where Ray would wait for ever for a node that is gone.

    Args:
        workers: The fewest that anything needs at once.
    """

    def __init__(self, workers: int, placement: Placement, gpus: float, patience_s: float = PATIENCE_S) -> None:
        self.workers, self.placement, self.gpus, self.patience_s = workers, placement, gpus, patience_s
        self.since: float | None = None  # that the nodes are too few

    def look(self, nodes: Nodes) -> None:
        """Raise UserError where the nodes have been too few, or too small, at every look for `patience_s` seconds."""
        if count_slots(nodes, self.placement.cpus_per_worker, self.gpus) >= self.workers:
            self.since = None
            return
        now = time.monotonic()
        self.since = self.since or now
        if now - self.since >= self.patience_s:
            has = room(nodes, self.placement, self.gpus)
            remedy = "bring the nodes back, or set a smaller placement.min_workers; what is finished is kept"
            raise UserError(problem("workers", self.workers, f"nodes were lost, {has}", remedy))
