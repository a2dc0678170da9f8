"""Finished runs at many token budgets: the same weights, the same answers, every sample once, all of its cost."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from dart.registry import CONTROL_SCORERS, TOKENIZERS, has_density
from pipeline.adaptive import Way, predict_adaptive
from pipeline.budget_rules import AdaptiveConfig
from pipeline.budgets import Answers, evaluate_budgets, record_budgets, write_answers
from pipeline.classification import predict
from pipeline.config import EvaluateConfig, Trial, load_suite, load_yaml
from pipeline.data.catalog import DATASETS
from pipeline.data.clips import Views
from pipeline.data.index import load_manifest
from pipeline.data.options import DigitsOptions
from pipeline.data.shards import write_shards
from pipeline.errors import ConfigError, UserError
from pipeline.evaluate import evaluate_runs, write_evaluation
from pipeline.part import Part, count_passes, is_little
from pipeline.placement import Placement
from pipeline.tracking.runs import score_metrics
from pipeline.weights import load_model
from tests.pipeline.test_config import ROOT, problems
from tests.pipeline.test_evaluate import NUM_TEST, finished_run, tiny_trial

ADAPTIVE = AdaptiveConfig(
    signals=["spread", "uncertainty"], held=["batch", "dataset"], mean_budgets=[4, 8, 16], low=4, high=16, step=4
)
CONFIG = EvaluateConfig(batch_size=8, gallery_samples=0, token_budgets=[4, 9, 16], adaptive=ADAPTIVE)
Run = tuple[dict[str, Any], Path]


def any_budget(tokenizer: str = "dart") -> Trial:
    trial = tiny_trial(tokenizer)
    return trial.model_copy(update={"train": trial.train.model_copy(update={"token_budgets": [4, 16]})})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    counts = {"train_samples": 4, "val_samples": 19, "test_samples": NUM_TEST}
    options = DigitsOptions(name="cluttered-digits", img_size=32, num_clutter=1, seed=0, **counts)
    (folder / "raw").mkdir()
    DATASETS["cluttered-digits"].fetch(options, folder / "raw")
    write_shards(options, folder / "raw", folder / "shards", 10)
    return folder / "shards"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Trained over budgets, for one, and over budgets without a scorer."""
    folder = tmp_path_factory.mktemp("results")
    trials = {"any": any_budget(), "nine": tiny_trial(), "grid": any_budget("uniform")}
    return [finished_run(folder, trial, name) for name, trial in trials.items()]


@pytest.fixture(scope="module")
def answers(runs: list[Run], shards: Path) -> Answers:
    weights = {entry["fingerprint"]: path for entry, path in runs}
    return evaluate_budgets([entry for entry, _ in runs], weights, shards, CONFIG, Placement())


def test_every_run_is_asked_at_every_budget_and_its_own_gives_its_own_answers(
    answers: Answers, runs: list[Run], shards: Path
) -> None:
    asked = {name: list(found) for name, found in answers.fixed.items()}
    assert asked == {name: [4, 9, 16] for name in ("any", "nine", "grid")}
    weights = {entry["fingerprint"]: path for entry, path in runs}
    plain = evaluate_runs([entry for entry, _ in runs], weights, shards, 8, Placement())
    for name, found in plain.items():
        np.testing.assert_array_equal(answers.fixed[name][9].classes, found.classes)
        np.testing.assert_array_equal(answers.fixed[name][9].confidences, found.confidences)
    assert any((answers.fixed["any"][4].classes != plain["any"].classes).flatten())


def test_only_runs_trained_over_budgets_adapt_them_and_only_a_scorer_has_a_density(answers: Answers) -> None:
    assert set(answers.adaptive) == {"any", "grid"}
    assert len(answers.adaptive["any"]) == 12
    assert {outcome.way.signal for outcome in answers.adaptive["grid"]} == {"uncertainty"}


def test_what_says_nothing_of_an_image_shares_out_nothing(shards: Path, tmp_path: Path) -> None:
    """Whatever the tokenizer: the registry, the model and the record agree, and both signals come to an end."""
    config = CONFIG.model_copy(update={"token_budgets": None})
    kinds = [(name, "conv") for name in TOKENIZERS] + [("dart", name) for name in CONTROL_SCORERS]
    runs = []
    for name, scorer in kinds:
        trial = any_budget(name)
        tokenizer = trial.tokenizer.model_copy(update={"scorer": scorer})
        runs.append(finished_run(tmp_path, trial.model_copy(update={"tokenizer": tokenizer}), f"{name}-{scorer}"))
    weights = {entry["fingerprint"]: path for entry, path in runs}
    entries = [entry for entry, _ in runs]
    records = record_budgets(evaluate_budgets(entries, weights, shards, config, Placement()), entries, shards)
    for (name, scorer), record in zip(kinds, records.values(), strict=True):
        signals = {way["signal"] for way in record["adaptive"]}
        assert signals == ({"spread", "uncertainty"} if has_density(name, scorer) else {"uncertainty"}), name


