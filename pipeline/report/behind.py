"""What is behind a cell of the page: the values and the arithmetic that give it back, and where its runs come from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline.measures import Measure, Task
from pipeline.report import formats
from pipeline.report.notes import counter, filled, timing
from pipeline.report.records import Records, Run, by_name
from pipeline.report.tables import COMPLETE, rows

Json = dict[str, Any]
UNKNOWN = "unknown"


def page_rows(
    table: pd.DataFrame, readable: pd.DataFrame, records: Records, runs: Iterable[Run], links: Mapping[str, str]
) -> list[Json]:
    """What the page's template needs of a table, as plain values.

    Args:
        table: Of `comparison` or `sweep`.
        readable: The same as text.
        runs: Those that the table is about.
        links: As of `pipeline.report.site.write_report`.
    """
    groups, sources, numbers = by_name(runs), _sources(records), _numbers(records)
    return [
        {
            "name": row.experiment,
            "cells": [
                _cell(title, text, getattr(row, numbers[title]) if title in numbers else None, sources, row, groups)
                for title, text in zip(readable, texts, strict=True)
            ],
            "complete": row.status == COMPLETE,
            "front": getattr(row, "pareto", False),
            "facts": facts(groups[row.experiment], records),
            "runs": [_run(run, records.task, links) for run in groups[row.experiment]],
        }
        for row, texts in zip(rows(table), rows(readable), strict=True)
    ]


def mean_of(runs: Sequence[Run], measure: Measure, row: Any) -> Json:
    """The runs' values of a measure, and how the row's mean and deviation follow from them; in percent."""
    complete = [run for run in runs if not run.problem]
    known = [(run, (run.test or {}).get(measure.name)) for run in complete]
    values = [UNKNOWN if value is None else f"{100 * value:.3f}" for _, value in known]
    return {
        "values": [(run.seed, run.fingerprint, value) for (run, _), value in zip(known, values, strict=True)],
        "sentences": [
            *_arithmetic(values, getattr(row, f"{measure.name}_mean"), getattr(row, f"{measure.name}_std")),
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
        "Parameters": _distinct(_parameters(run.science) for run in runs),
        "Code": f"commit {_distinct(run.commit for run in runs)}, sources sha256 {_hashes(records_of, 'code_sha256')}, "
        f"lock sha256 {_hashes(records_of, 'lock_sha256')}, params sha256 {_hashes(records_of, 'params_sha256')}",
        "Versions": _distinct(_pairs(of.get("versions", {})) for of in records_of),
        "Trained on": _distinct(_machine(run) for run in runs),
        "To make it again": _distinct(map(command, runs)),
    }
    return [(what, text) for what, text in found.items() if text]


def command(run: Run) -> str:
    """What to type to make the run's result again."""
    revision = run.provenance.get("commit")
    checkout = f"git checkout {revision[:10]} && " if revision else ""
    return f"{checkout}dvc repro {run.stage}@{run.suite}"


def _sources(records: Records) -> dict[str, Callable[[Any, Sequence[Run]], Json]]:
    """Title of a column -> what explains its cells."""
    task, bench, unit = records.task, records.benchmark, records.unit

    def measured(measure: Measure) -> Callable[[Any, Sequence[Run]], Json]:
        counted = [filled(text, records.manifest) for text in ((task.counted, *task.details))]
        return lambda row, runs: {**mean_of(runs, measure, row), "counts": " ".join(f"{text}." for text in counted)}

    def costs(say: Callable[[Any], str], counts: str) -> Callable[[Any, Sequence[Run]], Json]:
        return lambda row, runs: {"values": [], "sentences": [say(row)], "counts": counts}

    return {
        **{measure.title: measured(measure) for measure in task.measures},
        "Parameters": costs(lambda row: _whole(row.params, "parameters"), "All of the model, the scorer included."),
        "GFLOPs": costs(
            lambda row: _whole(row.gflops * 1e9, f"multiply-accumulates for one {unit}, over 1e9"),
            f"As the paper counts them. {counter(bench)}",
        ),
        f"{unit.capitalize()}s/s": costs(_rate, f"Measured by a {timing(bench)}" if bench else "Not measured."),
    }


def _numbers(records: Records) -> dict[str, str]:
    """Title of a column -> the table's column with the number that it is sorted by."""
    measures = {measure.title: f"{measure.name}_mean" for measure in records.task.measures}
    fixed = {"Tokens": "token_budget", "Seeds": "num_seeds", "Parameters": "params", "GFLOPs": "gflops"}
    return measures | fixed | {f"{records.unit.capitalize()}s/s": "images_per_s"}


def _cell(title: str, text: str, number: Any, sources: Mapping[str, Any], row: Any, groups: Mapping[str, Any]) -> Json:
    explained = sources.get(title)
    return {
        "text": text,
        "numeric": title in formats.NUMERIC,
        "number": "" if number is None or pd.isna(number) else f"{number:.9g}",
        "why": explained and {"title": f"{title} of {row.experiment}", **explained(row, groups[row.experiment])},
    }


def _arithmetic(values: Sequence[str], mean: Any, std: Any) -> list[str]:
    if not values:
        return ["No run is complete, so there is no mean."]
    if UNKNOWN in values:
        return ["A value is unknown, so the mean is."]
    terms = f"({' + '.join(values)}) / {len(values)}" if len(values) > 1 else "the only value"
    deviation = "of one value, no deviation" if pd.isna(std) else f"sample standard deviation (n - 1) {100 * std:.3f}"
    return [f"Mean: {terms} = {100 * mean:.3f}; {deviation}."]


def _whole(value: Any, unit: str) -> str:
    return "Not measured." if pd.isna(value) else f"{round(value):,} {unit}."


def _rate(row: Any) -> str:
    if pd.isna(row.images_per_s):
        return "Not measured."
    quartiles = f"quartiles {row.images_per_s_q25:.1f} and {row.images_per_s_q75:.1f}"
    return f"Median {row.images_per_s:.1f}, " + (quartiles if pd.notna(row.images_per_s_q25) else "no spread recorded.")


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
        "command": command(run),
    }


def _machine(run: Run) -> str:
    machine = run.provenance.get("hardware", {})
    gpus = "".join(f", {gpu}" for gpu in machine.get("gpus", []))
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB{gpus}" if "cpu" in machine else ""


def _parameters(science: Mapping[str, Any]) -> str:
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
