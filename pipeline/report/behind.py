"""What is behind a cell of the page: the values and the arithmetic that give it back, and where its runs come from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from pipeline.measures import Measure, Task
from pipeline.report import formats
from pipeline.report.notes import counter, filled, timing
from pipeline.report.origin import commands, machine
from pipeline.report.records import Records, Run, by_name
from pipeline.report.statistics import CONFIDENCE
from pipeline.report.tables import COMPLETE, rows

Json = dict[str, Any]
UNKNOWN = "unknown"


def page_table(table: pd.DataFrame, records: Records, runs: Iterable[Run], links: Mapping[str, str]) -> Json:
    """What the page's template needs of a table, as plain values.

    What is so of every row is said once, as `common`.

    Args:
        table: Of `comparison` or `sweep`.
        runs: Those that the table is about.
        links: As of `pipeline.report.site.write_report`.
    """
    readable, groups, columns = formats.readable(table, records), by_name(runs), _columns(records)
    titles = [str(title) for title in readable]
    known = {name: facts(group, records) for name, group in groups.items()}
    common = [fact for fact in next(iter(known.values()), []) if all(fact in of for of in known.values())]
    return {
        "columns": [(title, title in formats.NUMERIC, _counts(columns.get(title))) for title in titles],
        "common": common,
        "rows": [
            {
                "name": row.experiment,
                "cells": _cells(zip(titles, texts, strict=True), columns, row, groups[row.experiment]),
                "complete": row.status == COMPLETE,
                "front": getattr(row, "pareto", False),
                "facts": [fact for fact in known[row.experiment] if fact not in common],
                "runs": [_run(run, records.task, links) for run in groups[row.experiment]],
            }
            for row, texts in zip(rows(table), rows(readable), strict=True)
        ],
    }


def addresses(records: Records) -> dict[str, str]:
    """{name: where its row is on the page}; where a point of the sweep has an experiment's name, the experiment."""
    rows_of = {"sweep": records.trials, "train": records.runs}
    return {run.name: f"{records.suite}/{stage}/{quote(run.name)}" for stage, of in rows_of.items() for run in of}


def mean_of(runs: Sequence[Run], measure: Measure, row: Any) -> Json:
    """The runs' values of a measure, and how the row's mean and deviation follow from them; in percent."""
    complete = [run for run in runs if not run.problem]
    known = [(run, (run.test or {}).get(measure.name)) for run in complete]
    values = [f"{100 * value:.3f}" if value is not None and np.isfinite(value) else UNKNOWN for _, value in known]
    return {
        "values": [(run.seed, run.fingerprint, value) for (run, _), value in zip(known, values, strict=True)],
        "sentences": [
            *_arithmetic(values, getattr(row, f"{measure.name}_mean"), getattr(row, f"{measure.name}_std")),
            *_interval(getattr(row, f"{measure.name}_ci_low"), getattr(row, f"{measure.name}_ci_high")),
            *(f"Not in the mean: seed {run.seed}, {run.problem}." for run in runs if run.problem),
        ],
    }


def facts(runs: Sequence[Run], records: Records) -> list[tuple[str, str]]:
    """(what, text): where these runs come from; what differs between them stands side by side."""
    manifest, records_of = records.manifest, [run.provenance for run in runs]
    splits = ", ".join(f"{split['num_samples']} {name}" for name, split in manifest["splits"].items())
    found = {
        "Data": f"{manifest['dataset']} ({manifest['source']}; {manifest['licence']}), {splits} samples; "
        f"manifest sha256 {_distinct(run.manifest_sha256 for run in runs)}",
        "Left out": ", ".join(f"{count} of {shard} ({reason})" for (shard, reason), count in records.dropped.items()),
        "Evaluated": "; ".join(["test split, each sample once", *map(_setting, records.settings.items())]),
        "Settings": _distinct(_settings(run.science) for run in runs),
        "Code": f"commit {_distinct(run.commit for run in runs)}, sources sha256 {_hashes(records_of, 'code_sha256')}, "
        f"lock sha256 {_hashes(records_of, 'lock_sha256')}, params sha256 {_hashes(records_of, 'params_sha256')}",
        "Versions": _distinct(_pairs(of.get("versions", {})) for of in records_of),
        "Trained on": _distinct(machine(run.provenance.get("hardware", {})) for run in runs),
        "To make it again": "\n".join(commands(runs)),
    }
    return [(what, text) for what, text in found.items() if text]


class _Column(NamedTuple):
    """What is known of a column of numbers."""

    name: str  # of the table's column that holds them
    counts: str = ""  # what they count; empty where there is nothing to explain
    explain: Callable[[Any, Sequence[Run]], Json] | None = None  # of a row and its runs