def test_a_mean_at_an_end_of_the_ladder_is_that_budget_for_all(answers: Answers) -> None:
    for outcome in answers.adaptive["any"]:
        if outcome.way.mean_budget in (4, 16) and outcome.way.held == "batch":
            fixed = answers.fixed["any"][outcome.way.mean_budget]
            assert set(outcome.budgets) == {outcome.way.mean_budget}
            np.testing.assert_array_equal(outcome.predictions.classes, fixed.classes)
            np.testing.assert_array_equal(outcome.predictions.labels, fixed.labels)


def test_every_batch_spends_its_total_and_every_sample_is_answered_at_its_own_budget(answers: Answers) -> None:
    for outcome in answers.adaptive["any"]:
        assert outcome.predictions.indices.tolist() == list(range(NUM_TEST))
        if outcome.way.held == "batch":
            for start in range(0, NUM_TEST, 8):
                assert outcome.budgets[start : start + 8].mean() == outcome.way.mean_budget
        for budget in (4, 16):
            mine = outcome.budgets == budget
            expected = answers.fixed["any"][budget].confidences[mine]
            np.testing.assert_allclose(outcome.predictions.confidences[mine], expected, rtol=1e-4)


def test_what_is_held_over_the_data_set_depends_on_no_batch_mates(runs: list[Run], shards: Path) -> None:
    config = ADAPTIVE.model_copy(update={"held": ["dataset"], "mean_budgets": [8]})
    found = [predict_adaptive(Part(*runs[0], shards, size, 0, 1, adaptive=config)) for size in (5, NUM_TEST)]
    for small, large in zip(*found, strict=True):
        assert small.budgets.tolist() == large.budgets.tolist()
        assert len(set(small.budgets)) > 1
        assert small.predictions.classes.tolist() == large.predictions.classes.tolist()


def test_the_record_has_scores_and_costs_with_the_look_that_tells_the_need(
    answers: Answers, runs: list[Run], shards: Path, tmp_path: Path
) -> None:
    entries = [entry for entry, _ in runs]
    more = record_budgets(answers, entries, shards)
    macs = {found["token_budget"]: found["macs"] for found in more["any"]["budgets"]}
    assert macs[4] < macs[9] < macs[16]
    assert macs == {found["token_budget"]: found["macs"] for found in more["nine"]["budgets"]}
    assert "adaptive" not in more["nine"]
    ways = {Way(found["signal"], found["held"], found["token_budget"]): found for found in more["any"]["adaptive"]}
    assert ways[Way("uncertainty", "batch", 4)]["macs"] == macs[4]  # the look's answer stands
    assert ways[Way("uncertainty", "batch", 16)]["macs"] == macs[4] + macs[16]
    scorer = ways[Way("spread", "batch", 16)]["macs"] - macs[16]
    assert 0 < scorer == ways[Way("spread", "batch", 4)]["macs"] - macs[4]
    assert sum(ways[Way("spread", "dataset", 8)]["spent"].values()) == NUM_TEST
    predictions = {name: found[9] for name, found in answers.fixed.items()}
    write_evaluation(tmp_path, "tiny", entries, predictions, shards, more=more)
    recorded = json.loads((tmp_path / "metrics.json").read_text())["runs"][0]
    assert recorded["budgets"][1]["top1"] == recorded["top1"]
    told = score_metrics(recorded)  # what MLflow shows
    assert told["test_top1_at_9"] == told["test_top1"] == recorded["top1"]
    assert told["test_top1_at_16_spread_batch"] == told["test_top1_at_16"]
    assert len(told) == 2 * (1 + 3 + 12)


