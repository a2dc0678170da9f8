"""Records -> rows: one per experiment, the sweep with its Pareto front, and who agrees with whom.

A pure function of the records, in the order of the plan. Only complete runs are averaged; the others are
named in the row's status. Accuracies are fractions of the test split, deviations those of a sample (n - 1).
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.records import Records, Run, by_name

COMPLETE = "complete"


@dataclass(frozen=True)
class Row:
    """One model of the table; the fields are the columns of table.csv. None is an unknown, never a zero."""

    model: str
    tokenizer: str
    token_budget: int
    top1_mean: float | None
    top1_std: float | None
    num_seeds: int  # runs behind the mean
    params: int | None
    gflops: float | None  # 1e9 multiply-accumulates of one image, as the paper counts
    images_per_s: float | None
    experiment: str
    backbone: str
    variant: str
    img_size: int
    top5_mean: float | None
    top5_std: float | None
    val_top1_mean: float | None
    images_per_s_q25: float | None
    images_per_s_q75: float | None
    num_samples_trained: str
    world_size: str
    status: str  # "complete", or which seeds are missing from the mean and why
    run_ids: str
    commit: str
    data_sha256: str


@dataclass(frozen=True)
class Agreement:
    """Two runs of the same science on different numbers of workers, and how far apart they ended."""

    experiment: str
    twin: str
    seed: int
    world_sizes: tuple[int | None, int | None]
    status: str
    num_steps: int  # steps at which both journals have a training loss
    max_loss_diff: float | None
    top1_diff: float | None
    num_predictions: int  # test samples that both predicted
    num_changed: int  # of these, predicted differently


def comparison(records: Records) -> list[Row]:
    """One row per experiment."""
    return _rows(records, records.runs)


def sweep(records: Records) -> list[Row]:
    """One row per point of the sweep, over its seeds."""
    return _rows(records, records.trials)


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other one beats in accuracy at equal or lower cost, cheapest first."""
    known = [row for row in rows if row.top1_mean is not None and row.gflops is not None]
    front: list[Row] = []
    for row in sorted(known, key=lambda r: (r.gflops or 0, -(r.top1_mean or 0))):
        if not front or (row.top1_mean or 0) > (front[-1].top1_mean or 0):
            front.append(row)
    return front


def agreements(records: Records) -> list[Agreement]:
    """Every run against the first one of the same science: only the pinned number of workers differs."""
    first: dict[str, Run] = {}
    pairs: list[tuple[Run, Run]] = []
    for run in records.runs:
        science = {key: value for key, value in run.science.items() if key != "num_workers"}
        twin = first.setdefault(json.dumps(science, sort_keys=True), run)
        if twin.fingerprint != run.fingerprint:
            pairs.append((run, twin))
    return [_agreement(records, run, twin) for run, twin in pairs]


def _rows(records: Records, runs: Iterable[Run]) -> list[Row]:
    return [_row(records, group) for group in by_name(runs).values()]


def _row(records: Records, group: Sequence[Run]) -> Row:
    complete = [run for run in group if not run.problem]
    model, tokenizer = group[0].science["model"], group[0].science["tokenizer"]
    cost = records.cost(group[0])
    tests = [run.test or {} for run in complete]
    return Row(
        experiment=group[0].name,
        model=group[0].model_name,
        backbone=model["backbone"],
        variant=model["variant"],
        img_size=model["img_size"],
        tokenizer=tokenizer["name"],
        token_budget=tokenizer["token_budget"],
        num_seeds=len(complete),
        **_mean_std("top1", tests),
        **_mean_std("top5", tests),
        val_top1_mean=_mean_std("top1", [{"top1": r.metrics.get("val_top1")} for r in complete])["top1_mean"],
        params=cost.params if cost else None,
        gflops=cost.macs / 1e9 if cost else None,
        images_per_s=cost.images_per_s if cost else None,
        images_per_s_q25=cost.images_per_s_q25 if cost else None,
        images_per_s_q75=cost.images_per_s_q75 if cost else None,
        num_samples_trained=_distinct(run.num_samples for run in complete),
        world_size=_distinct(run.world_size for run in complete),
        status="; ".join(f"seed {run.seed}: {run.problem}" for run in group if run.problem) or COMPLETE,
        run_ids=" ".join(run.fingerprint for run in group),
        commit=_distinct(run.commit for run in group),
        data_sha256=group[0].manifest_sha256,
    )


def _mean_std(metric: str, tests: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean, and standard deviation from two values on; None where a value is missing or not finite."""
    values = [test.get(metric) for test in tests]
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    whole = len(known) == len(values)
    return {
        f"{metric}_mean": statistics.fmean(known) if known and whole else None,
        f"{metric}_std": statistics.stdev(known) if len(known) > 1 and whole else None,
    }


def _distinct(values: Iterable[Any]) -> str:
    """The different values in order of appearance; one value where all are equal."""
    return " ".join(dict.fromkeys(str(value) for value in values if value is not None))


def _agreement(records: Records, run: Run, twin: Run) -> Agreement:
    loss, twin_loss = (r.curves.get("train_loss", {}) for r in (run, twin))
    steps = sorted(loss.keys() & twin_loss.keys())
    said, twin_said = records.predictions(run), records.predictions(twin)
    keys = said.keys() & twin_said.keys()
    top1, twin_top1 = ((r.test or {}).get("top1") for r in (run, twin))
    missing = [f"{r.name}: {r.problem}" for r in (run, twin) if r.problem]
    return Agreement(
        experiment=run.name,
        twin=twin.name,
        seed=run.seed,
        world_sizes=(run.world_size, twin.world_size),
        status="; ".join(missing) or COMPLETE,
        num_steps=len(steps),
        max_loss_diff=max((abs(loss[step] - twin_loss[step]) for step in steps), default=None),
        top1_diff=top1 - twin_top1 if top1 is not None and twin_top1 is not None else None,
        num_predictions=len(keys),
        num_changed=sum(said[key] != twin_said[key] for key in keys),
    )
