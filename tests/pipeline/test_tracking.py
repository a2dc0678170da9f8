"""The ledger shows every recorded point exactly once, whatever happens to the tracker."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json_atomic
from pipeline.journal import JOURNAL_NAME, Journal, curves, read_journal
from pipeline.tracking.__main__ import SERVER_ENVIRONMENT, door_options
from pipeline.tracking.ledger import SYNCED, find_run_ids
from pipeline.tracking.links import run_links
from pipeline.tracking.mirror import mirror, open_ledger
from pipeline.tracking.replay import replay
from pipeline.tracking.uri import check_uri, page_root, resolve_uri

SUITE = "tiny"
DATA_SHA = "ab" * 32
PROVENANCE = {"commit": "c0ffee", "dirty": False, "versions": {"torch": "2.13"}}


def start_run(runs: Path, fingerprint: str, stage: str = "train") -> Journal:
    """A run folder as training makes it, before its first step."""
    spec = {
        "suite": SUITE,
        "stage": stage,
        "name": "dart-4",
        "seed": 0,
        "fingerprint": fingerprint,
        "model_name": "dart_vit_nano_patch4_16",
        "science": {"tokenizer": {"token_budget": 4}, "train": {"lr": 1e-3, "betas": [0.9, 0.98]}, "seed": 0},
        "dataset": {"name": "tiny-digits", "manifest_sha256": DATA_SHA},
    }
    write_json_atomic(runs / SUITE / fingerprint / "spec.json", spec)
    return Journal(runs / SUITE / fingerprint)


def end_run(runs: Path, fingerprint: str, num_steps: int) -> None:
    metrics = {"val_top1": 0.5, "train_loss": 1.0 / num_steps}
    done = {"status": "done", "metrics": metrics, "num_steps": num_steps, "wall_s": 2.5, "provenance": PROVENANCE}
    write_json_atomic(runs / SUITE / fingerprint / "done.json", done)


def train(runs: Path, fingerprint: str, num_steps: int = 5, stage: str = "train") -> None:
    """A whole run."""
    journal = start_run(runs, fingerprint, stage)
    for step in range(1, num_steps + 1):
        journal.metrics(step, train_loss=1.0 / step, lr=0.1)
    end_run(runs, fingerprint, num_steps)


def shown(uri: str, key: str) -> Any:
    """MLflow's run of a key, through a client of its own."""
    from mlflow import MlflowClient

    client = MlflowClient(resolve_uri(uri))
    experiment = client.get_experiment_by_name(SUITE)
    runs = client.search_runs([experiment.experiment_id], f"tags.`dart.key` = '{key}'")
    assert len(runs) == 1
    return runs[0]