def _columns(records: Records) -> dict[str, _Column]:
    """{title: column}."""
    task, bench, unit = records.task, records.benchmark, records.unit
    counted = " ".join(f"{filled(text, records.manifest).rstrip('.')}." for text in (task.counted, *task.details))

    def cost(say: Callable[[Any], str]) -> Callable[[Any, Sequence[Run]], Json]:
        return lambda row, runs: {"values": [], "sentences": [say(row)]}

    def macs(row: Any) -> str:
        return _whole(row.gflops * 1e9, f"multiply-accumulates for one {unit}, over 1e9")

    def measured(measure: Measure) -> _Column:
        return _Column(f"{measure.name}_mean", counted, lambda row, runs: mean_of(runs, measure, row))

    return {
        "Tokens": _Column("token_budget"),
        "Seeds": _Column("num_seeds"),
        **{measure.title: measured(measure) for measure in task.measures},
        "Parameters": _Column("params", "All of the model, the scorer included.", cost(_params)),
        "GFLOPs": _Column("gflops", f"As the paper counts them. {counter(bench)}", cost(macs)),
        f"{unit.capitalize()}s/s": _Column(
            "images_per_s", f"Measured by a {timing(bench)}" if bench else "Not measured.", cost(_rate)
        ),
    }


def _counts(column: _Column | None) -> str:
    return "" if column is None else column.counts


def _cells(
    texts: Iterable[tuple[str, str]], columns: Mapping[str, "_Column"], row: Any, runs: Sequence[Run]
) -> list[Json]:
    return [_cell(title, text, columns.get(title), row, runs) for title, text in texts]


def _cell(title: str, text: str, column: _Column | None, row: Any, runs: Sequence[Run]) -> Json:
    number = None if column is None else getattr(row, column.name)
    explain = column and column.explain
    return {
        "text": text,
        "numeric": title in formats.NUMERIC,
        "number": "" if number is None or pd.isna(number) else f"{number:.9g}",
        "why": explain and {"title": f"{title} of {row.experiment}", **explain(row, runs)},
    }


def _arithmetic(values: Sequence[str], mean: Any, std: Any) -> list[str]:
    if not values:
        return ["No run is complete, so there is no mean."]
    if UNKNOWN in values:
        return ["A value is unknown, so the mean is."]
    terms = f"({' + '.join(values)}) / {len(values)}" if len(values) > 1 else "the only value"
    deviation = "of one value, no deviation" if pd.isna(std) else f"sample standard deviation (n - 1) {100 * std:.3f}"
    return [f"Mean: {terms} = {100 * mean:.3f}; {deviation}."]


def _interval(low: Any, high: Any) -> list[str]:
    """What other seeds may give; nothing of one seed."""
    if pd.isna(low):
        return []
    return [
        f"Interval of the mean over seeds, {100 * CONFIDENCE:.0f} % (Student's): {100 * low:.3f} to {100 * high:.3f}."
    ]


def _whole(value: Any, unit: str) -> str:
    return "Not measured." if pd.isna(value) else f"{round(value):,} {unit}."


def _params(row: Any) -> str:
    return _whole(row.params, "parameters")


def _rate(row: Any) -> str:
    if pd.isna(row.images_per_s):
        return "Not measured."
    spread = f"quartiles {row.images_per_s_q25:.1f} and {row.images_per_s_q75:.1f}"
    return f"Median {row.images_per_s:.1f}, {spread if pd.notna(row.images_per_s_q25) else 'no spread recorded'}."


def _run(run: Run, task: Task, links: Mapping[str, str]) -> Json:
    return {
        "id": run.fingerprint,
        "link": links.get(f"{run.suite}/{run.stage}/{run.fingerprint}"),
        "seed": run.seed,
        "test": formats.percent((run.test or {}).get(task.first.name)),
        "commit": run.commit,
        "workers": UNKNOWN if run.world_size is None else run.world_size,
        "wall": UNKNOWN if run.wall_s is None else f"{run.wall_s:.0f} s",
        "status": run.problem or COMPLETE,
    }


def _settings(science: Mapping[str, Any]) -> str:
    """All but the seed, in which the runs of a row differ."""
    groups = [(key, value) for key, value in science.items() if key != "seed"]
    return "; ".join(f"{k}: {_pairs(v)}" if isinstance(v, Mapping) else f"{k} {v}" for k, v in groups)


def _setting(setting: tuple[str, Any]) -> str:
    name, chosen = setting
    return f"{name}: {_pairs(chosen)}" if isinstance(chosen, Mapping) else f"{name} {chosen}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _hashes(provenances: Iterable[Json], name: str) -> str:
    return _distinct(str(provenance.get(name) or UNKNOWN)[:10] for provenance in provenances)


def _distinct(texts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(text for text in texts if text))
