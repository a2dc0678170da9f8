"""Records -> tables, as pandas frames: one row per run, one per experiment, one per point of the sweep.

A pure function of the records, in the order of the plan. Only complete runs are averaged; the others are
named in the row's status. Measures are fractions, of the test split; deviations are those of a sample (n - 1).
A missing value is an unknown, never a zero.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from pipeline.measures import Task
from pipeline.report.records import Cost, Records, Run
from pipeline.report.statistics import half_width

COMPLETE = "complete"

# One row per run, beside the task's measures. Int64 is the type of whole numbers of which some are missing.
RUN_TYPES = {
    **dict.fromkeys(("experiment", "model", "backbone", "variant", "tokenizer"), "str"),
    **dict.fromkeys(("status", "fingerprint", "commit", "data_sha256", "architecture"), "str"),
    **dict.fromkeys(("seed", "img_size", "token_budget"), "int64"),
    **dict.fromkeys(("num_samples", "world_size"), "Int64"),
}
COST_TYPES = {"params": "Int64"} | dict.fromkeys(Cost._fields[1:], "float64")
COSTS = ["params", "gflops", *Cost._fields[2:]]  # gflops: 1e9 multiply-accumulates of one image, as the paper counts
FACTS = ["model", "backbone", "variant", "img_size", "tokenizer", "token_budget", "data_sha256", *COSTS]


def columns(task: Task) -> list[str]:
    """One row per experiment: the columns of table.csv."""
    first, *others = ((f"{measure.name}_mean", f"{measure.name}_std") for measure in task.measures)
    return [
        *("model", "tokenizer", "token_budget", *first, "num_seeds", "params", "gflops", "images_per_s"),
        *("experiment", "backbone", "variant", "img_size", *chain(*others), f"{task.val}_mean"),
        *("images_per_s_q25", "images_per_s_q75", "num_samples_trained", "world_size"),
        *("status", "run_ids", "commit", "data_sha256"),
        *(f"{measure.name}_ci_{end}" for measure in task.measures for end in ("low", "high")),
    ]


@lru_cache(maxsize=16)  # every format asks for it
def comparison(records: Records) -> pd.DataFrame:
    """One row per experiment, with `columns`; not to be changed in place."""
    return _aggregate(tidy(records, records.runs), records.task)


@lru_cache(maxsize=16)
def sweep(records: Records) -> pd.DataFrame:
    """One row per point of the sweep, over its seeds; the last columns say which Pareto fronts it is on.

    `pareto`: of the first measure and GFLOPs; `pareto_latency`: of the measure and the measured time of a sample;
    `pareto_both`: of all three. Not to be changed in place.
    """
    table = _aggregate(tidy(records, records.trials), records.task)
    value = f"{records.task.first.name}_mean"
    timed = table.assign(latency=1 / table["images_per_s"])
    return table.assign(
        pareto=pareto_front(table, value),
        pareto_latency=pareto_front(timed, value, ["latency"]),
        pareto_both=pareto_front(timed, value, ["gflops", "latency"]),
    )


def tidy(records: Records, runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run, with `RUN_TYPES`, the measures of the task, and `COSTS`."""
    task = records.task
    types = RUN_TYPES | dict.fromkeys((*(measure.name for measure in task.measures), task.val), "float64")
    frame = pd.DataFrame([_facts(run, task) for run in runs], columns=list(types)).astype(types)
    costs = pd.DataFrame(list(records.costs.values()), index=list(records.costs), columns=list(Cost._fields))
    costs = costs.astype(COST_TYPES).assign(gflops=lambda frame: frame["macs"] / 1e9)
    return frame.replace([np.inf, -np.inf], np.nan).join(costs[COSTS], on="architecture")


def rows(table: pd.DataFrame) -> list[Any]:
    """The rows of any of these tables, their values as attributes."""
    return list(table.itertuples(index=False))


