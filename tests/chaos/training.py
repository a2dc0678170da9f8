"""A training that is killed: at every change of a file, and at random. It ends with the bits of one that was not."""

import random
import re
import signal
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from pipeline.data.ledger import check_ledger
from pipeline.errors import UserError
from pipeline.train.run import DONE, Run
from tests.chaos.attempts import Change, attempt
from tests.chaos.project import Outcome, Project, events, forget, newest_checkpoint, train
from tests.chaos.report import Row


class Case(NamedTuple):
    """A training that was not disturbed, to compare with, and one that died when it had two checkpoints, to copy."""

    project: Project
    reference: Outcome
    changes: list[Change]
    killed: Run

    @classmethod
    def prepare(cls, project: Project) -> "Case":
        train(project.job(project.run("loads-everything", project.trial())))
        reference, changes, _ = undisturbed(project, project.run("undisturbed", project.trial()))
        killed = project.run("killed", project.trial())
        at = max(i for i, change in enumerate(changes) if change.kind == "rename" and "manifest" in change.path)
        assert attempt(partial(train, project.job(killed)), killed.dir, at=at).killed
        return cls(project, reference, changes, killed)

    def finished(self) -> list[Run]:
        """Two runs with their results, under their own names."""
        runs = [self.project.run(None, self.project.trial().model_copy(update={"seed": seed})) for seed in (0, 1)]
        for run in runs:
            train(self.project.job(run))
        return runs


def undisturbed(project: Project, run: Run) -> tuple[Outcome, list[Change], float]:
    """What a training comes to that nobody disturbs, the changes it makes to files, in order, and how long it takes."""
    done = attempt(partial(train, project.job(run)), run.dir)
    assert not done.error, done.error
    return Outcome.of(run.dir), done.changes, done.seconds


def boundaries(changes: Sequence[Change], at_most: int | None = None) -> list[tuple[int, bool]]:
    """(number, torn) of the changes to die before: all of them, or so many of different kinds, the first and the last.

    torn: What was written to the file that was opened just before is cut in half.
    """
    last = {kind_of(change): i for i, change in enumerate(changes)}
    numbers = sorted(last.values()) if at_most else range(len(changes))
    found = [(i, torn) for i in numbers for torn in (False, True) if not torn or (i and changes[i - 1].kind == "open")]
    return thinned(found, at_most)


