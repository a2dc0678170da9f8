"""The two ways to carry out a job from inside a process of the cluster: right here, or on workers of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.train.attempt import train_job
from pipeline.train.run import CHECKPOINTS, DONE, FAILED, Job, holding, tidy, write_failure


def carry_out(job: Job, report: Callable[[dict[str, Any]], None], callbacks: Callable[[], list[Any]]) -> None:
    """Do one job from inside a process of the cluster: right here, or as a Ray Train run of its workers.

    Args:
        report: Takes the metrics of an epoch when the training happens here.
        callbacks: Makes Ray Train's callbacks, which pass the metrics on when it happens elsewhere.

    Raises:
        UserError: another process works in the run's folder.
        Exception: a crash, worth another attempt; failed.json says what happened.
    """
    with holding(job.run_dir):
        tidy(job.run_dir)
        if (job.run_dir / DONE).is_file():
            return
        (job.run_dir / FAILED).unlink(missing_ok=True)
        try:
            if job.num_workers == 1:
                device = "cuda" if job.gpus_per_worker else "cpu"
                train_job(job, rank=0, world_size=1, device=device, report=report, wrap=lambda model: model)
            else:
                _train_on_workers(job, callbacks)
        except Exception as error:
            if not (job.run_dir / FAILED).is_file():
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                write_failure(job.run_dir, f"{kind}{error}")
            if job.num_workers == 1:
                raise  # for Tune to try again; Ray Train has tried its workers again already


def _train_on_workers(job: Job, callbacks: Callable[[], list[Any]]) -> None:
    """Data parallel over as many processes as there is room for; a crashed group goes on from the checkpoint.

    Nodes may come and go as often as they like where `job.min_workers` allows for it: failures are counted anew when
    the training has got further since the last count.
    """
    elastic = (job.min_workers or job.num_workers) < job.num_workers
    while True:
        before = _newest_checkpoint(job.run_dir)
        try:
            return _fit(job, callbacks())
        except Exception:
            if not elastic or _newest_checkpoint(job.run_dir) == before:
                raise


def _fit(job: Job, callbacks: list[Any]) -> None:
    """One Ray Train run."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline.train.worker import train_worker

    scratch = Path(job.run_dir) / "ray_train"
    shutil.rmtree(scratch, ignore_errors=True)  # Ray would go on from its own state; ours is the checkpoint
    fewest = job.min_workers or job.num_workers
    TorchTrainer(
        train_worker,
        train_loop_config={"job": job.to_json()},
        scaling_config=ScalingConfig(
            num_workers=job.num_workers if fewest == job.num_workers else (fewest, job.num_workers),
            use_gpu=job.gpus_per_worker > 0,
            resources_per_worker={"CPU": job.cpus_per_worker}
            | ({"GPU": job.gpus_per_worker} if job.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(job.run_dir),
            callbacks=callbacks,
            failure_config=FailureConfig(max_failures=job.max_failures),
        ),
    ).fit()
    shutil.rmtree(scratch, ignore_errors=True)


def _newest_checkpoint(run_dir: Path) -> str:
    """The name of the newest published checkpoint, which has its step in it; nothing before the first."""
    return max((path.name for path in (run_dir / CHECKPOINTS).glob("step-*")), default="")
