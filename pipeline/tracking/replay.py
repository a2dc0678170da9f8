"""The ledger anew from the files: after an outage, for a deleted database, and after evaluation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.tracking.mirror import missed, open_ledger
from pipeline.tracking.refusals import RunRefused
from pipeline.tracking.runs import STAGES, RunFiles, find_runs, provenance_tags

if TYPE_CHECKING:
    from pipeline.tracking.ledger import Ledger

_NAMED = 3  # of the runs that were left out


def replay(
    uri: str,
    suite: str,
    runs_dir: Path,
    results_dir: Path,
    *,
    manifest: Path | None = None,
    draw: Callable[[Path, Path], None] | None = None,
) -> int:
    """Send MLflow what it lacks of a suite; doing it twice changes nothing.

    Args:
        runs_dir: The folder that holds SUITE/FINGERPRINT/.
        results_dir: The folder that holds SUITE/{train,sweep,evaluate}/.
        manifest: The shards' manifest.json, if it is there.
        draw: Makes the picture of a gallery file (.npz -> .png).

    Returns:
        The number of runs that lacked something.

    Raises:
        UserError: MLflow cannot record at `uri`; a result is damaged; or, when all others are sent, some runs are
            damaged or refused.
    """
    ledger = open_ledger(uri, suite, draw)
    left_out: dict[str, Exception] = {}
    try:
        runs = _readable(find_runs(suite, runs_dir, results_dir), left_out)
        num_sent = 0
        for stage in STAGES:
            published = (results_dir / suite / stage / "runs.json").is_file()
            num_sent += _send_stage(ledger, [r for r in runs if r.stage == stage], manifest, published, left_out)
    except UserError:
        raise
    except Exception as error:  # an outage in mid-way has as many faces as MLflow has stores
        raise UserError(missed(uri, suite, error)) from error
    if left_out:
        raise UserError(_say_left_out(left_out))
    return num_sent


def _readable(found: Iterator[RunFiles], left_out: dict[str, Exception]) -> list[RunFiles]:
    runs = []
    for run in found:
        try:
            run.poll()
            runs.append(run)
        except (UserError, OSError) as error:
            left_out[f"{run.suite}/{run.fingerprint}"] = error
    return runs


def _send_stage(
    ledger: "Ledger", runs: list[RunFiles], manifest: Path | None, published: bool, left_out: dict[str, Exception]
) -> int:
    """The number of runs that lacked something.

    Args:
        published: The stage has a result, so it has ended well, whatever else was begun before.
    """
    if not runs:
        return 0
    stage = runs[0].stage
    starts = [run.start_ms for run in runs if run.start_ms is not None]
    ends = [run.end_ms for run in runs if run.end_ms is not None]
    tags = provenance_tags(runs[0].entry.get("provenance", {}))
    ledger.open_stage(stage, tags, min(starts, default=None))
    num_sent = 0
    for run in runs:
        try:
            num_sent += ledger.sync(run, manifest)
        except RunRefused as error:
            left_out[run.key] = error
    status = "FINISHED" if published or all(run.ended for run in runs) else "KILLED"
    ledger.close_stage(stage, status, max(ends, default=None))
    return num_sent


def _say_left_out(left_out: dict[str, Exception]) -> str:
    named = [f"{key} is not shown in MLflow: {error}" for key, error in [*left_out.items()][:_NAMED]]
    more = [f"and {len(left_out) - _NAMED} more runs"] if len(left_out) > _NAMED else []
    return "; ".join([*named, *more])
