"""A list of trials -> their results in one folder: the common body of the stages `train` and `sweep`."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout

from pipeline import provenance
from pipeline.config import Params, Suite, Trial
from pipeline.data.clips import clip_sampling, short_clips
from pipeline.data.drops import Drops, find_drops
from pipeline.data.index import MANIFEST_FILE, Manifest, load_manifest
from pipeline.data.options import Planned
from pipeline.data.verify import verify_shards
from pipeline.errors import UserError, problem
from pipeline.files import building_dir, write_json_atomic, write_text_atomic
from pipeline.journal import JOURNAL_NAME
from pipeline.sweep.checks import check_data, check_disk, check_trials
from pipeline.sweep.cost import load_speed, relative_cost
from pipeline.sweep.tune import run_trials
from pipeline.tracking.mirror import mirror
from pipeline.tracking.uri import resolve_uri
from pipeline.train.run import WEIGHTS, Run

if TYPE_CHECKING:
    from pipeline.sweep.halving import Halving

LOCK_WAIT_S = 30.0  # an interrupted stage needs some seconds to end
RESULT_FILES = (WEIGHTS, JOURNAL_NAME)
TRAINED_ON = ("train", "val")  # the splits that training reads


class Paths(NamedTuple):
    """Where a stage reads and writes."""

    shards: Path  # data/SUITE/shards
    runs: Path  # runs/SUITE: machine state, one folder per fingerprint
    results: Path  # results/SUITE/STAGE
    params: tuple[Path, ...]  # the params files, for the record


def plan_runs(
    stage: str, suite: Suite, trials: Sequence[Trial], manifest: Manifest, paths: Paths, drops: Drops | None = None
) -> list[Run]:
    """Every trial with its identity and its folder, in plan order; equal trials share a folder.

    Args:
        drops: The damaged samples that are left out.

    Raises:
        ConfigError: the shards were made from something else than the suite says.
    """
    check_data(suite, trials, manifest)
    return _identify(stage, suite, trials, manifest.sha256, paths, drops or Drops())


def _identify(
    stage: str, suite: Suite, trials: Sequence[Trial], data_sha256: str, paths: Paths, drops: Drops
) -> list[Run]:
    code = provenance.code_sha256()

    def folder(trial: Trial) -> Path:
        return paths.runs / provenance.fingerprint(trial, data_sha256 + drops.sha256, code)

    return [
        Run(
            suite.name, stage, trial, folder(trial).name, suite.dataset.name, data_sha256, folder(trial),
            init_dir=folder(trial.init_from) if trial.init_from else None,
            dropped={split: list(drops.indices(split)) for split in TRAINED_ON} if drops.drops else {},
        )
        for trial in trials
    ]  # fmt: skip


def dry_run(stage: str, suite: Suite, trials: Sequence[Trial], params: Params, paths: Paths) -> None:
    """Print the plan; nothing is started or written. Where there are no shards yet, the suite says what they will have.

    Shards are not read: what is left out of them is taken to be what the last results say.

    Raises:
        UserError: as `plan_runs`; no shards, and the suite does not say.
    """
    from pipeline.sweep.preview import preview  # builds models

    planned = suite.dataset.planned()
    if planned is None or (paths.shards / MANIFEST_FILE).is_file():
        manifest = load_manifest(paths.shards)
        runs = plan_runs(stage, suite, trials, manifest, paths, last_left_out(paths))
        planned = Planned(manifest.num_classes, manifest.split("train").num_samples)
    else:
        runs = _identify(stage, suite, trials, "", paths, Drops())
        print(f"no data in {paths.shards} yet: {planned.num_classes} classes, {planned.num_train} samples expected")
    preview(
        runs,
        num_classes=planned.num_classes,
        num_samples=planned.num_train,
        placement=params.placement,
        speed=load_speed(paths.runs.glob("*/")),
    )


def execute(stage: str, suite: Suite, trials: Sequence[Trial], params: Params, paths: Paths) -> None:
    """Train what is not trained yet, then publish the results of all trials as one folder.

    Raises:
        UserError: the suite, the data or the cluster do not fit, another copy is running, or trials failed.
    """
    manifest = load_manifest(paths.shards)
    with only_copy(paths.runs):
        drops = left_out(suite, paths)
        runs = plan_runs(stage, suite, trials, manifest, paths, drops)
        unique = list({run.fingerprint: run for run in runs}.values())
        pending = [run for run in unique if wants_fresh() or run.done() is None]
        print(f"{stage} {suite.name}: {len(runs)} trials, {len(pending)} trainings to do", flush=True)
        say_short_clips([run.trial for run in pending], paths.shards)
        check_pending(suite, pending, manifest, paths)
        for run in unique:
            run.prepare(wants_fresh())
        train(stage, suite, unique, manifest, params, paths)
        publish(stage, suite, runs, paths.results, drops)


def say_short_clips(trials: Sequence[Trial], shards: Path) -> None:
    """A line on each split that has clips with fewer frames than are read."""
    ways = dict.fromkeys(filter(None, (clip_sampling(trial.science()) for trial in trials)))
    for note in filter(None, (short_clips(shards, split, way) for way in ways for split in TRAINED_ON)):
        print(f"warning: {note}", flush=True)


def wants_fresh() -> bool:
    """Whether what was done before is to be done again."""
    return os.environ.get("DART_FRESH") == "1"


def left_out(suite: Suite, paths: Paths) -> Drops:
    """Damaged samples, found before the runs are known: what is left out is part of their identity."""
    drops = find_drops(paths.shards, suite.max_bad_frac, TRAINED_ON) if suite.max_bad_frac else Drops()
    for note in drops.notes:
        print(f"warning: {note}", flush=True)
    return drops


def last_left_out(paths: Paths) -> Drops:
    """The damaged samples that the last results were made without; none where there are no results."""
    file = paths.results / "runs.json"
    told = json.loads(file.read_text()).get("dropped") if file.is_file() else None
    return Drops.from_json(told) if told else Drops()


def check_pending(suite: Suite, pending: Sequence[Run], manifest: Manifest, paths: Paths) -> None:
    """Raise UserError for what would fail in trainings that are to be started: models, shards, room on the disk."""
    if pending:
        trials = [run.trial for run in pending]
        weights = check_trials(trials, manifest.num_classes)
        if not suite.max_bad_frac:
            verify_shards(paths.shards)
        check_disk(paths.runs, trials, weights)


def train(
    stage: str,
    suite: Suite,
    runs: Sequence[Run],
    manifest: Manifest,
    params: Params,
    paths: Paths,
    halving: "Halving | None" = None,
) -> None:
    """Run the trials with MLflow looking on; `halving` may end some of them early."""
    record = provenance.collect(paths.params)
    num_samples = manifest.split("train").num_samples
    with mirrored(stage, suite, runs, params, paths, record):
        run_trials(
            runs,
            paths.shards,
            num_classes=manifest.num_classes,
            placement=params.placement,
            provenance=record,
            scratch=paths.runs / f".tune-{stage}",
            costs={run.fingerprint: relative_cost(run.trial, num_samples) for run in runs},
            halving=halving,
        )


def mirrored(
    stage: str, suite: Suite, runs: Sequence[Run], params: Params, paths: Paths, record: Mapping[str, Any]
) -> AbstractContextManager[Callable[[Path], None]]:
    """As `pipeline.tracking.mirror.mirror`, of these runs; `record` is the stage's provenance."""
    uri, folders = resolve_uri(params.tracking.uri), [run.dir for run in runs]
    return mirror(uri, suite.name, stage, folders, provenance=record, manifest=paths.shards / MANIFEST_FILE)


