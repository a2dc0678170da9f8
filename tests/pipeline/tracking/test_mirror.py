"""What the ledger shows while a stage trains, and of how its runs end."""

import errno
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json_atomic
from pipeline.journal import JOURNAL_NAME, Journal, Tail
from pipeline.tracking import runs as run_files
from pipeline.tracking.ledger import SYNCED
from pipeline.tracking.mirror import mirror
from pipeline.tracking.runs import RunFiles

from .records import DATA_SHA, PROVENANCE, SUITE, end_run, history, shown, start_run, train


def test_a_mirrored_run_has_everything(tmp_path: Path, uri: str, runs: Path) -> None:
    manifest = tmp_path / "manifest.json"
    write_json_atomic(manifest, {"source": "made here", "splits": {"train": {"num_samples": 7}}})
    folders = [runs / SUITE / "f1", runs / SUITE / "never-started"]
    with mirror(uri, SUITE, "train", folders, provenance=PROVENANCE, manifest=manifest, interval_s=0.05):
        journal = start_run(runs, "f1")
        (runs / SUITE / "f1" / "picture.txt").write_text("seen")
        journal.artifact("picture.txt")
        journal.metrics(1, train_loss=0.5)
        time.sleep(0.3)
        journal.metrics(2, train_loss=0.25)
        end_run(runs, "f1", 2)
    run = shown(uri, f"{SUITE}/train/f1")
    assert run.info.status == "FINISHED"
    assert run.data.params["tokenizer.token_budget"] == "4"
    assert run.data.params["train.lr"] == "0.001"
    assert run.data.params["seed"] == "0"
    assert run.data.tags["mlflow.parentRunId"] == shown(uri, f"{SUITE}/train").info.run_id
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["dart.versions.torch"] == "2.13"
    assert run.data.tags["dart.report"] == f"report/index.html#{SUITE}/train/dart-4"
    (dataset,) = [entry.dataset for entry in run.inputs.dataset_inputs]
    assert dataset.digest == DATA_SHA[:36]
    assert json.loads(dataset.source)["manifest_sha256"] == DATA_SHA
    assert history(uri, f"{SUITE}/train/f1", "train_loss") == [(1, 0.5), (2, 0.25)]
    assert history(uri, f"{SUITE}/train/f1", "val_top1") == [(2, 0.5)]
    assert (tmp_path / "mlartifacts" / SUITE / run.info.run_id / "artifacts" / "picture.txt").read_text() == "seen"
    assert shown(uri, f"{SUITE}/train").info.status == "FINISHED"


def test_a_run_shared_by_two_stages_is_a_child_of_both(uri: str, runs: Path) -> None:
    train(runs, "f1", stage="train")
    for stage in ("train", "sweep"):
        with mirror(uri, SUITE, stage, [runs / SUITE / "f1"]):
            pass
        parent = shown(uri, f"{SUITE}/{stage}").info.run_id
        assert shown(uri, f"{SUITE}/{stage}/f1").data.tags["mlflow.parentRunId"] == parent


def end_badly(uri: str, folders: list[Path], error: BaseException) -> None:
    """A stage that mirrors the folders and dies of `error`."""
    with suppress(type(error)), mirror(uri, SUITE, "train", folders):
        raise error


def test_how_runs_end(uri: str, runs: Path) -> None:
    folders = [runs / SUITE / "done", runs / SUITE / "open"]
    train(runs, "done")
    start_run(runs, "open")
    end_badly(uri, folders, KeyboardInterrupt())
    assert shown(uri, f"{SUITE}/train/done").info.status == "FINISHED"
    assert shown(uri, f"{SUITE}/train/open").info.status == "KILLED"
    assert shown(uri, f"{SUITE}/train").info.status == "KILLED"
    Journal(folders[1]).metrics(1, train_loss=1.0)
    end_badly(uri, folders, RuntimeError())
    assert shown(uri, f"{SUITE}/train/open").info.status == "FAILED"


def test_a_training_that_was_lost_is_a_result_that_is_sent_once(uri: str, runs: Path) -> None:
    folder = runs / SUITE / "lost"
    train(runs, "lost")
    done = json.loads((folder / "done.json").read_text())
    (folder / "done.json").write_text(json.dumps({**done, "status": "diverged at step 5 of 9"}))
    with mirror(uri, SUITE, "train", [folder]):
        pass
    assert shown(uri, f"{SUITE}/train/lost").info.status == "FAILED"
    assert shown(uri, f"{SUITE}/train/lost").data.tags[SYNCED]
    assert shown(uri, f"{SUITE}/train").info.status == "FINISHED"


