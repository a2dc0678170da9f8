"""What trainings of small suites share: the data, the trial of a name, and a model that dies."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Suite, Trial
from pipeline.data.fetch import fetch_dataset
from pipeline.data.shards import write_shards
from pipeline.sweep.plan import plan_experiments


def make_shards(suite: Suite, folder: Path) -> Path:
    """The suite's data in shards of 20 samples, in `folder`."""
    fetch_dataset(suite.dataset, folder / "raw")
    write_shards(suite.dataset, folder / "raw", folder / "shards", 20)
    return folder / "shards"


def trial_of(suite: Suite, name: str) -> Trial:
    """Of seed 0."""
    return next(trial for trial in plan_experiments(suite) if trial.name == name and trial.seed == 0)


def record_of(trial: Trial) -> dict[str, Any]:
    """What runs.json would say of it."""
    identity = {"name": trial.name, "seed": trial.seed, "fingerprint": "f1", "model_name": trial.model_name}
    return {**identity, "science": trial.science()}


class Killed(Exception):
    pass


class DiesAtStep(torch.nn.Module):
    """The model, until a certain step of this attempt."""

    def __init__(self, model: torch.nn.Module, steps: int) -> None:
        super().__init__()
        self.inner, self.left = model, steps

    def forward(self, *batch: Tensor, **asked: int) -> Any:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return self.inner(*batch, **asked)
