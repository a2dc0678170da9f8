"""MLflow's runs: one database, one run for each of ours, one value for each point."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking.ledger import find_run_ids
from pipeline.tracking.replay import replay

from .records import SUITE, shown, train


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
