"""The report folder: tables and figures of every suite, what DVC compares, and one page with all of it.

The page is a single file: figures are embedded, nothing is loaded from anywhere, no script is needed.
"""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from pipeline.measures import TASKS, Task
from pipeline.report import formats
from pipeline.report.agreement import agreements, sentence
from pipeline.report.figures import write_figures
from pipeline.report.importance import importance
from pipeline.report.notes import notes
from pipeline.report.readme import PICTURES, SUMMARY
from pipeline.report.records import Records, Run, by_name
from pipeline.report.scaling import scaling
from pipeline.report.sweep_figures import titles as sweep_titles
from pipeline.report.sweep_figures import write_sweep_figures
from pipeline.report.tables import COMPLETE, comparison, rows, sweep

CAPTION = "{} on the test split: mean ± standard deviation over seeds. Open a row's runs to see where it comes from."
EMBED_AS = {"what-the-model-sees": "png"}  # pixels; the others are drawings
MIME = {"png": "image/png", "svg": "image/svg+xml"}


def figures(task: Task) -> dict[str, tuple[str, str]]:
    """Title and description (for those who cannot see it) of each figure."""
    return {
        "accuracy-vs-gflops": (
            "Accuracy against cost",
            f"Test {task.said} against multiply-accumulates per sample: the sweep as small points with its Pareto "
            "front, the experiments as large points with the standard deviation over seeds. The table has the numbers.",
        ),
        "learning-curves": (
            "Learning curves",
            f"Validation {task.said} against training samples seen, one line per experiment; the band reaches from "
            "the worst seed to the best.",
        ),
        "what-the-model-sees": ("What the models see", task.seen),
        **sweep_titles(task),
    }


def write_report(suites: Sequence[Records], folder: Path) -> None:
    """Fill `folder` with SUITE/table.{csv,md,tex} and so on, metrics.json, plots/ and index.html."""
    for records in suites:
        write_suite(records, folder / records.suite)
        for picture in sorted((folder / records.suite / "figures").glob("*.png")):
            copy = folder / "plots" / "pictures" / f"{records.suite}-{picture.name}"
            write_bytes_atomic(copy, picture.read_bytes())
    write_json_atomic(folder / "metrics.json", {records.suite: formats.to_metrics(records) for records in suites})
    for task in TASKS.values():  # dvc.yaml names them all, so all are there, and empty where no suite is of the task
        mine = [records for records in suites if records.task == task]
        write_text_atomic(folder / "plots" / task.points_csv, table_points(mine, task))
        write_text_atomic(folder / "plots" / task.curves_csv, curve_points(mine, task))
    write_text_atomic(folder / "index.html", build_page(suites, folder))


def write_suite(records: Records, folder: Path) -> None:
    """One suite's tables and figures, and what the README shows of them."""
    write_text_atomic(folder / "table.csv", formats.to_csv(comparison(records)))
    write_text_atomic(folder / "table.md", formats.to_markdown(records))
    write_text_atomic(folder / "table.tex", formats.to_latex(records))
    write_json_atomic(folder / "metrics.json", formats.to_metrics(records))
    write_text_atomic(folder / "sweep.csv", formats.to_csv(sweep(records)))
    write_text_atomic(folder / "scaling.csv", formats.to_csv(scaling(records)))
    keys = importance(records)
    write_text_atomic(folder / "importance.csv", formats.to_csv(keys))
    drawn, known = write_figures(records, folder / "figures"), figures(records.task)
    drawn += write_sweep_figures(records, keys, folder / "figures")
    pictures = {f"figures/{path.name}": known[path.stem][1] for path in drawn if path.name in PICTURES}
    write_text_atomic(folder / SUMMARY, formats.to_summary(records, pictures))


