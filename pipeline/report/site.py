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
from pipeline.report import formats
from pipeline.report.agreement import agreements, sentence
from pipeline.report.figures import write_figures
from pipeline.report.readme import PICTURES, SUMMARY
from pipeline.report.records import Records, Run, by_name
from pipeline.report.tables import COMPLETE, comparison, rows, sweep

# title and description (for those who cannot see it) of each figure
FIGURES = {
    "accuracy-vs-gflops": (
        "Accuracy against cost",
        "Test top-1 against multiply-accumulates per sample: the sweep as small points with its Pareto front, "
        "the experiments as large points with the standard deviation over seeds. The table has the numbers.",
    ),
    "learning-curves": (
        "Learning curves",
        "Validation top-1 against training samples seen, one line per experiment; the band reaches from the "
        "worst seed to the best.",
    ),
    "what-the-model-sees": (
        "What the models see",
        "Test samples as the uniform grid and as DART cut them: the regions, and every token at the size the "
        "model receives it, with both predictions; a tick is right, a cross is wrong.",
    ),
}
EMBED_AS = {"what-the-model-sees": "png"}  # pixels; the others are drawings
MIME = {"png": "image/png", "svg": "image/svg+xml"}


def write_report(suites: Sequence[Records], folder: Path) -> None:
    """Fill `folder` with SUITE/table.{csv,md,tex} and so on, metrics.json, plots/ and index.html."""
    for records in suites:
        write_suite(records, folder / records.suite)
        for picture in sorted((folder / records.suite / "figures").glob("*.png")):
            copy = folder / "plots" / "pictures" / f"{records.suite}-{picture.name}"
            write_bytes_atomic(copy, picture.read_bytes())
    metrics = {records.suite: formats.to_metrics(comparison(records)) for records in suites}
    write_json_atomic(folder / "metrics.json", metrics)
    write_text_atomic(folder / "plots" / "accuracy.csv", accuracy_points(suites))
    write_text_atomic(folder / "plots" / "curves.csv", curve_points(suites))
    write_text_atomic(folder / "index.html", build_page(suites, folder))


def write_suite(records: Records, folder: Path) -> None:
    """One suite's tables and figures, and what the README shows of them."""
    table = comparison(records)
    write_text_atomic(folder / "table.csv", formats.to_csv(table))
    write_text_atomic(folder / "table.md", formats.to_markdown(records))
    write_text_atomic(folder / "table.tex", formats.to_latex(records))
    write_json_atomic(folder / "metrics.json", formats.to_metrics(table))
    write_text_atomic(folder / "sweep.csv", formats.to_csv(sweep(records)))
    drawn = write_figures(records, folder / "figures")
    pictures = {f"figures/{path.name}": FIGURES[path.stem][1] for path in drawn if path.name in PICTURES}
    write_text_atomic(folder / SUMMARY, formats.to_summary(records, pictures))


def accuracy_points(suites: Iterable[Records]) -> str:
    """CSV of every located point, experiments and sweep, for `dvc plots`."""
    tables = [
        table.assign(series=f"{records.suite} " + table["tokenizer"] + kind)
        for records in suites
        for kind, table in (("", comparison(records)), (" (sweep)", sweep(records)))
    ]
    points = pd.concat(tables).dropna(subset=["top1_mean", "gflops"]).rename(columns={"top1_mean": "top1"})
    return formats.to_csv(points[["series", "experiment", "gflops", "top1"]])


def curve_points(suites: Iterable[Records]) -> str:
    """CSV of the validation accuracy of every experiment's every run, for `dvc plots`."""
    points = [
        (f"{records.suite} {run.name}", run.seed, step * run.science["train"]["global_batch_size"], value)
        for records in suites
        for run in records.runs
        for step, value in run.curves.get("val_top1", {}).items()
    ]
    return formats.to_csv(pd.DataFrame(points, columns=["series", "seed", "samples", "val_top1"]))


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


def _section(records: Records, figures: Path) -> dict[str, Any]:
    """What the template needs of one suite, as plain values."""
    sizes = {split: content["num_samples"] for split, content in records.manifest["splits"].items()}
    finals, trials = (formats.readable(table, records.unit) for table in (comparison(records), sweep(records)))
    return {
        "suite": records.suite,
        "dataset": records.manifest["dataset"],
        "sizes": ", ".join(f"{number} {split}" for split, number in sizes.items()),
        "titles": [(title, title in formats.NUMERIC) for title in finals],
        "rows": _table(comparison(records), finals, records.runs),
        "trials": _table(sweep(records), trials, records.trials),
        "agreements": [sentence(pair) for pair in agreements(records)],
        "notes": formats.notes(records),
        "figures": [_figure(figures, name) for name in FIGURES if (figures / f"{name}.png").is_file()],
    }


def _table(table: pd.DataFrame, readable: pd.DataFrame, runs: Iterable[Run]) -> list[dict[str, Any]]:
    groups = by_name(runs)
    return [
        {
            "cells": [(text, title in formats.NUMERIC) for title, text in zip(readable, texts, strict=True)],
            "complete": row.status == COMPLETE,
            "front": getattr(row, "pareto", False),
            "runs": [_run(run) for run in groups[row.experiment]],
        }
        for row, texts in zip(rows(table), rows(readable), strict=True)
    ]


def _run(run: Run) -> dict[str, Any]:
    revision = run.provenance.get("commit")
    checkout = f"git checkout {revision[:10]} && " if revision else ""
    return {
        "id": run.fingerprint,
        "seed": run.seed,
        "top1": formats.percent((run.test or {}).get("top1")),
        "commit": run.commit,
        "workers": "unknown" if run.world_size is None else run.world_size,
        "wall": "unknown" if run.wall_s is None else f"{run.wall_s:.0f} s",
        "status": run.problem or COMPLETE,
        "command": f"{checkout}dvc repro {run.stage}@{run.suite}",
    }


def _figure(folder: Path, name: str) -> dict[str, str]:
    kind = EMBED_AS.get(name, "svg")
    content = base64.b64encode((folder / f"{name}.{kind}").read_bytes()).decode()
    title, description = FIGURES[name]
    return {
        "name": name,
        "title": title,
        "description": description,
        "source": f"data:{MIME[kind]};base64,{content}",
    }
