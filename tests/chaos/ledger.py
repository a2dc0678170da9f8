"""MLflow's side of the records: killed at every commit of its database, and a server that is gone. It is made whole."""

import os
import shutil
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.attempts import COMMIT, attempt
from tests.chaos.project import SUITE, Project
from tests.chaos.report import Row
from tests.chaos.training import thinned

DATABASE = "mlflow.db"
QUERIES = {  # what MLflow knows of runs, each by our key of the run
    "status": "SELECT k.value, r.status, r.name FROM runs r",
    "points": "SELECT k.value, m.key, m.step, m.value FROM metrics m JOIN runs r USING (run_uuid)",
    "params": "SELECT k.value, p.key, p.value FROM params p JOIN runs r USING (run_uuid)",
}
BY_KEY = " JOIN tags k ON k.run_uuid = r.run_uuid AND k.key = 'dart.key'"
Known = dict[str, Counter]


def load_mlflow() -> None:
    """Once, in the process that children are forked from."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")

    import pipeline.tracking.ledger  # noqa: F401


def killed_at_commits(project: Project, at_most: int | None) -> Row:
    """Die before a commit of a replay, and do it again: MLflow knows every point of every run once.

    Args:
        at_most: So many commits of a replay into a database that is there, and one while it is made (else eight).
    """
    room = project.root / "ledger"
    reference, in_new = replayed(project, room / "reference")
    replayed(project, room / "empty", suite="none")
    num_making, num_sending = sum(in_new), len(in_new) - sum(in_new)
    row = Row(f"kill -9 at some commits ({num_making} + {num_sending}) of a replay into MLflow")
    making = thinned([(i, False) for i in range(num_making)], 8 if at_most is None else 1)
    sending = thinned([(i, False) for i in range(num_sending)], at_most)
    for (i, _), new in [*((one, True) for one in making), *((one, False) for one in sending)]:
        folder = room / f"commit-{i}{'-new' if new else ''}"
        if not new:
            shutil.copytree(room / "empty", folder)
        row.goes_on(again(project, folder, i, reference), f"killed before commit {i}{' of a new database' * new}")
        shutil.rmtree(folder)
    return row


def replayed(project: Project, folder: Path, suite: str = SUITE) -> tuple[Known, list[bool]]:
    """What MLflow knows after a replay into `folder`; of each commit, whether the database was being made."""
    folder.mkdir(parents=True, exist_ok=True)
    done = attempt(partial(replay_there, project, folder, suite), folder)
    assert not done.error, done.error
    commits = [change.path for change in done.changes if change.kind == COMMIT]
    return known(folder), [path != DATABASE for path in commits]


def again(project: Project, folder: Path, commit: int, reference: Known) -> list[str]:
    """Replay, die before that commit, replay: what MLflow lacks then, or has twice."""
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(replay_there, project, folder, SUITE)
    first = attempt(work, folder, at=commit, only=COMMIT)
    second = attempt(work, folder)
    if second.error:
        return [f"it did not go on: {second.error}"]
    found = known(folder)
    lost = [f"{name} of MLflow differ" for name in QUERIES if found[name] != reference[name]]
    left = sorted({path.name for path in folder.iterdir()} - {DATABASE, "mlartifacts"})
    return lost + [f"{name} is left" for name in left] + ([] if first.killed else ["the commit did not happen again"])


def replay_there(project: Project, folder: Path, suite: str) -> None:
    """`python -m pipeline.tracking replay`, telling the watch of every commit before it happens."""
    from sqlalchemy import event
    from sqlalchemy.engine import Connection, Engine

    from pipeline.tracking.replay import replay

    def tell(connection: Connection) -> None:
        sys.audit(COMMIT, str(connection.engine.url.database))

    event.listen(Engine, "commit", tell)
    replay(f"sqlite:///{folder / DATABASE}", suite, project.root / "none", project.published)


def known(folder: Path) -> Known:
    """What the database says of all runs, every row counted."""
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        return {name: Counter(rows(database, query)) for name, query in QUERIES.items()}


def rows(database: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    return database.execute(query + BY_KEY).fetchall()
