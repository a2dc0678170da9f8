"""A run: one trial's training, the folder it lives in, and what a process needs to carry it out. No cluster here."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline.config import Trial
from pipeline.errors import UserError, problem
from pipeline.files import write_json_atomic
from pipeline.provenance import hardware

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

DONE, SPEC, FAILED, LOG = "done.json", "spec.json", "failed.json", "log.txt"
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

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.trial.name} seed {self.trial.seed}"

    def spec(self) -> dict[str, Any]:
        """What was to be done, for the record."""
        return {
            "suite": self.suite,
            "stage": self.stage,
            "name": self.trial.name,
            "seed": self.trial.seed,
            "fingerprint": self.fingerprint,
            "model_name": self.trial.model_name,
            "science": self.trial.science(),
            "dataset": {"name": self.dataset, "manifest_sha256": self.manifest_sha256},
        }

    def done(self) -> dict[str, Any] | None:
        """The record of the finished run, or None."""
        path = self.dir / DONE
        return json.loads(path.read_text()) if path.is_file() else None

    def prepare(self, fresh: bool = False) -> None:
        """Make the folder of a run that is to be done; `fresh` throws away what an earlier one left."""
        if fresh:
            shutil.rmtree(self.dir, ignore_errors=True)
        if self.done() is None:
            self.dir.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.dir / SPEC, self.spec())

    def failure(self) -> str:
        """Why there is no result, in one line."""
        path = self.dir / FAILED
        return json.loads(path.read_text())["error"] if path.is_file() else "ended without a result (killed?)"


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


def train_job(
    job: Job,
    *,
    rank: int,
    world_size: int,
    device: str,
    report: Callable[[dict[str, Any]], None],
    wrap: "Callable[[nn.Module], nn.Module]",
) -> None:
    """Train in this process, as one of `world_size`; rank 0 writes done.json when all is well.

    A UserError is written to failed.json and not raised: the same input would fail again, so nobody shall retry it.
    A crash is written there too, and raised: it is worth another attempt.
    """
    import torch  # after the placement of this process is settled

    from pipeline.train.loop import CHECKPOINTS, fit

    torch.set_num_threads(job.cpus_per_worker)
    with logging_to(job.run_dir / LOG):
        try:
            result = fit(
                job.trial, job.data_dir, job.run_dir, num_classes=job.num_classes, rank=rank, world_size=world_size,
                device=device, loader_workers=job.loader_workers, report=report, wrap=wrap, init_dir=job.init_dir,
            )  # fmt: skip
        except UserError as error:
            write_failure(job.run_dir, str(error))
            return
        except Exception as error:
            log.exception("the attempt of rank %d failed", rank)
            write_failure(job.run_dir, f"{type(error).__name__}: {error}")
            raise
    if rank == 0:
        provenance = {**job.provenance, "hardware": hardware()}
        done = {"status": "done", **result._asdict(), "world_size": world_size, "provenance": provenance}
        write_json_atomic(job.run_dir / DONE, done)
        shutil.rmtree(job.run_dir / CHECKPOINTS, ignore_errors=True)


def write_failure(run_dir: Path, error: str) -> None:
    """Leave the first line of the cause for the stage to show."""
    write_json_atomic(run_dir / FAILED, {"error": error.strip().splitlines()[0] if error.strip() else "unknown"})


@contextlib.contextmanager
def holding(folder: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Be the only process that works in `folder`; the lock dies with its process, however it dies.

    Raises:
        UserError: another process has held it for `wait_s` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise UserError(
            problem("folder", str(folder), "another process is working in it", "wait for it to end, or end it")
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send what we log, and everybody's warnings, to a file for the time of one run."""
    handler = logging.FileHandler(path)
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
