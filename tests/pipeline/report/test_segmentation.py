"""A suite of segmentation is reported as one of classification is: other measures, the same rules."""

import csv
import io
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.report import formats
from pipeline.report.agreement import agreements, sentence
from pipeline.report.figures import accuracy_against_gflops, learning_curves, write_figures
from pipeline.report.pictures import gallery, gallery_pair
from pipeline.report.site import write_report
from pipeline.report.tables import comparison, rows, sweep, tidy

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "table-segmentation.md"
OTHERS = ("miou_small", "boundary_iou", "pixel_accuracy")
ENDS = ("mean", "std", "ci_low", "ci_high")


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def change_test(lab: Any, fingerprint: str, **values: float | None) -> None:
    def change(content: dict[str, Any]) -> None:
        next(run for run in content["runs"] if run["fingerprint"] == fingerprint).update(values)

    lab.edit("evaluate/metrics.json", change)


def test_fixed_records_give_the_golden_table_byte_for_byte(dense_lab: Any) -> None:
    assert formats.to_markdown(dense_lab.load()) == GOLDEN.read_text()


def test_the_csv_has_the_measures_of_segmentation_in_place_of_those_of_classification(lab: Any, dense_lab: Any) -> None:
    ours, theirs = (list(comparison(one.load())) for one in (dense_lab, lab))
    named = ["model", "tokenizer", "token_budget", "miou_mean", "miou_std", "num_seeds", "params", "gflops"]
    assert ours[: len(named)] == named
    mine = {"val_miou_mean", *(f"{name}_{end}" for name in ("miou", *OTHERS) for end in ENDS)}
    assert set(ours) - set(theirs) == mine
    others = {"val_top1_mean", *(f"{name}_{end}" for name in ("top1", "top5") for end in ENDS)}
    assert set(theirs) - set(ours) == others
    common = set(ours) & set(theirs)
    assert [name for name in ours if name in common] == [name for name in theirs if name in common]
    line = next(csv.DictReader(io.StringIO(formats.to_csv(comparison(dense_lab.load())))))
    assert {name: re.fullmatch(r"0\.\d{4}", line[name]) is None for name in mine} == dict.fromkeys(mine, False)


def test_equal_values_of_the_first_measure_are_averaged_and_ranked_alike(lab: Any, dense_lab: Any) -> None:
    for table in (comparison, sweep):
        ours, theirs = (table(one.load()) for one in (dense_lab, lab))
        pd.testing.assert_series_equal(ours["miou_mean"], theirs["top1_mean"], check_names=False)
        pd.testing.assert_series_equal(ours["miou_std"], theirs["top1_std"], check_names=False)
    pd.testing.assert_series_equal(ours["pareto"], theirs["pareto"])


def test_every_measure_is_averaged_over_the_seeds(dense_lab: Any) -> None:
    records = dense_lab.load()
    table, runs = comparison(records).set_index("experiment"), tidy(records, records.runs)
    for measure in ("miou", *OTHERS):
        seeds = runs[runs["experiment"] == "dart-36"][measure]
        assert table.at["dart-36", f"{measure}_mean"] == pytest.approx(statistics.fmean(seeds))
        assert table.at["dart-36", f"{measure}_std"] == pytest.approx(statistics.stdev(seeds))
    assert table.at["dart-36", "val_miou_mean"] == pytest.approx(table.at["dart-36", "miou_mean"] + 0.01)


def test_a_test_split_without_small_objects_makes_only_their_measure_unknown(dense_lab: Any) -> None:
    change_test(dense_lab, dense_lab.load().runs[6].fingerprint, miou_small=None)
    records = dense_lab.load()
    row = next(row for row in rows(comparison(records)) if row.experiment == "dart-36")
    assert math.isnan(row.miou_small_mean)
    assert row.miou_mean == pytest.approx(statistics.fmean([0.795, 0.8, 0.675]))
    assert formats.cells(records.task, "image")["mIoU, small objects (%)"](row) == formats.NOT_MEASURED
    assert set(formats.to_metrics(records)["dart-36"]) == {"miou_mean", "miou_std", "gflops"}


def test_dvc_compares_miou_and_that_of_small_objects(dense_lab: Any) -> None:
    metrics = json.loads(json.dumps(formats.to_metrics(dense_lab.load())))
    assert metrics["dart-36"] == {
        "miou_mean": 0.756667,
        "miou_std": 0.07077,
        "miou_small_mean": 0.378333,
        "gflops": 0.00516,
    }


@pytest.mark.parametrize("text", [formats.to_latex, lambda records: formats.to_summary(records, {})])
def test_short_tables_show_what_the_task_is_about(dense_lab: Any, text: Any) -> None:
    found = text(dense_lab.load()).replace(r"\%", "%")
    titles = ["mIoU (%)", "mIoU, small objects (%)", "Boundary IoU (%)"]
    assert [title in found for title in titles] == [True] * len(titles)
    assert "Pixel accuracy (%)" not in found
    assert "op-1" not in found


