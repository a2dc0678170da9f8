"""The way back from one cell of a table: the runs that go into it, the arithmetic, and all that is known of them."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from pipeline.dotted import flatten
from pipeline.errors import UserError, unknown_name
from pipeline.measures import Task
from pipeline.report import formats
from pipeline.report.notes import hardware
from pipeline.report.origin import commands, machine
from pipeline.report.records import Records, Run
from pipeline.report.row import find_row
from pipeline.report.statistics import CONFIDENCE, half_width
from pipeline.report.tables import COMPLETE

Json = Mapping[str, Any]
NOT_RECORDED = "not recorded"
SPEEDS = {"images_per_s": "median", "images_per_s_q25": "first quartile", "images_per_s_q75": "third quartile"}


FRONTS = {
    "pareto": "at the same or fewer GFLOPs",
    "pareto_latency": "in the same or less measured time of a sample",
    "pareto_both": "at the same or fewer GFLOPs and in the same or less measured time of a sample",
}


class Explanation(NamedTuple):
    """A cell, as it stands in the CSV, and where it comes from: {heading: lines}."""

    cell: str
    value: str
    recomputed: float | None  # the arithmetic's own result, unrounded; None where the cell is no figure of runs
    sections: dict[str, list[str]]

    def text(self) -> str:
        """For a terminal."""
        parts = [f"{self.cell} = {self.value}"]
        parts += ["\n".join([name, *(f"  {line}" for line in lines)]) for name, lines in self.sections.items()]
        return "\n\n".join(parts) + "\n"


def explain(records: Records, experiment: str, column: str) -> Explanation:
    """Explain a cell of table.csv, of sweep.csv, or of budgets.csv.

    Raises:
        UserError: there is no such row (see `find_row`), or no such column.
    """
    row = find_row(records, experiment)
    runs, cell = row.runs, f"{records.suite}/{experiment}/{column}"
    if column not in row.table:
        raise UserError(unknown_name(f"{records.suite}/{experiment}: column", column, map(str, row.table)))
    lines, recomputed = (arithmetic_asked if row.asked else arithmetic)(records, runs, column)
    sections = {
        "How it comes about": lines,
        "Runs": [_run_line(run, records.task, column) for run in runs],
        "Data": _data(records, runs),
        "Parameters": _parameters(runs),
        "Code": _code(runs),
        "Test": _evaluation(records, runs),
        "Cost and speed": _each(runs, _cost_asked) if row.asked else _cost(records, runs),
        "Left out": _drops(records, runs),
        "To make it again": commands(runs),
    }
    return Explanation(cell, _cell(row.table, column), recomputed, sections)


def _cell(row: pd.DataFrame, column: str) -> str:
    """As it stands in the CSV, where an unknown is empty."""
    text = next(csv.DictReader(io.StringIO(formats.to_csv(row[[column]]) or "")), {column: ""})[column]
    return text or "unknown"


def arithmetic_asked(records: Records, runs: Sequence[Run], column: str) -> tuple[list[str], float | None]:
    """As `arithmetic`, of a cell of budgets.csv: tokens and cost too are means over what the runs were asked."""
    found = [run.test for run in runs if not run.problem and run.test]
    if column == "gflops":
        return _over_seeds("_mean", [of["macs"] / 1e9 for of in found])
    if column == "tokens":
        lines, mean = _over_seeds("_mean", [float(of.get("mean_tokens") or of["token_budget"]) for of in found])
        return lines, mean and round(mean, 2)
    return arithmetic(records, runs, column)


def arithmetic(records: Records, runs: Sequence[Run], column: str) -> tuple[list[str], float | None]:
    """What gives the cell back, and what it gives."""
    name, values = _measured(runs, records.task, column)
    if name:
        return _over_seeds(column.removeprefix(name), values)
    cost = records.cost(runs[0])
    if column == "gflops" and cost:
        return [f"{cost.macs} multiply-accumulates of one {records.unit} / 1e9"], cost.macs / 1e9
    if column == "params" and cost:
        return ["all parameters of the model, the scorer included"], float(cost.params)
    if column in SPEEDS and cost:
        value = getattr(cost, column)
        rounds = f"{SPEEDS[column]} of {records.benchmark.get('rounds', '?')} interleaved rounds"
        return [rounds], None if value is None else float(value)
    if column == "num_seeds":
        num = sum(not run.problem for run in runs)
        return [f"{num} of {len(runs)} runs are complete"], float(num)
    if column in ("params", "gflops", *SPEEDS):
        return ["not measured: benchmark.json does not know this model"], None
    if column in FRONTS:
        return [f"whether no other point of the sweep has as much {records.task.said} {FRONTS[column]}"], None
    return ["as recorded: what the runs share, or the different values of all of them in turn"], None


def _measured(runs: Sequence[Run], task: Task, column: str) -> tuple[str, list[float]]:
    """The measure that a column is about, and its values over the complete runs; no name: it is about none.

    The task knows the measures: a run that ended early knows none of them.
    """
    for name in (*(measure.name for measure in task.measures), task.val):
        if column.removeprefix(name) in ("_mean", "_std", "_ci_low", "_ci_high") and column.startswith(name):
            found = [_values(run).get(name) for run in runs if not run.problem]
            return name, [math.nan if value is None else float(value) for value in found]
    return "", []


def _values(run: Run) -> dict[str, Any]:
    """What a run was measured by: on the test split, and last on validation."""
    return {**run.metrics, **(run.test or {})}


def _over_seeds(kind: str, values: Sequence[float]) -> tuple[list[str], float | None]:
    """The arithmetic of a column of a measure: mean, deviation, or an end of the interval."""
    num, shown = len(values), [f"{value:.6g}" for value in values]
    if not num:
        return ["no run is complete, so there is nothing to average"], None
    mean = statistics.fmean(values)
    average = f"({' + '.join(shown)}) / {num} = {mean:.6g}"
    if kind == "_mean":
        return [average], mean
    if num < 2 or not math.isfinite(mean):
        return [f"{num} complete run{'' if num == 1 else 's'} with known values: no deviation"], None
    std = statistics.stdev(values)
    squares = " + ".join(f"({value} - {mean:.6g})^2" for value in shown)
    deviation = f"sqrt(({squares}) / ({num} - 1)) = {std:.6g}"
    if kind == "_std":
        return [average, deviation], std
    half, sign = float(half_width(std, num)), "-" if kind == "_ci_low" else "+"
    end = mean - half if sign == "-" else mean + half
    student = f"Student's t with {num - 1} degrees of freedom at {100 * CONFIDENCE:.0f} %"
    reach = f"{half:.6g} = t x std / sqrt({num}), {student}"
    return [average, deviation, reach, f"{mean:.6g} {sign} {half:.6g} = {end:.6g}"], end


def _run_line(run: Run, task: Task, column: str) -> str:
    name, values = _measured([run], task, column)
    value = f", {name} {values[0]:.6g}" if values else ""
    wall = "" if run.wall_s is None else f", {run.wall_s:.0f} s"
    return (
        f"{run.fingerprint}  seed {run.seed}{value}, {run.problem or COMPLETE}, commit {run.commit}, "
        f"{run.world_size or 'unknown'} worker{'' if run.world_size == 1 else 's'}{wall}"
    )


def _data(records: Records, runs: Sequence[Run]) -> list[str]:
    manifest = records.manifest
    sizes = ", ".join(f"{split['num_samples']} {name}" for name, split in manifest["splits"].items())
    return [
        f"{manifest['dataset']}: {sizes}",
        f"source: {manifest.get('source', NOT_RECORDED)}; licence: {manifest.get('licence', NOT_RECORDED)}",
        *_each(runs, lambda run: f"manifest sha256 {run.manifest_sha256}"),
    ]


def _parameters(runs: Sequence[Run]) -> list[str]:
    """The science, key by key, without the seed; the fingerprint is its hash, with data and code."""
    lines = [f"model name: {runs[0].model_name}"]
    return lines + [f"{key}: {value}" for key, value in flatten(runs[0].science).items() if key != "seed"]


def _code(runs: Sequence[Run]) -> list[str]:
    def facts(key: str) -> Callable[[Run], str]:
        return lambda run: f"{key} {run.provenance.get(key) or NOT_RECORDED}"

    def versions(run: Run) -> str:
        return ", ".join(f"{name} {number}" for name, number in run.provenance.get("versions", {}).items())

    lines = _each(runs, lambda run: f"commit {run.provenance.get('commit') or NOT_RECORDED}{_dirty(run)}")
    for key in ("code_sha256", "params_sha256", "lock_sha256"):
        lines += _each(runs, facts(key))
    lines += _each(runs, lambda run: f"versions: {versions(run) or NOT_RECORDED}")
    return lines + _each(runs, lambda run: f"trained on: {machine(run.provenance.get('hardware', {})) or NOT_RECORDED}")


def _evaluation(records: Records, runs: Sequence[Run]) -> list[str]:
    """How the test split was looked at. In paper mode an image's answer depends on its batch."""
    how = records.evaluation
    mode = runs[0].science["tokenizer"].get("mode", "invariant")
    lines = [f"mode: {mode}; batch size: {how.get('batch_size', NOT_RECORDED)}; precision: {_known(how, 'precision')}"]
    lines += [
        f"{name}: {', '.join(f'{k} {v}' for k, v in chosen.items())}" for name, chosen in records.settings.items()
    ]
    if how:
        lines.append(f"commit {_known(how, 'commit')}, code_sha256 {_known(how, 'code_sha256')}")
        lines.append(f"on: {machine(how.get('hardware', {})) or NOT_RECORDED}")
    numbers = dict.fromkeys(str((run.test or {}).get("num_samples", NOT_RECORDED)) for run in runs)
    return [*lines, f"samples: {', '.join(numbers)}"]


