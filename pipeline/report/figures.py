"""Records -> figures: accuracy against cost, and learning curves. Same records, same bytes.

Names in the records are text: nothing in them is read as mathematics.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from pipeline.measures import Measure, Task
from pipeline.report.living import living_svg, speak
from pipeline.report.pictures import gallery
from pipeline.report.records import Records, Run, by_name
from pipeline.report.tables import COMPLETE, comparison, rows, sweep

# Okabe and Ito's palette, in an order that keeps neighbours apart with any colour vision; and a second cue.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INSIDE = 7  # entries of a legend, at most, that are among the points
LEGEND_COLUMNS, LEGEND_LINE = 2, 0.17  # of a legend below; inches
DASHES = ("-", "--", ":", "-.")
LABEL_PLACES = (((9, 7), "left"), ((-9, 7), "right"), ((9, -14), "left"), ((-9, -14), "right"))  # in points
FONT_SIZE = 10
PLACE_DIGITS = 9  # of a figure's width and height


def write_figures(records: Records, folder: Path) -> dict[Path, str]:
    """Draw what the records allow of the experiments; see `draw`."""
    makers = {
        "accuracy-vs-gflops": lambda: accuracy_against_gflops(records),
        "learning-curves": lambda: learning_curves(records),
        "what-the-model-sees": lambda: gallery(records),
    }
    return draw(makers, records.suite, folder)


def draw(makers: Mapping[str, Callable[[], Figure | None]], suite: str, folder: Path) -> dict[Path, str]:
    """Make each figure that there is something for, as PNG and SVG; names in it are text.

    Returns:
        {PNG file: the same as a drawing for the page, empty where its points say nothing}.
    """
    with mpl.rc_context({"text.parse_math": False}):
        figures = {name: make() for name, make in makers.items()}
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        return {save(figure, folder / name): living_svg(figure, f"{suite} {name}") for name, figure in drawn.items()}


def save(figure: Figure, path: Path) -> Path:
    """Write `path`.png and `path`.svg without dates, versions or random identifiers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not once per format
    for ax in figure.axes:  # the layout's last digits differ from process to process, and clips are named by them
        place = ax.get_position(original=True).bounds
        ax.set_position(Bbox.from_bounds(*(round(bound, PLACE_DIGITS) for bound in place)))
    with mpl.rc_context({"svg.hashsalt": "dart", "svg.fonttype": "path"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
    return path.with_suffix(".png")


def accuracy_against_gflops(records: Records) -> Figure | None:
    """The task's first measure against cost: the sweep with its Pareto front, the experiments with error bars."""
    experiments, trials, task = comparison(records), sweep(records), records.task
    finals, points = (_located(table, task.first) for table in (experiments, trials))
    if finals.empty and points.empty:
        return None
    figure, ax = draw_axes(f"multiply-accumulates per {records.unit} (GFLOPs), log scale", f"test {task.said} (%)")
    style = styles([*experiments["tokenizer"], *trials["tokenizer"]])
    log_costs(ax)
    _draw_sweep(ax, points, style)
    _draw_finals(ax, finals, style)
    ax.margins(x=0.2, y=0.1)
    show_legend(ax, FONT_SIZE - 1)
    _name_points(ax, _labels(finals))
    return figure


def learning_curves(records: Records) -> Figure | None:
    """The task's first measure while training: the mean over seeds, a band from the worst seed to the best.

    Over the complete runs, at the numbers of samples that all of them were validated at; each of the others is a thin
    line of its own.
    """
    task = records.task
    groups = {name: runs for name, runs in by_name(records.runs).items() if _curves(runs, task)}
    if not groups:
        return None
    figure, ax = draw_axes("training samples seen (thousands)", f"validation {task.said} (%)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style = styles([run.tokenizer for run in records.runs])
    num_lines = dict.fromkeys(style, 0)
    ends = []
    for name, runs in groups.items():
        tokenizer = runs[0].tokenizer
        color, marker = style[tokenizer]
        for run in (run for run in runs if run.problem):
            ends += _draw_incomplete(ax, run, task, color)
        complete = [run for run in runs if not run.problem]
        samples, values = _common(_curves(complete, task))
        if not len(samples):
            continue
        mean, dashes = values.mean(0), DASHES[num_lines[tokenizer] % len(DASHES)]
        num_lines[tokenizer] += 1
        (line,) = ax.plot(samples, mean, color=color, linestyle=dashes, marker=marker, markersize=4, linewidth=1.6)
        speak(line, _heights(name, samples, values))
        ax.fill_between(samples, values.min(0), values.max(0), color=color, alpha=0.13, linewidth=0)
        num = str(len(values)) + ("" if len(values) == len(runs) else f" of {len(runs)}")
        ends.append((float(samples[-1]), float(mean[-1]), f"{name} (n = {num})", color))
    _label_ends(ax, ends)
    return figure


def _draw_incomplete(ax: Axes, run: Run, task: Task, color: str) -> list[tuple[float, float, str, str]]:
    """A run that is in no mean, as far as it came; returns its end and its name for `_label_ends`."""
    ends = []
    for curve in _curves([run], task):
        samples, values = _common([curve])
        look: dict[str, Any] = {"linewidth": 0.6, "linestyle": "-", "marker": ".", "markersize": 3, "alpha": 0.6}
        (line,) = ax.plot(samples, values[0], color=color, **look)
        speak(line, _heights(f"{run.name} seed {run.seed} ({run.problem}, in no mean)", samples, values))
        known = values[0][np.isfinite(values[0])]
        height = known[-1] if len(known) else 0.0
        ends.append((float(samples[-1]), float(height), f"{run.name} seed {run.seed} (incomplete)", color))
    return ends


def draw_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty figure in the style of all of them."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained", facecolor="white")
    ax = figure.add_subplot()
    ax.set_xlabel(xlabel, fontsize=FONT_SIZE)
    ax.set_ylabel(ylabel, fontsize=FONT_SIZE)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    return figure, ax


def show_legend(ax: Axes, size: float) -> None:
    """Inside, where it hides least; below, where it is too long for that."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) <= INSIDE:
        ax.legend(frameon=False, fontsize=size, loc="best")
        return
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    figure.legend(handles, labels, frameon=False, fontsize=size, ncols=LEGEND_COLUMNS, loc="outside lower center")
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LEGEND_LINE * ceil(len(labels) / LEGEND_COLUMNS))


def log_costs(ax: Axes) -> None:
    """A logarithmic axis of costs, with plain numbers at 1, 2, 5, 10 ..."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """{name: (colour, marker)} in order of appearance, the same in every figure that has the same names."""
    distinct = list(dict.fromkeys(names))
    turns = len(PALETTE)  # after which colours come again, with other markers
    return {n: (PALETTE[i % turns], MARKERS[(i + i // turns) % len(MARKERS)]) for i, n in enumerate(distinct)}


def _located(table: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """The rows that have a place in the figure, with the measure as `height` and its deviation `error` in percent."""
    mean, std = f"{measure.name}_mean", f"{measure.name}_std"
    known = table[table[mean].notna() & (table["gflops"] > 0)]
    return known.assign(height=100 * known[mean], error=100 * known[std])


def _draw_sweep(ax: Axes, points: pd.DataFrame, style: dict[str, tuple[str, str]]) -> None:
    front = points[points["pareto"]].sort_values("gflops")
    if len(front) > 1:
        line: dict[str, Any] = {"color": "#777777", "linewidth": 1.2, "linestyle": "--", "zorder": 1}
        ax.plot(front["gflops"], front["height"], **line, label="Pareto front of the sweep")
    for tokenizer, mine in points.groupby("tokenizer", sort=False):
        color, marker = style[str(tokenizer)]
        look: dict[str, Any] = {"s": 22, "facecolors": "white", "edgecolors": color, "marker": marker}
        drawn = ax.scatter(mine["gflops"], mine["height"], **look, linewidths=1.1, label=f"{tokenizer}, sweep")
        speak(drawn, _said(mine))


def _draw_finals(ax: Axes, finals: pd.DataFrame, style: dict[str, tuple[str, str]]) -> None:
    for tokenizer, mine in finals.groupby("tokenizer", sort=False):
        color, marker = style[str(tokenizer)]
        look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 8, "linestyle": ""}
        points, *_ = ax.errorbar(mine["gflops"], mine["height"], mine["error"], **look, capsize=4, zorder=3)
        speak(points, _said(mine))
        ax.plot([], [], **look, label=f"{tokenizer}, mean ± std")


def _said(located: pd.DataFrame) -> list[str]:
    """What each point of a table says: whose it is, and its place."""
    return [
        f"{row.experiment}: {row.height:.1f}{'' if pd.isna(row.error) else f' ± {row.error:.1f}'} % at "
        f"{row.gflops:.3g} GFLOPs, {row.token_budget} tokens, {row.num_seeds} seed{'' if row.num_seeds == 1 else 's'}"
        + ("" if row.status == COMPLETE else f" ({row.status})")
        for row in rows(located)
    ]


def _heights(name: str, samples: Any, values: Any) -> list[str]:
    """What each point of a learning curve says; `values` are (n, K) at K numbers of samples in thousands."""
    columns = zip(samples, values.T, strict=True)
    return [
        f"{name}: {at.mean():.1f} % after {1000 * seen:,.0f} samples"
        + (f" ({at.min():.1f} to {at.max():.1f} over {len(at)} seeds)" if len(at) > 1 else "")
        for seen, at in columns
        if np.isfinite(at.mean())  # no marker is drawn elsewhere
    ]


def _labels(finals: pd.DataFrame) -> dict[tuple[float, float], list[str]]:
    """{place: names}: experiments that fall on one point share one label."""
    labels: dict[tuple[float, float], list[str]] = {}
    for row in rows(finals):
        name = row.experiment + ("" if row.status == COMPLETE else " (incomplete)")
        labels.setdefault((row.gflops, round(row.height, 1)), []).append(name)
    return labels


def _name_points(ax: Axes, labels: dict[tuple[float, float], list[str]]) -> None:
    """Write the names beside their points, each on the first side where it covers no other name or point."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout must stand before anything can be measured
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in map(ax.transData.transform, labels)]
    for place, names in labels.items():
        for offset, side in LABEL_PLACES:
            text = ax.annotate(", ".join(names), place, offset, textcoords="offset points", ha=side)
            text.set(fontsize=FONT_SIZE - 1, zorder=4)
            box = text.get_window_extent()
            if not box.count_overlaps(taken) or (offset, side) == LABEL_PLACES[-1]:
                break
            text.remove()
        taken.append(box)


def _curves(runs: Sequence[Run], task: Task) -> list[dict[float, float]]:
    """{samples in thousands: the first measure, validated, in percent} of each run that has any."""
    lines = []
    for run in runs:
        batch = run.science["train"]["global_batch_size"]
        points = run.curves.get(task.val, {})
        lines.append({step * batch / 1000: 100 * value for step, value in points.items()})
    return [line for line in lines if line]


def _common(lines: Sequence[dict[float, float]]) -> tuple[Any, Any]:
    """(K,) samples that every line has, and the (n, K) values there; K is 0 where there are none."""
    samples = sorted(set.intersection(*map(set, lines))) if lines else []
    return np.array(samples), np.array([[line[s] for s in samples] for line in lines])


def _label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name at its right end, pushed apart where lines end close together."""
    low, high = ax.get_ylim()
    step, previous = (high - low) * 0.055, -np.inf
    for x, y, text, color in sorted(ends, key=lambda end: end[1]):
        previous = max(y, previous + step)
        ax.text(x * 1.02, previous, text, color=color, fontsize=FONT_SIZE - 1, va="center")
