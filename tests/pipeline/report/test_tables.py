"""Tables are a pure function of the records, and an incomplete run is named, never averaged."""

import csv
import io
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.measures import CLASSIFICATION
from pipeline.report import formats, paired
from pipeline.report.records import load_records
from pipeline.report.tables import COMPLETE, columns, comparison, rows, sweep, tidy

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "table.md"


def row_of(records: Any, experiment: str) -> Any:
    return next(row for row in rows(comparison(records)) if row.experiment == experiment)


def change_run(which: str, of_seed: int, **values: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        run = next(run for run in content["runs"] if (run["name"], run["seed"]) == (which, of_seed))
        run.update(values)

    return change


def test_fixed_records_give_the_golden_table_byte_for_byte(lab: Any) -> None:
    assert formats.to_markdown(lab.load()) == GOLDEN.read_text()


def test_a_suite_of_clips_counts_clips(lab: Any) -> None:
    records = lab.load()
    clips = formats.to_markdown(replace(records, manifest={**records.manifest, "num_frames": [8, 8]}))
    assert "Clips/s" in clips
    assert "multiply-accumulates for one clip" in clips
    assert "Images/s" not in clips


def test_files_of_the_data_that_were_left_out_are_counted(lab: Any) -> None:
    records = lab.load()
    dropped = [["val/a.mp4", "is empty"], ["train/b.mp4", "is missing"]]
    partial = replace(records, manifest={**records.manifest, "dropped": dropped})
    assert "2 of its files are left out, manifest.json says why." in formats.to_markdown(partial)
    assert "left out" not in formats.to_markdown(records)


def test_damaged_samples_and_rewound_trainings_are_told_under_the_table(lab: Any) -> None:
    untold = formats.to_markdown(lab.load())
    assert "left out" not in untold
    assert "Rewound" not in untold
    trained = ["train", "train-000001.tar", "a", 4, "is cut off"]
    lab.edit("train/runs.json", lambda runs: runs.update(dropped={"drops": [trained], "notes": []}))
    lab.edit("sweep/runs.json", lambda runs: runs.update(dropped={"drops": [trained], "notes": []}))
    tested = [["test", "test-000000.tar", key, 0, "has other bytes"] for key in "ab"]
    lab.edit("evaluate/metrics.json", lambda metrics: metrics.update(dropped={"drops": tested, "notes": []}))
    lab.edit("train/runs.json", lambda r: r["runs"][1].update(rewinds=[{"at": 9, "to": 5, "reason": "a spike"}]))
    table = formats.to_markdown(lab.load())
    left_out = "2 of test-000000.tar (has other bytes), 1 of train-000001.tar (is cut off)."
    assert f"Damaged in their shards and left out everywhere, 3 samples: {left_out}" in table
    assert "as train.divergence says: uniform-36 seed 1 (1 times)." in table


def test_a_run_that_diverged_is_named_and_in_no_average(lab: Any) -> None:
    lab.edit("train/runs.json", lambda runs: runs["runs"][0].update(status="diverged at step 7 of 90"))
    row = rows(comparison(lab.load()))[0]
    assert (row.num_seeds, row.status) == (2, "seed 0: diverged at step 7 of 90")


def test_rows_are_in_the_order_of_the_plan_with_mean_and_sample_deviation(lab: Any) -> None:
    table = comparison(lab.load())
    assert list(table["experiment"]) == ["uniform-36", "uniform-64", "dart-36", "dart-16"]
    dart = rows(table)[2]
    assert dart.top1_mean == pytest.approx(statistics.fmean([0.795, 0.8, 0.675]))
    assert dart.top1_std == pytest.approx(statistics.stdev([0.795, 0.8, 0.675]))
    assert (dart.num_seeds, dart.status, dart.token_budget, dart.tokenizer) == (3, COMPLETE, 36, "dart")
    assert dart.val_top1_mean == pytest.approx(dart.top1_mean + 0.01)


def test_what_takes_tokens_away_is_named_beside_the_tokenizer(lab: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        for run in content["runs"]:
            if run["name"] == "uniform-64":
                run["science"]["model"]["reducer"] = {"name": "evit", "keep": 0.5, "fuse": True}

    lab.edit("train/runs.json", change)
    assert row_of(lab.load(), "uniform-64").tokenizer == "uniform + evit"
    assert row_of(lab.load(), "dart-16").tokenizer == "dart"


def test_a_check_of_the_number_of_workers_is_no_model_to_compare(lab: Any) -> None:
    records = lab.load()
    assert [run.name for run in records.checks] == ["dart-16-2workers"]
    assert "dart-16-2workers" in formats.to_markdown(records).split("## Agreement")[1]


def test_the_table_is_what_the_tidy_frame_of_runs_says(lab: Any) -> None:
    records = lab.load()
    runs = tidy(records, records.runs)
    assert list(runs["fingerprint"]) == [run.fingerprint for run in records.runs]
    table = comparison(records).set_index("experiment")
    for name, group in runs.groupby("experiment"):
        assert table.at[name, "num_seeds"] == len(group)
        assert table.at[name, "top1_mean"] == pytest.approx(statistics.fmean(group["top1"]))
        assert table.at[name, "gflops"] == group["gflops"].iloc[0]


def test_the_csv_has_the_promised_columns_first_and_one_row_per_experiment(lab: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(formats.to_csv(comparison(lab.load())))))
    promised = ["model", "tokenizer", "token_budget", "top1_mean", "top1_std", "num_seeds"]
    promised += ["params", "gflops", "images_per_s"]
    assert list(lines[0])[: len(promised)] == promised
    assert len(lines) == 4
    assert lines[2]["top1_mean"] == "0.7567"
    assert lines[2]["gflops"] == "0.005160"
    assert lines[3]["top1_std"] == ""  # one seed has no deviation
    assert lines[3]["world_size"] == "1"


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"status": "failed: out of memory"}, "failed: out of memory"), ({"status": None}, "incomplete")],
)
def test_an_unfinished_run_is_named_and_not_averaged(lab: Any, values: dict[str, Any], reason: str) -> None:
    lab.edit("train/runs.json", change_run("dart-36", 2, **values))
    row = row_of(lab.load(), "dart-36")
    assert (row.num_seeds, row.status) == (2, f"seed 2: {reason}")
    assert row.top1_mean == pytest.approx((0.795 + 0.8) / 2)
    assert f"2 (seed 2: {reason})" in formats.to_markdown(lab.load())


