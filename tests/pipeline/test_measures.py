"""A run's task is known by what was validated; no two tasks or measures can be mixed up."""

import pytest

from pipeline.measures import ALL_MEASURES, TASKS, validated
from pipeline.tracking.runs import score_metrics


def test_names_and_titles_and_files_are_each_of_one_task_alone() -> None:
    tasks = TASKS.values()
    for kind in (
        [measure.name for measure in ALL_MEASURES],
        [measure.title for measure in ALL_MEASURES],
        [task.val for task in tasks],
        [file for task in tasks for file in (task.points_csv, task.curves_csv)],
    ):
        assert len(set(kind)) == len(kind)
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_the_first_measure_validated_tells_the_task(name: str) -> None:
    task = TASKS[name]
    assert validated({"val_loss": 1.0, task.val: 0.5, "epoch": 1}) is task
    assert validated({"val_loss": 1.0, "train_loss": 1.0}) is None


@pytest.mark.parametrize("name", TASKS)
def test_what_dvc_compares_is_in_the_table_and_texts_are_about_test_samples(name: str) -> None:
    task = TASKS[name]
    columns = {f"{measure.name}_{end}" for measure in task.measures for end in ("mean", "std")}
    assert set(task.compared) <= columns
    assert task.compared[0] == f"{task.first.name}_mean"
    assert task.first.brief
    filled = task.counted_short.format(num_test=123, dataset="a data set")
    assert "123" in filled
    assert "a data set" in filled
    assert "{" not in task.counted.format(num_test=123)
    assert all(measure.title.endswith(" (%)") for measure in task.measures)


def test_the_ledger_gets_every_known_score_of_the_test_split_and_no_unknown_one() -> None:
    scores = {"fingerprint": "f", "miou": 0.5, "miou_small": None, "pixel_accuracy": 1, "num_samples": 9}
    assert score_metrics(scores) == {"test_miou": 0.5, "test_pixel_accuracy": 1.0}
    assert score_metrics({"top1": 0.25, "top5": 0.75, "num_samples": 9}) == {"test_top1": 0.25, "test_top5": 0.75}
    assert score_metrics({}) == {}
