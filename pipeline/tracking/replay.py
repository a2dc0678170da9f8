"""The ledger anew from the files: after an outage, for a deleted database, and after evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.tracking.mirror import missed, open_ledger
from pipeline.tracking.runs import STAGES, RunFiles, find_runs, provenance_tags

if TYPE_CHECKING:
    from pipeline.tracking.ledger import Ledger


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
        UserError: MLflow cannot record at `uri`.
    """
    ledger = open_ledger(uri, suite, draw)
    runs = list(find_runs(suite, runs_dir, results_dir))
    for run in runs:
        run.poll()
    try:
        return sum(_send_stage(ledger, [run for run in runs if run.stage == stage], manifest) for stage in STAGES)
    except Exception as error:  # an outage in mid-way has as many faces as MLflow has stores
        raise UserError(missed(uri, suite, error)) from error


def _send_stage(ledger: "Ledger", runs: list[RunFiles], manifest: Path | None) -> int:
    if not runs:
        return 0
    stage = runs[0].stage
    starts = [run.start_ms for run in runs if run.start_ms is not None]
    ends = [run.end_ms for run in runs if run.end_ms is not None]
    tags = provenance_tags(runs[0].entry.get("provenance", {}))
    ledger.open_stage(stage, tags, min(starts, default=None))
    num_sent = sum(ledger.sync(run, manifest) for run in runs)
    status = "FINISHED" if all(run.done for run in runs) else "KILLED"
    ledger.close_stage(stage, status, max(ends, default=None))
    return num_sent
