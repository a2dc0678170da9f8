"""The short form of the chaos command, and what it stands on: it dies when it says so, and sees what is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import building_dir, write_text_atomic
from tests.chaos.attempts import attempt, die, fill_disk, free_disk
from tests.chaos.folders import Publishing, killed_while_publishing
from tests.chaos.report import Row

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_short_form_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    tried, *words = done.stdout.strip().splitlines()[-1].split()
    assert int(tried) >= 50
    assert " ".join(words) == "faults tried, nothing lost"
    assert "no space left on the disk" in done.stdout
    assert "cannot be written (permission denied)" in done.stdout


def test_an_attempt_dies_before_the_change_that_is_named(tmp_path: Path) -> None:
    def work() -> None:
        for name in ("a", "b", "c"):
            (tmp_path / name).write_text(name)

    whole = attempt(work, tmp_path)
    assert [str(change) for change in whole.changes] == ["open a", "open b", "open c"]
    assert not whole.killed
    for number, left in enumerate([[], ["a"], ["a", "b"]]):
        for file in tmp_path.iterdir():
            file.unlink()
        assert attempt(work, tmp_path, at=number).killed
        assert sorted(os.listdir(tmp_path)) == left


def test_a_torn_write_is_half_of_what_was_written(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / "log").open("a").write("12345678")
        (tmp_path / "next").mkdir()

    (tmp_path / "log").write_text("old.")
    assert attempt(work, tmp_path, at=1, tear=True).killed
    assert (tmp_path / "log").read_text() == "old.1234"


def test_removing_and_renaming_are_changes_and_reading_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "sub").mkdir()

    def work() -> None:
        (tmp_path / "a").read_text()
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "none").unlink(missing_ok=True)
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "sub").rmdir()

    assert [str(change) for change in attempt(work, tmp_path).changes] == ["rename b", "rmdir sub"]


def test_a_full_disk_is_the_kernels_own_and_is_undone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    failed = attempt(lambda: write_text_atomic(tmp_path / "a", "new"), tmp_path, at=0, fault=fill_disk)
    assert "no space left on the disk" in failed.error
    assert failed.sentence
    appended = attempt(lambda: (tmp_path / "a").write_text("new"), tmp_path, at=0, fault=fill_disk)
    assert "No space left on device" in appended.error
    assert not appended.sentence  # nobody explained it: a traceback
    free_disk(tmp_path)
    assert (tmp_path / "a").read_text() == "old"


def test_how_an_attempt_ended_is_known(tmp_path: Path) -> None:
    def refuse() -> None:
        raise UserError("mend this")

    assert attempt(refuse, tmp_path).error == "mend this"
    assert "ZeroDivisionError" in attempt(lambda: 1 / 0, tmp_path).error
    assert attempt(signal.pause, tmp_path, signal_after_s=0.2, send=signal.SIGINT).error == "interrupted"
    assert "status" in attempt(lambda: os._exit(3), tmp_path).error
    with pytest.raises(TimeoutError):
        attempt(signal.pause, tmp_path, limit_s=0.2)


def two_files(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        (folder / name).write_text(text)


def two_files_at_once(folder: Path, text: str) -> None:
    with building_dir(folder) as new:
        two_files(new, text)


def try_to_kill(tmp_path: Path, work: object) -> Row:
    def version(text: str) -> object:
        return lambda: work(tmp_path / "room/out", text)

    return killed_while_publishing(Publishing("two files", tmp_path / "room/out", version("old"), version("new")), None)


def test_work_that_leaves_a_half_is_found_out(tmp_path: Path) -> None:
    row = try_to_kill(tmp_path, two_files)
    assert row.tried == 3  # before a, before b, and before b with a torn
    assert any("neither the old one nor the new one" in what for what in row.lost)


def test_work_that_appears_at_once_leaves_none(tmp_path: Path) -> None:
    row = try_to_kill(tmp_path, two_files_at_once)
    assert row.tried > 5
    assert row.lost == []


def test_a_table_counts_and_shows_what_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.chaos.report import Table

    table = Table()
    good, bad = Row("one"), Row("two")
    good.goes_on([])
    bad.ends("a sentence", ["the weights"], "killed before change 3")
    table.add(good)
    assert table.conclude() == 0
    table.add(bad)
    assert table.conclude() == 1
    shown = capsys.readouterr().out
    assert "ended with: a sentence" in shown
    assert "LOST killed before change 3: the weights" in shown
    assert "2 faults tried, 1 things lost" in shown


def test_die_is_no_exception(tmp_path: Path) -> None:
    """Nothing of the work runs after it, no `finally` and no `except`."""

    def work() -> None:
        try:
            die(tmp_path)
        finally:
            (tmp_path / "late").touch()

    assert attempt(work, tmp_path).killed
    assert os.listdir(tmp_path) == []
