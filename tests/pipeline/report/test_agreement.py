"""One worker and several workers: the verdict is tight on the start of the loss curve, loose on the end."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.agreement import EARLY_LOSS_TOLERANCE, FINAL_TOLERANCE, agreements, sentence
from pipeline.report.records import Run


def shift_loss(run: Run, by: float, up_to: int = 600, since: int = 0) -> None:
    path: Path = run.folder / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if since <= line["step"] <= up_to:
            line["values"]["train_loss"] += by
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def shift_top1(lab: Any, fingerprint: str, by: float) -> None:
    def change(content: dict[str, Any]) -> None:
        run = next(run for run in content["runs"] if run["fingerprint"] == fingerprint)
        run["top1"] += by

    lab.edit("evaluate/metrics.json", change)


def test_twins_are_compared_step_by_step_and_sample_by_sample(lab: Any) -> None:
    (pair,) = agreements(lab.load())
    assert (pair.run.name, pair.twin.name) == ("dart-16-2workers", "dart-16")
    assert list(pair.loss_diffs) == list(range(50, 601, 50))
    assert pair.loss_diffs[300] == pytest.approx(1e-6, rel=1e-3)
    assert (pair.final_diff, pair.num_predictions, pair.num_changed) == (0, 200, 0)
    assert pair.agrees
    assert sentence(pair).startswith("agree: dart-16-2workers and dart-16, seed 0, 2 and 1 workers:")


def test_a_loss_that_differs_from_the_start_is_a_disagreement(lab: Any) -> None:
    shift_loss(agreements(lab.load())[0].run, 2 * EARLY_LOSS_TOLERANCE, up_to=50)
    (pair,) = agreements(lab.load())
    assert not pair.agrees
    assert sentence(pair).startswith("DISAGREE: dart-16-2workers and dart-16")
    assert "2.0e-03 up to step 100 (tolerance 0.001)" in sentence(pair)


def test_rounding_that_has_grown_by_the_end_is_none(lab: Any) -> None:
    shift_loss(agreements(lab.load())[0].run, 100 * EARLY_LOSS_TOLERANCE, since=150)
    (pair,) = agreements(lab.load())
    assert pair.agrees
    assert "1.0e-01 over all 12 records" in sentence(pair)


@pytest.mark.parametrize(("factor", "agrees"), [(0.9, True), (-0.9, True), (1.1, False), (-1.1, False)])
def test_the_end_is_judged_by_top1(lab: Any, factor: float, agrees: bool) -> None:
    shift_top1(lab, agreements(lab.load())[0].run.fingerprint, factor * FINAL_TOLERANCE)
    assert agreements(lab.load())[0].agrees == agrees


def test_nan_does_not_agree(lab: Any) -> None:
    shift_loss(agreements(lab.load())[0].run, float("nan"))
    assert not agreements(lab.load())[0].agrees


def test_twins_that_did_not_finish_are_said_not_to_be_comparable(lab: Any) -> None:
    lab.edit("train/runs.json", lambda content: content["runs"][-2].update(status="failed"))
    (pair,) = agreements(lab.load())
    assert sentence(pair).startswith("not comparable: ")
    assert sentence(pair).endswith("(dart-16: failed).")


def test_without_a_common_record_of_the_start_there_is_no_verdict(lab: Any) -> None:
    (agreements(lab.load())[0].run.folder / "journal.jsonl").unlink()
    assert "no training loss that both recorded up to step 100" in sentence(agreements(lab.load())[0])
