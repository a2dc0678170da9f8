"""Optuna by its log: the same points after any death, and better ones than chance finds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.search_rules import SweepConfig
from pipeline.sweep.points import Points
from pipeline.sweep.search_log import SearchLog, asked_points
from pipeline.sweep.space import sample_points
from pipeline.sweep.suggesting import Suggestions

SPACE: dict[str, Any] = {
    "tokenizer.name": ["uniform", "dart"],
    "tokenizer.token_budget": {"low": 4, "high": 64, "log": True},
    "train.lr": {"low": 1e-4, "high": 1e-1, "log": True},
}


def sweep(num_samples: int = 24, **space: Any) -> SweepConfig:
    return SweepConfig(seeds=[0], search="optuna", space=space or SPACE, num_samples=num_samples, seed=3)


def score(point: dict[str, Any]) -> float:
    near = 1 - abs(point["tokenizer.token_budget"] - 20) / 64
    return near + (point["tokenizer.name"] == "dart")


def work(config: SweepConfig, folder: Path, num_results: int = 99) -> Suggestions:
    """One training at a time, until so many have a result; then one more is chosen, and the process dies."""
    search = Suggestions(config, SearchLog(folder))
    for number in sorted(search.open):
        search.tell(number, score(search.values[number]))
    while (number := search.ask()) is not None and number < num_results:
        search.tell(number, score(search.values[number]))
    return search


@pytest.mark.parametrize("dies_after", [0, 1, 12, 23])
def test_a_search_that_was_killed_chooses_what_it_would_have_chosen(tmp_path: Path, dies_after: int) -> None:
    whole = work(sweep(), tmp_path / "whole")
    assert work(sweep(), tmp_path / "twice", dies_after).open == {dies_after}
    again = work(sweep(), tmp_path / "twice")
    assert again.values == whole.values
    assert again.open == whole.open == set()
    assert asked_points(tmp_path / "twice") == whole.values


def test_a_larger_search_goes_on_where_the_smaller_one_ended(tmp_path: Path) -> None:
    few = work(sweep(9), tmp_path / "grows")
    more = work(sweep(24), tmp_path / "grows")
    assert more.values[:9] == few.values
    assert more.values == work(sweep(24), tmp_path / "at once").values


def test_it_finds_better_points_than_chance(tmp_path: Path) -> None:
    config = sweep(40)
    found = sorted(map(score, work(config, tmp_path).values))[-20:]
    drawn = sorted(map(score, sample_points(config.space or {}, 40, seed=3)))[-20:]
    assert sum(found) / 20 > sum(drawn) / 20 + 0.02


def test_a_log_of_another_search_is_refused_in_one_sentence(tmp_path: Path) -> None:
    work(sweep(), tmp_path, num_results=3)
    other = SweepConfig(seeds=[0], search="optuna", space=SPACE, num_samples=24, seed=4)
    with pytest.raises(UserError, match=r"journal\.jsonl = \{.*\}: the search would choose .*; delete this file"):
        Suggestions(other, SearchLog(tmp_path))


@dataclass
class FakeRun:
    """A run without a training: its result is a number in memory."""

    fingerprint: str
    results: dict[str, dict[str, Any] | None]
    prepared: int = 0

    def prepare(self, fresh: bool = False) -> None:
        self.prepared += 1

    def done(self) -> dict[str, Any] | None:
        return self.results.get(self.fingerprint)


FEW = {"tokenizer.name": ["uniform", "dart"], "tokenizer.token_budget": [4, 9]}


def points_of(folder: Path, results: dict[str, Any], num_samples: int, space: dict[str, Any]) -> Points:
    config = sweep(num_samples, **space)

    def run_at(values: dict[str, Any]) -> Any:
        return FakeRun("-".join(map(str, values.values())), results)

    return Points(Suggestions(config, SearchLog(folder)), run_at, "val_top1")


def test_no_training_is_done_twice_and_every_point_gets_its_result(tmp_path: Path) -> None:
    """12 points of a space of 4: equal ones share a run, also while it is being trained."""
    results: dict[str, Any] = {}
    points, started = points_of(tmp_path, results, 12, FEW), []
    running: list[tuple[int, Any]] = []
    while True:
        while len(running) < 2 and (found := points.start()) is not None:
            running.append(found)
            started.append(found[1].fingerprint)
        if not running:
            break
        number, run = running.pop(0)
        results[run.fingerprint] = {"status": "done", "metrics": {"val_top1": 0.5}}
        points.end(number)
    assert len(started) == len(set(started)) <= 4
    assert points.num_told == 12
    assert {run.fingerprint for run in points.runs} == set(started)
    assert points_of(tmp_path, results, 12, FEW).peek() is None  # nothing is left for another process


def test_a_failure_is_tried_again_by_the_next_process_and_a_divergence_is_a_result(tmp_path: Path) -> None:
    results: dict[str, Any] = {}
    points = points_of(tmp_path, results, 2, SPACE)
    number, crashed = points.start() or (0, None)
    points.end(number)  # without a result
    number, lost = points.start() or (0, None)
    results[lost.fingerprint] = {"status": "diverged at step 3 of 9", "metrics": {"val_top1": 0.9}}
    points.end(number)
    assert points.num_told == 1
    again = points_of(tmp_path, results, 2, SPACE)
    run = again.peek()
    assert run is not None
    assert run.fingerprint == crashed.fingerprint != lost.fingerprint
