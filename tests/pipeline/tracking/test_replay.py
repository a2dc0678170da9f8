"""The ledger is made again from the files, and adds nothing to what is there."""

import json
import shutil
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json_atomic
from pipeline.journal import JOURNAL_NAME
from pipeline.sweep.search import stopped_record
from pipeline.tracking.ledger import STATUS
from pipeline.tracking.mirror import mirror
from pipeline.tracking.replay import replay

from .records import PROVENANCE, SUITE, end_run, history, journalled, shown, start_run, train


def test_mirroring_again_and_replaying_add_nothing(tmp_path: Path, uri: str, runs: Path) -> None:
    train(runs, "f1")
    for _ in range(2):
        with mirror(uri, SUITE, "train", [runs / SUITE / "f1"]):
            pass
    assert replay(uri, SUITE, runs, tmp_path / "results") == 0
    key = f"{SUITE}/train/f1"
    assert history(uri, key, "train_loss") == journalled(runs, "f1", "train_loss")
    assert history(uri, key, "lr") == journalled(runs, "f1", "lr")


def test_a_deleted_database_is_rebuilt_from_the_files(tmp_path: Path, uri: str, runs: Path) -> None:
    results = tmp_path / "results"
    train(runs, "f1")
    train(runs, "f2", stage="sweep")
    entries = {}
    for name in ("f1", "f2"):
        folder = runs / SUITE / name
        entries[name] = json.loads((folder / "spec.json").read_text()) | json.loads((folder / "done.json").read_text())
    write_json_atomic(results / SUITE / "train" / "runs.json", {"runs": [entries["f1"]]})
    write_json_atomic(results / SUITE / "sweep" / "runs.json", {"runs": [entries["f1"], entries["f2"]]})
    write_json_atomic(results / SUITE / "evaluate" / "metrics.json", {"runs": [{"fingerprint": "f1", "top1": 0.75}]})
    keys = {f"{SUITE}/train/f1": "f1", f"{SUITE}/sweep/f1": "f1", f"{SUITE}/sweep/f2": "f2"}
    assert replay(uri, SUITE, runs, results) == len(keys)
    for key, name in keys.items():
        assert shown(uri, key).info.status == "FINISHED"
        parent = shown(uri, key.rpartition("/")[0])
        assert parent.info.start_time <= shown(uri, key).info.end_time <= parent.info.end_time
        assert parent.data.tags["mlflow.source.git.commit"] == "c0ffee"
        assert history(uri, key, "train_loss") == journalled(runs, name, "train_loss")
    assert history(uri, f"{SUITE}/sweep/f1", "test_top1") == [(5, 0.75)]


def test_replay_needs_only_the_results(tmp_path: Path, uri: str, runs: Path) -> None:
    results = tmp_path / "results"
    train(results / "x", "f1")  # journal beside spec.json; moved to where the stage puts it
    source = results / "x" / SUITE / "f1"
    entry = json.loads((source / "spec.json").read_text()) | json.loads((source / "done.json").read_text())
    final = results / SUITE / "train"
    (final / "f1").mkdir(parents=True)
    (source / JOURNAL_NAME).rename(final / "f1" / JOURNAL_NAME)
    write_json_atomic(final / "runs.json", {"runs": [entry]})
    assert replay(uri, SUITE, runs, results) == 1
    assert [step for step, _ in history(uri, f"{SUITE}/train/f1", "train_loss")] == [1, 2, 3, 4, 5]


def test_what_a_search_has_stopped_and_what_it_adds_on_the_way_are_shown(tmp_path: Path, uri: str, runs: Path) -> None:
    with mirror(uri, SUITE, "sweep", [], provenance=PROVENANCE) as follow:
        train(runs, "chosen", stage="sweep")
        follow(runs / SUITE / "chosen")
        start_run(runs, "behind", "sweep").metrics(3, val_top1=0.2)
        follow(runs / SUITE / "behind")
        follow(runs / SUITE / "behind")  # twice is once
    assert shown(uri, f"{SUITE}/sweep/chosen").info.status == "FINISHED"
    assert shown(uri, f"{SUITE}/sweep/behind").info.status == "KILLED"
    spec = json.loads((runs / SUITE / "behind/spec.json").read_text())
    entry = {**spec, **stopped_record(1, 9, 3, 60, {"val_top1": 0.2})}
    write_json_atomic(tmp_path / "results" / SUITE / "sweep/runs.json", {"runs": [entry]})
    replay(uri, SUITE, runs, tmp_path / "results")
    behind = shown(uri, f"{SUITE}/sweep/behind")
    assert (behind.info.status, behind.data.tags[STATUS]) == ("KILLED", "stopped early at epoch 1 of 9")
    assert history(uri, f"{SUITE}/sweep/behind", "val_top1") == [(3, 0.2)]
    assert replay(uri, SUITE, runs, tmp_path / "results") == 0


