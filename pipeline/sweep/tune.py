"""Ray Tune as the scheduler of a stage's trials: side by side, retried, on one Ray runtime; nothing else."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config import Trial
from pipeline.data.index import MANIFEST_FILE
from pipeline.errors import UserError
from pipeline.measures import validated
from pipeline.placement import Placement
from pipeline.sweep.capacity import Shortage, check_batches, check_capacity, num_workers
from pipeline.sweep.jobs import build_job
from pipeline.sweep.progress import Progress
from pipeline.sweep.silence import ending_silent
from pipeline.train.launch import carry_out
from pipeline.train.nodes import alive_nodes, check_nodes
from pipeline.train.run import LOG, Job, Run, read_failure, write_failure
from pipeline.train.session import ray_session

if TYPE_CHECKING:
    from pipeline.sweep.halving import Halving

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
    halving: "Halving | None" = None,
    echo: Callable[[str], None] = print,
) -> None:
    """Carry out every run that is not done, the longest first; what is finished stays finished.

    Args:
        scratch: A folder for Ray Tune's own state, deleted before and after.
        costs: By fingerprint, in any unit.
        halving: Ends some of them early, and takes them in the order given; None: all are carried out to the end.

    Raises:
        UserError: before anything starts, if the cluster is too small; at the end, naming the runs that failed.
    """
    over = halving.stopped if halving else {}
    pending = {run.fingerprint: run for run in runs if run.done() is None and run.fingerprint not in over}
    if not pending:
        return
    check_batches(list(pending.values()), placement)
    dashboard = any(num_workers(run, placement) > 1 for run in pending.values())
    with ray_session(placement, dashboard=dashboard):
        if placement.ray_address is not None:
            check_nodes(scratch.parent, [data_dir / MANIFEST_FILE])
        run_on_cluster(
            pending, data_dir, num_classes=num_classes, placement=placement, provenance=provenance, scratch=scratch,
            costs=costs, num_done=len({run.fingerprint for run in runs}) - len(pending), echo=echo, halving=halving,
        )  # fmt: skip
    raise_failures([run for run in pending.values() if halving is None or run.fingerprint not in halving.stopped])


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
    halving: "Halving | None" = None,
) -> None:
    """As `run_trials`, on the Ray runtime that this process is connected to.

    Runs that start from another's weights come after it. Of the others, those of one worker come first, then those
    of many: both kinds at once could each hold half of what the other waits for.
    """
    gpus, slots = check_capacity(list(pending.values()), placement, alive_nodes())
    progress = Progress(pending, costs, num_done, echo)
    waves = {(num_starts(run.trial), num_workers(run, placement) > 1) for run in pending.values()}
    for wave in sorted(waves):
        group = [run for run in pending.values() if (num_starts(run.trial), num_workers(run, placement) > 1) == wave]
        if halving is None:
            group.sort(key=lambda run: -costs[run.fingerprint])  # stable: equal costs keep the plan's order
        jobs = [build_job(run, data_dir, num_classes, placement, gpus, provenance) for run in group]
        shortage = Shortage(max(job.min_workers or job.num_workers for job in jobs), placement, gpus)
        room = Room(slots // max(job.num_workers for job in jobs), wave[1], placement, gpus)
        tune_jobs(jobs, room, scratch, progress, shortage, halved_by(halving, jobs) if halving else Steering())


def num_starts(trial: Trial) -> int:
    """How many trainings must be done before this one, each starting from the one before."""
    return 0 if trial.init_from is None else 1 + num_starts(trial.init_from)


class Room(NamedTuple):
    """How trials of one kind are placed: so many side by side, each in a process of its own or driving many."""

    concurrent: int
    many: bool
    placement: Placement
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """Of a trial, for Tune."""
        return DRIVER if self.many else {"CPU": self.placement.cpus_per_worker, "GPU": self.gpus}


class Steering(NamedTuple):
    """What decides between trials: nothing, a scheduler of Tune's that ends some, or a searcher that makes them.

    num_samples: Trials that the searcher may make.
    stopped: Fingerprint -> the record of a run that was ended.
    """

    scheduler: Any = None
    searcher: Any = None
    num_samples: int = 1
    stopped: Mapping[str, dict[str, Any]] = MappingProxyType({})


def halved_by(halving: "Halving", jobs: Sequence[Job]) -> Steering:
    """Some of the jobs are ended early."""
    from pipeline.sweep.halving import HalvingScheduler

    scheduler = HalvingScheduler(halving, lambda trial: jobs[trial.config["index"]].run_dir)
    return Steering(scheduler=scheduler, stopped=halving.stopped)


def tune_jobs(
    jobs: list[Job], room: Room, scratch: Path, progress: Progress, shortage: Shortage, steering: Steering
) -> None:
    """One Tuner over the indices of `jobs`; each job resumes from its own folder, so Tune restores nothing.

    A searcher appends to `jobs` and names the index, and the job itself, in the configuration of its trial.
    """
    from ray import tune

    # It shows the traceback of a trial whose process died; we say in one line what became of it.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    callback = _callback(jobs, progress, shortage, steering.stopped)
    listed = {} if steering.searcher else {"index": tune.grid_search(list(range(len(jobs))))}
    known = tune.with_parameters(_trainable, jobs=[job.to_json() for job in jobs])
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        tuner = tune.Tuner(
            tune.with_resources(known, room.resources),
            param_space=listed,
            tune_config=tune.TuneConfig(
                # A trial is stopped where it reports, and ends there; one that waits for its workers cannot.
                reuse_actors=steering.scheduler is None or not room.many,
                max_concurrent_trials=max(1, room.concurrent),
                num_samples=steering.num_samples,
                search_alg=steering.searcher,
                scheduler=steering.scheduler,
            ),
            run_config=tune.RunConfig(
                name=scratch.name,
                storage_path=str(scratch.parent.resolve()),
                verbose=0,
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=0 if room.many else room.placement.max_failures),
            ),
        )
        with ending_silent(jobs, progress.say, steering.stopped):
            tuner.fit()
    except Exception:
        if callback.lost is not None:
            raise callback.lost from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _trainable(config: dict[str, Any], jobs: list[str]) -> None:
    """A trial: its own job, or the one at `config["index"]`; in this process or driven from it."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    job = Job.from_json(config["job"] if "job" in config else jobs[config["index"]])
    try:
        carry_out(job, tune.report, lambda: [TuneReportCallback()])
    except UserError as error:  # the same input would fail again
        write_failure(job.run_dir, str(error))


def _callback(jobs: list[Job], progress: Progress, shortage: Shortage, stopped: Mapping[str, dict[str, Any]]) -> Any:
    """Tune's events as progress lines; ends a sweep that lost too many nodes, for which Tune waits for ever."""
    from ray import tune

    class Shown(tune.Callback):
        looked_at = time.monotonic()
        lost: UserError | None = None

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            progress.start()

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            name = jobs[trial.config["index"]].run_dir.name
            if validated(result) is not None:
                progress.epoch(name, result)
            if name in stopped:
                progress.stop(name, stopped[name]["status"])

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            job = jobs[trial.config["index"]]
            cause = read_failure(job.run_dir).get("error", "its process ended")
            progress.retry(job.run_dir.name, f"{cause}; trying again")

        def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
            if time.monotonic() - self.looked_at < LOOK_S:
                return
            self.looked_at = time.monotonic()
            try:
                shortage.look(alive_nodes())
            except UserError as error:  # Tune would wrap it in its own
                self.lost = error
                raise

    return Shown()