def history(uri: str, key: str, metric: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    run_id = shown(uri, key).info.run_id
    return sorted((p.step, p.value) for p in MlflowClient(resolve_uri(uri)).get_metric_history(run_id, metric))


def journalled(runs: Path, fingerprint: str, metric: str) -> list[tuple[int, float]]:
    return list(curves(read_journal(runs / SUITE / fingerprint / JOURNAL_NAME))[metric].items())


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow needs seconds to make its tables; once is enough."""
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(f"sqlite:///{path}", "unused")
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


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


def test_mirroring_again_and_replaying_add_nothing(tmp_path: Path, uri: str, runs: Path) -> None:
    train(runs, "f1")
    for _ in range(2):
        with mirror(uri, SUITE, "train", [runs / SUITE / "f1"]):
            pass
    assert replay(uri, SUITE, runs, tmp_path / "results") == 0
    key = f"{SUITE}/train/f1"
    assert history(uri, key, "train_loss") == journalled(runs, "f1", "train_loss")
    assert history(uri, key, "lr") == journalled(runs, "f1", "lr")


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


def test_two_processes_that_need_a_new_database_get_one(tmp_path: Path) -> None:
    path = str(tmp_path / "x.db")
    code = f"import pathlib; from pipeline.tracking.database import make_database as m; m(pathlib.Path({path!r}))"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    with sqlite3.connect(tmp_path / "x.db") as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)


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
    with mirror(uri, SUITE, "train", [runs / SUITE / "f1"], interval_s=0.05):
        Journal(runs / SUITE / "f1").metrics(2, train_loss=0.5)
        end_run(runs, "f1", 2)
    assert shown(uri, f"{SUITE}/train/gone").info.status == "KILLED"
    assert shown(uri, f"{SUITE}/train/f1").info.status == "FINISHED"
    assert history(uri, f"{SUITE}/train/f1", "train_loss") == [(1, 1.0), (2, 0.5)]


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
    spec = json.loads((runs / SUITE / "behind/spec.json").read_text())
    status = "stopped early at epoch 1 of 9"
    write_json_atomic(tmp_path / "results" / SUITE / "sweep/runs.json", {"runs": [{**spec, "status": status}]})
    replay(uri, SUITE, runs, tmp_path / "results")
    behind = shown(uri, f"{SUITE}/sweep/behind")
    assert (behind.info.status, behind.data.tags["dart.status"]) == ("KILLED", status)
    assert history(uri, f"{SUITE}/sweep/behind", "val_top1") == [(3, 0.2)]


def test_a_run_deleted_by_hand_comes_back(tmp_path: Path, uri: str, runs: Path) -> None:
    from mlflow import MlflowClient

    train(runs, "f1")
    replay(uri, SUITE, runs, tmp_path)
    MlflowClient(uri).delete_run(shown(uri, f"{SUITE}/train/f1").info.run_id)
    assert replay(uri, SUITE, runs, tmp_path) == 1
    assert history(uri, f"{SUITE}/train/f1", "train_loss") == journalled(runs, "f1", "train_loss")


def test_a_damaged_journal_is_left_out_and_the_others_are_not(
    uri: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(runs, "bad")
    train(runs, "good")
    (runs / SUITE / "bad" / JOURNAL_NAME).write_text("garbage\n")
    with mirror(uri, SUITE, "train", [runs / SUITE / "bad", runs / SUITE / "good"]):
        pass
    assert "tiny/train/bad is not shown in MLflow" in capsys.readouterr().err
    assert shown(uri, f"{SUITE}/train/good").info.status == "FINISHED"


class Deaf(BaseHTTPRequestHandler):
    """A web server that is not MLflow."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def other_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Deaf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(uri: str) -> str:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_uri(uri)
    assert time.monotonic() - start < 8
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_uris_have_their_sentence(tmp_path: Path, other_server: str) -> None:
    (tmp_path / "notes.txt").write_text("not a database" * 100)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE cooking (recipe TEXT)")
    assert "not a database" in refusal(f"sqlite:///{tmp_path}/notes.txt")
    assert "but not one of MLflow" in refusal(f"sqlite:///{tmp_path}/other.db")
    assert "no such folder" in refusal(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    assert "is a folder" in refusal(f"sqlite:///{tmp_path}")
    assert "something else than MLflow" in refusal(other_server)
    assert "no answer" in refusal(f"http://127.0.0.1:{free_port()}")
    assert "plain folders" in refusal("./mlruns")
    assert "plain folders" in refusal(f"file://{tmp_path}")


def test_a_locked_database_has_its_sentence(uri: str) -> None:
    open_ledger(uri, SUITE)
    holder = sqlite3.connect(uri.removeprefix("sqlite:///"))
    holder.execute("BEGIN IMMEDIATE")
    assert "locked" in refusal(uri)
    with pytest.raises(UserError, match="locked"), mirror(uri, SUITE, "train", []):
        pass
    holder.rollback()
    holder.close()
    check_uri(uri)


def test_a_silent_port_is_given_up_in_seconds() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert "no answer" in refusal(f"http://127.0.0.1:{mute.getsockname()[1]}")


def start_server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "art"), "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return server
        except OSError:
            time.sleep(0.3)
    raise AssertionError((folder / "server.log").read_text()[-2000:])


def stop_server(server: "subprocess.Popen[bytes]") -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
def test_a_tracker_killed_in_mid_run_costs_no_point(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    server = start_server(tmp_path, port)
    try:
        with mirror(uri, SUITE, "train", [runs / SUITE / "f1"], interval_s=0.1):
            journal = start_run(runs, "f1")
            for step in range(1, 4):
                journal.metrics(step, train_loss=1.0 / step)
            time.sleep(3)
            assert len(history(uri, f"{SUITE}/train/f1", "train_loss")) == 3
            stop_server(server)
            for step in range(4, 7):
                journal.metrics(step, train_loss=1.0 / step)
            time.sleep(0.5)
            end_run(runs, "f1", 6)
            start = time.monotonic()
        assert time.monotonic() - start < 30
        assert f"pipeline.tracking replay {SUITE}" in capsys.readouterr().err
        server = start_server(tmp_path, port)
        assert replay(uri, SUITE, runs, tmp_path / "results") == 1
        assert history(uri, f"{SUITE}/train/f1", "train_loss") == journalled(runs, "f1", "train_loss")
        run = shown(uri, f"{SUITE}/train/f1")
        assert run.info.status == "FINISHED"
        address = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert run_links(uri, [SUITE])[f"{SUITE}/train/f1"] == address
    finally:
        stop_server(server)


def test_a_database_has_no_pages_and_a_server_that_is_gone_costs_one_line(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_links(uri, [SUITE]) == {}
    assert capsys.readouterr().err == ""
    gone = f"http://somebody:secret@127.0.0.1:{free_port()}"
    assert run_links(gone, [SUITE]) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: no links to MLflow on the page (tracking.uri = '{page_root(gone)}': no answer")
    assert "secret" not in line


def test_links_do_not_tell_the_password() -> None:
    assert page_root("https://somebody:secret@lab.example:5000/mlflow/") == "https://lab.example:5000/mlflow"
    assert page_root("sqlite:////tmp/mlflow.db") is None


def test_the_pages_are_answered_under_the_names_that_are_allowed_and_no_other() -> None:
    options = door_options("127.0.0.1", 5000, [])
    assert options[:2] == ["--host", "127.0.0.1"]
    assert set(options[3].split(",")) == {"127.0.0.1:5000", "localhost:5000"}
    hosts, origins = (set(text.split(",")) for text in door_options("0.0.0.0", 5001, ["lab.example"])[3::2])
    assert hosts == {"lab.example:5001", "localhost:5001", "127.0.0.1:5001"}
    assert origins == {f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts}
    assert "[fd00::1]:5000" in door_options("fd00::1", 5000, [])[3].split(",")
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UserError, match=f"--host = '{host}': listens to every network; .*--allow NAME"):
            door_options(host, 5000, [])


def test_mlflow_never_unpickles() -> None:
    assert SERVER_ENVIRONMENT["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_the_ledger_knows_its_runs_by_what_the_records_call_them(uri: str, runs: Path, tmp_path: Path) -> None:
    train(runs, "f1", 2)
    replay(uri, SUITE, runs, tmp_path / "results")
    assert find_run_ids(uri, SUITE)[f"{SUITE}/train/f1"] == shown(uri, f"{SUITE}/train/f1").info.run_id
    assert find_run_ids(uri, "another") == {}
    with pytest.raises(UserError, match=r"no such file; run: python -m pipeline\.tracking replay"):
        find_run_ids(f"sqlite:///{tmp_path}/none.db", SUITE)
    assert not (tmp_path / "none.db").exists()
