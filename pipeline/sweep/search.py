"""A search whose next step depends on results (asha, optuna) -> what it has trained, in one folder.

Its log lies beside the runs, named by all that its choices depend on: a larger `num_samples` goes on where a smaller
one has ended, anything else is another search.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import provenance
from pipeline.config import Params, Suite, Trial
from pipeline.data.drops import Drops
from pipeline.data.index import MANIFEST_FILE, Manifest, load_manifest
from pipeline.measures import TASKS
from pipeline.search_rules import STOPPED, SweepConfig
from pipeline.sweep import execute
from pipeline.sweep.execute import Paths
from pipeline.sweep.plan import plan_point
from pipeline.sweep.search_log import SearchLog, asked_points
from pipeline.sweep.space import corners
from pipeline.train.run import Run
from pipeline.train.session import set_environment


def search(stage: str, suite: Suite, trials: Sequence[Trial], params: Params, paths: Paths) -> None:
    """Train what the search of `suite.sweep` asks for, and publish all its trials; those stopped early are marked.

    Args:
        trials: The plan of asha; of optuna there is none.

    Raises:
        UserError: as `execute.execute`.
    """
    sweep = _sweep(suite)
    manifest = load_manifest(paths.shards)
    with execute.only_copy(paths.runs):
        drops = execute.left_out(suite, paths)
        folder = log_folder(suite, manifest.sha256 + drops.sha256, paths)
        if execute.wants_fresh():
            shutil.rmtree(folder, ignore_errors=True)
        set_environment()  # before Ray is imported
        if sweep.kind == "asha":
            runs = execute.plan_runs(stage, suite, trials, manifest, paths, drops)
            stopped = _halve(stage, suite, runs, manifest, params, paths, SearchLog(folder))
            execute.publish(stage, suite, runs, paths.results, drops, stopped)
        else:
            runs = _suggest(stage, suite, manifest, params, paths, drops, SearchLog(folder))
            costs = {"benchmark.json": _measure(suite, runs, manifest)}
            execute.publish(stage, suite, runs, paths.results, drops, more=costs)


def log_folder(suite: Suite, data: str, paths: Paths) -> Path:
    """Where the log of a search is.

    Args:
        data: The identity of the data.
    """
    known = {
        "sweep": _sweep(suite).model_dump(mode="json", exclude={"num_samples"}),
        **{key: getattr(suite, key).model_dump(mode="json") for key in ("model", "tokenizer", "train")},
        "data": data,
        "code": provenance.code_sha256(),
    }
    return paths.runs / f"search-{provenance.hash_json(known)[:16]}"


def known_trials(suite: Suite, paths: Paths) -> list[Trial]:
    """What a search has chosen so far, for a dry run; nothing where there is no data yet."""
    if not (paths.shards / MANIFEST_FILE).is_file():
        return []
    folder = log_folder(suite, load_manifest(paths.shards).sha256 + execute.last_left_out(paths).sha256, paths)
    points = [plan_point(suite, values) for values in asked_points(folder)]
    return list({trial.name: trial for trial in points}.values())


def say_plan(suite: Suite, trials: Sequence[Trial]) -> str:
    """What a dry run says beneath its list."""
    sweep = _sweep(suite)
    if sweep.halving is not None:
        epoch, rungs = sweep.halving.grace_epochs, []
        while epoch < trials[0].train.epochs:
            rungs.append(epoch)
            epoch *= sweep.halving.reduction_factor
        best, looks = f"the best 1/{sweep.halving.reduction_factor}", ", ".join(map(str, rungs))
        return f"asha: after epoch {looks} only {best} of those before it go on; the costs are those of whole trainings"
    return f"optuna: {len(trials)} of {sweep.num_samples} points are known, each further one depends on results"


def stopped_record(epoch: int, of: int, step: int, num_samples: int, metrics: dict[str, float]) -> dict[str, Any]:
    """What is recorded of a training that was stopped after this epoch and step, beside its provenance."""
    status = f"{STOPPED} at epoch {epoch} of {of}"
    return {"status": status, "metrics": metrics, "num_steps": step, "num_samples": num_samples}


def _halve(
    stage: str, suite: Suite, runs: Sequence[Run], manifest: Manifest, params: Params, paths: Paths, log: SearchLog
) -> dict[str, dict[str, Any]]:
    """Train what is not done or behind -> the records of those that were stopped."""
    from pipeline.sweep.halving import Halving

    config = _sweep(suite).halving
    assert config is not None
    unique = {run.fingerprint: run for run in runs}
    record, metric = provenance.collect(paths.params), TASKS[manifest.task].val
    epochs = runs[0].trial.train.epochs

    def stopped(folder: Path, epoch: int, step: int, value: float) -> dict[str, Any]:
        samples = step * unique[folder.name].trial.train.global_batch_size
        return {**stopped_record(epoch, epochs, step, samples, {metric: value}), "provenance": record}

    for run in unique.values():
        run.prepare(execute.wants_fresh())
    halving = Halving(config, epochs, metric, log, stopped)
    for run in unique.values():
        halving.look(run.dir)  # what other stages have trained counts as well
    pending = [run for key, run in unique.items() if key not in halving.stopped and run.done() is None]
    print(f"{stage} {suite.name}: {len(runs)} trials, {len(halving.stopped)} stopped early, {len(pending)} to train")
    execute.check_pending(suite, pending, manifest, paths)
    execute.train(stage, suite, list(unique.values()), manifest, params, paths, halving)
    return halving.stopped


def _suggest(
    stage: str, suite: Suite, manifest: Manifest, params: Params, paths: Paths, drops: Drops, log: SearchLog
) -> list[Run]:
    """Train points until there are as many as wanted -> all of them in the order in which they were chosen."""
    from pipeline.sweep.points import Points, train_points
    from pipeline.sweep.suggesting import Suggestions

    def run_at(values: dict[str, Any]) -> Run:
        return execute.plan_runs(stage, suite, [plan_point(suite, values)], manifest, paths, drops)[0]

    sweep = _sweep(suite)
    assert sweep.num_samples is not None
    points = Points(Suggestions(sweep, log), run_at, TASKS[manifest.task].val, fresh=execute.wants_fresh())
    edges = [run_at(values) for values in corners(sweep.space or {})]
    print(f"{stage} {suite.name}: {points.num_told} of {sweep.num_samples} points are known", flush=True)
    if points.peek() is not None:
        execute.check_pending(suite, edges, manifest, paths)
    record = provenance.collect(paths.params)
    with execute.mirrored(stage, suite, points.runs, params, paths, record) as follow:
        train_points(
            points, edges, paths.shards, manifest, params.placement, record, paths.runs / f".tune-{stage}",
            limit=sweep.num_samples, follow=follow,
        )  # fmt: skip
    return points.runs


def _measure(suite: Suite, runs: Sequence[Run], manifest: Manifest) -> dict[str, Any]:
    """Cost and speed of the models that were chosen: the stage `benchmark` knows those of a plan alone."""
    from pipeline.benchmark import benchmark

    settings = suite.benchmark
    return benchmark([run.trial for run in runs], manifest.num_classes, settings.batch_size, settings.rounds)


def _sweep(suite: Suite) -> SweepConfig:
    assert suite.sweep is not None
    return suite.sweep
