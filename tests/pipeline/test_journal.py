"""The journal is the record: whole lines survive any kill, and a reader that follows it misses nothing."""

import math
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.journal import JOURNAL_NAME, Journal, curves, read_journal, read_tail


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.metrics(10, train_loss=1.5, lr=1e-3)
    journal.event("resumed at step 10")
    journal.artifact("picture.png")
    records = read_journal(tmp_path / "run" / JOURNAL_NAME)
    assert [r["kind"] for r in records] == ["metrics", "event", "artifact"]
    assert records[0]["step"] == 10
    assert records[0]["values"] == {"train_loss": 1.5, "lr": 1e-3}
    assert records[1]["text"] == "resumed at step 10"
    assert records[2]["path"] == "picture.png"


def test_nan_and_infinity_are_kept(tmp_path: Path) -> None:
    Journal(tmp_path).metrics(1, a=float("nan"), b=float("inf"))
    values = read_journal(tmp_path / JOURNAL_NAME)[0]["values"]
    assert math.isnan(values["a"])
    assert values["b"] == math.inf


def test_every_cut_of_the_file_leaves_the_whole_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in range(3):
        journal.metrics(step, loss=step)
    path = tmp_path / JOURNAL_NAME
    data = path.read_bytes()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        whole = data[:length].count(b"\n")
        assert [r["step"] for r in read_journal(path)] == list(range(whole))
        Journal(tmp_path).metrics(99, loss=0.0)
        assert [r["step"] for r in read_journal(path)] == [*range(whole), 99]


def test_following_a_growing_journal_sees_each_record_once(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_NAME
    assert read_tail(path, 0) == ([], 0)
    journal = Journal(tmp_path)
    seen, offset = [], 0
    for step in range(5):
        journal.metrics(step, loss=0.0)
        with path.open("ab") as file:
            file.write(b'{"kind": "met')  # another line on its way
        records, offset = read_tail(path, offset)
        seen += [r["step"] for r in records]
        journal = Journal(tmp_path)
    assert seen == list(range(5))


def test_curves_keep_the_last_of_each_step(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step, loss in [(1, 0.9), (2, 0.8), (3, 0.7), (2, 0.81), (3, 0.71), (4, 0.6)]:
        journal.metrics(step, loss=loss)
    journal.event("not a metric")
    assert curves(read_journal(tmp_path / JOURNAL_NAME)) == {"loss": {1: 0.9, 2: 0.81, 3: 0.71, 4: 0.6}}


def test_a_missing_journal_is_empty_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl") == []
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(b'garbage\n{"kind": "event", "text": "x", "time": 0}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl = 'garbage': not a journal line"):
        read_journal(path)
