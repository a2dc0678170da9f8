"""Anybody's table of results, asked for one experiment's figure: ours, or a CSV of one row per experiment or per seed.

A table has a column `experiment`. One row per experiment: `MEASURE_mean`, if known `MEASURE_std` and `num_seeds`, or
plain `MEASURE` for what has no seeds (params, gflops). One row per seed: a column `seed` and plain `MEASURE`s. A column
`status` says why runs are missing. Shares (top1, miou ...) are fractions.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, problem, unknown_name
from pipeline.measures import ALL_MEASURES
from pipeline.report.statistics import Seeds

SHARES = frozenset(measure.name for measure in ALL_MEASURES)
GOOD = ("", "complete", "done")  # of the column status, in any case
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """Rows by experiment, and where they are from."""

    source: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[Row]]
    percent: bool = False  # shares are in per cent

    def has(self, measure: str) -> bool:
        """Whether there is a column of this measure."""
        return measure in self.columns or f"{measure}_mean" in self.columns

    def figure(self, experiment: str, measure: str) -> Seeds | None:
        """The measure of an experiment over its complete runs; None where it is unknown.

        Raises:
            UserError: a cell is not a number, a share is not within 0 and 1, or a deviation is below 0.
        """
        rows = self.rows.get(experiment, ())
        if "seed" in self.columns:
            values = [self._number(row, measure) for row in rows if _is_good(row)]
            known = [value for value in values if value is not None]
            return Seeds.of(known) if known and len(known) == len(values) else None
        return self._summary(rows[0], measure) if rows else None

    def num_seeds(self, experiment: str) -> int:
        """Complete runs of an experiment; a summary that does not say has one, or none where its status is bad."""
        rows = self.rows.get(experiment, ())
        if "seed" in self.columns:
            return sum(map(_is_good, rows))
        text = rows[0].get("num_seeds") if rows else None
        if text is None or text == "":
            return sum(map(_is_good, rows))
        number = self._number(rows[0], "num_seeds")
        if number is None or number < 0 or number != int(number):
            raise UserError(problem(self._where(rows[0], "num_seeds"), text, "not a number of runs", "use 0, 1, 2 ..."))
        return int(number)

    def status(self, experiment: str) -> str:
        """Why runs are missing, where the table says so."""
        bad = [row for row in self.rows.get(experiment, ()) if not _is_good(row)]
        return "; ".join(
            ("" if row.get("seed") is None else f"seed {row['seed']}: ") + str(row["status"]) for row in bad
        )

    def _summary(self, row: Row, measure: str) -> Seeds | None:
        """Of a row of an experiment; what has no seeds has no deviation, and no runs have no share."""
        num = self.num_seeds(str(row["experiment"]))
        if num == 0 and measure in SHARES:
            return None
        mean = self._number(row, f"{measure}_mean")
        if mean is not None:
            return Seeds(mean, self._number(row, f"{measure}_std"), num)
        plain = self._number(row, measure)
        return None if plain is None else Seeds(plain, None, num)

    def _number(self, row: Row, column: str) -> float | None:
        """A cell; None where it is empty, absent or not finite."""
        text = row.get(column)
        if text is None or text == "":
            return None
        try:
            value = float(text)
        except (TypeError, ValueError):
            raise UserError(problem(self._where(row, column), text, "not a number")) from None
        if not math.isfinite(value):
            return None
        name, _, kind = column.rpartition("_")
        if kind == "std" and value < 0:
            raise UserError(problem(self._where(row, column), text, "a deviation is at least 0"))
        if (name if kind in ("mean", "std") else column) not in SHARES:
            return value
        value = value / 100 if self.percent else value
        if value > 1:
            rule, remedy = "a share is at most 1", "add --percent if the file has per cent"
            raise UserError(problem(self._where(row, column), text, rule, remedy))
        if value < 0:
            raise UserError(problem(self._where(row, column), text, "a share is at least 0"))
        return value

    def _where(self, row: Row, column: str) -> str:
        return f"{self.source}: {row['experiment']}: {column}"


def read_results(path: Path, percent: bool = False) -> Results:
    """Read a CSV of results.

    Raises:
        UserError: no such file, not CSV text, no column `experiment`, a column that is there twice, a line of another
            length, and what `collect` says.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            rows = list(reader)
    except FileNotFoundError:
        raise UserError(problem("results", str(path), "no such file")) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(problem("results", str(path), f"cannot be read as CSV: {error}")) from None
    if "experiment" not in columns:
        raise UserError(f"{path}: " + unknown_name("columns", "experiment", columns or ["none"]))
    for name, times in Counter(columns).items():
        if name and times > 1:
            raise UserError(problem(f"{path}: columns", name, "is there twice", "keep one of them"))
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            rule = f"has not the {len(columns)} cells of the header"
            raise UserError(problem(f"{path}: record", line, rule, "quote cells that hold commas"))
    rows = [{name: cell.strip() for name, cell in row.items()} for row in rows]
    return collect(str(path), columns, rows, percent)


def collect(source: str, columns: Iterable[str], rows: Iterable[Row], percent: bool = False) -> Results:
    """Rows of a table, by experiment, each cell recorded once.

    Raises:
        UserError: an experiment, or one seed of it, is there twice or has no name; a seed is not a whole number.
    """
    columns, seen = tuple(columns), set()
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = _unguarded(str(row["experiment"]))
        if not name:
            raise UserError(problem(f"{source}: experiment", name, "has no name", "give it one, or delete its row"))
        seed = _seed(f"{source}: {name}: seed", row.get("seed")) if "seed" in columns else None
        if (name, seed) in seen:
            which = "" if seed is None else f" with seed {seed}"
            remedy = "keep one of them" if "seed" in columns else "keep one of them, or add a column seed"
            raise UserError(problem(f"{source}: experiment", name, f"is there twice{which}", remedy))
        seen.add((name, seed))
        groups.setdefault(name, []).append({**row, "experiment": name})
    return Results(source, columns, groups, percent)


def _is_good(row: Row) -> bool:
    return str(row.get("status") or "").casefold() in GOOD


def _seed(where: str, text: Any) -> int:
    """01 is 1: two spellings are no two seeds."""
    try:
        return int(str(text))
    except ValueError:
        raise UserError(problem(where, text, "not a whole number", "use 0, 1, 2 ...")) from None


def _unguarded(name: str) -> str:
    """Our CSV files put an apostrophe before what a spreadsheet would run."""
    return name[1:] if name[:1] == "'" and name[1:2] in tuple("=+-@\t\r") else name
