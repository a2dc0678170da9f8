"""Tables -> text: CSV, Markdown, LaTeX, JSON. Fixed decimals, no dates: the same records give the same bytes."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.report.agreement import agreements, sentence
from pipeline.report.records import Records
from pipeline.report.tables import COMPLETE, comparison, rows, sweep, tidy

DECIMALS = {
    **dict.fromkeys(("top1", "top1_mean", "top1_std", "top5_mean", "top5_std", "val_top1", "val_top1_mean"), 4),
    **dict.fromkeys(("images_per_s", "images_per_s_q25", "images_per_s_q75"), 1),
    "gflops": 6,
}
NOT_MEASURED = "not measured"


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


def _top1(row: Any) -> str:
    """A mean, or the reason why there is none."""
    return percent(row.top1_mean, row.top1_std) if row.num_seeds else str(row.status)


def _seeds(row: Any) -> str:
    """How many runs are in the mean, and which are not."""
    return str(row.num_seeds) + ("" if row.status == COMPLETE else f" ({row.status})")


def _speed(row: Any) -> str:
    """Median and quartiles of images per second."""
    if pd.isna(row.images_per_s):
        return NOT_MEASURED
    spread = "" if pd.isna(row.images_per_s_q25) else f" ({row.images_per_s_q25:.0f} to {row.images_per_s_q75:.0f})"
    return f"{row.images_per_s:.0f}{spread}"


# What people read: title -> cell of a row of `comparison` or `sweep`. table.csv has all columns.
CELLS: dict[str, Callable[[Any], str]] = {
    "Experiment": lambda row: row.experiment,
    "Backbone": lambda row: f"{row.backbone} {row.variant}",
    "Tokenizer": lambda row: row.tokenizer,
    "Tokens": lambda row: str(row.token_budget),
    "Top-1 (%)": _top1,
    "Top-5 (%)": lambda row: percent(row.top5_mean, row.top5_std) if row.num_seeds else "none",
    "Seeds": _seeds,
    "Parameters": lambda row: count(row.params),
    "GFLOPs": lambda row: gflops(row.gflops),
    "Images/s": _speed,
}
NUMERIC = frozenset({"Tokens", "Top-1 (%)", "Top-5 (%)", "Seeds", "Parameters", "GFLOPs", "Images/s", "Clips/s"})


def readable(table: pd.DataFrame, unit: str, without: Iterable[str] = ()) -> pd.DataFrame:
    """The table as text, with the titles of `CELLS` for columns; `unit` is what the suite's samples are."""
    titles = [title for title in CELLS if title not in without]
    text = pd.DataFrame([[CELLS[title](row) for title in titles] for row in rows(table)], columns=titles)
    return text.rename(columns={"Images/s": f"{unit.capitalize()}s/s"})


def to_csv(table: pd.DataFrame) -> str:
    """All columns with fixed decimals; unknown is empty."""
    return str(
        pd.DataFrame({name: _csv_column(table[name]) for name in table}).to_csv(index=False, lineterminator="\n")
    )


