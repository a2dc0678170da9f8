"""A run: one trial's training, the folder it lives in, and what a process needs to carry it out. No cluster here."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.config import Trial
from pipeline.errors import UserError, problem
from pipeline.files import explaining_disk, write_bytes_atomic, write_json_atomic

DONE, SPEC, FAILED, LOG = "done.json", "spec.json", "failed.json", "log.txt"
CHECKPOINTS, ALIVE = "checkpoint", "alive"
WEIGHTS = "model.safetensors"  # the file of a finished run, and of a checkpoint
PROBE_BYTES = 2**20  # a disk with less room is full: not even the reason of a failure can be written down
JOB_PATHS = ("run_dir", "data_dir", "init_dir")
LOCK_WAIT_S = 60.0  # a killed stage's processes need a few seconds to end


@dataclass(frozen=True)
class Run:
    """One training of a suite; `dir` is its folder, named by the fingerprint."""

    suite: str
    stage: str
    trial: Trial
    fingerprint: str
    dataset: str
    manifest_sha256: str
    dir: Path
    init_dir: Path | None = None  # the folder of the run whose weights it starts from
    dropped: dict[str, list[int]] = field(default_factory=dict)  # by split: damaged samples, left out

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.trial.name} seed {self.trial.seed}"

    def spec(self) -> dict[str, Any]:
        """What was to be done, for the record."""
        dropped = {"dropped": self.dropped} if any(self.dropped.values()) else {}
        return {
            "suite": self.suite,
            "stage": self.stage,
            "name": self.trial.name,
            "seed": self.trial.seed,
            "fingerprint": self.fingerprint,
            "model_name": self.trial.model_name,
            "science": self.trial.science(),
            "dataset": {"name": self.dataset, "manifest_sha256": self.manifest_sha256},
            **dropped,
        }

    def done(self) -> dict[str, Any] | None:
        """The record of the finished run, or None."""
        path = self.dir / DONE
        return json.loads(path.read_text()) if path.is_file() else None

    def prepare(self, fresh: bool = False) -> None:
        """Make the folder of a run that is to be done; `fresh` throws away what an earlier one left."""
        if fresh:
            shutil.rmtree(self.dir, ignore_errors=True)
        if self.done() is not None:
            tidy(self.dir)
            return
        with explaining_disk(self.dir):
            self.dir.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.dir / SPEC, self.spec())

    def failure(self) -> str:
        """Why there is no result, in one line."""
        if failure := read_failure(self.dir):
            return str(failure["error"])
        probe = self.dir / ".probe"  # a quota, or a disk without inodes, is known by writing only
        try:
            write_bytes_atomic(probe, os.urandom(PROBE_BYTES))
            probe.unlink()
        except (OSError, UserError) as error:
            return str(error)
        return "ended without a result (killed?)"


@dataclass(frozen=True)
class Job:
    """Everything another process needs to carry out a run; paths are absolute, for its working folder differs.

    `init_dir` is the folder of the run whose weights it starts from, where it does.
    """

    trial: Trial
    run_dir: Path
    data_dir: Path
    num_classes: int
    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    loader_workers: int
    max_failures: int
    provenance: dict[str, Any]
    init_dir: Path | None = None
    min_workers: int | None = None  # fewer than num_workers, but no fewer than these, while nodes are missing
    dropped: dict[str, list[int]] = field(default_factory=dict)  # by split: damaged samples, left out
    device_batch_size: int | None = None
    data_parallel: str = "ddp"
    silence_s: float | None = None
    ledger: bool = False

    def to_json(self) -> str:
        values = {f: getattr(self, f) for f in self.__dataclass_fields__}
        values["trial"] = self.trial.model_dump(mode="json")
        paths = {key: values[key] and str(values[key]) for key in JOB_PATHS}
        return json.dumps({**values, **paths})

    @classmethod
    def from_json(cls, text: str) -> "Job":
        values = json.loads(text)
        values["trial"] = Trial.model_validate_json(json.dumps(values["trial"]))
        return cls(**{**values, **{key: values[key] and Path(values[key]) for key in JOB_PATHS}})


def tidy(run_dir: Path) -> None:
    """Remove what a killed process left and nobody needs: unfinished files, and the checkpoints of a finished run."""
    for path in [*run_dir.rglob(".*.tmp")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if (run_dir / DONE).is_file():
        for folder in (CHECKPOINTS, ALIVE):
            shutil.rmtree(run_dir / folder, ignore_errors=True)


def write_failure(run_dir: Path, error: str, final: bool = False) -> None:
    """Leave the first line of the cause for the stage to show, where there is room for it.

    Args:
        final: Another attempt with the same input would fail again.
    """
    said = error.strip().splitlines()[0] if error.strip() else "unknown"
    with contextlib.suppress(OSError, UserError):
        write_json_atomic(run_dir / FAILED, {"error": said} | ({"final": True} if final else {}))


def read_failure(run_dir: Path) -> dict[str, Any]:
    """What `write_failure` has left; empty if nothing."""
    try:
        return dict(json.loads((run_dir / FAILED).read_text()))
    except FileNotFoundError:
        return {}


@contextlib.contextmanager
def holding(folder: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Be the only process that works in `folder`; the lock dies with its process, however it dies.

    Raises:
        UserError: another process has held it for `wait_s` seconds, or it may not be written to.
    """
    lock = FileLock(folder / ".lock")
    try:
        with explaining_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait_s)
    except Timeout:
        raise UserError(
            problem("folder", str(folder), "another process is working in it", "wait for it to end, or end it")
        ) from None
    try:
        yield
    finally:
        lock.release()


class LogFile(logging.FileHandler):
    """A log that stays silent when it cannot be written: it is not worth a training."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Of a write: say nothing."""

    def close(self) -> None:
        """Write the rest, if that is possible."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send what we log, and everybody's warnings, to a file for the time of one run."""
    handler = LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("pipeline"))
    root, ours = logging.getLogger(), logging.getLogger("pipeline")
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        ours.setLevel(logging.NOTSET)
        root.removeHandler(handler)
        handler.close()
