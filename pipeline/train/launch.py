"""Where training runs: the Ray runtime of a stage, and the two ways to carry out a job on it."""

import contextlib
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import Placement
from pipeline.errors import UserError, problem
from pipeline.provenance import usable_cores
from pipeline.train.run import DONE, FAILED, Job, holding, train_job, write_failure

# Read when ray is imported or handed to its workers. Measured in seconds per Ray Train run, except where said.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # unset, parts of a cluster disagree about it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints would appear twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints boxes even when told to be quiet
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: checkpoints make a graceful end unnecessary
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the record
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
NOT_SHIPPED = [
    ".git",
    ".dvc",
    ".venv",
    ".venv.boot",
    "data",
    "runs",
    "results",
    "report",
    "mlartifacts",
    "mlflow.db",
]
ANSWER_S = 5.0
OBJECT_STORE_BYTES = 200 * 2**20  # nothing large passes through it


@contextlib.contextmanager
def ray_session(placement: Placement, *, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """One Ray runtime for the block: the cluster at `placement.ray_address`, or a private one that ends with it.

    Args:
        num_cpus: Of a private runtime; default all usable cores.
        dashboard: Of a private runtime, on the loopback interface. Ray Train needs its State API to give back
            resources when a trial is stopped.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = placement.ray_address or "local"  # not None: that might adopt a stray cluster
    check_address(address)
    import ray

    options: dict[str, Any] = {"runtime_env": {"working_dir": ".", "excludes": NOT_SHIPPED}}
    if address == "local":
        options = {
            "num_cpus": num_cpus or usable_cores(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": dashboard,
            "dashboard_host": "127.0.0.1",
        }
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_runtime(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Raise UserError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "local", "auto": for Ray to find
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise _no_runtime(address, error) from None


def _no_runtime(address: str, error: Exception) -> UserError:
    rule = f"no Ray runtime there ({str(error).strip().splitlines()[0]})"
    return UserError(problem("placement.ray_address", address, rule, "start it, or null = a private one"))


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
        if (job.run_dir / DONE).is_file():
            return
        (job.run_dir / FAILED).unlink(missing_ok=True)
        try:
            if job.num_workers == 1:
                device = "cuda" if job.gpus_per_worker else "cpu"
                train_job(job, rank=0, world_size=1, device=device, report=report, wrap=lambda model: model)
            else:
                _train_on_workers(job, callbacks())
        except Exception as error:
            if not (job.run_dir / FAILED).is_file():
                write_failure(job.run_dir, f"{type(error).__name__}: {error}")
            if job.num_workers == 1:
                raise  # for Tune to try again; Ray Train has tried its workers again already


def _train_on_workers(job: Job, callbacks: list[Any]) -> None:
    """Data parallel over `job.num_workers` processes; a crashed group is started again from the checkpoint."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline.train.worker import train_worker

    scratch = Path(job.run_dir) / "ray_train"
    shutil.rmtree(scratch, ignore_errors=True)  # Ray would go on from its own state; ours is the checkpoint
    TorchTrainer(
        train_worker,
        train_loop_config={"job": job.to_json()},
        scaling_config=ScalingConfig(
            num_workers=job.num_workers,
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
