"""The table of token budgets as a figure: one set of weights at many budgets against one set for each."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.budgets import ONE_BUDGET, budget_table, trained_for
from pipeline.report.figures import DASHES, FONT_SIZE, MARKERS, PALETTE, draw_axes, log_costs, show_legend
from pipeline.report.records import Records
from pipeline.report.tables import rows

NAME = "accuracy-vs-budget"
SOLO = "trained for one budget"


def describe(said: str) -> tuple[str, str]:
    """Title and description of the figure; `said` is the measure, in a sentence."""
    return (
        "One set of weights at many token budgets",
        f"Test {said} against multiply-accumulates per sample, with the standard deviation over seeds: models that "
        "were trained for one budget, at it (black, joined) and at others (dotted); models that were trained at "
        "several (coloured lines); and the latter with budgets that follow the image (open marks). budgets.csv has "
        "the numbers.",
    )


def draw_budgets(records: Records) -> Figure | None:
    """The figure, if any run was asked at several budgets."""
    measure, task = records.task.first.name, records.task
    table = budget_table(records)
    table = table[table[f"{measure}_mean"].notna() & (table["gflops"] > 0)]
    if table.empty:
        return None
    table = table.assign(height=100 * table[f"{measure}_mean"], error=100 * table[f"{measure}_std"])
    figure, ax = draw_axes(f"multiply-accumulates per {records.unit} (GFLOPs), log scale", f"test {task.said} (%)")
    log_costs(ax)
    same = table[table["spent"] == ONE_BUDGET]
    several = same["trained_at"].str.contains(" ")
    _draw_solo(ax, same[~several])
    for i, (name, mine) in enumerate(same[several].groupby("experiment", sort=False)):
        _draw_line(ax, mine, str(name), PALETTE[i % (len(PALETTE) - 1)])
    _draw_adaptive(ax, table[table["spent"] != ONE_BUDGET])
    ax.margins(x=0.1, y=0.1)
    show_legend(ax, FONT_SIZE - 2)
    return figure


def _draw_solo(ax: Axes, table: pd.DataFrame) -> None:
    """Models with one budget each: at their own, tokenizer by tokenizer and recipe by recipe, and elsewhere."""
    own = pd.Series([trained_for(row) for row in rows(table)], index=table.index, dtype=bool)
    for i, ((tokenizer, began_with), mine) in enumerate(table[own].groupby(["tokenizer", "began_with"], sort=False)):
        style: dict[str, Any] = {"color": "black", "marker": MARKERS[i % len(MARKERS)], "markersize": 7}
        line = mine.sort_values("gflops")
        style |= {"linestyle": DASHES[i % len(DASHES)]}
        label = f"{tokenizer}, {SOLO}{f' after {began_with}' if began_with else ''}, asked at it"
        ax.errorbar(line["gflops"], line["height"], line["error"], **style, linewidth=1.6, capsize=4, label=label)
    label = f"{SOLO}, asked at others"
    for _, mine in table.groupby("experiment", sort=False):
        line = mine.sort_values("gflops")
        if len(line) > 1:
            ax.plot(
                line["gflops"], line["height"], color="#777777", linestyle=":", linewidth=1.3, label=label, zorder=1
            )
            label = "_"  # one entry of the legend is enough


def _draw_line(ax: Axes, table: pd.DataFrame, name: str, color: str) -> None:
    line = table.sort_values("gflops")
    look: dict[str, Any] = {"color": color, "marker": "D", "markersize": 6, "linewidth": 1.8, "capsize": 4}
    ax.errorbar(line["gflops"], line["height"], line["error"], **look, label=f"{name}, asked at each budget")


def _draw_adaptive(ax: Axes, table: pd.DataFrame) -> None:
    groups = table.groupby(["experiment", "spent"], sort=False)
    for i, ((name, spent), mine) in enumerate(groups):
        line = mine.sort_values("gflops")
        color = PALETTE[(1 + i) % (len(PALETTE) - 1)]
        look: dict[str, Any] = {"color": color, "marker": MARKERS[(2 + i) % len(MARKERS)], "fillstyle": "none"}
        ax.plot(line["gflops"], line["height"], **look, linewidth=1.0, markersize=7, label=f"{name}, {spent}")
