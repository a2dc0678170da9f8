"""What our runner adds to the scheduling of trials: 200 that have nothing to do, against Ray Tune alone."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import Comparison
from pipeline.config import load_suite
from pipeline.files import write_json_atomic
from pipeline.placement import Placement
from pipeline.sweep.capacity import Shortage
from pipeline.sweep.plan import plan_experiments
from pipeline.sweep.progress import Progress
from pipeline.sweep.tune import tune_jobs
from pipeline.train.run import DONE, Job
from pipeline.train.session import ray_session

NUM_TRIALS = 200
SLOTS = 2


def comparisons() -> Iterator[Comparison]:
    """The least is Tune with actors that are used again: its own loop is what costs, a plain loop takes no time."""
    with tempfile.TemporaryDirectory() as folder, ray_session(Placement(), num_cpus=SLOTS):
        root = Path(folder)
        jobs = make_jobs(root / "runs")
        placement = Placement()

        def ours(indices: Tensor) -> None:
            progress = Progress({}, {}, echo=lambda line: None)
            with contextlib.redirect_stdout(io.StringIO()):  # Tune says a line of every trial without metrics
                tune_jobs(jobs, SLOTS, placement.max_failures, root / ".tune", progress, Shortage(1, placement, 0.0))

        def bare(indices: Tensor) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                bare_tune(root / "bare")

        contestants = {
            "Ray Tune, reuse_actors, nothing to do": bare,
            "our runner, trials that are done already": ours,
        }
        target = {"our runner, trials that are done already": 1 / 1.2}
        yield Comparison(f"{NUM_TRIALS} no-op trials", torch.arange(NUM_TRIALS), contestants, target, rounds=3)


def make_jobs(folder: Path) -> list[Job]:
    """Jobs whose result is there: each is looked up, locked and found done by the process that should train it."""
    trial = plan_experiments(load_suite("digits"))[0]
    jobs = []
    for index in range(NUM_TRIALS):
        run_dir = folder / f"{index:03d}"
        run_dir.mkdir(parents=True)
        write_json_atomic(run_dir / DONE, {"status": "done"})
        jobs.append(Job(trial, run_dir, folder, 10, 1, 1, 0.0, 0, 0, {}))
    return jobs


def bare_tune(folder: Path) -> None:
    """As few lines as Tune takes, with the options that make it fast."""
    from ray import tune

    def nothing(config: dict[str, Any]) -> None:
        pass

    tune.Tuner(
        tune.with_resources(nothing, {"CPU": 1}),
        param_space={"index": tune.grid_search(list(range(NUM_TRIALS)))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=SLOTS),
        run_config=tune.RunConfig(name=folder.name, storage_path=str(folder.parent), verbose=0),
    ).fit()