@pytest.mark.parametrize("value", [None, math.inf, math.nan])
def test_an_unknown_accuracy_makes_the_mean_unknown(lab: Any, value: float | None) -> None:
    fingerprint = lab.load().runs[6].fingerprint

    def spoil(content: dict[str, Any]) -> None:
        next(run for run in content["runs"] if run["fingerprint"] == fingerprint).update(top1=value)

    lab.edit("evaluate/metrics.json", spoil)
    row = row_of(lab.load(), "dart-36")
    assert (math.isnan(row.top1_mean), math.isnan(row.top1_std), row.num_seeds) == (True, True, 3)
    assert row.top5_mean > 0


def test_a_run_that_was_not_evaluated_is_named(lab: Any) -> None:
    lab.edit("evaluate/metrics.json", lambda content: content.update(runs=[]))
    row = row_of(lab.load(), "dart-16")
    assert (row.num_seeds, math.isnan(row.top1_mean), row.status) == (0, True, "seed 0: not evaluated")
    assert "seed 0: not evaluated" in formats.to_markdown(lab.load())
    assert formats.to_metrics(lab.load()) == {}


def test_without_a_benchmark_cost_is_said_to_be_not_measured(lab: Any) -> None:
    (lab.results / "benchmark.json").unlink()
    row = row_of(lab.load(), "dart-36")
    assert all(pd.isna(value) for value in (row.params, row.gflops, row.images_per_s))
    text = formats.to_markdown(lab.load())
    assert text.count(formats.NOT_MEASURED) >= 5


def test_without_a_sweep_the_table_has_no_sweep(lab: Any) -> None:
    (lab.results / "sweep" / "runs.json").unlink()
    assert sweep(lab.load()).empty
    assert "## Sweep" not in formats.to_markdown(lab.load())


def test_no_row_beats_one_on_the_pareto_front_and_every_other_is_beaten(lab: Any) -> None:
    table = sweep(lab.load())
    points = rows(table)
    for row in points:
        beaten = any(
            other.gflops <= row.gflops and other.top1_mean >= row.top1_mean and other.experiment != row.experiment
            for other in points
        )
        assert beaten != row.pareto, row.experiment
    marks = [line["pareto"] for line in csv.DictReader(io.StringIO(formats.to_csv(table)))]
    assert marks == [str(row.pareto).lower() for row in points]


