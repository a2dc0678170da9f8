"""ASHA by its log: what was decided stays decided, the best is never stopped, nothing is stopped at its end."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.journal import Journal
from pipeline.search_rules import HalvingConfig
from pipeline.sweep.halving import Halving
from pipeline.sweep.search_log import SearchLog

EPOCHS = 9
CONFIG = HalvingConfig(grace_epochs=1, reduction_factor=3)  # looks after epochs 1, 3 and 9


def record(folder: Path, epoch: int, step: int, value: float) -> dict[str, Any]:
    return {"status": f"stopped early at epoch {epoch} of {EPOCHS}", "num_steps": step, "metrics": {"val_top1": value}}


def open_halving(folder: Path) -> Halving:
    return Halving(CONFIG, EPOCHS, "val_top1", SearchLog(folder / "search"), record)


def values(trial: int, epoch: int) -> float:
    return 0.1 + (trial * 7 % 12) / 12 * (1 - 0.8**epoch)


def events() -> list[tuple[int, int]]:
    """12 trainings, three side by side: (trial, epoch) as they come."""
    waves = [range(first, first + 3) for first in range(0, 12, 3)]
    return [(trial, epoch) for wave in waves for epoch in range(1, EPOCHS + 1) for trial in wave]


def feed(halving: Halving, folder: Path, coming: list[tuple[int, int]]) -> None:
    for trial, epoch in coming:
        halving.judge(folder / f"run{trial}", epoch, 20 * epoch, values(trial, epoch))


@pytest.mark.parametrize("killed_after", [0, 1, 7, 30, 108])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not(tmp_path: Path, killed_after: int) -> None:
    whole = open_halving(tmp_path / "whole")
    feed(whole, tmp_path, events())
    feed(open_halving(tmp_path / "twice"), tmp_path, events()[:killed_after])
    again = open_halving(tmp_path / "twice")
    feed(again, tmp_path, events()[killed_after:])
    assert again.stopped == whole.stopped
    assert 0 < len(whole.stopped) < 12
    kept = [[{**e, "time": 0} for e in SearchLog(tmp_path / n / "search").events()] for n in ("whole", "twice")]
    assert kept[0] == kept[1]


def test_events_that_come_twice_change_nothing(tmp_path: Path) -> None:
    halving = open_halving(tmp_path)
    for some in itertools.batched(events(), 5) if hasattr(itertools, "batched") else [events()]:
        feed(halving, tmp_path, list(some))
    said = halving.log.path.read_bytes()
    feed(halving, tmp_path, events())
    assert halving.log.path.read_bytes() == said


def test_who_is_best_at_every_look_is_never_stopped_and_nobody_at_the_end(tmp_path: Path) -> None:
    halving = open_halving(tmp_path)
    feed(halving, tmp_path, events())
    best = max(range(12), key=lambda trial: values(trial, 1))
    assert f"run{best}" not in halving.stopped
    assert {entry["status"].split()[-3] for entry in halving.stopped.values()} <= {"1", "3"}  # never after 9 of 9


def test_a_late_and_bad_one_is_stopped_at_the_first_look(tmp_path: Path) -> None:
    halving = open_halving(tmp_path)
    for trial in range(3):
        halving.judge(tmp_path / f"good{trial}", 1, 20, 0.5 + 0.1 * trial)
    halving.judge(tmp_path / "bad", 1, 20, 0.1)
    assert halving.stopped["bad"] == record(tmp_path / "bad", 1, 20, 0.1)
    assert json.loads(halving.log.path.read_text().splitlines()[-1])["record"] == halving.stopped["bad"]


def test_what_another_stage_has_trained_is_read_from_its_journal(tmp_path: Path) -> None:
    halving = open_halving(tmp_path)
    for trial in range(3):
        halving.judge(tmp_path / f"good{trial}", 1, 20, 0.5 + 0.1 * trial)
    journal = Journal(tmp_path / "bad")
    for step in (10, 20, 30, 40):
        journal.metrics(step, train_loss=1.0, **({"val_top1": 0.1} if step % 20 == 0 else {}))
    assert halving.look(tmp_path / "good0")  # it has no journal: nothing new
    assert not halving.look(tmp_path / "bad", up_to=1)
    assert halving.stopped["bad"]["num_steps"] == 20