def test_a_killed_stage_leaves_no_run_running(uri: str, runs: Path) -> None:
    start_run(runs, "f1").metrics(1, train_loss=1.0)
    start_run(runs, "gone").metrics(1, train_loss=1.0)
    script = f"""
import os, time
from pathlib import Path
from pipeline.tracking.mirror import mirror
folders = [Path({str(runs)!r}) / {SUITE!r} / name for name in ("f1", "gone")]
with mirror({uri!r}, {SUITE!r}, "train", folders, interval_s=0.05):
    time.sleep(1.5)
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert shown(uri, f"{SUITE}/train/gone").info.status == "RUNNING"
    Journal(runs / SUITE / "gone").metrics(2, train_loss=0.75)  # a worker elsewhere went on for a moment
    with mirror(uri, SUITE, "train", [runs / SUITE / "f1"], interval_s=0.05):
        Journal(runs / SUITE / "f1").metrics(2, train_loss=0.5)
        end_run(runs, "f1", 2)
    assert shown(uri, f"{SUITE}/train/gone").info.status == "KILLED"
    assert history(uri, f"{SUITE}/train/gone", "train_loss") == [(1, 1.0), (2, 0.75)]
    assert shown(uri, f"{SUITE}/train/f1").info.status == "FINISHED"
    assert history(uri, f"{SUITE}/train/f1", "train_loss") == [(1, 1.0), (2, 0.5)]


def test_a_damaged_journal_is_left_out_and_the_others_are_not(
    uri: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(runs, "bad")
    train(runs, "good")
    (runs / SUITE / "bad" / JOURNAL_NAME).write_text("garbage\n")
    with mirror(uri, SUITE, "train", [runs / SUITE / "bad", runs / SUITE / "good"]):
        pass
    warnings = capsys.readouterr().err
    assert "tiny/train/bad is not shown in MLflow" in warnings
    assert "misses part of tiny" in warnings
    assert shown(uri, f"{SUITE}/train/good").info.status == "FINISHED"


def test_a_run_that_mlflow_does_not_take_holds_up_no_other(
    uri: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("refused", "good"):
        train(runs, name)
    spec = runs / SUITE / "refused/spec.json"
    content = json.loads(spec.read_text())
    spec.write_text(json.dumps({**content, "science": {"x" * 300: 1}}))  # MLflow's limit is 250
    with mirror(uri, SUITE, "train", [runs / SUITE / "refused", runs / SUITE / "good"], interval_s=0.05):
        Journal(runs / SUITE / "good").metrics(6, **{"x" * 300: 1.0})  # of a metric it is ours to cut
        time.sleep(0.5)
    assert shown(uri, f"{SUITE}/train/good").data.metrics["x" * 250] == 1.0
    assert shown(uri, f"{SUITE}/train/good").info.status == "FINISHED"
    assert shown(uri, f"{SUITE}/train/refused").info.status == "KILLED"
    assert shown(uri, f"{SUITE}/train").info.status == "FINISHED"
    told, missed = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: tiny/train/refused is not shown in MLflow: ")
    assert missed.endswith("later: python -m pipeline.tracking replay tiny")


def test_what_a_look_could_not_read_is_found_by_the_next(
    uri: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(path: Path, offset: int) -> Tail:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with mirror(uri, SUITE, "train", [runs / SUITE / "f1"], interval_s=0.05):
        start_run(runs, "f1").metrics(1, train_loss=1.0)
        time.sleep(0.5)
        with monkeypatch.context() as patched:
            patched.setattr(run_files, "read_tail", away)
            end_run(runs, "f1", 1)
            time.sleep(0.5)
    run = shown(uri, f"{SUITE}/train/f1")
    assert (run.info.status, run.data.metrics["wall_s"]) == ("FINISHED", 2.5)
    (line,) = capsys.readouterr().err.splitlines()
    assert "Stale file handle" in line


def test_a_poll_that_fails_has_seen_nothing(runs: Path) -> None:
    start_run(runs, "f1").metrics(1, train_loss=1.0)
    run = RunFiles(SUITE, "train", "f1", runs / SUITE / "f1")
    assert run.poll()
    end_run(runs, "f1", 1)
    journal = runs / SUITE / "f1" / JOURNAL_NAME
    whole = journal.read_bytes()
    journal.write_bytes(whole + b"garbage\n")
    with pytest.raises(UserError, match="not a journal line"):
        run.poll()
    assert not run.ended
    journal.write_bytes(whole)
    assert run.poll()
    assert run.ended
    assert not run.poll()
