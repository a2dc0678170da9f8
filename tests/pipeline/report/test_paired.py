"""Paired tests rest on the recorded answers, sample by sample, and on nothing else."""

import csv
import io
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.report import paired
from pipeline.report.statistics import mcnemar, sign_flip
from pipeline.report.tables import comparison

from .answers import NUM_TEST


def predictions(lab: Any, experiment: str, seed: int) -> Any:
    run = next(run for run in lab.load().runs if (run.name, run.seed) == (experiment, seed))
    return lab.results / "evaluate" / "predictions" / f"{run.fingerprint}.csv"


def test_the_mean_of_scores_is_the_tables_accuracy(lab: Any) -> None:
    records = lab.load()
    table = paired.paired(records).set_index("experiment")
    for row in comparison(records).itertuples():
        assert table.at[row.experiment, "mean"] == pytest.approx(row.top1_mean)
        assert table.at[row.experiment, "boot_low"] <= row.top1_mean <= table.at[row.experiment, "boot_high"]
    assert list(table["num_samples"].unique()) == [NUM_TEST]
    assert list(table["against"].fillna("")) == ["", *3 * ["uniform-36"]]


def test_the_difference_of_one_seed_is_mcnemars_and_of_three_the_flip_test(lab: Any) -> None:
    """In these records whoever is better has right all that the other has right, and more."""
    table = paired.paired(lab.load()).set_index("experiment")
    assert table.at["dart-36", "mcnemar"].split("; ")[0] == f"seed 0: {paired._p(mcnemar(159 - 91, 0))}"
    scores = {n: np.array(v)[:, None] > np.arange(200) for n, v in {"u": [91, 109, 108], "d": [159, 160, 135]}.items()}
    assert table.at["dart-36", "p_samples"] == sign_flip(scores["d"].mean(0) - scores["u"].mean(0), 3)
    assert (table["p_samples_holm"].dropna() >= table["p_samples"].dropna()).all()
    assert np.isnan(table.at["dart-16", "p_seeds"].item() if table.at["dart-16", "p_seeds"] is not None else np.nan)


def test_models_that_answer_alike_differ_by_nothing(lab: Any) -> None:
    for seed in range(3):
        predictions(lab, "uniform-64", seed).write_bytes(predictions(lab, "uniform-36", seed).read_bytes())
    row = paired.paired(lab.load()).set_index("experiment").loc["uniform-64"]
    assert (row["difference"], row["p_samples"], row["p_seeds"]) == (0.0, 1.0, 1.0)
    assert row["mcnemar"] == "seed 0: 1; seed 1: 1; seed 2: 1"
    assert row["difference_low"] <= 0 <= row["difference_high"]


def test_the_order_of_samples_does_not_matter(lab: Any) -> None:
    before = paired.paired(lab.load())
    path = predictions(lab, "dart-36", 0)
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines[::-1]]) + "\n")
    assert paired.to_csv(paired.paired(lab.load())) == paired.to_csv(before)


def test_a_sample_that_one_run_lacks_is_left_out_of_all(lab: Any) -> None:
    path = predictions(lab, "dart-36", 0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-10]))
    assert set(paired.paired(lab.load())["num_samples"]) == {NUM_TEST - 10}


def test_an_incomplete_run_and_an_experiment_without_any_are_in_no_test(lab: Any) -> None:
    lab.edit("train/runs.json", lambda content: [run.update(status="failed") for run in content["runs"][2:6]])
    table = paired.paired(lab.load())
    assert list(zip(table["experiment"], table["num_seeds"], strict=True)) == [
        ("uniform-36", 2), ("dart-36", 3), ("dart-16", 1),
    ]  # fmt: skip


def test_without_two_experiments_there_is_nothing_to_compare(lab: Any) -> None:
    lab.edit("evaluate/metrics.json", lambda content: content.update(runs=[]))
    records = lab.load()
    table = paired.paired(records)
    assert list(table) == paired.COLUMNS
    assert table.empty
    assert next(csv.reader(io.StringIO(paired.to_csv(table)))) == paired.COLUMNS
    assert "Fewer than two experiments" in paired.to_markdown(records, table)


def test_a_damaged_file_of_predictions_is_one_sentence(lab: Any) -> None:
    for text in ("", "key,label\na,1\n"):
        predictions(lab, "dart-36", 0).write_text(text)
        with pytest.raises(
            UserError, match="has not the columns key, prediction, label; run: dvc repro evaluate@digits"
        ):
            paired.paired(lab.load())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: [*lines, lines[1]], "sample '000000' is there 2 times; run: dvc repro evaluate@digits"),
        (lambda lines: [lines[0], "a,b"], "line 2 has not the 3 cells of the header; run: dvc repro evaluate@digits"),
    ],
)
def test_a_damaged_line_of_predictions_is_one_sentence(lab: Any, change: Any, sentence: str) -> None:
    path = predictions(lab, "dart-36", 0)
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=sentence):
        paired.paired(lab.load())


def test_a_score_that_is_no_number_is_one_sentence(dense_lab: Any) -> None:
    path = predictions(dense_lab, "dart-36", 0)
    path.write_text("key,pixel_accuracy,miou\na,0.5,x\n")
    with pytest.raises(UserError, match="miou 'x' is not a number"):
        paired.paired(dense_lab.load())


def test_masks_are_compared_by_the_miou_of_single_images(dense_lab: Any) -> None:
    records = dense_lab.load()
    table = paired.paired(records)
    assert set(table["num_samples"]) == {NUM_TEST}  # the dark image has no score
    assert list(table["mcnemar"].fillna("")) == [""] * 4
    assert "mean mIoU of single images" in paired.to_markdown(records, table)


def test_the_tables_are_text_of_fixed_decimals(lab: Any) -> None:
    records = lab.load()
    table = paired.paired(records)
    assert paired.to_csv(table) == paired.to_csv(paired.paired(lab.load()))
    dart = next(row for row in csv.DictReader(io.StringIO(paired.to_csv(table))) if row["experiment"] == "dart-36")
    assert (dart["mean"], dart["difference"]) == ("0.7567", "0.2433")
    text = paired.to_markdown(records, table)
    assert "| uniform-36 | 51.3" in text
    assert "Holm's correction for 3 comparisons over samples and 2 over seeds" in text  # dart-16 has one seed


def test_runs_without_recorded_answers_are_named_and_not_counted(lab: Any) -> None:
    for seed in range(3):
        predictions(lab, "uniform-36", seed).unlink()
    predictions(lab, "dart-36", 1).unlink()
    records = lab.load()
    table = paired.paired(records)
    assert list(zip(table["experiment"], table["num_seeds"], strict=True)) == [
        ("uniform-64", 3), ("dart-36", 2), ("dart-16", 1),
    ]  # fmt: skip
    named = "uniform-36 seed 0, uniform-36 seed 1, uniform-36 seed 2, dart-36 seed 1"
    sentence = f"Left out, complete but without recorded answers: {named}; run: dvc repro evaluate@digits."
    assert sentence in paired.to_markdown(records, table)


def test_runs_that_answered_other_samples_are_not_said_to_be_incomplete(lab: Any) -> None:
    path = predictions(lab, "dart-36", 0)
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"z{line}" for line in lines)]) + "\n")
    records = lab.load()
    text = paired.to_markdown(records, paired.paired(records))
    assert "No test sample has a score in every run" in text
    assert "Fewer than two" not in text
