"""What Ray adds to a training: the loop in an actor, as a stage carries it out, and the same loop in this process."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import Comparison
from pipeline.config import Suite, Trial, load_suite
from pipeline.data.fetch import fetch_dataset
from pipeline.data.shards import write_shards
from pipeline.placement import Placement
from pipeline.sweep.plan import plan_experiments
from pipeline.train.launch import carry_out
from pipeline.train.loop import fit
from pipeline.train.run import Job
from pipeline.train.session import ray_session

NUM_SAMPLES, NUM_VAL = 1920, 24
PROMISED = 1 / 1.02


def comparisons() -> Iterator[Comparison]:
    """An epoch from nothing to the weights on the disk, with its validation, journal, checkpoint and signs of life."""
    suite = small(load_suite("digits"))
    trial = next(trial for trial in plan_experiments(suite) if trial.name == "dart-36")
    trial = trial.model_copy(update={"train": trial.train.model_copy(update={"epochs": 1})})
    with tempfile.TemporaryDirectory() as name, ray_session(Placement(), num_cpus=1):
        import ray  # which reads its environment then

        folder = Path(name)
        fetch_dataset(suite.dataset, folder / "raw")
        write_shards(suite.dataset, folder / "raw", folder / "shards", suite.shards.samples_per_shard)
        actor = ray.remote(num_cpus=1)(Carrier).remote(job_of(trial, folder))
        contestants = {
            "the loop without Ray": lambda indices: alone(trial, folder),
            "the loop in an actor of Ray": lambda indices: ray.get(actor.train.remote()),
        }
        target = {"the loop in an actor of Ray": PROMISED}
        yield Comparison("Training dart-36 of digits, one epoch", torch.arange(NUM_SAMPLES), contestants, target)


def small(suite: Suite) -> Suite:
    """The suite with less data."""
    less = {"train_samples": NUM_SAMPLES, "val_samples": NUM_VAL, "test_samples": NUM_VAL}
    return suite.model_copy(update={"dataset": suite.dataset.model_copy(update=less)})


def job_of(trial: Trial, folder: Path) -> Job:
    """As a stage makes it."""
    return Job(trial, folder / "ray", folder / "shards", 10, 1, 1, 0.0, 0, 0, {}, silence_s=60.0)


def alone(trial: Trial, folder: Path) -> None:
    """The training in this process, from nothing."""
    run_dir = folder / "alone"
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir()
    with torch.inference_mode(False), torch.enable_grad():  # measuring turns them off
        fit(trial, folder / "shards", run_dir, num_classes=10)


class Carrier:
    """An actor that does one job again and again."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def train(self) -> None:
        """The job, from nothing."""
        shutil.rmtree(self.job.run_dir, ignore_errors=True)
        carry_out(self.job, lambda metrics: None, _no_callbacks)
        if not (self.job.run_dir / "done.json").is_file():
            raise RuntimeError((self.job.run_dir / "failed.json").read_text())


def _no_callbacks() -> list[Any]:
    return []
