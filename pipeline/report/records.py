"""The recorded runs of one suite, read from what the stages left: the only input of tables and figures.

Nothing is computed and nothing dropped: a run that did not finish, or was not evaluated, is a record too.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError, problem
from pipeline.journal import JOURNAL_NAME, curves, read_journal
from pipeline.measures import CLASSIFICATION, TASKS, Task
from pipeline.report.claims import Claim

Json = dict[str, Any]
NO_SETTINGS = ("suite", "split", "runs", "dropped", "evaluation")  # of evaluate/metrics.json


class Cost(NamedTuple):
    """What one model costs, whatever its weights. Throughput is None where it was not measured."""

    params: int
    macs: int  # multiply-accumulates of one image
    images_per_s: float | None  # median over the benchmark's rounds
    images_per_s_q25: float | None
    images_per_s_q75: float | None


@dataclass(frozen=True)
class Run:
    """One training and what is known of it.

    `test` holds the measures of its task on the test split, None when the run was not evaluated.
    """

    suite: str
    stage: str
    name: str
    seed: int
    fingerprint: str
    model_name: str
    science: Json
    status: str
    manifest_sha256: str
    folder: Path
    metrics: Json = field(default_factory=dict)
    test: Json | None = None
    num_samples: int | None = None
    world_size: int | None = None
    wall_s: float | None = None
    provenance: Json = field(default_factory=dict)
    rewinds: tuple[Json, ...] = ()  # where the training went back before a spike of the loss, or a NaN

    @property
    def problem(self) -> str:
        """Why this run is in no average; empty when it is complete."""
        if self.status != "done":
            return self.status
        return "" if self.test is not None else "not evaluated"

    @property
    def commit(self) -> str:
        """Abbreviated; a trailing + says that the working tree had changes."""
        commit = self.provenance.get("commit")
        return str(commit)[:10] + ("+" if self.provenance.get("dirty") else "") if commit else "unknown"

    @property
    def architecture(self) -> str:
        """Equal for runs of the same model, whatever their training."""
        return architecture_key(self.science)

    @property
    def tokenizer(self) -> str:
        """What makes its tokens, and what takes some away again: "dart", or "uniform + evit"."""
        reducer = self.science["model"].get("reducer")
        return " + ".join([self.science["tokenizer"]["name"], *([reducer["name"]] if reducer else [])])

    @cached_property
    def curves(self) -> dict[str, dict[int, float]]:
        """{metric: {step: value}} of the journal, steps ascending."""
        return curves(read_journal(self.folder / JOURNAL_NAME))


@dataclass(frozen=True, eq=False)  # one is equal to itself alone, so that its tables can be remembered
class Records:
    """All that is known of one suite, in the order of its plans.

    `runs` are the experiments', `trials` the sweep's. `checks` are the experiments that pin their number of workers:
    they show what does not depend on it, and are no models to compare.
    """

    suite: str
    manifest: Json
    runs: tuple[Run, ...]
    trials: tuple[Run, ...]
    checks: tuple[Run, ...]
    costs: Mapping[str, Cost]  # by architecture
    benchmark: Json  # how the costs were measured; empty when they were not
    evaluate_dir: Path
    settings: Json = field(default_factory=dict)  # of the evaluation, as in the suite's file, where recorded
    dropped: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (shard, reason) -> samples left out
    evaluation: Json = field(default_factory=dict)  # how the test split was looked at, and by what; empty: not recorded
    claims: tuple[Claim, ...] = ()  # what is said of the suite, beside its file

    @property
    def task(self) -> Task:
        """What is asked of the samples, and how it is measured."""
        return TASKS[_task_name(self.manifest)]

    @property
    def unit(self) -> str:
        """What a sample is: "image" or "clip"."""
        return "image" if self.manifest.get("num_frames") is None else "clip"

    def cost(self, run: Run) -> Cost | None:
        """The cost of the run's model, None where the benchmark does not know it."""
        return self.costs.get(run.architecture)

    def predictions(self, run: Run) -> dict[str, tuple[str, ...]]:
        """{sample key: what the run answered, as recorded} on the test split; empty when the run was not evaluated."""
        path = self.evaluate_dir / "predictions" / f"{run.fingerprint}.csv"
        if not path.is_file():
            return {}
        with path.open(newline="") as file:
            return {row["key"]: tuple(row[name] for name in self.task.answer) for row in csv.DictReader(file)}

    def gallery_path(self, run: Run) -> Path:
        """Where the run's pictures are, if it has any."""
        return self.evaluate_dir / "gallery" / f"{run.fingerprint}.npz"


