"""Tables -> text: CSV, Markdown, LaTeX, JSON. Fixed decimals, no dates: the same records give the same bytes."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.measures import ALL_MEASURES, TASKS, Measure, Task
from pipeline.report import budgets
from pipeline.report.agreement import agreements, sentence
from pipeline.report.notes import in_short, notes
from pipeline.report.records import Records
from pipeline.report.tables import COMPLETE, comparison, rows, sweep, tidy

MEASURE_ENDS = ("", "_mean", "_std", "_ci_low", "_ci_high")
DECIMALS = {
    **{f"{measure.name}{end}": 4 for measure in ALL_MEASURES for end in MEASURE_ENDS},
    **{f"{task.val}{end}": 4 for task in TASKS.values() for end in ("", "_mean")},
    **dict.fromkeys(("images_per_s", "images_per_s_q25", "images_per_s_q75"), 1),
    "gflops": 6,
    **dict.fromkeys(("importance", "std", "explained", "limit", "limit_low", "limit_high", "excess", "rmse"), 4),
    **dict.fromkeys(("exponent", "exponent_low", "exponent_high"), 4),
    "reference_gflops": 6,
}
NOT_MEASURED = "not measured"
AS_TEXT = str.maketrans(
    {mark: f"\\{mark}" for mark in "\\|[`*~"} | {"&": "&amp;", "<": "&lt;", "\n": " "}
)  # for Markdown
OPTIONAL = re.compile(r"^(?= *[*[])", re.MULTILINE)  # would be an argument of the \\ or \midrule before it
EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # one within a word is text already


def percent(mean: Any, std: Any = None) -> str:
    """`75.8 ± 7.1`, of fractions; without a deviation just the mean."""
    if pd.isna(mean):
        return NOT_MEASURED
    return f"{100 * mean:.1f}" + ("" if pd.isna(std) else f" ± {100 * std:.1f}")


def count(value: Any) -> str:
    """`112.3 k`, `22.1 M`."""
    if pd.isna(value):
        return NOT_MEASURED
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def gflops(value: Any) -> str:
    """Three significant digits, never an exponent."""
    if pd.isna(value):
        return NOT_MEASURED
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _measured(measure: Measure) -> Callable[[Any], str]:
    """Its cell: mean and deviation, if any run is complete."""
    mean, std = f"{measure.name}_mean", f"{measure.name}_std"
    return lambda row: percent(getattr(row, mean), getattr(row, std)) if row.num_seeds else "none"


def _measured_first(measure: Measure) -> Callable[[Any], str]:
    """The same for the first measure of a task: without a complete run, the reason why."""
    cell = _measured(measure)
    return lambda row: cell(row) if row.num_seeds else str(row.status)


def _seeds(row: Any) -> str:
    """How many runs are in the mean, and which are not."""
    return str(row.num_seeds) + ("" if row.status == COMPLETE else f" ({row.status})")


def _speed(row: Any) -> str:
    """Median and quartiles of images per second."""
    if pd.isna(row.images_per_s):
        return NOT_MEASURED
    spread = "" if pd.isna(row.images_per_s_q25) else f" ({row.images_per_s_q25:.0f} to {row.images_per_s_q75:.0f})"
    return f"{row.images_per_s:.0f}{spread}"


def cells(task: Task, unit: str, brief: bool = False) -> dict[str, Callable[[Any], str]]:
    """What people read: title -> cell of a row of `comparison` or `sweep`. table.csv has all columns.

    Args:
        unit: What the suite's samples are.
        brief: Only the measures that short tables show.
    """
    first, *others = task.measures
    return {
        "Experiment": lambda row: row.experiment,
        "Backbone": lambda row: f"{row.backbone} {row.variant}",
        "Tokenizer": lambda row: row.tokenizer,
        "Tokens": lambda row: str(row.token_budget),
        first.title: _measured_first(first),
        **{measure.title: _measured(measure) for measure in others if measure.brief or not brief},
        "Seeds": _seeds,
        "Parameters": lambda row: count(row.params),
        "GFLOPs": lambda row: gflops(row.gflops),
        f"{unit.capitalize()}s/s": _speed,
    }


NUMERIC = frozenset({"Tokens", "Seeds", "Parameters", "GFLOPs", "Images/s", "Clips/s"})
NUMERIC |= {measure.title for measure in ALL_MEASURES}


def readable(table: pd.DataFrame, records: Records, brief: bool = False, without: Iterable[str] = ()) -> pd.DataFrame:
    """The table as text, with the titles of `cells` for columns."""
    shown = {t: cell for t, cell in cells(records.task, records.unit, brief).items() if t not in without}
    return pd.DataFrame([[cell(row) for cell in shown.values()] for row in rows(table)], columns=list(shown))


def readable_budgets(records: Records) -> pd.DataFrame:
    """The table of token budgets as text; without rows where no run was asked at several."""
    shown = budgets.budget_cells(records.task, percent, gflops)
    table = budgets.budget_table(records)
    return pd.DataFrame([[cell(row) for cell in shown.values()] for row in rows(table)], columns=list(shown))


def to_csv(table: pd.DataFrame) -> str:
    """All columns with fixed decimals; unknown is empty."""
    return str(
        pd.DataFrame({name: _csv_column(table[name]) for name in table}).to_csv(index=False, lineterminator="\n")
    )


def to_metrics(records: Records) -> dict[str, dict[str, float]]:
    """{experiment: what `dvc metrics` compares}; nothing for an experiment without a complete run."""
    names = [*records.task.compared, "gflops"]  # dvc puts each into a column of its own
    table = comparison(records)
    known = table[table["num_seeds"] > 0].set_index("experiment")[names].round(6)
    return {
        str(experiment): {str(name): float(value) for name, value in values.dropna().items()}
        for experiment, values in known.iterrows()
    }


def to_latex(records: Records) -> str:
    """A booktabs table of the comparison, to be \\input."""
    table = readable(comparison(records), records, brief=True)
    style = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    text = style.to_latex(hrules=True, column_format="".join("r" if title in NUMERIC else "l" for title in table))
    text = OPTIONAL.sub("{}", text)
    return "% needs \\usepackage{booktabs}\n" + text.replace("±", r"$\pm$")


def to_markdown(records: Records) -> str:
    """The comparison, the sweep and the agreements, and under them all that a reader needs to trust them."""
    trials, pairs = sweep(records), agreements(records)
    parts = [f"# {records.suite}: comparison", markdown(readable(comparison(records), records))]
    if len(trials):
        marked = readable(trials, records).assign(Front=["●" if on_front else "" for on_front in trials["pareto"]])
        parts += ["## Sweep", markdown(marked)]
        parts += ["● on the Pareto front: no other point is as accurate at the same or a lower cost."]
    if len(asked := readable_budgets(records)):
        parts += ["## Token budgets", markdown(asked), budgets.NOTE]
    if pairs:
        parts += ["## Agreement", bullets(sentence(pair) for pair in pairs)]
    parts += ["## What is counted", bullets(notes(records)), "## Runs", markdown(_runs(records))]
    return "\n\n".join(parts) + "\n"


def to_summary(records: Records, pictures: Mapping[str, str]) -> str:
    """What README and docs show of a suite: the tables in short, and `pictures`, {path: alternative text}."""
    table = readable(comparison(records), records, brief=True, without=["Backbone"])
    images = [f"![{text}]({path})" for path, text in pictures.items()]
    asked = readable_budgets(records)
    budget_parts = ["### Token budgets", markdown(asked), budgets.NOTE] if len(asked) else []
    parts = [f"## Results: {records.suite}", markdown(table), as_text(in_short(records)), *budget_parts, *images]
    return "\n\n".join(parts) + "\n"


def markdown(table: pd.DataFrame) -> str:
    """Columns padded to equal width, numbers to the right: readable as text too."""
    right = [title in NUMERIC for title in table]
    body = [[as_text(cell) for cell in row] for row in rows(table)]
    lines = [[str(title) for title in table], *body]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)])
    padded = [
        [cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True)]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def as_text(text: str) -> str:
    """For Markdown, in which nothing of it means anything."""
    return EDGE_UNDERSCORE.sub(r"\\_", text.translate(AS_TEXT))


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list of sentences."""
    return "\n".join(f"- {as_text(line)}" for line in lines)


def _csv_column(column: "pd.Series[Any]") -> "pd.Series[Any]":
    if column.name in DECIMALS:
        return column.map(f"{{:.{DECIMALS[str(column.name)]}f}}".format, na_action="ignore")
    if pd.api.types.is_bool_dtype(column):
        return column.map({True: "true", False: "false"})
    return column.map(_no_formula, na_action="ignore") if pd.api.types.is_string_dtype(column) else column


def _no_formula(text: str) -> str:
    """A spreadsheet would run a name that begins like a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _runs(records: Records) -> pd.DataFrame:
    runs = tidy(records, [*records.runs, *records.checks, *records.trials])
    titles = {"experiment": "Experiment", "seed": "Seed", "fingerprint": "Run", "commit": "Commit"}
    titles |= {"world_size": "Workers", "status": "Status"}
    return runs[list(titles)].rename(columns=titles).astype("string").fillna("")
