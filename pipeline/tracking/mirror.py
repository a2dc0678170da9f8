"""Follows the runs of a stage while they train and tells MLflow, from a thread of the stage's own process.

Nothing here can stop or lose a run: what MLflow misses is in the journals, and `replay` sends it later.
"""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.tracking.refusals import RunRefused
from pipeline.tracking.runs import RunFiles, provenance_tags
from pipeline.tracking.uri import ANSWER_S, brief, refused

if TYPE_CHECKING:
    from pipeline.tracking.ledger import Ledger

INTERVAL_S = 3.0  # between two looks at the journals
REST_S = 30.0  # how long a tracker that failed is left alone
FLUSH_S = 15.0  # how long the end of a stage waits for a tracker that makes no progress


@contextmanager
def mirror(
    uri: str,
    suite: str,
    stage: str,
    run_dirs: Sequence[Path],
    *,
    provenance: Mapping[str, Any] | None = None,
    manifest: Path | None = None,
    interval_s: float = INTERVAL_S,
) -> Iterator[Callable[[Path], None]]:
    """Have MLflow show the runs of `run_dirs` for as long as the block lasts; it is given a function that adds one.

    A run appears once its spec.json does; one that another stage trained appears under this stage too.
    A block that raises ends its open runs as FAILED, Ctrl-C as KILLED.

    Args:
        run_dirs: Folders named by fingerprint, existing or not.
        provenance: `provenance.collect()` of the stage.
        manifest: The shards' manifest.json.

    Raises:
        UserError: at the start, if MLflow cannot record at `uri`. Later failures are told in one line.
    """
    tags = provenance_tags(provenance or {})
    ledger = open_ledger(uri, suite)
    try:
        _send_leftovers(ledger, stage, run_dirs)
        ledger.open_stage(stage, tags)
    except Exception as error:  # whatever the store is made of
        raise refused(uri, error) from error
    runs = [RunFiles(suite, stage, folder.name, folder) for folder in run_dirs]
    follower = _Follower(ledger, stage, runs, lambda run: ledger.sync(run, manifest, tags), interval_s)
    follower.start()
    status = "FAILED"
    try:
        yield lambda folder: follower.add(RunFiles(suite, stage, folder.name, folder))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        follower.finish(status)


def open_ledger(uri: str, suite: str, draw: Callable[[Path, Path], None] | None = None) -> "Ledger":
    """Check the URI, load mlflow with its noise and its patience turned down, and open a suite's ledger."""
    # Before the import. MLflow's defaults spend four minutes on a server that is gone, and phone home.
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # an address for every run
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # nothing that is read here runs code
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(ANSWER_S + 2))
    from pipeline.tracking.ledger import Ledger

    # What they log on a failure is told here in one line.
    for name in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="mlflow")
    return Ledger(uri, suite, draw)


def missed(uri: str, suite: str, error: BaseException) -> str:
    """The line that says what MLflow missed and how to make up for it."""
    remedy = f"later: python -m pipeline.tracking replay {suite}"
    return f"MLflow at {uri} misses part of {suite} ({brief(error)}); {remedy}"


def _send_leftovers(ledger: "Ledger", stage: str, run_dirs: Sequence[Path]) -> None:
    """Of runs that a killed stage has left running, and that are no longer planned: their last rows."""
    if not run_dirs:  # and so no folder that they could be in
        return
    running, planned = {key.rpartition("/")[2] for key in ledger.running(stage)}, {folder.name for folder in run_dirs}
    for fingerprint in running - planned:
        run = RunFiles(ledger.suite, stage, fingerprint, run_dirs[0].parent / fingerprint)
        with suppress(UserError, OSError):  # damaged, or not to be read: what MLflow has of it stays
            run.poll()
        with suppress(RunRefused):
            if run.entry:
                ledger.sync(run)


class _Follower(threading.Thread):
    """Polls the runs and sends their news; rests after a failure, and tries once more at the end.

    What is wrong with one run is told once, and the others go on.
    """

    def __init__(
        self,
        ledger: "Ledger",
        stage: str,
        runs: list[RunFiles],
        send: Callable[[RunFiles], Any],
        interval_s: float,
    ) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)  # never keeps a process alive
        self._ledger, self._stage, self._runs, self._send = ledger, stage, runs, send
        self._interval_s = interval_s
        self._end = threading.Event()
        self._status = "FAILED"
        self._unsent = {run.key for run in runs}
        self._left_out: dict[str, Exception] = {}  # why a run is not shown, or not all of it
        self._again_at: dict[str, float] = {}  # when a run that was refused is tried again
        self._rest_until = 0.0
        self._progress_at = time.monotonic()
        self._error: Exception | None = None

    def add(self, run: RunFiles) -> None:
        """One more, from now on; one that is followed already is left alone."""
        if run.key not in {known.key for known in self._runs}:
            self._unsent.add(run.key)
            self._runs.append(run)

    def run(self) -> None:
        while not self._end.wait(self._interval_s):
            if time.monotonic() >= self._rest_until:
                self._try(self._look)
        self._try(self._look)
        if self._error is None:
            self._try(lambda: self._ledger.close_stage(self._stage, self._status))

    def finish(self, status: str) -> None:
        """Send the rest and end the runs; waits while there is progress, and FLUSH_S without any."""
        self._status = status
        self._progress_at = time.monotonic()
        self._end.set()
        while self.is_alive() and time.monotonic() - self._progress_at < FLUSH_S:
            self.join(0.1)
        error = self._error or (TimeoutError("no answer") if self.is_alive() else None)
        error = error or next(iter(self._left_out.values()), None)
        if error is not None:
            self._say(missed(self._ledger.uri, self._ledger.suite, error))

    def _look(self) -> None:
        for run in list(self._runs):
            due = self._end.is_set() or time.monotonic() >= self._again_at.get(run.key, 0.0)
            if due and self._poll(run) and run.key in self._unsent and run.entry:
                self._show(run)
                self._progress_at = time.monotonic()

    def _poll(self, run: RunFiles) -> bool:
        """Note whether the run has news; a run whose files are damaged is left out."""
        try:
            if run.poll():
                self._unsent.add(run.key)
        except UserError as error:
            self._runs.remove(run)
            self._leave_out(run, error)
            return False
        except OSError as error:  # a shared folder that is away for a moment: the next look finds it all
            self._unsent.add(run.key)
            self._leave_out(run, error)
            return False
        return True

    def _show(self, run: RunFiles) -> None:
        try:
            self._send(run)
        except RunRefused as error:
            self._again_at[run.key] = time.monotonic() + REST_S
            self._leave_out(run, error)
        else:
            self._unsent.discard(run.key)
            self._left_out.pop(run.key, None)

    def _leave_out(self, run: RunFiles, error: Exception) -> None:
        if run.key not in self._left_out:
            self._say(f"{run.key} is not shown in MLflow: {error}")
        self._left_out[run.key] = error

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever MLflow does, training goes on
            if self._error is None:
                rest = f"training goes on, journals keep all, next try in {REST_S:.0f} s"
                self._say(f"nothing can be sent to MLflow ({brief(error)}); {rest}")
            self._error = error
            self._rest_until = time.monotonic() + REST_S
        else:
            self._error = None

    def _say(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)