def load_records(suite: str, results_dir: Path, manifest_path: Path) -> Records:
    """Read one suite's results.

    Args:
        suite: Its name.
        results_dir: With train/, sweep/, evaluate/ and benchmark.json; each may be absent, as sweep/benchmark.json.
        manifest_path: The shards' manifest.json.

    Raises:
        UserError: a file is missing or damaged, a run is of another suite or data set, or recorded twice, or the
            samples are for a task that nothing is known of.
    """
    evaluated = _read_json(results_dir / "evaluate" / "metrics.json", {"runs": []})
    tests = {run["fingerprint"]: run for run in evaluated["runs"]}
    benchmark = _read_json(results_dir / "benchmark.json", {})
    chosen = _read_json(results_dir / "sweep" / "benchmark.json", {})  # by a search, beyond any plan
    runs, trials = (_load_runs(results_dir / stage, suite, tests) for stage in ("train", "sweep"))
    if not runs and not trials:
        raise UserError(f"{results_dir}: no recorded runs; run: dvc repro train@{suite}")
    manifest = _read_json(manifest_path)
    _check_data([*runs, *trials], manifest_path)
    if _task_name(manifest) not in TASKS:
        rule, remedy = f"unknown; known: {', '.join(TASKS)}", f"run: dvc repro shard@{suite}"
        raise UserError(problem(f"{manifest_path}: task", _task_name(manifest), rule, remedy))
    pinned = [run for run in runs if "num_workers" in run.science]
    return Records(
        suite=suite,
        manifest=manifest,
        runs=tuple(run for run in runs if run not in pinned),
        trials=trials,
        checks=tuple(pinned),
        costs={
            architecture_key(model): _cost(model) for model in (*chosen.get("models", ()), *benchmark.get("models", ()))
        },
        benchmark={key: value for key, value in benchmark.items() if key != "models"},
        evaluate_dir=results_dir / "evaluate",
        settings={key: value for key, value in evaluated.items() if key not in NO_SETTINGS},
        dropped=_load_dropped(results_dir),
        evaluation=evaluated.get("evaluation", {}),
    )


def _load_dropped(results_dir: Path) -> dict[tuple[str, str], int]:
    """(shard, reason) -> how many damaged samples no stage read; stages that read the same split name the same."""
    files = [results_dir / name for name in ("train/runs.json", "sweep/runs.json", "evaluate/metrics.json")]
    drops = [_read_json(path, {}).get("dropped", {}).get("drops", []) for path in files]
    samples = {(shard, key, reason) for found in drops for _, shard, key, _, reason in found}
    return dict(sorted(Counter((shard, reason) for shard, _, reason in samples).items()))


def architecture_key(science: Mapping[str, Any]) -> str:
    """What cost depends on, the model and the tokenizer, as a key."""
    return json.dumps({key: science[key] for key in ("model", "tokenizer")}, sort_keys=True)


def by_name(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """{experiment: its runs}, both in the order of the plan."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def _task_name(manifest: Json) -> str:
    return str(manifest.get("task", CLASSIFICATION.name))


def _load_runs(stage_dir: Path, suite: str, tests: Mapping[str, Json]) -> tuple[Run, ...]:
    path = stage_dir / "runs.json"
    runs = [_run(raw, stage_dir, tests) for raw in _read_json(path, {"runs": []})["runs"]]
    seen: set[tuple[str, int]] = set()
    for run in runs:
        if run.suite != suite:
            rule = f"a record of suite {run.suite!r}, not of {suite!r}"
            raise UserError(problem(str(path), run.fingerprint, rule, f"run: dvc repro {stage_dir.name}@{suite}"))
        if not run.name.isprintable():
            rule = "the name of an experiment has characters that cannot be printed"
            raise UserError(problem(f"{path}: {run.fingerprint}", run.name, rule, "give it another in the suite"))
        if (run.name, run.seed) in seen:
            rule = f"{run.name!r} with seed {run.seed} is recorded twice"
            raise UserError(problem(str(path), run.fingerprint, rule, "keep one of them"))
        seen.add((run.name, run.seed))
    return tuple(runs)


def _check_data(runs: Iterable[Run], manifest_path: Path) -> None:
    """A table must not mix runs of different data."""
    current = hashlib.sha256(manifest_path.read_bytes()).hexdigest()
    for run in runs:
        if run.manifest_sha256 != current:
            where = f"run {run.fingerprint} ({run.name}, seed {run.seed}): dataset.manifest_sha256"
            rule = f"trained on other data than {manifest_path}"
            raise UserError(problem(where, run.manifest_sha256[:10], rule, "run: dvc repro"))


def _run(raw: Json, stage_dir: Path, tests: Mapping[str, Json]) -> Run:
    fingerprint = raw["fingerprint"]
    given = ("suite", "stage", "name", "seed", "fingerprint", "model_name", "science")
    optional = ("metrics", "num_samples", "world_size", "wall_s", "provenance")
    return Run(
        **{key: raw[key] for key in given},
        **{key: raw[key] for key in optional if raw.get(key) is not None},
        status=raw.get("status") or "incomplete",
        rewinds=tuple(raw.get("rewinds", ())),
        manifest_sha256=raw["dataset"]["manifest_sha256"],
        folder=stage_dir / fingerprint,
        test=tests.get(fingerprint),
    )


def _cost(model: Json) -> Cost:
    speed = model.get("images_per_s") or {}
    return Cost(model["params"], model["macs"], *(speed.get(key) for key in ("median", "q25", "q75")))


def _read_json(path: Path, default: Json | None = None) -> Json:
    if default is not None and not path.is_file():
        return default
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run: dvc repro") from None
    except ValueError:
        raise UserError(f"{path}: not valid JSON; delete its folder and run: dvc repro") from None