def thinned(numbers: list[tuple[int, bool]], at_most: int | None) -> list[tuple[int, bool]]:
    """At most so many of them: the first, the last, and some in between."""
    if at_most is None or len(numbers) <= at_most:
        return numbers
    if at_most == 1:
        return [numbers[len(numbers) // 2]]
    return [numbers[round(i * (len(numbers) - 1) / (at_most - 1))] for i in range(at_most)]


def kind_of(change: Change) -> str:
    """A change without its numbers: every checkpoint is written alike."""
    return re.sub(r"\d+", "#", str(change))


def killed_at_boundaries(case: Case, at_most: int | None) -> Row:
    """Die before each change of a file in a run of its own, and go on."""
    project, reference, changes, _ = case
    trial, numbers = project.trial(), boundaries(changes, at_most)
    row = Row(f"kill -9 at {share(numbers, changes)} of a training")
    for i, torn in numbers:
        run = project.run(f"boundary-{i}{'-torn' if torn else ''}", trial)
        first = attempt(partial(train, project.job(run)), run.dir, at=i, tear=torn)
        where = f"killed before change {i} ({changes[i]}){', the last write torn' if torn else ''}"
        if not first.killed:
            row.note(["the change did not happen again"], where)
        row.goes_on(go_on(project, run, reference), where)
        forget(run)
    return row


def share(numbers: Sequence[tuple[int, bool]], changes: Sequence[Change]) -> str:
    """How many of the boundaries are tried, in words."""
    total = len(boundaries(changes))
    return "every write boundary" if len(numbers) == total else f"some of {total} write boundaries"


def killed_while_it_rewinds(project: Project, num_kills: int, rng: random.Random) -> Row:
    """As `killed_at_random`, where every small rise of the loss is a reason to go back to a snapshot."""
    nervous = {"action": "rewind", "spike_factor": 1.02, "max_rewinds": 1000}
    row = killed_at_random(project, num_kills, rng, "one that rewinds", epochs=max(8, num_kills), divergence=nervous)
    num_rewinds = Outcome.of(project.root / "runs/tiny/one that rewinds-1").rewinds
    row.fault += f", rewound {num_rewinds}x"
    row.note([] if num_rewinds else ["it never rewound"])
    return row


def go_on(project: Project, run: Run, reference: Outcome) -> list[str]:
    """Continue a run to its end; what was lost."""
    saved, was_done = newest_checkpoint(run.dir), (run.dir / DONE).is_file()
    rest = attempt(partial(train, project.job(run)), run.dir)
    if rest.killed or rest.error:
        return [f"it did not go on: {rest.error or 'killed'}"]
    if saved and not was_done and f"resumed at step {saved}" not in events(run.dir):
        return [f"the checkpoint of step {saved} was not gone on from"]
    return Outcome.of(run.dir).lost(reference) + unread(project, run)


def unread(project: Project, run: Run) -> list[str]:
    """What the ledger of samples says against the arithmetic: batches that were not read, or others than due."""
    try:
        check_ledger(run.dir, project.shards)
    except UserError as error:
        return [str(error)]
    return []


def killed_at_random(
    project: Project, num_kills: int, rng: random.Random, name: str = "a training", **recipe: Any
) -> Row:
    """A training that is killed after random times, then left alone; another one where it ends before all kills.

    Args:
        name: What is said of it.
        recipe: Of the trial, where it differs.
    """
    row, trial, num_places = Row(""), project.trial(**{"epochs": max(2, num_kills), **recipe}), 0
    reference, _, seconds = undisturbed(project, project.run(f"{name}-undisturbed", trial))
    num_trainings = 0
    while row.tried < num_kills and not row.lost:
        num_trainings += 1
        run = project.run(f"{name}-{num_trainings}", trial)
        pace = Pace(rng, row.tried, num_kills, reference, seconds)
        kill_often(project, run, row, pace)
        row.note(go_on(project, run, reference))
        num_places += len({text for text in events(run.dir) if text.startswith("resumed")})
    again = f", {num_trainings} times" if num_trainings > 1 else ""
    row.fault = f"kill -9 at random times of {name}{again}, gone on from {num_places} places"
    return row


def kill_often(project: Project, run: Run, row: Row, pace: "Pace") -> None:
    """Until the kills are done or the training is."""
    while row.tried < pace.num_kills and not (run.dir / DONE).is_file():
        killed = attempt(partial(train, project.job(run)), run.dir, signal_after_s=pace.seconds(row.tried, run))
        if killed.killed:
            row.goes_on([])
        elif killed.error:
            row.goes_on([f"it did not go on: {killed.error}"])
            return


class Pace:
    """How long the next attempt may live, so that the kills are spread over the whole training."""

    def __init__(self, rng: random.Random, first: int, num_kills: int, reference: Outcome, whole_s: float) -> None:
        self.rng, self.first, self.num_kills = rng, first, num_kills
        self.num_steps = max(step for points in reference.curves.values() for step in points)
        self.limit_s = 0.2 + 2 * whole_s / num_kills  # half of it on the average, and loading takes some

    def seconds(self, num_killed: int, run: Run) -> float:
        """Longer where the training is behind the kills, shorter where it is ahead."""
        done = (num_killed - self.first) / (self.num_kills - self.first)
        self.limit_s *= 0.6 if newest_checkpoint(run.dir) / self.num_steps > 0.8 * done else 1.3
        return self.rng.uniform(0, self.limit_s)


def interrupted(case: Case, times: Sequence[float]) -> Row:
    """Ctrl-C after so many seconds."""
    row = Row("Ctrl-C while it trains")
    project, reference = case.project, case.reference
    for i, seconds in enumerate(times):
        run = project.run(f"interrupted-{i}", project.trial())
        first = attempt(partial(train, project.job(run)), run.dir, signal_after_s=seconds, send=signal.SIGINT)
        lost = [first.error] if not first.sentence else []
        row.goes_on(lost + go_on(project, run, reference))
        forget(run)
    return row