def test_a_run_deleted_by_hand_comes_back(tmp_path: Path, uri: str, runs: Path) -> None:
    from mlflow import MlflowClient

    train(runs, "f1")
    replay(uri, SUITE, runs, tmp_path)
    MlflowClient(uri).delete_run(shown(uri, f"{SUITE}/train/f1").info.run_id)
    assert replay(uri, SUITE, runs, tmp_path) == 1
    assert history(uri, f"{SUITE}/train/f1", "train_loss") == journalled(runs, "f1", "train_loss")


def test_a_run_that_is_evaluated_again_has_the_new_score(tmp_path: Path, uri: str, runs: Path) -> None:
    results, key = tmp_path / "results", f"{SUITE}/train/f1"
    train(runs, "f1")
    folder = runs / SUITE / "f1"
    entry = json.loads((folder / "spec.json").read_text()) | json.loads((folder / "done.json").read_text())
    write_json_atomic(results / SUITE / "train/runs.json", {"runs": [entry]})
    for top1 in (0.5, 0.9, 0.7):
        scores = {"runs": [{"fingerprint": "f1", "top1": top1}]}
        write_json_atomic(results / SUITE / "evaluate/metrics.json", scores)
        assert replay(uri, SUITE, runs, results) == 1
        assert replay(uri, SUITE, runs, results) == 0
        assert shown(uri, key).data.metrics["test_top1"] == top1


def test_a_training_from_scratch_takes_the_place_of_the_earlier_one(tmp_path: Path, uri: str, runs: Path) -> None:
    train(runs, "f1", 9)
    replay(uri, SUITE, runs, tmp_path)
    shutil.rmtree(runs / SUITE / "f1")
    time.sleep(0.002)  # the records have milliseconds
    with mirror(uri, SUITE, "train", [runs / SUITE / "f1"]):
        train(runs, "f1", 3)
    assert history(uri, f"{SUITE}/train/f1", "train_loss") == journalled(runs, "f1", "train_loss")
    assert [step for step, _ in history(uri, f"{SUITE}/train/f1", "wall_s")] == [3]


def test_a_step_that_was_done_again_shows_its_last_value_live_and_rebuilt(
    tmp_path: Path, uri: str, runs: Path, empty_database: Path
) -> None:
    with mirror(uri, SUITE, "train", [runs / SUITE / "f1"], interval_s=0.05):
        journal = start_run(runs, "f1")
        journal.metrics(2, train_loss=900.0)
        time.sleep(0.5)
        journal.metrics(2, train_loss=0.5)
        end_run(runs, "f1", 2)
    assert (2, 900.0) in history(uri, f"{SUITE}/train/f1", "train_loss")
    rebuilt = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'rebuilt.db')}"
    replay(rebuilt, SUITE, runs, tmp_path)
    live, again = (shown(each, f"{SUITE}/train/f1").data.metrics for each in (uri, rebuilt))
    assert live == again
    assert live["train_loss"] == 0.5


def test_damaged_runs_are_named_when_all_others_are_sent(tmp_path: Path, uri: str, runs: Path) -> None:
    for name in ("bad", "broken", "good"):
        train(runs, name)
    (runs / SUITE / "bad" / JOURNAL_NAME).write_text("garbage\n")
    (runs / SUITE / "broken" / "spec.json").write_text("{half")
    with pytest.raises(UserError) as caught:
        replay(uri, SUITE, runs, tmp_path)
    assert "tiny/bad is not shown in MLflow" in str(caught.value)
    assert "broken/spec.json = '{half': not JSON" in str(caught.value)
    assert shown(uri, f"{SUITE}/train/good").info.status == "FINISHED"


def test_a_stage_with_a_result_has_ended_well_whatever_was_begun_before(tmp_path: Path, uri: str, runs: Path) -> None:
    train(runs, "f1")
    start_run(runs, "of-an-older-plan").metrics(1, train_loss=1.0)
    folder = runs / SUITE / "f1"
    entry = json.loads((folder / "spec.json").read_text()) | json.loads((folder / "done.json").read_text())
    write_json_atomic(tmp_path / "results" / SUITE / "train/runs.json", {"runs": [entry]})
    replay(uri, SUITE, runs, tmp_path / "results")
    assert shown(uri, f"{SUITE}/train").info.status == "FINISHED"
    assert shown(uri, f"{SUITE}/train/of-an-older-plan").info.status == "KILLED"
