"""A tiny suite as a folder: shards, a trial, and jobs that train it in runs of their own."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.config import Suite, Trial, load_suite, load_yaml
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import load_manifest
from pipeline.data.shards import write_shards
from pipeline.errors import UserError
from pipeline.journal import JOURNAL_NAME, curves, read_journal
from pipeline.sweep.execute import Paths, plan_runs
from pipeline.sweep.plan import plan_experiments
from pipeline.train.launch import carry_out
from pipeline.train.run import DONE, FAILED, LOG, Job, Run
from tests.conftest import write_tiny_suite

CLOCKS = ("images_per_s",)  # measured by the clock: the only curves that differ between equal runs
SUITE = "tiny"


@dataclass(frozen=True)
class Project:
    """A folder with suites/tiny.yaml and data/tiny; every run has a folder of its own below it."""

    root: Path

    @property
    def suite(self) -> Suite:
        return load_suite(SUITE, self.root / "suites/tiny.yaml")

    @property
    def raw(self) -> Path:
        return self.root / "data/tiny/raw"

    @property
    def shards(self) -> Path:
        return self.root / "data/tiny/shards"

    @property
    def published(self) -> Path:
        """The results of stages."""
        return self.root / "published/results"

    def trial(self, **train: Any) -> Trial:
        """The experiment `dart-4` with averaged weights and a few large batches, or as `train` says."""
        given = next(trial for trial in plan_experiments(self.suite) if trial.name == "dart-4")
        changed = {"global_batch_size": 25, "model_ema_decay": 0.9, **train}
        return Trial.model_validate({**given.model_dump(), "train": {**given.train.model_dump(), **changed}})

    def run(self, name: str | None, trial: Trial) -> Run:
        """A run of `trial` in the folder runs/tiny/NAME, by default named by the fingerprint as always, prepared."""
        manifest = load_manifest(self.shards)
        paths = Paths(self.shards, self.root / "runs" / SUITE, self.root / "results" / SUITE, ())
        (planned,) = plan_runs("train", self.suite, [trial], manifest, paths)
        run = planned if name is None else Run(**{**vars(planned), "dir": self.root / "runs" / SUITE / name})
        run.prepare()
        return run

    def job(self, run: Run) -> Job:
        """What a process needs to carry `run` out alone, on the processor."""
        return Job(
            trial=run.trial, run_dir=run.dir, data_dir=self.shards, num_classes=10, num_workers=1, cpus_per_worker=1,
            gpus_per_worker=0, loader_workers=0, max_failures=0, provenance={}, ledger=True,
        )  # fmt: skip


def make_project(root: Path) -> Project:
    """A tiny suite with its data made, and little of it: a training takes a fraction of a second."""
    write_tiny_suite(root)
    path = root / "suites/tiny.yaml"
    raw = load_yaml(path)
    raw["dataset"] |= {"train_samples": 100, "val_samples": 20, "test_samples": 20}
    raw["shards"] |= {"samples_per_shard": 40}
    YAML().dump(raw, path)
    project = Project(root)
    fetch_dataset(project.suite.dataset, project.raw)
    write_shards(project.suite.dataset, project.raw, project.shards, project.suite.shards.samples_per_shard)
    return project


def save_often(every_steps: int) -> None:
    """Have all trainings of this process, and of its children, log and save every so many steps.

    Both are a machine's matter: no result depends on them. A suite cannot ask for it, for nobody wants it.
    """
    from pipeline.train.loop import fit

    assert fit.__kwdefaults__ is not None
    fit.__kwdefaults__.update(log_every_steps=every_steps, checkpoint_every_s=0.0)


def train(job: Job) -> None:
    """What a worker process does; raises what a stage would show of its failure."""
    try:
        carry_out(job, lambda metrics: None, list)
    except Exception:
        if not (job.run_dir / FAILED).is_file():
            raise
    if not (job.run_dir / DONE).is_file():
        raise UserError(json.loads((job.run_dir / FAILED).read_text())["error"])


@dataclass(frozen=True)
class Outcome:
    """What a finished training is judged by."""

    weights: bytes
    curves: dict[str, dict[int, float]]
    metrics: dict[str, float]
    num_samples: int
    rewinds: int
    files: frozenset[str]

    @classmethod
    def of(cls, run_dir: Path) -> "Outcome":
        done = json.loads((run_dir / DONE).read_text())
        lines = curves(read_journal(run_dir / JOURNAL_NAME))
        return cls(
            weights=(run_dir / "model.safetensors").read_bytes(),
            curves={name: points for name, points in lines.items() if name not in CLOCKS},
            metrics=done["metrics"],
            num_samples=done["num_samples"],
            rewinds=len(done.get("rewinds", ())),
            files=frozenset(str(path.relative_to(run_dir)) for path in run_dir.rglob("*")) - {LOG},
        )

    def lost(self, reference: "Outcome") -> list[str]:
        """In what this training differs from the undisturbed one; nothing where all is well."""
        whole = ("weights", "metrics", "num_samples", "rewinds")
        found = [name for name in whole if vars(self)[name] != vars(reference)[name]]
        for name in sorted(self.curves.keys() | reference.curves.keys()):
            if self.curves.get(name) != reference.curves.get(name):
                found.append(f"curve {name}")
        missing, left = reference.files - self.files, self.files - reference.files
        return found + [f"{path} is missing" for path in sorted(missing)] + [f"{p} is left" for p in sorted(left)]


def newest_checkpoint(run_dir: Path) -> int:
    """The step of the newest published checkpoint, 0 where there is none."""
    return max((int(folder.name.split("-")[1]) for folder in run_dir.glob("checkpoint/step-*")), default=0)


def events(run_dir: Path) -> list[str]:
    """What the journal says besides numbers."""
    return [record["text"] for record in read_journal(run_dir / JOURNAL_NAME) if record["kind"] == "event"]


def copy_run(run: Run, name: str) -> Run:
    """A copy of a run's folder under another name."""
    folder = run.dir.with_name(name)
    shutil.copytree(run.dir, folder, symlinks=True)
    return Run(**{**vars(run), "dir": folder})


def forget(run: Run) -> None:
    """Remove a run's folder."""
    shutil.rmtree(run.dir)


def alone() -> None:
    """Make this process one that children can be forked from, before torch is loaded: no GPU, no threads."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
