"""What is measured of a run, task by task: the one place that knows it. A further task is one more entry of `TASKS`.

A measure is a fraction, recorded under its name for the test split, and as val_NAME while training. The report, the
ledger and the progress lines read this; how a task's pictures are kept and drawn, `pipeline.gallery` and
`pipeline.report.pictures` know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One number of a run: its name in the records, the title over its column, and whether short tables show it."""

    name: str
    title: str
    brief: bool = True


@dataclass(frozen=True)
class Task:
    """What is asked of a suite's samples, and how the answers are measured and spoken of.

    The first of the measures decides: curves, Pareto fronts and comparisons are about it. Texts may hold {num_test},
    the number of test samples, and {dataset}.
    """

    name: str
    measures: tuple[Measure, ...]
    said: str  # the first measure, in a sentence
    compared: tuple[str, ...]  # columns of table.csv that `dvc metrics` compares
    points_csv: str  # files of report/plots: the points of the tables ...
    curves_csv: str  # ... and the learning curves, of all suites of this task
    answer: tuple[str, ...]  # columns of a run's predictions file that say what it answered ...
    answers: str  # ... and what these are
    scored: tuple[str, ...]  # columns that give a sample's score: a number, or two that are equal where it is right
    score: str  # what the mean of these scores is
    counted: str  # what the first measure counts
    counted_short: str
    details: tuple[str, ...]  # what the others count
    seen: str  # what the picture what-the-model-sees shows

    @property
    def first(self) -> Measure:
        return self.measures[0]

    @property
    def val(self) -> str:
        """The metric of the journals and of a finished run that validates it."""
        return f"val_{self.first.name}"


CLASSIFICATION = Task(
    name="classification",
    measures=(Measure("top1", "Top-1 (%)"), Measure("top5", "Top-5 (%)", brief=False)),
    said="top-1",
    compared=("top1_mean", "top1_std"),
    points_csv="accuracy.csv",
    curves_csv="curves.csv",
    answer=("prediction",),
    answers="test predictions",
    scored=("prediction", "label"),
    score="top-1",
    counted="Top-1, top-5: share of the {num_test} samples of the test split, each counted once",
    counted_short="top-1: share of the {num_test} test samples of {dataset}",
    details=(),
    seen="Test samples as the uniform grid and as DART cut them: the regions, and every token at the size the "
    "model receives it, with both predictions; a tick is right, a cross is wrong.",
)
SEGMENTATION = Task(
    name="segmentation",
    measures=(
        Measure("miou", "mIoU (%)"),
        Measure("miou_small", "mIoU, small objects (%)"),
        Measure("boundary_iou", "Boundary IoU (%)"),
        Measure("pixel_accuracy", "Pixel accuracy (%)", brief=False),
    ),
    said="mIoU",
    compared=("miou_mean", "miou_std", "miou_small_mean"),
    points_csv="miou.csv",
    curves_csv="miou-curves.csv",
    answer=("pixel_accuracy", "miou"),
    answers="test images' scores",
    scored=("miou",),
    score="mean mIoU of single images",
    counted="mIoU: intersection over union of each class over all pixels of the {num_test} images of the test split, "
    "each counted once in the original image's pixels; mean over the classes that occur",
    counted_short="mIoU: intersection over union over all pixels of the {num_test} test images of {dataset}, mean over "
    "the classes",
    details=(
        "mIoU, small objects: the same over the surroundings of small objects, which are connected parts of a class "
        "with fewer than a given share of their image's pixels; mean over the classes that have any.",
        "Boundary IoU: the same over the pixels near the classes' contours (arXiv 2103.16562). Pixel accuracy: share "
        "of the pixels that are right.",
    ),
    seen="Test images and the true class of every pixel; what a model makes of them through the uniform grid, and "
    "through DART's regions, which follow the learned importance; the mIoU is that of the single image.",
)
TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, SEGMENTATION)}
ALL_MEASURES: tuple[Measure, ...] = tuple(measure for task in TASKS.values() for measure in task.measures)


def validated(metrics: Mapping[str, Any]) -> Task | None:
    """The task whose first measure was validated in these metrics of a training; None before any validation."""
    return next((task for task in TASKS.values() if task.val in metrics), None)
