"""The recorded answers of runs on the test split -> a score for every sample."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError, problem
from pipeline.report.records import Records, Run
from pipeline.report.statistics import Floats


class Scores(NamedTuple):
    """Of one run: the samples' keys and their scores."""

    keys: list[str]
    values: Floats  # (n,)


@lru_cache(maxsize=2)  # the tests and what they leave out both ask for it
def run_scores(records: Records) -> dict[str, Scores]:
    """{fingerprint: scores} of the complete runs."""
    return {run.fingerprint: sample_scores(records, run) for run in records.runs if not run.problem}


def sample_scores(records: Records, run: Run) -> Scores:
    """Of a run on the test split; none where no answers are recorded, and none of a sample that has no score.

    Raises:
        UserError: the file of predictions has not the columns of the task, a line of another length, a sample twice,
            or a score that is not a number.
    """
    path = records.evaluate_dir / "predictions" / f"{run.fingerprint}.csv"
    if not path.is_file():
        return Scores([], np.empty(0))
    with path.open(newline="") as file:
        header, *lines = [*csv.reader(file)] or [[]]
    wanted = ("key", records.task.scored[0], records.task.scored[-1])
    damage = _damage(header, lines, wanted)
    if damage:
        raise UserError(problem("predictions", str(path), damage, f"run: dvc repro evaluate@{run.suite}"))
    key, first, last = (header.index(name) for name in wanted)
    if first == last:
        lines = [line for line in lines if line[first]]
        values = np.array([line[first] for line in lines], float)
    else:
        values = np.array([line[first] == line[last] for line in lines], float)
    return Scores([line[key] for line in lines], values)


def _damage(header: Sequence[str], lines: Sequence[Sequence[str]], wanted: Sequence[str]) -> str:
    """What is wrong with a file of predictions; empty where nothing is."""
    if not set(wanted) <= set(header):
        return f"has not the columns {', '.join(dict.fromkeys(wanted))}"
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            return f"line {number} has not the {len(header)} cells of the header"
    key, twice = Counter(line[header.index(wanted[0])] for line in lines).most_common(1)[0] if lines else ("", 0)
    if twice > 1:
        return f"sample {key!r} is there {twice} times"
    wrong = [line[header.index(wanted[-1])] for line in lines] if wanted[1] == wanted[-1] else []
    return next((f"{wanted[-1]} {text!r} is not a number" for text in wrong if text and not _is_number(text)), "")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
