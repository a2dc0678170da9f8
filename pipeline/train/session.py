"""The Ray runtime of a stage: a private one that ends with it, or a cluster that is only visited."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, problem
from pipeline.placement import Placement
from pipeline.provenance import usable_cores
from pipeline.train.auth import protect_token
from pipeline.train.lost import Watch, listening, own_raylet, watching

# Read when ray is imported or handed to its workers. Measured in seconds per Ray Train run, except where said.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # unset, parts of a cluster disagree about it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # trials bring an environment of their own: none would fit
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
# What the nodes need no copy of, as in .gitignore: a leading slash, or `pipeline/data` would stay behind as well.
NOT_SHIPPED = [
    *("/.git", "/.dvc", "/.venv", "/.venv.boot", "/.hypothesis", "/.mypy_cache", "/.pytest_cache", "/.ruff_cache"),
    *("/data", "/runs", "/results", "/report", "/mlartifacts", "/mlflow.db*", "/docs", "/tests", "__pycache__"),
]
OBJECT_STORE_BYTES = 200 * 2**20  # nothing large passes through it


@contextlib.contextmanager
def ray_session(placement: Placement, *, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """One Ray runtime for the block: the cluster at `placement.ray_address`, or a private one that ends with it.

    Nothing of ours stays on a cluster, and its files on this machine are closed to other users.

    Args:
        num_cpus: Of a private runtime; default all usable cores.
        dashboard: Of a private runtime, on the loopback interface. Ray Train needs its State API to give back
            resources when a trial is stopped.

    Raises:
        UserError: nobody answers there or lets us in, or the cluster was lost on the way.
    """
    set_environment()
    address = placement.ray_address or "local"  # not None: that might adopt a stray cluster
    check_address(address)
    protect_token(make=address == "local")
    import ray

    with _own_folder() as folder:
        _connect(address, num_cpus or usable_cores(), dashboard, folder)
        store = ray.get_runtime_context().gcs_address
        watch = Watch(_name(address), store, _any_alive, raylet=own_raylet())
        with watching(watch):
            try:
                yield
            finally:
                if watch.sentence is None:
                    watch.over.set()  # what ends from here on, we end
                if address != "local" and watch.sentence is None:
                    _remove_detached()
                ray.shutdown()


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """Where a private runtime keeps its files for the block: Ray opens its folders to everybody, so they lie in ours.

    Their names must stay short, for sockets are among them: not in TMPDIR, which may be anywhere.
    """
    with tempfile.TemporaryDirectory(
        prefix="dart-ray-", dir=os.environ.get("RAY_TMPDIR") or "/tmp", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def set_environment() -> None:
    """Tell Ray what it reads once, when it is imported. What the user has set stays.

    Raises:
        UserError: it was imported before without a word about tokens: it would trust everybody, its cluster nobody.
    """
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        rule = "Ray was imported before this was set, and reads it only then"
        raise UserError(problem("RAY_AUTH_MODE", None, rule, "set it to token before `import ray`"))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _name(address: str) -> str:
    return "the private Ray runtime" if address == "local" else f"the Ray cluster at {address}"


def _connect(address: str, num_cpus: int, dashboard: bool, folder: Path) -> None:
    import ray

    shipped = {name: value for name, value in ENVIRONMENT.items() if name != "RAY_AUTH_MODE"}
    options: dict[str, Any] = {"runtime_env": {"working_dir": ".", "excludes": NOT_SHIPPED, "env_vars": shipped}}
    if address == "local":
        options = {
            "num_cpus": num_cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": dashboard,
            "dashboard_host": "127.0.0.1",
            "_temp_dir": str(folder / "ray"),
        }
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise _no_runtime(address, error) from error


def _any_alive() -> bool:
    """Whether any node is; no, where the control store breaks off in the middle of its answer."""
    import ray

    try:
        return any(node["Alive"] for node in ray.nodes())
    except ray.exceptions.RayError:
        return False


def _remove_detached() -> None:
    """End what Ray's libraries started for this job to outlive it, unless another job may use it by now."""
    import ray

    if len([job for job in ray._private.state.jobs() if not job["IsDead"]]) > 1:
        return
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    ours = ray._private.state.actors(job_id=job, actor_state_name="ALIVE")  # by id
    for known in ray.util.list_named_actors(all_namespaces=True):
        with contextlib.suppress(ValueError):  # it has ended by itself
            actor = ray.get_actor(known["name"], namespace=known["namespace"])
            if ours.get(actor._actor_id.hex(), {}).get("IsDetached"):
                ray.kill(actor)


def check_address(address: str) -> None:
    """Raise UserError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "local", "auto": for Ray to find
    if not listening(f"{host}:{port}"):
        raise _no_runtime(address, OSError("no answer"))


def _no_runtime(address: str, error: Exception) -> UserError:
    rule = f"no Ray runtime there ({str(error).strip().splitlines()[0]})"
    return UserError(problem("placement.ray_address", address, rule, "start it, or null = a private one"))