def _cost(records: Records, runs: Sequence[Run]) -> list[str]:
    bench, cost = records.benchmark, records.cost(runs[0])
    if cost is None:
        return ["not measured"]
    counter = bench.get("counter", {})
    return [
        f"{cost.params} parameters, {cost.macs} multiply-accumulates, counted by {counter.get('name', NOT_RECORDED)}",
        f"{records.unit}s/s: batch {bench.get('batch_size')}, {bench.get('rounds')} rounds, on {hardware(dict(bench))}",
    ]


def _cost_asked(run: Run) -> str:
    """At this budget: the look that tells what an image needs is part of it."""
    return f"{run.test['macs']} multiply-accumulates of one sample at this budget" if run.test else NOT_RECORDED


def _drops(records: Records, runs: Sequence[Run]) -> list[str]:
    lines = [f"{count} samples of {shard} ({reason})" for (shard, reason), count in records.dropped.items()]
    files = len(records.manifest.get("dropped", []))
    lines += [f"{files} files of the raw data: manifest.json says why"] if files else []
    lines += [f"seed {run.seed}: rewound {len(run.rewinds)} times" for run in runs if run.rewinds]
    return lines or ["nothing: no sample was damaged, no file unusable, no training rewound"]


def _each(runs: Iterable[Run], fact: Callable[[Run], str]) -> list[str]:
    """A fact once where all runs share it, else once for every value with the seeds that have it."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(fact(run), []).append(str(run.seed))
    if len(groups) == 1:
        return list(groups)
    return [f"seed {', '.join(seeds)}: {text}" for text, seeds in groups.items()]


def _known(record: Json, key: str) -> Any:
    return record.get(key) or NOT_RECORDED


def _dirty(run: Run) -> str:
    return " (the working tree had changes)" if run.provenance.get("dirty") else ""
