"""Ray Tune as the scheduler of a stage's trials: side by side, retried, on one Ray runtime; nothing else."""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Placement, Trial, absurd_precision, indivisible_batch
from pipeline.errors import ConfigError, UserError, problem
from pipeline.measures import validated
from pipeline.sweep.progress import Progress
from pipeline.train.launch import carry_out, ray_session
from pipeline.train.run import LOG, Job, Run, write_failure

DRIVER = {"node:__internal_head__": 0.001}  # a trial that drives others holds no core, or they might never start
LOST_CLUSTER_S = 60.0


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
            )
            for run in group
        ]
        _tune(jobs, slots, placement.max_failures, scratch, progress)


def num_starts(trial: Trial) -> int:
    """How many trainings must be done before this one, each starting from the one before."""
    return 0 if trial.init_from is None else 1 + num_starts(trial.init_from)


def _tune(jobs: list[Job], slots: int, max_failures: int, scratch: Path, progress: Progress) -> None:
    """One Tuner over the indices of `jobs`; each job resumes from its own folder, so Tune restores nothing."""
    from ray import tune

    first = jobs[0]
    many = first.num_workers > 1
    resources = DRIVER if many else {"CPU": first.cpus_per_worker, "GPU": first.gpus_per_worker}
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_trainable, jobs=[job.to_json() for job in jobs]), resources),
            param_space={"index": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=max(1, slots // max(job.num_workers for job in jobs))
            ),
            run_config=tune.RunConfig(
                name=scratch.name,
                storage_path=str(scratch.parent.resolve()),
                verbose=0,
                callbacks=[_callback(jobs, progress)],
                failure_config=tune.FailureConfig(max_failures=0 if many else max_failures),
            ),
        ).fit()
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


def _callback(jobs: list[Job], progress: Progress) -> Any:
    """Tune's events as progress lines; ends a sweep whose cluster is gone, for which Tune would wait for ever."""
    import ray
    from ray import tune

    class Shown(tune.Callback):
        alive_at = looked_at = time.monotonic()

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            progress.start()

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            if validated(result) is not None:
                progress.epoch(jobs[trial.config["index"]].run_dir.name, result)

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            job = jobs[trial.config["index"]]
            progress.retry(job.run_dir.name, "its process ended; trying again")

        def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
            now = time.monotonic()
            if now - self.looked_at > 10:
                self.looked_at = now
                if any(node["Alive"] for node in ray.nodes()):
                    self.alive_at = now
                elif now - self.alive_at > LOST_CLUSTER_S:
                    raise RuntimeError(f"no Ray node has been alive for {LOST_CLUSTER_S:.0f} s")

    return Shown()


def num_workers(run: Run, placement: Placement) -> int:
    """The workers of a run: its experiment's subject, or a matter of placement."""
    return run.trial.num_workers or placement.num_workers


def resolve_gpus(placement: Placement, nodes: Sequence[Mapping[str, float]]) -> float:
    """GPUs of each worker; `auto` is one where any node has one."""
    if placement.gpus_per_worker == "auto":
        return 1.0 if any(node.get("GPU") for node in nodes) else 0.0
    return float(placement.gpus_per_worker)


def count_slots(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """How many workers of this size fit on the nodes at once; none is split over nodes."""
    return sum(
        min(int(node.get("CPU", 0) // cpus), int(node.get("GPU", 0) // gpus) if gpus else 10**9) for node in nodes
    )


def check_capacity(runs: Sequence[Run], placement: Placement, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise ConfigError naming every run that could never start on these nodes, or would train absurdly slowly."""
    gpus = resolve_gpus(placement, nodes)
    slots = count_slots(nodes, placement.cpus_per_worker, gpus)
    has = ", ".join(f"{math.floor(sum(node.get(kind, 0) for node in nodes))} {kind}s" for kind in ("CPU", "GPU"))
    each = f"{placement.cpus_per_worker} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    problems: dict[str, None] = {}
    for run in runs:
        workers = num_workers(run, placement)
        if workers > slots:
            where = f"experiments.{run.trial.name}.num_workers" if run.trial.num_workers else "placement.num_workers"
            rule = f"the cluster has room for {slots} workers of {each}: {has} on {len(nodes)} nodes"
            problems[problem(where, workers, rule, f"at most {slots}" if slots else "lower *_per_worker")] = None
        problems |= dict.fromkeys(absurd_precision(run.trial, "cuda" if gpus else "cpu"))
    if problems:
        raise ConfigError("placement", problems)


def check_batches(runs: Sequence[Run], placement: Placement) -> None:
    """Every global batch must split equally over the workers, in pairs where pairs are mixed."""
    problems: dict[str, None] = {}
    for run in runs:
        train, workers = run.trial.train, num_workers(run, placement)
        paired = train.mixing is not None
        problems |= dict.fromkeys(
            indivisible_batch("train.global_batch_size", train.global_batch_size, workers, paired)
        )
    if problems:
        raise ConfigError("placement", problems)
