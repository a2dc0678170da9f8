"""Every cell has a way back: its arithmetic gives it, and everything that made it is named."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.report import formats
from pipeline.report.behind import facts
from pipeline.report.explain import Cell, parse
from pipeline.report.explanation import NOT_RECORDED, arithmetic, explain
from pipeline.report.records import by_name
from pipeline.report.tables import comparison, sweep

ROOT = Path(__file__).resolve().parents[3]
PROVENANCE = {
    "commit": "c" * 40,
    "dirty": False,
    "params_sha256": "p" * 64,
    "lock_sha256": "l" * 64,
    "code_sha256": "d" * 64,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "hardware": {"cpu": "a CPU", "cores": 2, "memory_gb": 4.0, "gpus": []},
}


def test_the_arithmetic_of_every_figure_gives_its_cell_back(lab: Any) -> None:
    records = lab.load()
    groups = {**by_name(records.trials), **by_name(records.runs)}
    recomputed = 0
    for table in (comparison(records), sweep(records)):
        for row in csv.DictReader(io.StringIO(formats.to_csv(table))):
            for column, text in row.items():
                found = arithmetic(records, groups[row["experiment"]], column)[1]
                measured = column in formats.DECIMALS or column in ("params", "num_seeds")
                assert (found is not None) == (measured and bool(text)), (column, text)
                if found is not None:
                    assert f"{found:.{formats.DECIMALS.get(column, 0)}f}" == text, column
                    recomputed += 1
    assert recomputed > 100


def test_a_mean_names_its_runs_seeds_values_and_commits(lab: Any) -> None:
    records = lab.load()
    text = explain(records, "dart-36", "top1_mean").text()
    assert text.startswith("digits/dart-36/top1_mean = 0.7567\n")
    assert "(0.795 + 0.8 + 0.675) / 3 = 0.756667" in text
    for run in records.runs:
        line = f"{run.fingerprint}  seed {run.seed}, top1 {(run.test or {})['top1']:.6g}, complete, commit 0123456789"
        assert (line in text) == (run.name == "dart-36")
    assert f"manifest sha256 {records.runs[0].manifest_sha256}" in text
    assert "source: scikit-learn, UCI digits; licence: CC BY 4.0" in text
    assert "tokenizer.token_budget: 36" in text
    assert "git checkout 0123456789" in text
    assert "dvc repro train@digits   # DART_FRESH=1" in text
    assert "dvc repro evaluate@digits benchmark@digits report" in text
    assert f"batch size: {NOT_RECORDED}" in text


def test_a_run_that_is_not_in_the_mean_is_said_to_be_so(lab: Any) -> None:
    lab.edit("train/runs.json", lambda content: content["runs"][8].update(status="failed: out of memory"))
    found = explain(lab.load(), "dart-36", "top1_mean")
    assert found.sections["How it comes about"] == ["(0.795 + 0.8) / 2 = 0.7975"]
    assert any("seed 2" in line and "failed: out of memory" in line for line in found.sections["Runs"])
    assert explain(lab.load(), "dart-36", "num_seeds").sections["How it comes about"] == ["2 of 3 runs are complete"]


def test_a_cell_without_a_complete_run_says_so(lab: Any) -> None:
    """As of a failed run, or one that a search has stopped: neither was tested."""
    failed = lab.load().runs[9].fingerprint

    def forget(content: Any) -> None:
        content["runs"] = [run for run in content["runs"] if run["fingerprint"] != failed]

    lab.edit("train/runs.json", lambda content: content["runs"][9].update(status="failed: out of memory", metrics={}))
    lab.edit("evaluate/metrics.json", forget)
    records = lab.load()
    assert [run.problem for run in records.runs if run.name == "dart-16"] == ["failed: out of memory"]
    for column in ("top1_mean", "top1_std", "top1_ci_low", "top5_ci_high", "val_top1_mean"):
        found = explain(records, "dart-16", column)
        assert found.sections["How it comes about"] == ["no run is complete, so there is nothing to average"], column
        assert (found.value, found.recomputed) == ("unknown", None)


def test_what_was_recorded_of_code_test_and_drops_is_shown_and_differences_by_seed(lab: Any) -> None:
    def provenance(content: Any) -> None:
        for run in content["runs"]:
            run["provenance"] = {**PROVENANCE, "dirty": run["seed"] == 1}
        content["dropped"] = {"drops": [["train", "train-000001.tar", "a", 4, "is cut off"]], "notes": []}

    lab.edit("train/runs.json", provenance)
    how = {"batch_size": 100, "precision": "fp32", **PROVENANCE}
    lab.edit("evaluate/metrics.json", lambda content: content.update(evaluation=how))
    records = lab.load()
    assert records.settings == {}  # the notes under the tables stay as they are
    text = explain(records, "dart-36", "top1_std").text()
    for line in (
        f"seed 0, 2: commit {'c' * 40}\n",
        f"seed 1: commit {'c' * 40} (the working tree had changes)",
        f"code_sha256 {'d' * 64}",
        f"params_sha256 {'p' * 64}",
        f"lock_sha256 {'l' * 64}",
        "versions: python 3.11.7, torch 2.13.0",
        "trained on: a CPU, 2 cores, 4.0 GB, no GPU",
        "mode: invariant; batch size: 100; precision: fp32",
        "1 samples of train-000001.tar (is cut off)",
    ):
        assert line in text, line


@pytest.mark.parametrize(
    ("experiment", "column", "sentence"),
    [
        ("dart-63", "top1_mean", "digits: experiment = 'dart-63': unknown; did you mean 'dart-36'?"),
        ("dart-36", "top1_meen", "digits/dart-36: column = 'top1_meen': unknown; did you mean 'top1_mean'?"),
    ],
)
def test_an_unknown_cell_is_answered_with_the_nearest(lab: Any, experiment: str, column: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        explain(lab.load(), experiment, column)
    assert str(error.value).startswith(sentence)


def test_a_point_of_the_sweep_with_an_experiments_name_is_told_apart(lab: Any) -> None:
    lab.edit("sweep/runs.json", lambda content: content["runs"][-1].update(name="dart-36"))
    records = lab.load()
    with pytest.raises(UserError, match="point of the sweep; say train/dart-36 or sweep/dart-36"):
        explain(records, "dart-36", "top1_mean")
    assert explain(records, "train/dart-36", "top1_mean").value == "0.7567"
    point = sweep(records).set_index("experiment").at["dart-36", "top1_mean"]
    assert explain(records, "sweep/dart-36", "top1_mean").value == f"{point:.4f}"


def test_every_front_is_explained_by_its_costs(lab: Any) -> None:
    said = {}
    for column in ("pareto", "pareto_latency", "pareto_both"):
        (said[column],) = explain(lab.load(), "dart-36-nano", column).sections["How it comes about"]
    assert ["GFLOPs" in text for text in said.values()] == [True, False, True]
    assert ["time of a sample" in text for text in said.values()] == [False, True, True]


def test_the_page_and_explain_give_the_same_commands(lab: Any) -> None:
    def change(content: Any) -> None:
        content["runs"][7]["provenance"].update(dirty=True)
        content["runs"][8]["provenance"].update(commit=None)

    lab.edit("train/runs.json", change)
    records = lab.load()
    runs = by_name(records.runs)["dart-36"]
    commands = explain(records, "dart-36", "top1_mean").sections["To make it again"]
    assert dict(facts(runs, records))["To make it again"].splitlines() == commands
    assert commands == [
        "git checkout 0123456789   # seed 0",
        "git checkout 0123456789   # seed 1; the working tree had changes that no commit has",
        "# the commit is not recorded   # seed 2",
        "# params.yaml, where the suite is not active: suites: [digits]",
        "dvc repro train@digits   # DART_FRESH=1 dvc repro -f ... trains what is done already again",
        "dvc repro evaluate@digits benchmark@digits report",
    ]


def test_a_cells_name_is_taken_apart() -> None:
    assert parse("digits/a/b/top1_mean") == Cell("digits", "a/b", "top1_mean")
    for text in ("digits", "digits/top1_mean", "", "//"):
        with pytest.raises(UserError, match="not SUITE/EXPERIMENT/COLUMN"):
            parse(text)


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.report.explain", *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_the_command_explains_or_says_in_one_sentence_why_not(make_lab: Any, tmp_path: Path) -> None:
    assert "no recorded runs; run: make repro" in run(tmp_path, "digits/dart-36/top1_mean").stderr
    make_lab(tmp_path, "digits")
    (tmp_path / "params.yaml").write_text("suites: [digits]\n")
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites/digits.yaml").write_text("a: 1\n")
    done = run(tmp_path, "digits/dart-16-nano/pareto", "--mlflow")
    assert done.stdout.startswith("digits/dart-16-nano/pareto = true\n"), done.stderr
    assert "/mlflow.db': no such file; run: python -m pipeline.tracking replay" in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
    wrong = run(tmp_path, "digit/dart-36/top1_mean")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "error: suite = 'digit': unknown; did you mean 'digits'? known: digits\n",
    )