def table_points(suites: Iterable[Records], task: Task) -> str:
    """CSV of every located point, experiments and sweep, of suites of one task, for `dvc plots`."""
    columns = ["series", "experiment", "gflops", task.first.name]
    tables = [
        table.assign(series=f"{records.suite} " + table["tokenizer"] + kind)
        for records in suites
        for kind, table in (("", comparison(records)), (" (sweep)", sweep(records)))
    ]
    if not tables:
        return formats.to_csv(pd.DataFrame(columns=columns))
    mean = f"{task.first.name}_mean"
    points = pd.concat(tables).dropna(subset=[mean, "gflops"]).rename(columns={mean: task.first.name})
    return formats.to_csv(points[columns])


def curve_points(suites: Iterable[Records], task: Task) -> str:
    """CSV of the validation of every experiment's every run, of suites of one task, for `dvc plots`."""
    points = [
        (f"{records.suite} {run.name}", run.seed, step * run.science["train"]["global_batch_size"], value)
        for records in suites
        for run in records.runs
        for step, value in run.curves.get(task.val, {}).items()
    ]
    return formats.to_csv(pd.DataFrame(points, columns=["series", "seed", "samples", task.val]))


def build_page(suites: Sequence[Records], folder: Path) -> str:
    """The HTML of index.html, with the figures found below `folder` embedded."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [_section(records, folder / records.suite / "figures") for records in suites]
    return environment.get_template("index.html.j2").render(sections=sections)


def _section(records: Records, folder: Path) -> dict[str, Any]:
    """What the template needs of one suite, as plain values."""
    sizes = {split: content["num_samples"] for split, content in records.manifest["splits"].items()}
    finals, trials = (formats.readable(table, records) for table in (comparison(records), sweep(records)))
    return {
        "suite": records.suite,
        "dataset": records.manifest["dataset"],
        "sizes": ", ".join(f"{number} {split}" for split, number in sizes.items()),
        "titles": [(title, title in formats.NUMERIC) for title in finals],
        "measure": records.task.said,
        "caption": CAPTION.format(records.task.first.title.removesuffix(" (%)")),
        "rows": _table(comparison(records), finals, records, records.runs),
        "trials": _table(sweep(records), trials, records, records.trials),
        "agreements": [sentence(pair) for pair in agreements(records)],
        "notes": notes(records),
        "figures": [
            _figure(folder, name, *texts)
            for name, texts in figures(records.task).items()
            if (folder / f"{name}.png").is_file()
        ],
    }


def _table(table: pd.DataFrame, readable: pd.DataFrame, records: Records, runs: Iterable[Run]) -> list[dict[str, Any]]:
    groups = by_name(runs)
    return [
        {
            "cells": [(text, title in formats.NUMERIC) for title, text in zip(readable, texts, strict=True)],
            "complete": row.status == COMPLETE,
            "front": getattr(row, "pareto", False),
            "runs": [_run(run, records.task) for run in groups[row.experiment]],
        }
        for row, texts in zip(rows(table), rows(readable), strict=True)
    ]


def _run(run: Run, task: Task) -> dict[str, Any]:
    revision = run.provenance.get("commit")
    checkout = f"git checkout {revision[:10]} && " if revision else ""
    return {
        "id": run.fingerprint,
        "seed": run.seed,
        "test": formats.percent((run.test or {}).get(task.first.name)),
        "commit": run.commit,
        "workers": "unknown" if run.world_size is None else run.world_size,
        "wall": "unknown" if run.wall_s is None else f"{run.wall_s:.0f} s",
        "status": run.problem or COMPLETE,
        "command": f"{checkout}dvc repro {run.stage}@{run.suite}",
    }


def _figure(folder: Path, name: str, title: str, description: str) -> dict[str, str]:
    kind = EMBED_AS.get(name, "svg")
    content = base64.b64encode((folder / f"{name}.{kind}").read_bytes()).decode()
    return {
        "name": name,
        "title": title,
        "description": description,
        "source": f"data:{MIME[kind]};base64,{content}",
    }