def test_twins_are_judged_by_miou_and_their_images_by_their_scores(dense_lab: Any) -> None:
    (pair,) = agreements(dense_lab.load())
    assert (pair.num_predictions, pair.num_changed, pair.agrees) == (201, 0, True)
    path = dense_lab.results / "evaluate/predictions" / f"{pair.run.fingerprint}.csv"
    path.write_text(path.read_text().replace("000007,0.762500", "000007,0.762600").replace("dark,,", "dark,1.0,"))
    change_test(dense_lab, pair.run.fingerprint, miou=0.525 + 0.03)
    (pair,) = agreements(dense_lab.load())
    assert not pair.agrees
    assert "test mIoU by +3.00 points (tolerance 2); 2 of 201 test images' scores differ." in sentence(pair)
    change_test(dense_lab, pair.run.fingerprint, miou=None)
    assert "no test mIoU" in sentence(agreements(dense_lab.load())[0])


def test_figures_name_the_measure_of_the_task(lab: Any, dense_lab: Any) -> None:
    for one, said in ((lab, "top-1"), (dense_lab, "mIoU")):
        records = one.load()
        labels = [
            figure.axes[0].get_ylabel() for f in (accuracy_against_gflops, learning_curves) if (figure := f(records))
        ]
        assert labels == [f"test {said} (%)", f"validation {said} (%)"]


def test_the_picture_shows_the_runs_of_one_budget_and_what_counts_of_their_answers(
    dense_lab: Any, tmp_path: Path
) -> None:
    records = dense_lab.load()
    pair, figure = gallery_pair(records), gallery(records)
    assert pair is not None
    assert figure is not None
    assert [run.name for run in pair] == ["uniform-36", "dart-36"]
    # Of the bar uniform finds half; three quarters of the picture count, all else is background.
    bar, background = 0.5, (96 * 72 - 36 * 12) / (96 * 72 - 36 * 12 / 2)
    assert figure.axes[2].get_xlabel() == f"mIoU {50 * (bar + background):.1f}%"
    assert figure.axes[5].get_xlabel() == "mIoU 100.0%"
    once, twice = (list(write_figures(records, tmp_path / name))[-1] for name in ("once", "twice"))
    assert once.stem == "what-the-model-sees"
    assert once.read_bytes() == twice.read_bytes()


def test_one_report_of_both_tasks_keeps_their_numbers_apart(make_lab: Any, tmp_path: Path) -> None:
    labs = [make_lab(tmp_path, "digits"), make_lab(tmp_path, "dense", "segmentation")]
    write_report([lab.load() for lab in labs], tmp_path / "report")
    plots = tmp_path / "report/plots"
    for name, measure, suite in (("accuracy", "top1", "digits"), ("miou", "miou", "dense")):
        points = read(plots / f"{name}.csv")
        assert list(points[0]) == ["series", "experiment", "gflops", measure]
        assert {point["series"].split()[0] for point in points} == {suite}
        assert len(points) == 4 + 12
    for name, column, suite in (("curves", "val_top1", "digits"), ("miou-curves", "val_miou", "dense")):
        points = read(plots / f"{name}.csv")
        assert list(points[0]) == ["series", "seed", "samples", column]
        assert {point["series"].split()[0] for point in points} == {suite}
        assert len(points) == 3 * 10
    page = (tmp_path / "report/index.html").read_text()
    digits, dense = page.split('id="dense"')
    assert digits.count("Test top-1 (%)") == dense.count("Test mIoU (%)") == 4 + 12
    assert "mIoU" not in digits
    assert "op-1" not in dense
    assert "mIoU on the test split: mean ± standard deviation" in dense


def test_without_a_suite_of_a_task_its_plots_are_empty_and_there(dense_lab: Any, tmp_path: Path) -> None:
    write_report([dense_lab.load()], tmp_path / "report")
    assert (tmp_path / "report/plots/accuracy.csv").read_text() == "series,experiment,gflops,top1\n"
    assert (tmp_path / "report/plots/curves.csv").read_text() == "series,seed,samples,val_top1\n"


def test_how_the_test_split_was_looked_at_is_told(dense_lab: Any) -> None:
    records = dense_lab.load()
    assert "evaluate.masks" not in formats.to_markdown(records)
    chosen = {"masks": {"small_frac": 0.01, "windows": "whole", "stride": None}}
    dense_lab.edit("evaluate/metrics.json", lambda content: content.update(chosen))
    assert "\n- Of the suite's file, evaluate.masks: small_frac 0.01, windows whole.\n" in formats.to_markdown(
        dense_lab.load()
    )


def test_samples_for_an_unknown_task_are_refused(dense_lab: Any) -> None:
    records = dense_lab.load()
    assert replace(records, manifest={**records.manifest, "task": "classification"}).task.said == "top-1"
    change_manifest(dense_lab, task="juggling")
    rule = (
        r"manifest\.json: task = 'juggling': unknown; known: classification, segmentation; run: dvc repro shard@dense"
    )
    with pytest.raises(UserError, match=rule):
        dense_lab.load()


def change_manifest(lab: Any, **values: str) -> None:
    """Also in the runs' records, which name the data by its hash."""
    import hashlib

    old = hashlib.sha256(lab.manifest.read_bytes()).hexdigest()
    lab.manifest.write_text(json.dumps({**json.loads(lab.manifest.read_text()), **values}))
    new = hashlib.sha256(lab.manifest.read_bytes()).hexdigest()
    for path in lab.results.glob("*/runs.json"):
        path.write_text(path.read_text().replace(old, new))
