"""The work whose publishing is killed: raw data, shards, the results of a stage, an evaluation, a report."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.data.fetch import fetch_dataset
from pipeline.data.shards import write_shards
from pipeline.evaluate import evaluate_runs, write_evaluation
from pipeline.files import building_dir
from pipeline.placement import Placement
from pipeline.report.records import load_records
from pipeline.report.site import write_report
from pipeline.sweep.execute import publish
from pipeline.train.run import Run
from tests.chaos.folders import Publishing
from tests.chaos.project import SUITE, Project


def publishings(project: Project, runs: Sequence[Run]) -> dict[str, Publishing]:
    """By name; `runs` are finished."""
    root, suite, results = project.root / "published", project.suite, project.published / SUITE
    train, evaluation = results / "train", results / "evaluate"
    shards, raw, report = root / "shards/shards", root / "raw/raw", root / "report/report"
    return {
        "fetch": Publishing(
            "fetch_dataset", raw, partial(earlier, raw), partial(fetch_dataset, suite.dataset, raw), may_vanish=True
        ),
        "shard": Publishing(
            "write_shards",
            shards,
            partial(write_shards, suite.dataset, project.raw, shards, 50),
            partial(write_shards, suite.dataset, project.raw, shards, 40),
            may_vanish=True,
        ),
        "publish": Publishing(
            "the results of a stage",
            train,
            partial(publish, "train", suite, runs[:1], train),
            partial(publish, "train", suite, runs, train),
        ),
        "evaluate": Publishing(
            "an evaluation", evaluation, partial(earlier, evaluation), partial(evaluate, project, train, evaluation)
        ),
        "report": Publishing(
            "a report", report, partial(earlier, report), partial(write_whole_report, project, results, report)
        ),
    }


def earlier(folder: Path) -> None:
    """What some older version has left."""
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("old")


def evaluate(project: Project, train: Path, folder: Path) -> None:
    """As the stage `evaluate`, of all recorded runs."""
    entries = json.loads((train / "runs.json").read_text())["runs"]
    weights = {entry["fingerprint"]: train / entry["fingerprint"] / "model.safetensors" for entry in entries}
    predictions = evaluate_runs(entries, weights, project.shards, 20, Placement(cpus_per_worker=10**3))
    with building_dir(folder) as new:
        write_evaluation(new, SUITE, entries, predictions, project.shards)


def write_whole_report(project: Project, results: Path, folder: Path) -> None:
    """As the stage `report`."""
    records = [load_records(SUITE, results, project.shards / "manifest.json")]
    with building_dir(folder) as new:
        write_report(records, new)