def to_metrics(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """{experiment: what `dvc metrics` compares}; nothing for an experiment without a complete run."""
    names = ["top1_mean", "top1_std", "gflops"]  # dvc puts each into a column of its own
    known = table[table["num_seeds"] > 0].set_index("experiment")[names].round(6)
    return {
        str(experiment): {str(name): float(value) for name, value in values.dropna().items()}
        for experiment, values in known.iterrows()
    }


def to_latex(records: Records) -> str:
    """A booktabs table of the comparison, to be \\input."""
    table = readable(comparison(records), records.unit, without=["Top-5 (%)"])
    style = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    text = style.to_latex(hrules=True, column_format="".join("r" if title in NUMERIC else "l" for title in table))
    return "% needs \\usepackage{booktabs}\n" + text.replace("±", r"$\pm$")


def to_markdown(records: Records) -> str:
    """The comparison, the sweep and the agreements, and under them all that a reader needs to trust them."""
    trials, pairs = sweep(records), agreements(records)
    parts = [f"# {records.suite}: comparison", markdown(readable(comparison(records), records.unit))]
    if len(trials):
        marked = readable(trials, records.unit).assign(Front=["●" if on_front else "" for on_front in trials["pareto"]])
        parts += ["## Sweep", markdown(marked)]
        parts += ["● on the Pareto front: no other point is as accurate at the same or a lower cost."]
    if pairs:
        parts += ["## Agreement", _bullets(sentence(pair) for pair in pairs)]
    parts += ["## What is counted", _bullets(notes(records)), "## Runs", markdown(_runs(records))]
    return "\n\n".join(parts) + "\n"


def to_summary(records: Records, pictures: Mapping[str, str]) -> str:
    """What the README shows of a suite: the comparison in short, and `pictures`, {path: alternative text}."""
    table = readable(comparison(records), records.unit, without=["Backbone", "Top-5 (%)"])
    images = [f"![{text}]({path})" for path, text in pictures.items()]
    return "\n\n".join([f"## Results: {records.suite}", markdown(table), _in_short(records), *images]) + "\n"


def notes(records: Records) -> list[str]:
    """What the numbers of this suite count, by what, on what."""
    manifest, bench, unit = records.manifest, records.benchmark, records.unit
    num_test = manifest["splits"]["test"]["num_samples"]
    sha256 = (records.runs or records.checks or records.trials)[0].manifest_sha256
    source = f"{manifest['source']}; {manifest['licence']}"
    return [
        f"Data: {manifest['dataset']} ({source}), manifest sha256 {sha256[:10]}.{_left_out(manifest)}",
        f"Top-1, top-5: share of the {num_test} samples of the test split, each counted once; mean ± sample "
        "standard deviation (n - 1) over the seeds. Only complete runs are averaged, the others are named.",
        "Parameters: all of the model, the scorer included.",
        f"GFLOPs: 1e9 multiply-accumulates for one {unit}, as the paper counts them. {_counter(bench)}",
        f"{unit.capitalize()}s/s: {_timing(bench)}",
    ]


def _left_out(manifest: dict[str, Any]) -> str:
    dropped = manifest.get("dropped", [])
    return f" {len(dropped)} of its files are left out, manifest.json says why." if dropped else ""


def hardware(bench: dict[str, Any]) -> str:
    """The machine of the throughput in a few words."""
    machine = bench.get("hardware", {})
    threads = machine.get("threads", "?")
    cpu = f"{machine.get('cpu', 'unknown processor')} ({threads} thread{'' if threads == 1 else 's'})"
    return ", ".join(machine["gpus"]) if machine.get("device") == "cuda" else cpu


def markdown(table: pd.DataFrame) -> str:
    """Columns padded to equal width, numbers to the right: readable as text too."""
    right = [title in NUMERIC for title in table]
    body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows(table)]
    lines = [[str(title) for title in table], *body]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)])
    padded = [
        [cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True)]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def _csv_column(column: "pd.Series[Any]") -> "pd.Series[Any]":
    if column.name in DECIMALS:
        return column.map(f"{{:.{DECIMALS[str(column.name)]}f}}".format, na_action="ignore")
    if pd.api.types.is_bool_dtype(column):
        return column.map({True: "true", False: "false"})
    return column.map(_no_formula, na_action="ignore") if pd.api.types.is_string_dtype(column) else column


def _no_formula(text: str) -> str:
    """A spreadsheet would run a name that begins like a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _counter(bench: dict[str, Any]) -> str:
    counter = bench.get("counter")
    return f"Counted by {counter['name']}: {counter['counts']}" if counter else "Not counted."


def _timing(bench: dict[str, Any]) -> str:
    if not bench:
        return "not measured."
    return (
        f"forward pass, batch {bench['batch_size']}, all models interleaved in one run of {bench['rounds']} "
        f"rounds, median and quartiles, on {hardware(bench)}."
    )


def _in_short(records: Records) -> str:
    """One sentence: whose numbers these are, what they count, and on what machine."""
    commits = " ".join(dict.fromkeys(run.commit for run in records.runs))
    changed = " (+: the working tree had changes)" if "+" in commits else ""
    manifest, bench, unit = records.manifest, records.benchmark, records.unit
    cost = f"not measured: parameters, GFLOPs and {unit}s/s"
    if bench:
        cost = (
            f"GFLOPs: 1e9 multiply-accumulates of one {unit}; {unit}s/s: median and quartiles of a forward pass of "
            f"{bench['batch_size']} {unit}s on {hardware(bench)}"
        )
    return (
        f"Runs of commit {commits}{changed}; top-1: share of the {manifest['splits']['test']['num_samples']} test "
        f"samples of {manifest['dataset']}, mean ± sample standard deviation over the seeds; {cost}."
    )


def _runs(records: Records) -> pd.DataFrame:
    runs = tidy(records, [*records.runs, *records.checks, *records.trials])
    titles = {"experiment": "Experiment", "seed": "Seed", "fingerprint": "Run", "commit": "Commit"}
    titles |= {"world_size": "Workers", "status": "Status"}
    return runs[list(titles)].rename(columns=titles).astype("string").fillna("")


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
