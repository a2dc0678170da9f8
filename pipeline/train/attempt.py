"""One attempt at a job in one process: trains, and leaves a record of how it ended."""

import contextlib
import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import explaining_disk, write_json_atomic
from pipeline.provenance import hardware
from pipeline.train.guard import watched
from pipeline.train.run import DONE, FAILED, LOG, Job, logging_to, read_failure, tidy, write_failure
from pipeline.train.watch import Beat

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


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
    if (job.run_dir / DONE).is_file() or read_failure(job.run_dir).get("final"):
        return  # one of the ranks knows, and the others were only started again because they could not
    failing = Failing(job.run_dir)
    with contextlib.suppress(UserError), failing, explaining_disk(job.run_dir), logging_to(job.run_dir / LOG):
        with watched(job.run_dir, rank, world_size, job.silence_s, failing.tell) as beat:
            try:
                done = _fit(job, rank, world_size, device, report, wrap, beat)
            except Exception:
                log.exception("the attempt of rank %d failed", rank)
                raise
        if rank == 0:
            write_json_atomic(job.run_dir / DONE, done)
            (job.run_dir / FAILED).unlink(missing_ok=True)
            tidy(job.run_dir)


def _fit(
    job: Job, rank: int, world_size: int, device: str, report: Callable[[dict[str, Any]], None],
    wrap: "Callable[[nn.Module], nn.Module]", beat: Beat,
) -> dict[str, Any]:  # fmt: skip
    """The training itself -> its record."""
    gc.set_threshold(50_000)  # as in `run_stage`: a fifth of the time that the imports take
    import torch  # after the placement of this process is settled

    from pipeline.train.loop import fit

    torch.set_num_threads(job.cpus_per_worker)
    result = fit(
        job.trial, job.data_dir, job.run_dir, num_classes=job.num_classes, rank=rank, world_size=world_size,
        device=device, loader_workers=job.loader_workers, report=report, wrap=wrap, init_dir=job.init_dir,
        dropped=job.dropped, device_batch_size=job.device_batch_size, sharded=job.data_parallel == "fsdp",
        ledger=job.ledger, beat=beat,
    )  # fmt: skip
    found = result._asdict()
    diverged, rewinds = found.pop("diverged"), [rewind._asdict() for rewind in found.pop("rewinds")]
    provenance = {**job.provenance, "hardware": hardware()}
    rewound = {"rewinds": rewinds} if rewinds else {}
    return {"status": diverged or "done", **found, "world_size": world_size, "provenance": provenance, **rewound}


class Failing:
    """Writes failed.json for what ends an attempt: its first cause, on whichever rank, whatever follows from it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.before = run_dir, _written_ns(run_dir / FAILED)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError):
            self.write(str(error), final=True)
        elif isinstance(error, Exception):
            self.write(f"{type(error).__name__}: {error}")

    def tell(self, error: str) -> None:
        """Of another rank, for which this one ends."""
        log.error(error)
        self.write(error)

    def write(self, error: str, final: bool = False) -> None:
        with contextlib.suppress(OSError):  # it may be a full disk that is to be told of
            if _written_ns(self.run_dir / FAILED) == self.before:
                write_failure(self.run_dir, error, final)


def _written_ns(path: Path) -> int | None:
    """When a file was last written, by the clock of its storage; None: it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return None
