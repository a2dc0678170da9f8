"""Rows -> text: CSV, Markdown, LaTeX, JSON. Fixed decimals, no dates: the same rows give the same bytes."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pipeline.report.records import Records, by_name
from pipeline.report.tables import COMPLETE, Agreement, Row, agreements, comparison, pareto_front, sweep

Column = tuple[str, Callable[[Row], str]]

_DECIMALS = {
    "top1_mean": 4,
    "top1_std": 4,
    "top5_mean": 4,
    "top5_std": 4,
    "val_top1_mean": 4,
    "gflops": 6,
    "images_per_s": 1,
    "images_per_s_q25": 1,
    "images_per_s_q75": 1,
}
NOT_MEASURED = "not measured"


def percent(mean: float | None, std: float | None = None) -> str:
    """`75.8 ± 7.1`, of fractions; without a deviation just the mean."""
    if mean is None:
        return NOT_MEASURED
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def top1(row: Row) -> str:
    """The cell of the table: a mean, or the reason why there is none."""
    if not row.num_seeds:
        return row.status
    return percent(row.top1_mean, row.top1_std)


def seeds(row: Row) -> str:
    """How many runs are in the mean, and which are not."""
    return str(row.num_seeds) + ("" if row.status == COMPLETE else f" ({row.status})")


def count(value: int | None) -> str:
    """`112.3 k`, `22.1 M`."""
    if value is None:
        return NOT_MEASURED
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def gflops(value: float | None) -> str:
    """Three significant digits, never an exponent."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def speed(row: Row) -> str:
    """Median and quartiles of images per second."""
    if row.images_per_s is None:
        return NOT_MEASURED
    spread = "" if row.images_per_s_q25 is None else f" ({row.images_per_s_q25:.0f} to {row.images_per_s_q75:.0f})"
    return f"{row.images_per_s:.0f}{spread}"


# What people read; table.csv has all fields.
COLUMNS: tuple[Column, ...] = (
    ("Experiment", lambda row: row.experiment),
    ("Backbone", lambda row: f"{row.backbone} {row.variant}"),
    ("Tokenizer", lambda row: row.tokenizer),
    ("Tokens", lambda row: str(row.token_budget)),
    ("Top-1 (%)", top1),
    ("Top-5 (%)", lambda row: percent(row.top5_mean, row.top5_std) if row.num_seeds else "none"),
    ("Seeds", seeds),
    ("Parameters", lambda row: count(row.params)),
    ("GFLOPs", lambda row: gflops(row.gflops)),
    ("Images/s", speed),
)
NUMERIC = frozenset({"Tokens", "Top-1 (%)", "Top-5 (%)", "Seeds", "Parameters", "GFLOPs", "Images/s"})


def to_csv(rows: Sequence[Row], front: Sequence[Row] | None = None) -> str:
    """All fields; with `front`, a last column `pareto`: is the row on it. Unknown is empty."""
    names = [f.name for f in dataclasses.fields(Row)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names + (["pareto"] if front is not None else []))
    for row in rows:
        cells = [_csv_cell(name, getattr(row, name)) for name in names]
        writer.writerow(cells + ([str(row in front).lower()] if front is not None else []))
    return out.getvalue()


