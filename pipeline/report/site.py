"""The report folder: tables and figures of every suite, what DVC compares, and one page with all of it.

The page is a single file: figures, style and script are embedded, nothing is loaded from anywhere. All of its content
is there without the script, which sorts and filters tables and shows what a figure's points are.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from pipeline.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from pipeline.measures import TASKS, Task
from pipeline.report import claims_table, formats, paired
from pipeline.report.agreement import agreements, sentence
from pipeline.report.behind import addresses, page_table
from pipeline.report.budget_figure import NAME as BUDGETS
from pipeline.report.budget_figure import describe, draw_budgets
from pipeline.report.budgets import budget_table
from pipeline.report.figures import draw, write_figures
from pipeline.report.importance import importance
from pipeline.report.notes import notes
from pipeline.report.readme import PICTURES, SUMMARY
from pipeline.report.records import Records
from pipeline.report.scaling import scaling
from pipeline.report.sweep_figures import titles as sweep_titles
from pipeline.report.sweep_figures import write_sweep_figures
from pipeline.report.tables import comparison, rows, sweep

CAPTION = (
    "{} on the test split: mean ± standard deviation over seeds. An underlined number opens what is behind it; the "
    "runs below a row say where it comes from."
)
FILES = (
    *("table.csv", "table.md", "table.tex", "sweep.csv", "scaling.csv", "importance.csv", "metrics.json"),
    *("paired.csv", "paired.md"),
)
CLAIM_FILES = ("claims.csv", "claims.md")
PAGE_BYTES = 2_000_000  # the page is below it, as far as pictures beside it can help
NUM_COLORS = 256  # of an embedded picture; the file beside the page has all of them


def figures(task: Task) -> dict[str, tuple[str, str]]:
    """Title and description (for those who cannot see it) of each figure."""
    return {
        "accuracy-vs-gflops": (
            "Accuracy against cost",
            f"Test {task.said} against multiply-accumulates per sample: the experiments as large points with the "
            "standard deviation over seeds; a sweep's points are small, its Pareto front is dashed. The table has the "
            "numbers.",
        ),
        "learning-curves": (
            "Learning curves",
            f"Validation {task.said} against training samples seen, one line per experiment: the mean of its complete "
            "runs, in a band from the worst seed to the best. A thin line is a run that is in no mean.",
        ),
        BUDGETS: describe(task.said),
        "what-the-model-sees": ("What the models see", task.seen),
        **sweep_titles(task),
    }


def write_report(suites: Sequence[Records], folder: Path, links: Mapping[str, str] | None = None) -> None:
    """Fill `folder` with SUITE/table.{csv,md,tex} and so on, metrics.json, plots/ and index.html.

    Args:
        links: {SUITE/STAGE/FINGERPRINT: address of the run's page in MLflow}, as far as known.
    """
    drawings: dict[Path, str] = {}
    for records in suites:
        drawings |= write_suite(records, folder / records.suite)
        for picture in sorted((folder / records.suite / "figures").glob("*.png")):
            copy = folder / "plots" / "pictures" / f"{records.suite}-{picture.name}"
            write_bytes_atomic(copy, picture.read_bytes())
    write_json_atomic(folder / "metrics.json", {records.suite: formats.to_metrics(records) for records in suites})
    for task in TASKS.values():  # dvc.yaml names them all, so all are there, and empty where no suite is of the task
        mine = [records for records in suites if records.task == task]
        write_text_atomic(folder / "plots" / task.points_csv, table_points(mine, task))
        write_text_atomic(folder / "plots" / task.curves_csv, curve_points(mine, task))
    write_text_atomic(folder / "index.html", build_page(suites, folder, drawings, links or {}))


def write_suite(records: Records, folder: Path) -> dict[Path, str]:
    """One suite's tables and figures, and what the README shows of them; returns what `draw` does."""
    write_tables(records, folder)
    drawn, known = write_figures(records, folder / "figures"), figures(records.task)
    drawn |= write_budgets(records, folder) | write_sweep_findings(records, folder)
    pictures = {f"figures/{path.name}": known[path.stem][1] for path in drawn if path.name in PICTURES}
    write_text_atomic(folder / SUMMARY, formats.to_summary(records, pictures))
    return drawn


def write_tables(records: Records, folder: Path) -> None:
    """One suite's tables as files, in every format."""
    write_text_atomic(folder / "table.csv", formats.to_csv(comparison(records)))
    write_text_atomic(folder / "table.md", formats.to_markdown(records))
    write_text_atomic(folder / "table.tex", formats.to_latex(records))
    write_json_atomic(folder / "metrics.json", formats.to_metrics(records))
    write_text_atomic(folder / "sweep.csv", formats.to_csv(sweep(records)))
    write_tests(records, folder)


def write_tests(records: Records, folder: Path) -> None:
    """What the seeds and the samples allow to say: the paired tests, and the verdicts where anything is claimed."""
    tests, judgements = paired.paired(records), claims_table.judge_records(records)
    write_text_atomic(folder / "paired.csv", paired.to_csv(tests))
    write_text_atomic(folder / "paired.md", paired.to_markdown(records, tests))
    if judgements:
        write_text_atomic(folder / "claims.csv", claims_table.to_csv(judgements))
        write_text_atomic(folder / "claims.md", claims_table.to_markdown(records.suite, judgements))


def write_budgets(records: Records, folder: Path) -> dict[Path, str]:
    """budgets.csv and its figure, where runs were asked at several token budgets; returns what `draw` does."""
    drawn = draw({BUDGETS: lambda: draw_budgets(records)}, records.suite, folder / "figures")
    if drawn:
        write_text_atomic(folder / "budgets.csv", formats.to_csv(budget_table(records)))
    return drawn


def write_sweep_findings(records: Records, folder: Path) -> dict[Path, str]:
    """What a sweep says as a whole: two tables and their figures; returns what `draw` does."""
    keys = importance(records)
    write_text_atomic(folder / "scaling.csv", formats.to_csv(scaling(records)))
    write_text_atomic(folder / "importance.csv", formats.to_csv(keys))
    return write_sweep_figures(records, keys, folder / "figures")


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


def build_page(suites: Sequence[Records], folder: Path, drawings: Mapping[Path, str], links: Mapping[str, str]) -> str:
    """The HTML of index.html.

    The pictures found below `folder` are embedded. Where that makes the page too large they are shown from there.

    Args:
        drawings: As `write_figures` returns them, of all suites.
        links: As of `write_report`.
    """
    room = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(room),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = ((room / name).read_text() for name in ("page.js", "page.css"))
    sections = [_section(records, folder / records.suite / "figures", drawings, links) for records in suites]
    known = {"sections": sections, "script": script, "style": style, "allowed": _digest(script)}
    page = environment.get_template("index.html.j2").render(known)
    if len(page.encode()) > PAGE_BYTES:
        for figure in (figure for section in sections for figure in section["figures"]):
            figure["source"] = figure["file"]
        page = environment.get_template("index.html.j2").render(known)
    return page


def _section(records: Records, folder: Path, drawings: Mapping[Path, str], links: Mapping[str, str]) -> dict[str, Any]:
    """What the template needs of one suite, as plain values."""
    sizes = {split: content["num_samples"] for split, content in records.manifest["splits"].items()}
    judgements, tests = claims_table.judge_records(records), paired.paired(records)
    asked, places = formats.readable_budgets(records), addresses(records)
    return {
        "suite": records.suite,
        "dataset": records.manifest["dataset"],
        "sizes": ", ".join(f"{number} {split}" for split, number in sizes.items()),
        "measure": records.task.said,
        "caption": CAPTION.format(records.task.first.title.removesuffix(" (%)")),
        "files": [*FILES, *(CLAIM_FILES if judgements else ()), *(["budgets.csv"] if len(asked) else ()), "figures/"],
        "claims": claims_table.shown(judgements),
        "claimed_rows": [
            [(name, places[name]) for name in (of.claim.experiment, of.claim.than) if name in places]
            for of in judgements
        ],
        "tally": claims_table.tally(judgements),
        "how_judged": claims_table.how_judged(judgements),
        "paired": _plain(pd.DataFrame(paired.shown(tests), columns=paired.TITLES), places),
        "paired_notes": paired.notes(records, tests),
        "budgets": _plain(asked, places),
        "table": page_table(comparison(records), records, records.runs, links),
        "sweep": page_table(sweep(records), records, records.trials, links),
        "agreements": [sentence(pair) for pair in agreements(records)],
        "notes": notes(records),
        "figures": [
            _figure(folder / f"{name}.png", records.suite, *texts, drawings.get(folder / f"{name}.png", ""))
            for name, texts in figures(records.task).items()
            if (folder / f"{name}.png").is_file()
        ],
    }


def _plain(table: pd.DataFrame, places: Mapping[str, str]) -> dict[str, Any]:
    """A table of text about experiments, for the template; the first column names them."""
    marks = [(title, title in formats.NUMERIC) for title in table]
    cells = [[(text, number) for text, (_, number) in zip(row, marks, strict=True)] for row in rows(table)]
    return {"titles": marks, "rows": [(places[row[0][0]], row) for row in cells]}


def _figure(path: Path, suite: str, title: str, description: str, drawing: str) -> dict[str, str]:
    return {
        "name": path.stem,
        "title": title,
        "description": description,
        "drawing": drawing,
        "source": "" if drawing else _embedded(path),
        "file": f"{suite}/figures/{path.name}",
    }


def _embedded(path: Path) -> str:
    """A picture as a data URI, in few colours: a third of the bytes."""
    file = io.BytesIO()
    with Image.open(path, formats=["PNG"]) as picture:
        few = picture.convert("RGB").quantize(NUM_COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _digest(script: str) -> str:
    """By which the page's security policy knows its one script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
