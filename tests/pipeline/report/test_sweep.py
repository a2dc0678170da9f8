"""What is said of a sweep: fronts, a law of scaling with its interval, what keys matter; and what is stopped early."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from pipeline.report import formats
from pipeline.report.importance import COLUMNS, ESTIMATED, MIN_POINTS, importance, total_effects, varied
from pipeline.report.records import load_records
from pipeline.report.scaling import MIN_COSTS, fit_law, laws, scaling
from pipeline.report.site import build_page
from pipeline.report.sweep_figures import write_sweep_figures
from pipeline.report.tables import pareto_front, rows, sweep

FLOOR, EXCESS, EXPONENT = 0.12, 0.2, 0.7
GFLOPS = np.geomspace(0.01, 10, 12)
REFERENCE = float(np.exp(np.log(GFLOPS).mean()))


def accuracy(gflops: np.ndarray, reference: float = REFERENCE) -> np.ndarray:
    return 1 - FLOOR - EXCESS * (gflops / reference) ** -EXPONENT


def test_a_law_is_found_again_whatever_the_unit_and_the_order() -> None:
    law = fit_law(GFLOPS, accuracy(GFLOPS))
    assert law is not None
    assert law.determined
    np.testing.assert_allclose(law.values, [FLOOR, EXCESS, EXPONENT], rtol=1e-6)
    assert law.rmse < 1e-9
    thousandfold = fit_law(1000 * GFLOPS, accuracy(GFLOPS))
    assert thousandfold is not None
    np.testing.assert_allclose(thousandfold.values, law.values, rtol=1e-6)
    order = np.random.default_rng(0).permutation(len(GFLOPS))
    noisy = accuracy(GFLOPS) + np.random.default_rng(1).normal(0, 0.01, len(GFLOPS))
    once, again = fit_law(GFLOPS, noisy), fit_law(GFLOPS[order], noisy[order])
    assert once is not None
    assert again is not None
    assert np.array_equal(once.values, again.values)
    assert np.array_equal(once.covariance, again.covariance)


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    random, held, inside, values, widths = np.random.default_rng(0), [], [], [], []
    for _ in range(40):
        law = fit_law(GFLOPS, accuracy(GFLOPS) + random.normal(0, 0.005, len(GFLOPS)))
        assert law is not None
        values.append(law.values)
        widths.append(law.half_widths)
        held.append(abs(law.values - [FLOOR, EXCESS, EXPONENT]) <= law.half_widths)
        inside.append(abs(1 - law.error(GFLOPS) - accuracy(GFLOPS)) <= law.half_width(GFLOPS))
    assert np.all(np.abs(np.mean(held, axis=0) - 0.95) <= 0.07)  # two standard errors of 40 draws
    assert abs(np.mean(inside) - 0.95) <= 0.07
    spread = student.ppf(0.975, len(GFLOPS) - 3) * np.std(values, axis=0, ddof=1)
    assert np.all(np.abs(np.log(np.mean(widths, axis=0) / spread)) <= np.log(1.3))  # no wider than it needs to be


def test_a_limit_at_its_bound_is_not_one_that_was_found() -> None:
    """The points of a law whose floor is negative: the fit ends at 0, and its covariance is not one there."""
    law = fit_law(GFLOPS, 1.005 - 0.1 * (GFLOPS / REFERENCE) ** -0.3)
    assert law is not None
    assert law.at_bound
    assert not law.determined


def test_points_that_determine_nothing_are_said_to() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, len(GFLOPS))
    flat = fit_law(GFLOPS, np.full(len(GFLOPS), 0.8) + noise)
    assert flat is None or not flat.determined
    endless = fit_law(GFLOPS, 0.1 + 0.05 * np.log(GFLOPS / GFLOPS[0]))  # no end in sight
    assert endless is None or not endless.determined
    few = GFLOPS[: MIN_COSTS - 1]
    assert fit_law(np.repeat(few, 3), accuracy(np.repeat(few, 3))) is None


def test_a_suite_with_few_points_gets_the_reason_instead_of_numbers(lab: Any) -> None:
    lines = formats.to_csv(scaling(lab.load())).splitlines()
    assert lines[0].startswith("series,num_points,limit,limit_low,limit_high,exponent,")
    assert lines[1].startswith("uniform,6,,,")
    lab.edit("sweep/runs.json", lambda content: content.update(runs=content["runs"][:4]))
    assert (
        formats.to_csv(scaling(lab.load()))
        .splitlines()[1]
        .endswith('"too few points: 4 different costs, a fit needs 5"')
    )
    table = importance(lab.load())
    assert list(table["key"]) == ["model.variant", "tokenizer.token_budget"]
    assert set(table["status"]) == {"too few points: 4 complete, needs 20"}
    assert table["importance"].isna().all()


def widen(lab: Any, num_budgets: int) -> None:
    """A sweep of more budgets, whose accuracies follow the law of `accuracy`, and whose variants do not matter."""
    runs = json.loads((lab.results / "sweep/runs.json").read_text())["runs"]
    models = json.loads((lab.results / "benchmark.json").read_text())["models"]
    scores = json.loads((lab.results / "evaluate/metrics.json").read_text())["runs"]
    base, test, model = runs[0], next(s for s in scores if s["fingerprint"] == runs[0]["fingerprint"]), models[0]
    made: list[dict[str, Any]] = []
    for i in range(num_budgets):
        for variant in ("nano", "micro"):
            budget, gflops = 4 + 3 * i, 0.01 * 1.3**i
            run = json.loads(json.dumps(base)) | {"name": f"uniform-{budget}-{variant}", "fingerprint": f"{i}{variant}"}
            run["science"]["tokenizer"]["token_budget"] = budget
            run["science"]["model"]["variant"] = variant
            made.append(run)
            scores.append(test | {"fingerprint": run["fingerprint"], "top1": float(accuracy(np.array(gflops), 0.03))})
            facts = {key: run["science"][key] for key in ("model", "tokenizer")}
            models.append(model | facts | {"macs": round(1e9 * gflops)})
            folder = lab.results / "sweep" / run["fingerprint"]
            folder.mkdir()
            (folder / "journal.jsonl").write_text("")
    lab.edit("sweep/runs.json", lambda content: content.update(runs=made))
    lab.edit("evaluate/metrics.json", lambda content: content.update(runs=scores))
    lab.edit("benchmark.json", lambda content: content.update(models=models))


def test_a_wide_sweep_has_a_law_and_its_key_in_the_report(lab: Any, tmp_path: Path) -> None:
    widen(lab, num_budgets=12)
    records = lab.load()
    (row,) = rows(scaling(records))
    assert (row.series, row.num_points, row.status) == ("uniform", 24, "fitted")
    assert row.limit_low <= row.limit <= row.limit_high
    assert row.limit == pytest.approx(1 - FLOOR, abs=1e-4)
    assert row.exponent == pytest.approx(EXPONENT, abs=1e-3)
    first, second = rows(importance(records))
    assert (first.key, first.status, second.key) == ("tokenizer.token_budget", ESTIMATED, "model.variant")
    assert first.importance > 0.6 > 0.1 > abs(second.importance)
    once, twice = (write_sweep_figures(records, importance(records), tmp_path / name) for name in ("once", "twice"))
    assert [path.stem for path in once] == ["accuracy-vs-latency", "scaling", "importance"]
    for path, again in zip(once, twice, strict=True):
        assert path.read_bytes() == again.read_bytes()
        assert path.with_suffix(".svg").read_bytes() == again.with_suffix(".svg").read_bytes()


def sow(lab: Any, points: list[dict[str, dict[str, Any]]], seeds: int = 1) -> None:
    """A sweep of these points whose results are a random number for each point, and a little of it for each seed."""
    runs = json.loads((lab.results / "sweep/runs.json").read_text())["runs"]
    test = json.loads((lab.results / "evaluate/metrics.json").read_text())["runs"][0]
    random, made, scores = np.random.default_rng(0), [], []
    for number, sections in enumerate(points):
        value = random.random()
        for seed in range(seeds):
            run = json.loads(json.dumps(runs[0])) | {"name": f"point-{number}", "fingerprint": f"{number}-{seed}"}
            run["seed"] = run["science"]["seed"] = seed
            for section, changed in sections.items():
                run["science"][section].update(changed)
            made.append(run)
            scores.append(test | {"fingerprint": run["fingerprint"], "top1": value + random.normal(0, 0.001)})
            (lab.results / "sweep" / run["fingerprint"]).mkdir()
            (lab.results / "sweep" / run["fingerprint"] / "journal.jsonl").write_text("")
    lab.edit("sweep/runs.json", lambda content: content.update(runs=made))
    lab.edit("evaluate/metrics.json", lambda content: content.update(runs=scores))


def test_seeds_of_a_point_are_one_point_that_a_forest_has_not_seen(lab: Any) -> None:
    sow(lab, [{"train": {"lr": 0.001 * (1 + i)}} for i in range(MIN_POINTS)], seeds=3)
    (row,) = rows(importance(lab.load()))
    assert (row.key, row.num_points) == ("train.lr", MIN_POINTS)
    assert row.explained < 0.1
    assert row.status.startswith("not determined")
    assert np.isnan(row.importance)  # nothing is said of a key, in numbers either
    assert np.isnan(row.std)


def test_many_seeds_of_one_point_depend_on_no_key(lab: Any) -> None:
    sow(lab, [{}], seeds=MIN_POINTS)
    assert importance(lab.load()).empty


def test_keys_that_only_some_points_have_are_keys_as_well(lab: Any) -> None:
    """Once each: what only says which points have a reducer says nothing beside another key that does."""
    reducers = [
        None,
        *({"name": "tome", "keep": keep} for keep in (0.5, 0.25)),
        {"name": "evit", "keep": 0.5, "fuse": True},
    ]
    sow(lab, [{"model": {"reducer": reducer}} for reducer in reducers])
    table = importance(lab.load())
    assert list(table["key"]) == ["model.reducer.fuse", "model.reducer.keep", "model.reducer.name"]
    assert set(table["num_points"]) == {4}


def test_a_key_that_goes_with_another_one_is_not_counted_twice() -> None:
    uniform, dart = ({"tokenizer.name": name, "train.lr": 0.1} for name in ("uniform", "dart"))
    points = [uniform, dart | {"tokenizer.scorer": "conv", "tokenizer.score_floor": 0.1}]
    assert varied(points) == ["tokenizer.name"]
    points.append(dart | {"tokenizer.scorer": "conv", "tokenizer.score_floor": 0.2})
    assert varied(points) == ["tokenizer.name", "tokenizer.score_floor"]


def test_the_share_of_a_key_is_that_of_the_variance_it_makes() -> None:
    random = np.random.default_rng(0)
    inputs = random.random((120, 3))
    effects, explained = total_effects(inputs, 2 * inputs[:, 0] + inputs[:, 1])
    assert explained > 0.9
    shares = [float(effect.mean()) for effect in effects]
    assert shares == pytest.approx([0.8, 0.2, 0.0], abs=0.1)  # 4 : 1 : 0
    order = random.permutation(120)
    again, _ = total_effects(inputs[order], (2 * inputs[:, 0] + inputs[:, 1])[order])
    assert np.array_equal(np.array(effects), np.array(again))


def test_results_without_a_reason_are_explained_by_nothing() -> None:
    random = np.random.default_rng(1)
    effects, explained = total_effects(random.random((60, 2)), random.normal(size=60))
    assert explained < 0.1
    assert all(abs(effect.mean()) < 0.2 for effect in effects)
    assert total_effects(random.random((20, 2)), np.full(20, 0.5))[1] == 0.0


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_a_front_holds_what_nothing_beats_and_every_other_is_beaten_by_the_front(points: list[tuple]) -> None:
    table = pd.DataFrame(points, columns=["value", "gflops", "latency"]).astype(float)
    for costs in (["gflops"], ["latency"], ["gflops", "latency"]):
        front = pareto_front(table, "value", costs).to_numpy()
        worth = table[["value", *costs]].to_numpy() * [1, *[-1] * len(costs)]
        as_good = (worth[front][:, None] >= worth[None]).all(2).sum(0)  # rows of the front, by the row that they match
        assert (as_good >= 1).all()
        assert (as_good[front] == 1).all()  # by itself alone
    distinct = table.drop_duplicates()
    alone = pareto_front(distinct, "value", ["gflops"]) & pareto_front(distinct, "value", ["latency"])
    assert pareto_front(distinct, "value", ["gflops", "latency"])[alone].all()  # who is on both is on that of all three


def test_a_row_without_a_cost_is_on_no_front_and_beats_nobody() -> None:
    table = pd.DataFrame({"value": [0.9, 0.5], "gflops": [1.0, 2.0], "latency": [np.nan, 1.0]})
    assert list(pareto_front(table, "value", ["gflops"])) == [True, False]
    assert list(pareto_front(table, "value", ["gflops", "latency"])) == [False, True]


def test_a_training_that_was_stopped_early_is_named_and_in_nothing(lab: Any, tmp_path: Path) -> None:
    status = "stopped early at epoch 1 of 3"
    lab.edit("sweep/runs.json", lambda content: content["runs"][-1].update(status=status))
    records = lab.load()
    row = rows(sweep(records))[-1]
    assert (row.status, row.num_seeds, row.pareto, row.pareto_both) == (f"seed 0: {status}", 0, False, False)
    assert np.isnan(row.top1_mean)
    text = formats.to_markdown(records)
    assert f"| 0 (seed 0: {status}) |" in text
    assert "1 of 12 trainings of the sweep were stopped early, by their validation" in text
    assert status in build_page([records], tmp_path, {}, {})


def test_costs_of_models_that_a_search_has_chosen_are_read_beside_those_of_the_plan(lab: Any) -> None:
    known = load_records(lab.suite, lab.results, lab.manifest).costs
    measured = json.loads((lab.results / "benchmark.json").read_text())
    chosen, plan = measured["models"][-1:], measured["models"][:-1]
    lab.edit("benchmark.json", lambda content: content.update(models=plan))
    assert lab.load().costs != known
    (lab.results / "sweep/benchmark.json").write_text(json.dumps({**measured, "models": chosen}))
    assert dict(lab.load().costs) == dict(known)


def test_nothing_is_said_of_no_sweep(lab: Any) -> None:
    (lab.results / "sweep/runs.json").unlink()
    assert list(importance(lab.load())) == COLUMNS
    assert len(scaling(lab.load())) == len(importance(lab.load())) == 0
    assert laws(lab.load()) == {}
