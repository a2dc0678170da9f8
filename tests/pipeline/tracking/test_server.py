"""MLflow as a server: killed while it is told of a run, and whom it answers."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking.__main__ import SERVER_ENVIRONMENT, door_options
from pipeline.tracking.links import run_links
from pipeline.tracking.mirror import mirror
from pipeline.tracking.replay import replay

from .records import SUITE, end_run, free_port, history, journalled, shown, start_run


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