def test_a_changed_working_tree_and_several_commits_are_shown(lab: Any) -> None:
    lab.edit("train/runs.json", change_run("dart-36", 1, provenance={"commit": "f" * 40, "dirty": True}))
    assert row_of(lab.load(), "dart-36").commit == "0123456789 ffffffffff+"


BAD_RECORDS = [
    (change_run("dart-36", 1, suite="other"), "a record of suite 'other', not of 'digits'"),
    (change_run("dart-36", 1, seed=0), "'dart-36' with seed 0 is recorded twice"),
    (change_run("dart-36", 1, dataset={"manifest_sha256": "0" * 64}), "trained on other data"),
    (lambda content: content.update(runs=[]), None),
]


@pytest.mark.parametrize(("change", "message"), BAD_RECORDS)
def test_records_that_do_not_belong_together_are_refused(lab: Any, change: Any, message: str | None) -> None:
    lab.edit("train/runs.json", change)
    if message is None:
        assert comparison(lab.load()).empty  # the sweep alone is a result too
        assert list(comparison(lab.load())) == columns(CLASSIFICATION)
    else:
        with pytest.raises(UserError, match=message):
            lab.load()


def test_nothing_recorded_and_damaged_files_are_one_sentence(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recorded runs; run: dvc repro train@digits"):
        load_records("digits", tmp_path / "nowhere", lab.manifest)
    (lab.results / "train" / "runs.json").write_text("{")
    with pytest.raises(UserError, match=r"runs\.json: not valid JSON"):
        lab.load()


HOSTILE = r"=cmd|<b>&_%$\x"


def test_hostile_names_are_escaped(lab: Any) -> None:
    lab.edit("train/runs.json", lambda content: [run.update(name=HOSTILE) for run in content["runs"][:1]])
    records = lab.load()
    assert next(csv.DictReader(io.StringIO(formats.to_csv(comparison(records)))))["experiment"] == "'" + HOSTILE
    assert r"=cmd\|&lt;b>&amp;\_%$\\x" in formats.to_markdown(records)
    assert r"=cmd|<b>\&\_\%\$\textbackslash x" in formats.to_latex(records)


@pytest.mark.parametrize("name", ["[5cm]x", "*x", " [5cm]x"])
def test_a_name_is_no_argument_of_the_line_before_it(lab: Any, name: str) -> None:
    lab.edit("train/runs.json", lambda content: [run.update(name=name) for run in content["runs"][:3]])
    assert f"\\midrule\n{{}}{name} & " in formats.to_latex(lab.load())


def test_a_hostile_name_is_text_in_every_sentence_of_markdown(lab: Any) -> None:
    def rename(content: Any) -> None:
        for run in content["runs"]:
            run["name"] = run["name"].replace("uniform-36", "_*<img src=x>*_").replace("dart-16", "[&lt;](x)")

    lab.edit("train/runs.json", rename)
    records = lab.load()
    assert paired.paired(records)["against"].iloc[1] == "_*<img src=x>*_"
    for text in (formats.to_markdown(records), paired.to_markdown(records, paired.paired(records))):
        assert "<img" not in text
        assert "*<" not in text.replace("\\*", "")
        assert r"\_\*&lt;img src=x>\*\_" in text
    assert r"\[&amp;lt;](x)-2workers" in formats.to_markdown(records)  # of an agreement


def test_latex_has_a_cell_for_every_column(lab: Any) -> None:
    lines = [line for line in formats.to_latex(lab.load()).splitlines() if line.endswith("\\\\")]
    assert len(lines) == 5
    assert {line.count("&") for line in lines} == {8}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00441, "0.00441"), (1.26, "1.26"), (15.5, "15.5"), (1234.0, "1234"), (0, "0"), (None, "not measured")],
)
def test_gflops_have_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert formats.gflops(value) == text


def test_metrics_are_short_and_json(lab: Any) -> None:
    metrics = formats.to_metrics(lab.load())
    assert json.loads(json.dumps(metrics))["dart-36"] == {"top1_mean": 0.756667, "top1_std": 0.07077, "gflops": 0.00516}
