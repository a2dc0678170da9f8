"""A real stage with its Ray runtime, to be killed: the process, and what can be seen of its progress from outside."""

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
from ruamel.yaml import YAML

from pipeline.journal import curves, read_journal
from pipeline.train.run import DONE

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "DART_FRESH")  # of the machine that we run on


def prepare(made: Path, folder: Path, epochs: int) -> None:
    """A copy of `made` with a short and a long training, and with the code: an edit would start new runs."""
    # Without the runs that other faults have left there: a stage tells MLflow of its own alone.
    shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs"))
    path = folder / "suites/tiny.yaml"
    suite = YAML(typ="safe").load(path.read_text())
    suite["seeds"] = [0]
    suite["experiments"] = {"short": {"train": {"epochs": 1}}, "long": {"train": {"epochs": epochs}}}
    YAML().dump(suite, path)
    for package in ("dart", "pipeline", "stages"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.tmp"))


class Stage:
    """`python -m stages.train tiny` in a process group of its own."""

    def __init__(self, project: Path, **env: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        self.project = project
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stages.train", "tiny"],
            cwd=project,
            env={**kept, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=listen_to_interrupts,
        )

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def trainers(self) -> list[psutil.Process]:
        """The trial actors: the Ray workers that run our function."""
        return [child for child in self.family() if "trainable" in child.name() or "ImplicitFunc" in child.name()]

    def interrupt(self) -> None:
        """Ctrl-C: it goes to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float) -> tuple[int, str]:
        """Wait for it: the exit code and all output."""
        output = self.process.communicate(timeout=seconds)[0]
        return self.process.returncode, output


def listen_to_interrupts() -> None:
    """A shell starts what it runs in the background deaf to Ctrl-C, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def run_dir(project: Path, name: str) -> Path | None:
    """The folder of an experiment's run, once there is one."""
    for spec in project.glob("runs/tiny/*/spec.json"):
        if json.loads(spec.read_text())["name"] == name:
            return spec.parent
    return None


def records(project: Path, name: str) -> list[dict]:
    """The journal of an experiment's run, empty before it exists."""
    folder = run_dir(project, name)
    return read_journal(folder / "journal.jsonl") if folder else []


def num_epochs(project: Path, name: str) -> int:
    return len(curves(records(project, name)).get("val_top1", {}))


def finished(project: Path, name: str) -> bool:
    """Whether a run has its result: the last epoch is journalled a moment earlier."""
    folder = run_dir(project, name)
    return folder is not None and (folder / DONE).is_file()


def resumes(project: Path, name: str) -> list[str]:
    return [r["text"] for r in records(project, name) if r["kind"] == "event" and "resumed" in r["text"]]


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
