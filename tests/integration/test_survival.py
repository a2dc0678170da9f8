"""kill -9 of a trial, Ctrl-C, kill -9 of the stage: the same command goes on, to the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from pipeline.config import load_suite
from pipeline.journal import curves, read_journal
from pipeline.sweep.plan import plan_experiments
from pipeline.train.run import DONE

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 16


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path) -> Path:
    """The tiny project with a short and a long training, small enough to be killed many times."""
    shutil.copytree(tiny_project, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "suites/tiny.yaml"
    suite = YAML(typ="safe").load(path.read_text())
    suite["seeds"] = [0]
    suite["experiments"] = {"short": {"train": {"epochs": 1}}, "long": {"train": {"epochs": EPOCHS}}}
    YAML().dump(suite, path)
    for package in ("dart", "pipeline", "stages"):  # a copy: an edit in between would rightly start new runs
        shutil.copytree(ROOT / package, tmp_path / package)
    return tmp_path


def start(project: Path, **env: str) -> subprocess.Popen:
    """`python -m stages.train tiny` in a process group of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "DART_FRESH")}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train", "tiny"],
        cwd=project,
        env={**kept, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=listen_to_interrupts,
    )


def listen_to_interrupts() -> None:
    """A shell starts what it runs in the background deaf to Ctrl-C, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def records(project: Path, name: str) -> list[dict]:
    """The journal of an experiment's run, empty before it exists."""
    for spec in project.glob("runs/tiny/*/spec.json"):
        if json.loads(spec.read_text())["name"] == name:
            return read_journal(spec.parent / "journal.jsonl")
    return []


def num_epochs(project: Path, name: str) -> int:
    return len(curves(records(project, name)).get("val_top1", {}))


def finished(project: Path, name: str) -> bool:
    """Whether a run has its result: the last epoch is journalled a moment earlier."""
    folders = [
        spec.parent for spec in project.glob("runs/tiny/*/spec.json") if json.loads(spec.read_text())["name"] == name
    ]
    return any((folder / DONE).is_file() for folder in folders)


def resumes(project: Path, name: str) -> list[str]:
    return [r["text"] for r in records(project, name) if r["kind"] == "event" and "resumed" in r["text"]]


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def trainers(process: subprocess.Popen) -> list[psutil.Process]:
    """The trial actors: the Ray workers that run our function."""
    return [child for child in family(process) if "trainable" in child.name() or "ImplicitFunc" in child.name()]


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_death_is_survived(project: Path) -> None:
    stage = start(project)
    wait_for(lambda: num_epochs(project, "long") >= 2 and finished(project, "short"), "the first epochs")
    for trainer in trainers(stage):
        trainer.kill()
    wait_for(lambda: resumes(project, "long"), "the retry of a killed trial")

    relatives = family(stage)
    os.killpg(stage.pid, signal.SIGINT)
    output = stage.communicate(timeout=60)[0]
    assert stage.returncode == 130, output
    assert "the same command goes on from here" in output
    wait_for(lambda: all_gone(relatives), "the end of what Ctrl-C leaves behind", 30)

    stage = start(project)
    epochs = num_epochs(project, "long")
    wait_for(lambda: num_epochs(project, "long") > epochs, "an epoch after Ctrl-C")
    orphans = trainers(stage)
    stage.kill()
    stage.communicate()
    assert orphans
    wait_for(lambda: all_gone(orphans), "the end of the trials of a killed stage", 30)  # Ray's idle agents take 60 s
    assert num_epochs(project, "long") < EPOCHS, "the training was too short to be killed"

    stage = start(project)
    output = stage.communicate(timeout=300)[0]
    assert stage.returncode == 0, output
    assert "2 trials, 1 trainings to do" in output  # the short one was finished before the first death
    assert num_epochs(project, "short") == 1
    assert not resumes(project, "short")
    assert len(resumes(project, "long")) >= 3
    same_as_undisturbed(project)


def same_as_undisturbed(project: Path) -> None:
    """The published weights are those of a training that nobody killed."""
    import torch

    from pipeline.train.loop import WEIGHTS, fit

    torch.set_num_threads(1)
    runs = json.loads((project / "results/tiny/train/runs.json").read_text())["runs"]
    assert [(run["name"], run["status"]) for run in runs] == [("short", "done"), ("long", "done")]
    trial = plan_experiments(load_suite("tiny", project / "suites/tiny.yaml"))[1]
    alone = project / "alone"
    alone.mkdir()
    result = fit(trial, project / "data/tiny/shards", alone, num_classes=10)
    published = project / "results/tiny/train" / runs[1]["fingerprint"] / WEIGHTS
    assert published.read_bytes() == (alone / WEIGHTS).read_bytes()
    assert runs[1]["metrics"] == result.metrics
