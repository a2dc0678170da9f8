"""Steps of several token budgets, few first or in turn: by arithmetic alone, so ranks and resumed trainings agree."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Suite, Trial
from pipeline.recipe import TokenWarmupConfig
from pipeline.sweep.cost import estimate_worker_s, load_speed, relative_cost
from pipeline.sweep.preview import budgets_of
from pipeline.train.loop import WEIGHTS, fit
from pipeline.train.objective import step_budget
from tests.pipeline.train.small_suites import DiesAtStep, Killed, trial_of

BUDGETS = [4, 9, 16]
STEPS = 40  # 2 epochs of 400 samples in batches of 20


def trained_at(trial: Trial, budgets: list[int] | None) -> Trial:
    return trial.model_copy(update={"train": trial.train.model_copy(update={"token_budgets": budgets})})


def warmed(trial: Trial, token_budget: int, frac: float = 0.3) -> Trial:
    warmup = TokenWarmupConfig(token_budget=token_budget, frac=frac)
    return trial.model_copy(update={"train": trial.train.model_copy(update={"token_warmup": warmup})})


@pytest.fixture(scope="module")
def trial(tiny_suite: Suite) -> Trial:
    return trained_at(trial_of(tiny_suite, "dart-4"), BUDGETS)


class Hears(nn.Module):
    """The model; what it is asked for is noted."""

    def __init__(self, model: nn.Module, heard: list[dict[str, int]]) -> None:
        super().__init__()
        self.inner, self.heard = model, heard

    def forward(self, images: Tensor, **asked: int) -> Tensor:
        self.heard.append(asked)
        return self.inner(images, **asked)


def train(trial: Trial, shards: Path, run_dir: Path, **options: Any) -> list[dict[str, int]]:
    heard: list[dict[str, int]] = []
    torch.set_num_threads(1)
    run_dir.mkdir(exist_ok=True)
    given = {"log_every_steps": 4, "checkpoint_every_s": 0, "wrap": lambda model: Hears(model, heard), **options}
    fit(trial, shards, run_dir, num_classes=10, **given)
    return heard


@pytest.mark.parametrize("seed", range(3))
def test_every_block_of_steps_has_every_budget_once_and_its_own_order(seed: int) -> None:
    drawn = [step_budget(BUDGETS, seed, step) for step in range(300)]
    blocks = [tuple(drawn[i : i + 3]) for i in range(0, 300, 3)]
    assert {tuple(sorted(block)) for block in blocks} == {tuple(BUDGETS)}
    orders = Counter(blocks)
    assert len(orders) == 6
    assert max(orders.values()) < 35  # of 100: about 17 each
    assert drawn != [step_budget(BUDGETS, seed + 1, step) for step in range(300)]
    assert step_budget([7], seed, 5) == 7


def test_a_step_asks_the_model_for_its_budget_in_every_piece_of_its_batch(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    expected = [{"num_patches": step_budget(BUDGETS, trial.seed, step)} for step in range(STEPS)]
    assert train(trial, tiny_shards, tmp_path / "whole") == expected
    pieces = train(trial, tiny_shards, tmp_path / "pieces", device_batch_size=10)
    assert pieces == [asked for asked in expected for _ in range(2)]


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    train(trial, tiny_shards, tmp_path / "uninterrupted")
    for steps in (7, 18):
        with pytest.raises(Killed):
            train(trial, tiny_shards, tmp_path / "killed", wrap=lambda model, steps=steps: DiesAtStep(model, steps))
    train(trial, tiny_shards, tmp_path / "killed")
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "uninterrupted" / WEIGHTS).read_bytes()


def test_one_budget_in_the_list_is_the_training_with_that_budget(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    train(trained_at(trial, [4]), tiny_shards, tmp_path / "listed")
    heard = train(trained_at(trial, None), tiny_shards, tmp_path / "own")
    assert heard == [{}] * STEPS
    assert (tmp_path / "listed" / WEIGHTS).read_bytes() == (tmp_path / "own" / WEIGHTS).read_bytes()


def test_a_recipe_without_budgets_is_the_science_that_it_was(trial: Trial) -> None:
    assert "token_budgets" not in trained_at(trial, None).science()["train"]
    assert trial.science()["train"]["token_budgets"] == BUDGETS


def test_a_training_costs_the_mean_of_its_budgets_and_its_speed_is_no_other_s(trial: Trial, tmp_path: Path) -> None:
    costs = [relative_cost(trained_at(trial, [budget]), 100) for budget in BUDGETS]
    assert relative_cost(trial, 100) == pytest.approx(sum(costs) / 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/spec.json").write_text(json.dumps({"science": trial.science()}))
    (tmp_path / "run/done.json").write_text(json.dumps({"wall_s": 10, "world_size": 1, "num_samples": 100}))
    speed = load_speed(tmp_path.glob("*/"))
    assert estimate_worker_s(trial, 100, speed) == pytest.approx(10 * trial.train.epochs)
    assert estimate_worker_s(trained_at(trial, None), 100, speed) < 10 * trial.train.epochs


def test_the_first_steps_have_few_tokens_and_the_others_their_own(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    alone = warmed(trained_at(trial, None), 2)
    assert train(alone, tiny_shards, tmp_path / "alone") == [{"num_patches": 2}] * 12 + [{}] * 28
    in_turn = [{"num_patches": step_budget(BUDGETS, trial.seed, step)} for step in range(12, STEPS)]
    assert train(warmed(trial, 2), tiny_shards, tmp_path / "then") == [{"num_patches": 2}] * 12 + in_turn


def test_a_training_is_never_begun_with_more_tokens_than_its_own(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    own = trained_at(trial, None)
    for token_budget in (own.tokenizer.token_budget, 16):
        assert train(warmed(own, token_budget), tiny_shards, tmp_path / str(token_budget)) == [{}] * STEPS


def test_killed_among_the_first_steps_and_resumed_is_uninterrupted(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    alone = warmed(trained_at(trial, None), 2)
    train(alone, tiny_shards, tmp_path / "uninterrupted")
    with pytest.raises(Killed):
        train(alone, tiny_shards, tmp_path / "killed", wrap=lambda model: DiesAtStep(model, 7))
    train(alone, tiny_shards, tmp_path / "killed")
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "uninterrupted" / WEIGHTS).read_bytes()


def test_few_tokens_first_are_another_science_and_cheaper(trial: Trial) -> None:
    own = trained_at(trial, None)
    assert own.tokenizer.token_budget == 4
    assert "token_warmup" not in own.science()["train"]
    assert warmed(own, 2).science()["train"]["token_warmup"] == {"token_budget": 2, "frac": 0.3}
    assert warmed(own, 4).science() == warmed(own, 9).science() == own.science()  # the same training, so the same run
    few, usual = (relative_cost(trained_at(trial, [budget]), 100) for budget in (2, 4))
    assert relative_cost(warmed(own, 2), 100) == pytest.approx(0.3 * few + 0.7 * usual)
    assert relative_cost(warmed(own, 9), 100) == relative_cost(own, 100)
    assert [budgets_of(t) for t in (own, warmed(own, 2), warmed(own, 9), warmed(trial, 2))] == [
        "4", "2 to 4", "4", "2 to 16",
    ]  # fmt: skip