def publish(
    stage: str,
    suite: Suite,
    runs: Sequence[Run],
    results: Path,
    drops: Drops | None = None,
    stopped: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write runs.json (every trial in plan order) and each run's weights and journal, all at once or not at all.

    A run that has diverged, where the recipe says that this is a result, has no weights.

    Args:
        stopped: Fingerprint -> the record of a run that a search has ended early, without weights either.
        more: Further JSON files by name.
    """
    with building_dir(results) as folder:
        records = []
        for run in runs:
            records.append({**run.spec(), **(run.done() or stopped.get(run.fingerprint, {}))})
            target = folder / run.fingerprint
            target.mkdir(exist_ok=True)
            for name in RESULT_FILES:
                if name != WEIGHTS or records[-1].get("status") == "done":
                    shutil.copyfile(run.dir / name, target / name)
        told = {"dropped": drops.to_json()} if drops else {}
        write_json_atomic(folder / "runs.json", {"suite": suite.name, "stage": stage, "runs": records, **told})
        for name, content in more.items():
            write_json_atomic(folder / name, content)


@contextlib.contextmanager
def only_copy(folder: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Refuse to train a suite twice at the same time; an interrupted copy is given some seconds to end.

    Raises:
        UserError: another process still works on this suite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / ".lock"), folder / ".owner"
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for process {_owner(owner)} to end its work on {folder}", flush=True)
            lock.acquire(timeout=wait_s)
    except Timeout:
        rule = f"process {_owner(owner)} is training this suite"
        raise UserError(problem("runs", str(folder), rule, "wait for it to end, or interrupt it")) from None
    try:
        write_text_atomic(owner, str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    return path.read_text() if path.is_file() else "?"