def pareto_front(table: pd.DataFrame, column: str, costs: Sequence[str] = ("gflops",)) -> "pd.Series[bool]":
    """Which rows no other one beats in the measure of this column at equal or lower costs, in all of them.

    Of rows that are equal in everything the first one is. A row is on no front where the measure or a cost is unknown.
    """
    known = table.dropna(subset=[column, *costs])
    values = known[[column, *costs]].to_numpy(float) * [-1.0, *[1.0] * len(costs)]  # all the smaller the better
    no_worse = (values[:, None] <= values[None]).all(2)  # (n, n): row i is at least as good as row j
    equal = no_worse & no_worse.T
    beats = no_worse & (~equal | np.triu(np.ones_like(equal), 1))
    return pd.Series(~beats.any(0), index=known.index, dtype=bool).reindex(table.index, fill_value=False)


def _facts(run: Run, task: Task) -> dict[str, Any]:
    model, tokenizer, test = run.science["model"], run.science["tokenizer"], run.test or {}
    return {
        "experiment": run.name,
        "seed": run.seed,
        "model": run.model_name,
        **{key: model[key] for key in ("backbone", "variant", "img_size")},
        "tokenizer": run.tokenizer,
        "token_budget": tokenizer["token_budget"],
        **{measure.name: test.get(measure.name) for measure in task.measures},
        task.val: run.metrics.get(task.val),
        "num_samples": run.num_samples,
        "world_size": run.world_size,
        "status": run.problem or COMPLETE,
        "fingerprint": run.fingerprint,
        "commit": run.commit,
        "data_sha256": run.manifest_sha256,
        "architecture": run.architecture,
    }


def _aggregate(runs: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Means over the complete runs beside what is known of all, in order of appearance."""
    broken = runs["status"] != COMPLETE
    reason = ("seed " + runs["seed"].astype("str") + ": " + runs["status"]).where(broken)
    every = runs.assign(reason=reason).groupby("experiment", sort=False)
    texts = {"num_samples": "string", "world_size": "string"}
    complete = runs[~broken].astype(texts).groupby("experiment", sort=False)
    means = complete.agg(
        **{f"{measure.name}_mean": (measure.name, known_mean) for measure in task.measures},
        **{f"{measure.name}_std": (measure.name, known_std) for measure in task.measures},
        **{f"{task.val}_mean": (task.val, known_mean)},
        num_seeds=("seed", "size"),
        num_samples_trained=("num_samples", _distinct),
        world_size=("world_size", _distinct),
    )
    traces = every.agg(
        status=("reason", lambda reasons: "; ".join(_known(reasons)) or COMPLETE),
        run_ids=("fingerprint", " ".join),
        commit=("commit", _distinct),
    )
    table = every[FACTS].first().join(means).join(traces).reset_index()
    table = table.assign(num_seeds=table["num_seeds"].fillna(0).astype("int64"))
    return table.assign(**_intervals(table, task))[columns(task)]


def _intervals(table: pd.DataFrame, task: Task) -> dict[str, "pd.Series[float]"]:
    """Student's of every mean, 95 %, from the deviation over the seeds; unknown of fewer than two seeds."""
    ends: dict[str, pd.Series[float]] = {}
    for name in (measure.name for measure in task.measures):
        half = half_width(table[f"{name}_std"], table["num_seeds"])
        ends |= {f"{name}_ci_low": table[f"{name}_mean"] - half, f"{name}_ci_high": table[f"{name}_mean"] + half}
    return ends


def known_mean(values: "pd.Series[float]") -> float:
    """Unknown where a value is."""
    return values.mean(skipna=False)


def known_std(values: "pd.Series[float]") -> float:
    """Of a sample; unknown where a value is, and of fewer than two."""
    return values.std(skipna=False)


def _distinct(values: "pd.Series[str]") -> str:
    """The different values in order of appearance; one value where all are equal."""
    return " ".join(dict.fromkeys(_known(values)))


def _known(values: "pd.Series[str]") -> list[str]:
    """As `dropna`, which takes longer than all else where there are hundreds of small groups."""
    return [value for value in values.tolist() if isinstance(value, str)]
