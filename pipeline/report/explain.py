"""Where a cell of a table comes from: runs, seeds, arithmetic, data, parameters, code, machine, and the command."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.cli import run_stage
from pipeline.errors import UserError, problem, unknown_name

if TYPE_CHECKING:
    from pipeline.report.records import Records

RESULTS, DATA = Path("results"), Path("data")


class Cell(NamedTuple):
    """A place in report/SUITE/table.csv, sweep.csv or budgets.csv."""

    suite: str
    experiment: str
    column: str


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.report.explain", description=__doc__)
    where = (
        "SUITE/EXPERIMENT/COLUMN of table.csv or sweep.csv, as digits/dart-36/top1_mean; of a point of the sweep that "
        "has an experiment's name SUITE/sweep/POINT/COLUMN; of budgets.csv SUITE/EXPERIMENT/at/BUDGET/COLUMN, with "
        "SIGNAL/HELD behind BUDGET where budgets follow the image, as "
        "digits-budgets/dart-any/at/40/spread/dataset/top1_mean"
    )
    parser.add_argument("cell", metavar="CELL", help=where)
    parser.add_argument("--mlflow", action="store_true", help="ask MLflow for its ids of the runs too (some seconds)")
    args = parser.parse_args()

    from pipeline.report.explanation import explain
    from pipeline.report.records import load_records

    cell = parse(args.cell)
    check_suite(cell.suite)
    manifest = DATA / cell.suite / "shards" / "manifest.json"
    records = load_records(cell.suite, RESULTS / cell.suite, manifest)
    print(explain(records, cell.experiment, cell.column).text(), end="")
    if args.mlflow:
        print("\n".join(["", "MLflow", *(f"  {line}" for line in mlflow_lines(records, cell.experiment))]))


def parse(text: str) -> Cell:
    """Take a cell's name apart; an experiment's name may have slashes.

    Raises:
        UserError: it has fewer than three parts.
    """
    suite, _, rest = text.strip().partition("/")
    experiment, _, column = rest.rpartition("/")
    if not (suite and experiment and column):
        rule = "not SUITE/EXPERIMENT/COLUMN"
        raise UserError(problem("cell", text, rule, "for example digits/dart-36/top1_mean"))
    return Cell(suite, experiment, column)


def check_suite(suite: str) -> None:
    """Raise UserError for a suite that has no results here, with the nearest that has."""
    known = sorted({path.parents[1].name for path in RESULTS.glob("*/*/runs.json")})
    if not known:
        raise UserError(problem("results", str(RESULTS), "no recorded runs", "run: make repro"))
    if suite not in known:
        raise UserError(unknown_name("suite", suite, known))


def mlflow_lines(records: "Records", experiment: str) -> list[str]:
    """What the ledger calls the runs of an experiment, or why it cannot be said."""
    from pipeline.config import load_params
    from pipeline.report.row import find_row
    from pipeline.tracking.uri import check_there, resolve_uri

    uri = resolve_uri(load_params().tracking.uri)
    keys = {run.seed: f"{run.suite}/{run.stage}/{run.fingerprint}" for run in find_row(records, experiment).runs}
    try:
        check_there(uri)  # before the seconds that mlflow takes to load
        from pipeline.tracking.ledger import find_run_ids

        found = find_run_ids(uri, records.suite)
    except UserError as error:
        return [str(error)]
    return [f"at {uri}", *(f"seed {seed}: {found.get(key, 'not in the ledger')}" for seed, key in keys.items())]


if __name__ == "__main__":
    run_stage(main)