def to_metrics(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """{experiment: what `dvc metrics` compares}; nothing for an experiment without a complete run."""
    names = ("top1_mean", "top1_std", "gflops")  # dvc puts each into a column of its own
    return {
        row.experiment: {name: round(float(value), 6) for name in names if (value := getattr(row, name)) is not None}
        for row in rows
        if row.num_seeds
    }


def to_latex(records: Records) -> str:
    """A booktabs table of the comparison, to be \\input."""
    rows = comparison(records)
    columns = [c for c in COLUMNS if c[0] != "Top-5 (%)"]
    align = "".join("r" if title in NUMERIC else "l" for title, _ in columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{align}}}",
        "\\toprule",
        " & ".join(latex(title) for title, _ in columns) + " \\\\",
        "\\midrule",
        *(" & ".join(latex(cell(row)) for _, cell in columns) + " \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def to_markdown(records: Records) -> str:
    """The comparison, the sweep and the agreements, and under them all that a reader needs to trust them."""
    rows, trials, pairs = comparison(records), sweep(records), agreements(records)
    parts = [f"# {records.suite}: comparison", markdown_table(rows)]
    if trials:
        front = pareto_front(trials)
        parts += ["## Sweep", markdown_table(trials, front)]
        parts += ["● on the Pareto front: no other point is as accurate at the same or a lower cost."]
    if pairs:
        parts += ["## Agreement", *(f"- {agreement_sentence(pair)}" for pair in pairs)]
    parts += ["## What is counted", *(f"- {note}" for note in notes(records))]
    parts += ["## Runs", _runs_table(records)]
    return "\n".join(_spaced(parts)) + "\n"


def markdown_table(rows: Sequence[Row], front: Sequence[Row] | None = None) -> str:
    """The readable columns as a Markdown table; with `front`, a column that marks its rows."""
    marked: list[Column] = [("Front", lambda row: "●" if row in (front or ()) else "")] if front is not None else []
    columns = [*COLUMNS, *marked]
    body = [[cell(row) for _, cell in columns] for row in rows]
    return _markdown([title for title, _ in columns], body)


def agreement_sentence(pair: Agreement) -> str:
    """One sentence per pair, or why there is nothing to say."""
    worlds = " and ".join(str(size) if size is not None else "unknown" for size in pair.world_sizes)
    head = f"{pair.experiment} and {pair.twin}, seed {pair.seed}, {worlds} workers"
    if pair.status != COMPLETE:
        return f"{head}: not comparable ({pair.status})."
    loss = f"{pair.max_loss_diff:.2e}" if pair.max_loss_diff is not None else "unknown"
    change = f"{100 * pair.top1_diff:+.2f}" if pair.top1_diff is not None else "unknown"
    return (
        f"{head}: training losses differ by at most {loss} over {pair.num_steps} recorded steps, "
        f"top-1 by {change} points, {pair.num_changed} of {pair.num_predictions} test predictions differ."
    )


def notes(records: Records) -> list[str]:
    """What the numbers of this suite count, by what, on what."""
    manifest, bench = records.manifest, records.benchmark
    num_test = manifest["splits"]["test"]["num_samples"]
    sha256 = (records.runs or records.trials)[0].manifest_sha256
    source = f"{manifest['source']}; {manifest['licence']}"
    return [
        f"Data: {manifest['dataset']} ({source}), manifest sha256 {sha256[:10]}.",
        f"Top-1, top-5: share of the {num_test} samples of the test split, each counted once; mean ± sample "
        "standard deviation (n - 1) over the seeds. Only complete runs are averaged, the others are named.",
        "Parameters: all of the model, the scorer included.",
        f"GFLOPs: 1e9 multiply-accumulates for one image, as the paper counts them. {_counter(bench)}",
        f"Images/s: {_timing(bench)}",
    ]


def latex(text: str) -> str:
    """Text for LaTeX: special characters escaped, the plus-minus sign set in mathematics."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    special |= {"^": r"\textasciicircum{}", "±": r"$\pm$"}
    return "".join(special.get(c, c) for c in text)


def _csv_cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.{_DECIMALS[name]}f}" if name in _DECIMALS else str(value)
    # A spreadsheet would run a name that begins like a formula.
    return "'" + text if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


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


def hardware(bench: dict[str, Any]) -> str:
    """The machine of the throughput in a few words."""
    machine = bench.get("hardware", {})
    cpu = f"{machine.get('cpu', 'unknown processor')} ({machine.get('threads', '?')} threads)"
    return ", ".join(machine["gpus"]) if machine.get("device") == "cuda" else cpu


def _runs_table(records: Records) -> str:
    body = [
        [name, str(run.seed), run.fingerprint, run.commit, str(run.world_size or ""), run.problem or COMPLETE]
        for runs in (records.runs, records.trials)
        for name, group in by_name(runs).items()
        for run in group
    ]
    return _markdown(["Experiment", "Seed", "Run", "Commit", "Workers", "Status"], body)


def _markdown(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns padded to equal width, numbers to the right: readable as text too."""
    table = [list(titles), *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in body)]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(titles))]
    right = [title in NUMERIC for title in titles]
    lines = [
        "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in table
    ]
    rule = "| " + " | ".join("-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _spaced(parts: Iterable[str]) -> Iterable[str]:
    """A blank line between blocks, none between the items of a list."""
    previous = ""
    for part in parts:
        if previous and not (previous.startswith("- ") and part.startswith("- ")):
            yield ""
        yield part
        previous = part
