"""One set of weights at many budgets, in the tables: means of what was recorded, and nothing where nobody asked."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.report.budget_figure import draw_budgets
from pipeline.report.budgets import ONE_BUDGET, asked_runs, budget_table, columns, trained_for
from pipeline.report.explanation import explain
from pipeline.report.formats import readable_budgets, to_csv
from pipeline.report.site import write_suite
from pipeline.report.tables import rows

from .conftest import Lab

BUDGETS = (16, 36, 64)
OFFSETS = {16: -0.1, 36: 0.0, 64: 0.02}
WAY = {"signal": "spread", "held": "dataset", "token_budget": 36, "mean_tokens": 35.5, "macs": 5_000_000, "spent": {}}


@pytest.fixture
def asked(lab: Lab) -> Lab:
    """The lab, every run asked at three budgets; uniform-64 was trained over all of them, and adapts."""

    def ask(content: dict[str, Any]) -> None:
        for run in content["runs"]:
            run["budgets"] = [
                {"token_budget": n, "macs": n * 100_000, "top1": run["top1"] + OFFSETS[n], "top5": 0.9} for n in BUDGETS
            ]
            run["adaptive"] = (
                [{**WAY, "top1": run["top1"] + 0.01, "top5": 0.9}] if run["fingerprint"] in several else []
            )

    def train_over_budgets(content: dict[str, Any]) -> None:
        for run in content["runs"]:
            if run["name"] == "uniform-64":
                run["science"]["train"]["token_budgets"] = list(BUDGETS)
                several.add(run["fingerprint"])

    several: set[str] = set()
    lab.edit("train/runs.json", train_over_budgets)
    lab.edit("evaluate/metrics.json", ask)
    return lab


def test_a_row_is_the_mean_over_the_seeds_of_one_experiment_at_one_budget(asked: Lab) -> None:
    table = budget_table(asked.load())
    assert list(table.columns) == columns(asked.load().task)
    found = {(row.experiment, row.spent, row.token_budget): row for row in rows(table)}
    assert len(found) == len(table) == 4 * 3 + 1
    dart, values = found["dart-36", ONE_BUDGET, 16], np.array([0.795, 0.8, 0.675]) - 0.1
    assert (dart.top1_mean, dart.top1_std) == pytest.approx((values.mean(), values.std(ddof=1)))
    assert (dart.num_seeds, dart.gflops, dart.tokens) == (3, 0.0016, 16)
    assert len(dart.run_ids.split()) == 3
    follows = found["uniform-64", "spread, held over the data set", 36]
    assert follows.top1_mean == pytest.approx(np.mean([0.405, 0.47, 0.44]) + 0.01)
    assert (follows.tokens, follows.gflops) == (35.5, 0.005)


def test_every_figure_of_every_row_is_given_back_by_its_explanation(asked: Lab) -> None:
    def lose(content: dict[str, Any]) -> None:
        content["runs"][0].pop("budgets")
        content["runs"][1]["budgets"].reverse()

    asked.edit("evaluate/metrics.json", lose)
    asked.edit("train/runs.json", lambda content: content["runs"][6].update(status="diverged at step 8 of 9"))
    records = asked.load()
    lines = list(csv.DictReader(io.StringIO(to_csv(budget_table(records)))))
    places = list(asked_runs(records))
    assert len(places) == len(lines) == 13
    assert {"dart-36/at/16", "uniform-64/at/36/spread/dataset"} < set(places)
    for place, line in zip(places, lines, strict=True):
        for column in ("tokens", "gflops", "num_seeds", "top1_mean", "top1_std"):
            found = explain(records, place, column)
            assert found.value == (line[column] or "unknown"), (place, column)
            given = float(line[column]) if line[column] else None
            assert found.recomputed == (given and pytest.approx(given, abs=6e-5)), (place, column)
    of = explain(records, "dart-36/at/16", "top1_mean")
    assert of.sections["How it comes about"] == ["(0.7 + 0.575) / 2 = 0.6375"]
    assert [line.split(", ")[1] for line in of.sections["Runs"][1:]] == ["top1 0.7", "top1 0.575"]
    assert "diverged" in of.sections["Runs"][0]
    assert "1600000 multiply-accumulates" in " ".join(of.sections["Cost and speed"])
    assert explain(records, "dart-36", "top1_mean").value == "0.7375"  # the row of table.csv is another


def test_a_budget_that_nobody_asked_for_is_answered_with_the_nearest(asked: Lab) -> None:
    with pytest.raises(UserError, match="experiment = 'dart-36/at/46': unknown; did you mean 'dart-36/at/"):
        explain(asked.load(), "dart-36/at/46", "top1_mean")


def test_a_row_says_what_its_model_was_trained_at(asked: Lab) -> None:
    table = budget_table(asked.load())
    own = {(row.experiment, row.token_budget) for row in rows(table) if trained_for(row) and row.spent == ONE_BUDGET}
    assert own == {("uniform-36", 36), ("dart-36", 36), ("dart-16", 16), *(("uniform-64", n) for n in BUDGETS)}


def test_trainings_that_began_with_few_tokens_are_a_line_of_their_own(asked: Lab) -> None:
    def warm(content: dict[str, Any]) -> None:
        for run in content["runs"]:
            if run["name"] == "dart-36":
                run["science"]["train"]["token_warmup"] = {"token_budget": 16, "frac": 0.5}

    asked.edit("train/runs.json", warm)
    records = asked.load()
    began = {row.experiment: row.began_with for row in rows(budget_table(records))}
    assert began == {"uniform-36": "", "uniform-64": "", "dart-36": "16", "dart-16": ""}
    titles = {row["Experiment"]: row["Trained at"] for _, row in readable_budgets(records).iterrows()}
    assert (titles["dart-36"], titles["dart-16"]) == ("16, then 36", "16")
    texts = [text.get_text() for text in draw_budgets(records).axes[0].get_legend().get_texts()]
    assert {f"dart, trained for one budget{after}, asked at it" for after in ("", " after 16")} < set(texts)


def test_an_incomplete_run_is_in_no_mean(asked: Lab) -> None:
    asked.edit("train/runs.json", lambda content: content["runs"][6].update(status="diverged at step 8 of 9"))
    before = [run for run in asked.load().runs if run.problem]
    assert [(run.name, run.seed) for run in before] == [("dart-36", 0)]
    row = next(row for row in rows(budget_table(asked.load())) if row.experiment == "dart-36")
    assert row.num_seeds == 2
    assert row.top1_mean == pytest.approx(np.mean([0.8, 0.675]) - 0.1)


def test_the_figure_shows_what_was_trained_for_a_budget_beside_what_was_trained_for_all(asked: Lab) -> None:
    figure = draw_budgets(asked.load())
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == [
        "trained for one budget, asked at others",
        "uniform-64, spread, held over the data set",
        "uniform, trained for one budget, asked at it",
        "dart, trained for one budget, asked at it",
        "uniform-64, asked at each budget",
    ]
    heights = sorted(float(line.get_ydata()[-1]) for line in figure.axes[0].lines if len(line.get_xdata()) == 3)
    assert heights[-1] == pytest.approx(100 * (np.mean([0.795, 0.8, 0.675]) + 0.02))


@pytest.mark.slow
def test_the_report_has_the_table_twice_the_same(asked: Lab, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_suite(asked.load(), tmp_path / name)
    names = ["budgets.csv", "table.md", "figures/accuracy-vs-budget.svg", "figures/accuracy-vs-budget.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a/table.md").read_text()
    assert "## Token budgets" in text
    assert "| 16, 36, 64 | the same for all" in text
    assert len((tmp_path / "a/budgets.csv").read_text().splitlines()) == 14


@pytest.mark.slow
def test_where_nobody_asked_nothing_is_shown(lab: Lab, tmp_path: Path) -> None:
    assert budget_table(lab.load()).empty
    assert draw_budgets(lab.load()) is None
    write_suite(lab.load(), tmp_path / "report")
    assert not (tmp_path / "report/budgets.csv").exists()
    assert "Token budgets" not in (tmp_path / "report/table.md").read_text()
