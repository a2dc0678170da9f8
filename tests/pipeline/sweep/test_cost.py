"""Costs before training: more work costs more, and what was measured is believed."""

import json
from pathlib import Path

import pytest

from pipeline.config import Suite, Trial
from pipeline.model_rules import ReducerConfig
from pipeline.sweep.cost import ASSUMED_MACS_PER_S, estimate_worker_s, load_speed, relative_cost
from pipeline.sweep.plan import plan_experiments
from pipeline.sweep.progress import words


@pytest.fixture
def trial(tiny_suite: Suite) -> Trial:
    return plan_experiments(tiny_suite)[0]


def changed(trial: Trial, section: str, **values: object) -> Trial:
    return trial.model_copy(update={section: getattr(trial, section).model_copy(update=values)})


def record(folder: Path, trial: Trial, seconds: float, num_samples: int = 100) -> None:
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({"science": trial.science()}))
    (folder / "done.json").write_text(json.dumps({"wall_s": seconds, "world_size": 1, "num_samples": num_samples}))


def test_more_tokens_layers_and_epochs_cost_more(trial: Trial) -> None:
    costs = [relative_cost(trial, 100)]
    for more in (("tokenizer", {"token_budget": 5}), ("model", {"variant": "micro"}), ("train", {"epochs": 3})):
        costs.append(relative_cost(changed(trial, more[0], **more[1]), 100))
    assert min(costs[1:]) > costs[0] > 0


def test_what_is_taken_away_costs_less_and_what_is_masked_does_not(trial: Trial) -> None:
    full = changed(trial, "model", variant="micro")
    costs = {"plain": relative_cost(full, 100)}
    for options in ({"name": "evit", "fuse": True}, {"name": "dynamicvit", "ratio_weight": 2.0}):
        reducer = ReducerConfig(keep=0.25, **options)
        costs[reducer.name] = relative_cost(changed(full, "model", reducer=reducer), 100)
    assert costs["evit"] < costs["dynamicvit"] == costs["plain"]


def test_without_history_the_assumption_is_stated(trial: Trial, tmp_path: Path) -> None:
    speed = load_speed(tmp_path.glob("*/"))
    assert "assuming" in speed.source
    expected = relative_cost(trial, 100) / ASSUMED_MACS_PER_S
    assert estimate_worker_s(trial, 100, speed) == pytest.approx(expected)


def test_an_architecture_that_was_trained_takes_as_long_again(trial: Trial, tmp_path: Path) -> None:
    record(tmp_path / "a", trial, seconds=10)
    (tmp_path / "unfinished").mkdir()
    speed = load_speed(tmp_path.glob("*/"))
    assert speed.source == "from 1 earlier runs"
    assert estimate_worker_s(trial.model_copy(update={"seed": 9}), 100, speed) == 10 * trial.train.epochs


def test_what_a_training_in_float64_took_says_nothing_of_one_in_float32(trial: Trial, tmp_path: Path) -> None:
    record(tmp_path / "a", trial, seconds=10)
    record(tmp_path / "b", changed(trial, "train", precision="fp64"), seconds=90)
    assert estimate_worker_s(trial, 100, load_speed(tmp_path.glob("*/"))) == 10 * trial.train.epochs


def test_a_training_that_was_lost_at_once_says_nothing(trial: Trial, tmp_path: Path) -> None:
    record(tmp_path / "lost", trial, 3.0, num_samples=0)
    assert load_speed(tmp_path.glob("*")).macs_per_s == ASSUMED_MACS_PER_S


def test_another_architecture_is_scaled_by_its_arithmetic(trial: Trial, tmp_path: Path) -> None:
    record(tmp_path / "a", trial, seconds=10)
    larger = changed(trial, "tokenizer", token_budget=9)
    ratio = relative_cost(larger, 100) / relative_cost(trial, 100)
    estimate = estimate_worker_s(larger, 100, load_speed(tmp_path.glob("*/")))
    assert estimate == pytest.approx(10 * trial.train.epochs * ratio)


@pytest.mark.parametrize(("seconds", "text"), [(12.3, "12 s"), (200, "3 min"), (9000, "2.5 h")])
def test_durations_are_said_in_words(seconds: float, text: str) -> None:
    assert words(seconds) == text
