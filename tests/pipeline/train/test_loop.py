"""The loop continues bit for bit from any death, stops when the loss is lost, and says what it cannot do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Suite, Trial
from pipeline.errors import UserError
from pipeline.journal import curves, read_journal
from pipeline.sweep.plan import plan_experiments
from pipeline.train.loop import WEIGHTS, FitResult, fit, step_seed

STEPS = 40  # 2 epochs of 400 samples in batches of 20


class Killed(Exception):
    pass


class DiesAtStep(nn.Module):
    """The model, until a certain step of this attempt."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        self.inner, self.left = model, steps

    def forward(self, images: Tensor) -> Tensor:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return self.inner(images)


@pytest.fixture(scope="module")
def trial(tiny_suite: Suite) -> Trial:
    return next(trial for trial in plan_experiments(tiny_suite) if trial.name == "dart-4")


def train(trial: Trial, shards: Path, run_dir: Path, **options: Any) -> FitResult:
    torch.set_num_threads(1)
    run_dir.mkdir(exist_ok=True)
    return fit(trial, shards, run_dir, num_classes=10, **{"log_every_steps": 4, "checkpoint_every_s": 0, **options})


@pytest.fixture(scope="module")
def uninterrupted(trial: Trial, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    train(trial, tiny_shards, run_dir)
    return run_dir


@pytest.mark.parametrize("deaths", [[3], [17], [20], [21, 9], [39], [4, 4, 4]])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(
    trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path, deaths: list[int]
) -> None:
    for steps in deaths:
        with pytest.raises(Killed):
            train(trial, tiny_shards, tmp_path, wrap=lambda model, steps=steps: DiesAtStep(model, steps))
    train(trial, tiny_shards, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (uninterrupted / WEIGHTS).read_bytes()
    ours, theirs = (curves(read_journal(folder / "journal.jsonl")) for folder in (tmp_path, uninterrupted))
    for name in ("train_loss", "val_loss", "val_top1", "lr"):
        assert ours[name] == theirs[name]


def test_a_training_that_only_missed_its_last_line_repeats_nothing(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    first = train(trial, tiny_shards, tmp_path)
    again = train(trial, tiny_shards, tmp_path, wrap=lambda model: DiesAtStep(model, 0))
    assert again.metrics == first.metrics
    assert (again.num_steps, again.num_samples) == (STEPS, STEPS * 20)


def test_how_often_is_logged_and_saved_changes_nothing(
    trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    train(trial, tiny_shards, tmp_path, log_every_steps=7, checkpoint_every_s=1e9)
    assert (tmp_path / WEIGHTS).read_bytes() == (uninterrupted / WEIGHTS).read_bytes()


def test_the_seed_decides_the_weights(trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path) -> None:
    train(trial.model_copy(update={"seed": 7}), tiny_shards, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() != (uninterrupted / WEIGHTS).read_bytes()


def test_every_epoch_is_validated_and_reported(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    reports: list[dict] = []
    result = train(trial, tiny_shards, tmp_path, report=reports.append)
    assert [(r["epoch"], r["step"]) for r in reports] == [(1, 20), (2, 40)]
    assert result.metrics.keys() == {"train_loss", "val_loss", "val_top1", "val_top5"}
    assert 0 <= result.metrics["val_top1"] <= result.metrics["val_top5"] <= 1
    json.dumps(reports)


def test_a_diverged_training_stops(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    wild = trial.model_copy(update={"train": trial.train.model_copy(update={"lr": 1e30})})
    with pytest.raises(UserError, match=r"gradient norm = nan: not finite at step \d+ of 40, the training diverged"):
        train(wild, tiny_shards, tmp_path)


def test_bfloat16_is_refused_on_a_processor(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    half = trial.model_copy(update={"train": trial.train.model_copy(update={"precision": "bf16"})})
    with pytest.raises(UserError, match=r"train\.precision = 'bf16': needs a GPU.*; use fp32"):
        train(half, tiny_shards, tmp_path)


def test_a_batch_larger_than_the_data_is_refused(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    big = trial.model_copy(update={"train": trial.train.model_copy(update={"global_batch_size": 401})})
    with pytest.raises(UserError, match=r"train\.global_batch_size = 401.*400"):
        train(big, tiny_shards, tmp_path)


def test_steps_and_ranks_have_seeds_of_their_own() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(4)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
