"""MLflow's runs: one database, one run for each of ours, one value for each point."""

import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking.ledger import find_run_ids
from pipeline.tracking.points import same_value
from pipeline.tracking.refusals import of_one_run
from pipeline.tracking.replay import replay

from .records import SUITE, history, shown, start_run, train


def test_two_processes_that_need_a_new_database_get_one(tmp_path: Path) -> None:
    path = str(tmp_path / "x.db")
    code = f"import pathlib; from pipeline.tracking.database import make_database as m; m(pathlib.Path({path!r}))"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    with sqlite3.connect(tmp_path / "x.db") as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)


def test_the_ledger_knows_its_runs_by_what_the_records_call_them(uri: str, runs: Path, tmp_path: Path) -> None:
    train(runs, "f1", 2)
    replay(uri, SUITE, runs, tmp_path / "results")
    assert find_run_ids(uri, SUITE)[f"{SUITE}/train/f1"] == shown(uri, f"{SUITE}/train/f1").info.run_id
    assert find_run_ids(uri, "another") == {}
    with pytest.raises(UserError, match=r"no such file; run: python -m pipeline\.tracking replay"):
        find_run_ids(f"sqlite:///{tmp_path}/none.db", SUITE)
    assert not (tmp_path / "none.db").exists()


def test_a_value_that_mlflow_stores_in_its_own_way_is_the_same(tmp_path: Path, uri: str, runs: Path) -> None:
    values = [math.nan, math.inf, -math.inf, 0.1, 0.0]
    journal = start_run(runs, "f1")
    for step, value in enumerate(values):
        journal.metrics(step, val_loss=value)
    replay(uri, SUITE, runs, tmp_path)
    replay(uri, SUITE, runs, tmp_path)  # a run without an end is compared point by point
    stored = [value for _, value in history(uri, f"{SUITE}/train/f1", "val_loss")]
    assert len(stored) == len(values)
    same = [[same_value(one, other) for other in values] for one in stored]
    assert same == [[i == j for j in range(len(values))] for i in range(len(values))]


def test_whom_a_failure_concerns() -> None:
    from mlflow.exceptions import MlflowException, RestException

    gone = MlflowException("API request to http://127.0.0.1:1 failed")  # so says its client
    locked = RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "database is locked"})
    wrong = RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "too long"})
    assert not any(of_one_run(error) for error in (gone, locked, ConnectionError(), TimeoutError(), OSError()))
    assert all(of_one_run(error) for error in (wrong, KeyError("science"), FileNotFoundError("picture.txt")))