def test_every_answer_is_kept_with_what_it_took(answers: Answers, shards: Path, tmp_path: Path) -> None:
    write_answers(tmp_path, answers, shards)
    names = sorted(path.name for path in (tmp_path / "budgets").iterdir())
    assert len(names) == 9 + 12 + 6
    with (tmp_path / "budgets/any-spread-batch-8.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    outcome = next(found for found in answers.adaptive["any"] if found.way == Way("spread", "batch", 8))
    assert [int(row["token_budget"]) for row in rows] == outcome.budgets.tolist()
    assert [int(row["prediction"]) for row in rows] == outcome.predictions.classes[:, 0].tolist()


def test_little_work_is_counted_with_its_looks_views_and_frames(runs: list[Run], shards: Path) -> None:
    manifest, (entry, weights) = load_manifest(shards), runs[0]
    part = Part(entry, weights, shards, 8, 0, 1)
    assert count_passes(part, manifest) == NUM_TEST
    assert count_passes(part._replace(world_size=NUM_TEST), manifest) == 1
    adaptive = part._replace(adaptive=ADAPTIVE)  # four rungs, two looks, and those of the val split
    assert count_passes(adaptive, manifest) == (2 + 4) * NUM_TEST + 2 * 19
    clip = {**entry, "science": {**entry["science"], "model": {**entry["science"]["model"], "num_frames": 8}}}
    parts = [part._replace(entry=clip, views=Views(4, 3))]
    assert count_passes(parts[0], manifest) == 8 * 12 * NUM_TEST
    assert is_little(parts, manifest)
    assert not is_little(parts * (20_000 // (96 * NUM_TEST) + 1), manifest)


def test_nobody_asks_nothing_is_done(runs: list[Run], shards: Path) -> None:
    silent = EvaluateConfig(batch_size=8, gallery_samples=0)
    entry, weights = runs[0]
    found = evaluate_budgets([entry], {"any": weights}, shards, silent, Placement())
    assert found == Answers({}, {})
    assert record_budgets(found, [entry], shards) == {"any": {}}


def test_a_budget_that_the_images_do_not_allow_is_one_sentence(runs: list[Run], shards: Path) -> None:
    entry, weights = runs[0]
    with pytest.raises(UserError, match=r"run any \(dart-9\): token_budget = 5000: must be from 1 to .* 1024 pixels"):
        load_model(entry, weights, 10, token_budget=5000)
    alone = predict(Part(entry, weights, shards, 8, 0, 1, token_budget=16))
    assert alone.indices.tolist() == list(range(NUM_TEST))


SOME = {"signals": ["spread"], "held": ["batch"], "mean_budgets": [24], "low": 16, "high": 48, "step": 4}
ANY = {"experiments/any": {"train": {"token_budgets": [16, 36]}}}
HALVES = "experiments.any.model.reducer.keep = 0.15: tome merges at most half of the tokens in each of 3 blocks"


def tome(**train: Any) -> dict[str, Any]:
    """An experiment that leaves 10 of 64 tokens, which no three halvings of few tokens do."""
    model = {"variant": "micro", "reducer": {"name": "tome", "keep": 0.15}}
    return {"experiments/any": {"model": model, "tokenizer": {"token_budget": 64}, "train": train}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train/token_budgets": []}, "train.token_budgets = []: "),
        ({"train/token_budgets": [16, 0]}, "train.token_budgets[1] = 0: "),
        ({"train/token_budgets": [16, 36, 16]}, "train.token_budgets[2] = 16: twice in the list"),
        ({"train/token_budgets": [9217]}, "train.token_budgets[0] = 9217: more tokens than pixels (9216)"),
        ({"evaluate/token_budgets": [9217]}, "evaluate.token_budgets[0] = 9217: more tokens than pixels (9216)"),
        ({"evaluate/adaptive": SOME}, "no experiment is trained at more than one budget; give one train.token_budgets"),
        (
            {**ANY, "evaluate/adaptive": {**SOME, "high": 50}},
            "evaluate.adaptive.high = 50: not whole steps of 4 above low (16); try 48",
        ),
        (
            {**ANY, "evaluate/adaptive": {**SOME, "mean_budgets": [24, 25]}},
            "evaluate.adaptive.mean_budgets[1] = 25: not whole steps of 4 above low (16), up to high (48)",
        ),
        ({**ANY, "evaluate/adaptive": {**SOME, "signals": ["entropy"]}}, "evaluate.adaptive.signals[0] = 'entropy': "),
        (
            {**ANY, "evaluate/adaptive": {**SOME, "high": 9616}},
            "evaluate.adaptive.high = 9616: more tokens than pixels",
        ),
        (
            tome(token_budgets=[9, 64]),
            f"experiments.any.train.token_budgets[0] = 9: not with {HALVES}; use at least 2 / 9",
        ),
        ({**tome(), "evaluate/token_budgets": [64, 9]}, f"evaluate.token_budgets[1] = 9: not with {HALVES}"),
        (
            tome(token_warmup={"token_budget": 9, "frac": 0.2}),
            f"experiments.any.train.token_warmup.token_budget = 9: not with {HALVES}",
        ),
        (
            {**tome(token_budgets=[64]), "evaluate/adaptive": {**SOME, "low": 6, "step": 3}},
            f"evaluate.adaptive, budget 1 = 9: not with {HALVES}",
        ),
        (
            {**ANY, "experiments/any/tokenizer": {"name": "quadtree"}, "evaluate/adaptive": SOME},
            "evaluate.adaptive.signals = ['spread']: no experiment that is trained at several budgets has a density",
        ),
    ],
)
def test_every_mistake_has_its_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert any(sentence in line for line in problems(tmp_path, changes)), problems(tmp_path, changes)


def test_what_cannot_adapt_is_said(tmp_path: Path) -> None:
    dense = load_yaml(ROOT / "suites/digits-segmentation.yaml")
    dense["evaluate"]["adaptive"] = SOME
    dense["train"]["token_budgets"] = [16, 36]
    YAML().dump(dense, tmp_path / "dense.yaml")
    with pytest.raises(ConfigError, match=r"only of images with one label, the samples of .* have a class for every"):
        load_suite("dense", tmp_path / "dense.yaml")
    paper = load_yaml(ROOT / "suites/imagenet1k.yaml")
    paper["evaluate"]["adaptive"] = {**SOME, "low": 100, "high": 196, "mean_budgets": [148], "step": 48}
    paper["train"]["token_budgets"] = [100, 196]
    YAML().dump(paper, tmp_path / "paper.yaml")
    with pytest.raises(ConfigError, match="in paper mode an image's answer depends on its batch mates"):
        load_suite("paper", tmp_path / "paper.yaml")
