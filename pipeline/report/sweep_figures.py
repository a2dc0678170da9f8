"""Figures of a sweep: accuracy against measured time, the fitted scaling law, and which keys matter."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.measures import Task
from pipeline.report.figures import FONT_SIZE, PALETTE, draw, draw_axes, log_costs, show_legend, styles
from pipeline.report.importance import ESTIMATED
from pipeline.report.living import speak
from pipeline.report.records import Records
from pipeline.report.scaling import Law, laws, series
from pipeline.report.statistics import CONFIDENCE
from pipeline.report.tables import comparison, rows, sweep

NUM_ON_CURVE = 100


def titles(task: Task) -> dict[str, tuple[str, str]]:
    """Title and description (for those who cannot see it) of each figure."""
    return {
        "accuracy-vs-latency": (
            "Accuracy against measured time",
            f"Test {task.said} of the sweep's points against the measured time of a sample in a batch, with the "
            "points that no other one beats at the same or less time. sweep.csv has the numbers.",
        ),
        "scaling": (
            "How accuracy grows with cost",
            f"Test {task.said} of the sweep's points against multiply-accumulates per sample, the fitted law of each "
            f"tokenizer, and a band that holds the law with a confidence of {CONFIDENCE:.0%}. scaling.csv has its "
            "parameters.",
        ),
        "importance": (
            "What the results depend on",
            "Share of the variance of the sweep's results that goes with each key, alone and with others, as a random "
            "forest sees it; the error bar is the spread of the estimate. importance.csv has the numbers.",
        ),
    }


def write_sweep_figures(records: Records, keys: pd.DataFrame, folder: Path) -> dict[Path, str]:
    """Draw what the sweep allows; see `pipeline.report.figures.draw`.

    Args:
        keys: `importance(records)`.
    """
    makers = {
        "accuracy-vs-latency": lambda: accuracy_against_latency(records),
        "scaling": lambda: scaling_curves(records),
        "importance": lambda: importances(keys),
    }
    return draw(makers, records.suite, folder)


def accuracy_against_latency(records: Records) -> Figure | None:
    """The sweep's points and their front in accuracy and measured time."""
    table, mean = sweep(records), f"{records.task.first.name}_mean"
    points = table[table[mean].notna() & (table["images_per_s"] > 0)]
    if points.empty:
        return None
    points = points.assign(cost=1000 / points["images_per_s"], height=100 * points[mean])
    figure, ax = _costs(f"measured time per {records.unit} (ms), log scale", records)
    front = points[points["pareto_latency"]].sort_values("cost")
    if len(front) > 1:
        ax.plot(front["cost"], front["height"], color="#777777", linewidth=1.2, linestyle="--", label="Pareto front")
    style = _style(records)
    for tokenizer, mine in points.groupby("tokenizer", sort=False):
        drawn = _dots(ax, mine, style[str(tokenizer)], f"{tokenizer}, sweep")
        speak(drawn, [f"{row.experiment}: {row.height:.1f} % at {row.cost:.3g} ms" for row in rows(mine)])
    show_legend(ax, FONT_SIZE - 1)
    return figure


def scaling_curves(records: Records) -> Figure | None:
    """The laws that the points determine, over the costs of their points."""
    fits = laws(records)
    if not fits:
        return None
    figure, ax = _costs(f"multiply-accumulates per {records.unit} (GFLOPs), log scale", records)
    style = _style(records)
    for tokenizer, points in series(records).items():
        dots = points.assign(cost=points["gflops"], height=100 * points["value"])
        _dots(ax, dots, style[tokenizer], f"{tokenizer}, sweep")
        if tokenizer in fits:
            _draw_law(ax, fits[tokenizer], points, tokenizer, style[tokenizer][0])
    show_legend(ax, FONT_SIZE - 1)
    return figure


def importances(keys: pd.DataFrame) -> Figure | None:
    """Bars with the spread of the estimate, the weightiest on top; nothing where nothing can be said."""
    table = keys[keys["status"] == ESTIMATED].iloc[::-1]
    if table.empty:
        return None
    figure, ax = draw_axes("share of the results' variance (%)", "")
    bars: dict[str, Any] = {"color": PALETTE[0], "ecolor": "#444444", "capsize": 4, "height": 0.6}
    ax.barh(table["key"], 100 * table["importance"], xerr=100 * table["std"], **bars)
    ax.axvline(0, color="#444444", linewidth=0.8)
    return figure


def _costs(xlabel: str, records: Records) -> tuple[Figure, Axes]:
    figure, ax = draw_axes(xlabel, f"test {records.task.said} (%)")
    log_costs(ax)
    ax.margins(x=0.1, y=0.1)
    return figure, ax


def _style(records: Records) -> dict[str, tuple[str, str]]:
    """The colours that the other figures of the suite have."""
    return styles([*comparison(records)["tokenizer"], *sweep(records)["tokenizer"]])


def _dots(ax: Axes, points: pd.DataFrame, style: tuple[str, str], label: str) -> Any:
    color, marker = style
    look: dict[str, Any] = {"s": 22, "facecolors": "white", "edgecolors": color, "marker": marker, "zorder": 3}
    return ax.scatter(points["cost"], points["height"], **look, linewidths=1.1, label=label)


def _draw_law(ax: Axes, law: Law, points: pd.DataFrame, tokenizer: str, color: str) -> None:
    gflops = np.geomspace(points["gflops"].min(), points["gflops"].max(), NUM_ON_CURVE)
    height, band = 100 * (1 - law.error(gflops)), 100 * law.half_width(gflops)
    ax.plot(gflops, height, color=color, linewidth=1.4, label=f"{tokenizer}, fitted law")
    ax.fill_between(gflops, height - band, height + band, color=color, alpha=0.13, linewidth=0)
