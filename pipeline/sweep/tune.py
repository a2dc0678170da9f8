"""Ray Tune as the scheduler of a stage's trials: side by side, retried, on one Ray runtime; nothing else."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Trial
from pipeline.data.index import MANIFEST_FILE
from pipeline.errors import UserError
from pipeline.measures import validated
from pipeline.placement import Placement
from pipeline.sweep.capacity import (
    Shortage,
    check_batches,
    check_capacity,
    count_slots,
    min_workers,
    num_workers,
    resolve_gpus,
)
from pipeline.sweep.progress import Progress
from pipeline.sweep.silence import ending_silent
from pipeline.train.launch import carry_out
from pipeline.train.nodes import check_nodes
from pipeline.train.run import LOG, Job, Run, read_failure, write_failure
from pipeline.train.session import ray_session

DRIVER = {"node:__internal_head__": 0.001}  # a trial that drives others holds no core, or they might never start
LOOK_S = 5.0  # between two looks at the nodes


def run_trials(
    runs: Sequence[Run],
    data_dir: Path,
    *,
    num_classes: int,
    placement: Placement,
    provenance: Mapping[str, Any],
    scratch: Path,
    costs: Mapping[str, float],
    echo: Callable[[str], None] = print,
) -> None:
    """Carry out every run that is not done, the longest first; what is finished stays finished.

    Args:
        scratch: A folder for Ray Tune's own state, deleted before and after.
        costs: By fingerprint, in any unit.

    Raises:
        UserError: before anything starts, if the cluster is too small; at the end, naming the runs that failed.
    """
    pending = {run.fingerprint: run for run in runs if run.done() is None}
    if not pending:
        return
    check_batches(list(pending.values()), placement)
    dashboard = any(num_workers(run, placement) > 1 for run in pending.values())
    with ray_session(placement, dashboard=dashboard):
        if placement.ray_address is not None:
            check_nodes(scratch.parent, [data_dir / MANIFEST_FILE])
        run_on_cluster(
            pending, data_dir, num_classes=num_classes, placement=placement, provenance=provenance, scratch=scratch,
            costs=costs, num_done=len({run.fingerprint for run in runs}) - len(pending), echo=echo,
        )  # fmt: skip
    raise_failures(list(pending.values()))


def raise_failures(runs: Sequence[Run]) -> None:
    """Raise UserError naming every run without a result, its cause and its log, if there is one."""
    failed = [run for run in runs if run.done() is None]
    if failed:
        lines = [f"{run.label}: {run.failure()}; see {run.dir / LOG}" for run in failed]
        raise UserError("\n  ".join([f"{len(failed)} of {len(runs)} trials failed, the others are kept", *lines]))


def run_on_cluster(
    pending: Mapping[str, Run],
    data_dir: Path,
    *,
    num_classes: int,
    placement: Placement,
    provenance: Mapping[str, Any],
    scratch: Path,
    costs: Mapping[str, float],
    num_done: int,
    echo: Callable[[str], None],
) -> None:
    """As `run_trials`, on the Ray runtime that this process is connected to.

    Runs that start from another's weights come after it. Of the others, those of one worker come first, then those
    of many: both kinds at once could each hold half of what the other waits for.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = resolve_gpus(placement, nodes)
    check_capacity(list(pending.values()), placement, nodes)
    progress = Progress(pending, costs, num_done, echo)
    slots = count_slots(nodes, placement.cpus_per_worker, gpus)
    waves = {(num_starts(run.trial), num_workers(run, placement) > 1) for run in pending.values()}
    for wave in sorted(waves):
        group = [run for run in pending.values() if (num_starts(run.trial), num_workers(run, placement) > 1) == wave]
        group.sort(key=lambda run: -costs[run.fingerprint])  # stable: equal costs keep the plan's order
        jobs = [
            Job(
                trial=run.trial,
                run_dir=run.dir.resolve(),
                data_dir=data_dir.resolve(),
                num_classes=num_classes,
                num_workers=num_workers(run, placement),
                cpus_per_worker=placement.cpus_per_worker,
                gpus_per_worker=gpus,
                loader_workers=placement.loader_workers,
                max_failures=placement.max_failures,
                provenance=dict(provenance),
                init_dir=run.init_dir.resolve() if run.init_dir else None,
                min_workers=min_workers(run, placement),
                dropped=run.dropped,
                device_batch_size=placement.device_batch_size,
                data_parallel=placement.data_parallel,
                silence_s=placement.silence_s,
                ledger=placement.ledger,
            )
            for run in group
        ]
        shortage = Shortage(max(job.min_workers or job.num_workers for job in jobs), placement, gpus)
        tune_jobs(jobs, slots, placement.max_failures, scratch, progress, shortage)


def num_starts(trial: Trial) -> int:
    """How many trainings must be done before this one, each starting from the one before."""
    return 0 if trial.init_from is None else 1 + num_starts(trial.init_from)


def tune_jobs(
    jobs: list[Job], slots: int, max_failures: int, scratch: Path, progress: Progress, shortage: Shortage
) -> None:
    """One Tuner over the indices of `jobs`; each job resumes from its own folder, so Tune restores nothing."""
    from ray import tune

    # It shows the traceback of a trial whose process died; we say in one line what became of it.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    first = jobs[0]
    many = first.num_workers > 1
    resources = DRIVER if many else {"CPU": first.cpus_per_worker, "GPU": first.gpus_per_worker}
    callback = _callback(jobs, progress, shortage)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trainable, jobs=[job.to_json() for job in jobs]), resources),
            param_space={"index": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=max(1, slots // max(job.num_workers for job in jobs))
            ),
            run_config=tune.RunConfig(
                name=scratch.name,
                storage_path=str(scratch.parent.resolve()),
                verbose=0,
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=0 if many else max_failures),
            ),
        )
        with ending_silent(jobs, progress.say):
            tuner.fit()
    except Exception:
        if callback.lost is not None:
            raise callback.lost from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _trainable(config: dict[str, Any], jobs: list[str]) -> None:
    """A trial: the job at `config["index"]`, in this process or driven from it."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    job = Job.from_json(jobs[config["index"]])
    try:
        carry_out(job, tune.report, lambda: [TuneReportCallback()])
    except UserError as error:  # the same input would fail again
        write_failure(job.run_dir, str(error))


def _callback(jobs: list[Job], progress: Progress, shortage: Shortage) -> Any:
    """Tune's events as progress lines; ends a sweep that lost too many nodes, for which Tune waits for ever."""
    import ray
    from ray import tune

    class Shown(tune.Callback):
        looked_at = time.monotonic()
        lost: UserError | None = None

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            progress.start()

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            if validated(result) is not None:
                progress.epoch(jobs[trial.config["index"]].run_dir.name, result)

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            job = jobs[trial.config["index"]]
            cause = read_failure(job.run_dir).get("error", "its process ended")
            progress.retry(job.run_dir.name, f"{cause}; trying again")

        def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
            if time.monotonic() - self.looked_at < LOOK_S:
                return
            self.looked_at = time.monotonic()
            try:
                shortage.look([node["Resources"] for node in ray.nodes() if node["Alive"]])
            except UserError as error:  # Tune would wrap it in its own
                self.lost = error
                raise

    return Shown()
