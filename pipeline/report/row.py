"""A row of a table by its name, with the runs that it is about."""

from typing import NamedTuple

import pandas as pd

from pipeline.errors import UserError, problem, unknown_name
from pipeline.report.budgets import asked_runs, budget_table
from pipeline.report.records import Records, Run, by_name
from pipeline.report.tables import comparison, sweep


class Row(NamedTuple):
    """A row of a table, and the runs that it is about."""

    table: pd.DataFrame  # with this one row, and the columns of its CSV
    runs: list[Run]
    asked: bool = False  # of budgets.csv: the runs' `test` is what they answered at the row's budget


def find_row(records: Records, experiment: str) -> Row:
    """The row of an experiment, of a point of the sweep, or of an experiment at a token budget.

    Args:
        experiment: Its name; with `train/` or `sweep/` before it, as on the page, where both have it; with `/at/BUDGET`
            or `/at/BUDGET/SIGNAL/HELD` behind it for a row of budgets.csv.

    Raises:
        UserError: there is none of this name, or there are two.
    """
    runs, points = by_name(records.runs), by_name(records.trials)
    placed = {f"train/{name}": of for name, of in runs.items()} | {f"sweep/{name}": of for name, of in points.items()}
    where = f"{records.suite}: experiment"
    if experiment in runs and experiment in points:
        remedy = f"say train/{experiment} or sweep/{experiment}"
        raise UserError(problem(where, experiment, "is an experiment and a point of the sweep", remedy))
    groups, asked = placed | points | runs, asked_runs(records)
    if experiment in groups:
        found = groups[experiment]
        table = comparison(records) if found[0] in records.runs else sweep(records)
        return Row(table[table["experiment"] == found[0].name], found)
    if experiment in asked:
        place = list(asked).index(experiment)  # in the order of the table's rows
        return Row(budget_table(records).iloc[[place]], asked[experiment], True)
    raise UserError(unknown_name(where, experiment, asked if "/at/" in experiment and asked else points | runs))
