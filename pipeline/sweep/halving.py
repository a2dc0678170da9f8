"""ASHA through Ray Tune's scheduler: a training that is behind the others ends early, and is recorded as that.

Which one ends depends on which comes first, hence on the machine; so the order is written down, and what was decided
stays decided. Read again, the log gives the state in which the stage was killed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from pipeline.journal import JOURNAL_NAME, curves, read_journal
from pipeline.search_rules import HalvingConfig
from pipeline.sweep.search_log import JUDGED, SearchLog


class Halving:
    """Who goes on, of trainings of `max_epochs` epochs.

    Args:
        metric: What is validated after every epoch, the larger the better.
        record: (folder of a run, epoch, step, value) -> the record of a run that was stopped there.
    """

    def __init__(
        self,
        config: HalvingConfig,
        max_epochs: int,
        metric: str,
        log: SearchLog,
        record: Callable[[Path, int, int, float], dict[str, Any]],
    ) -> None:
        self.max_epochs, self.metric, self.log, self.record = max_epochs, metric, log, record
        # A training that has come to its end must not be stopped: it writes its result after the last epoch.
        self._asha = ASHAScheduler(
            "epoch", "value", "max", max_t=max_epochs, grace_period=config.grace_epochs,
            reduction_factor=config.reduction_factor, stop_last_trials=False,
        )  # fmt: skip
        self._seen: dict[str, int] = {}  # epochs by fingerprint
        self.stopped: dict[str, dict[str, Any]] = {}  # records by fingerprint
        for event in log.events():
            if event["kind"] == JUDGED:
                self._decide(event["fingerprint"], event["epoch"], event["value"])
                if event["record"] is not None:
                    self.stopped[event["fingerprint"]] = event["record"]

    def look(self, run_dir: Path, up_to: int | None = None) -> bool:
        """Judge what the run's journal has and was not judged yet; whether the training goes on.

        Args:
            up_to: The last epoch to look at; None: all.
        """
        steps = curves(read_journal(run_dir / JOURNAL_NAME)).get(self.metric, {})
        for epoch, (step, value) in enumerate(steps.items(), start=1):
            if up_to is None or epoch <= up_to:
                self.judge(run_dir, epoch, step, value)
        return run_dir.name not in self.stopped

    def judge(self, run_dir: Path, epoch: int, step: int, value: float) -> None:
        """Decide, once, whether the training of this folder goes on after this epoch, and write it down."""
        name = run_dir.name
        if name in self.stopped or epoch <= self._seen.get(name, 0):
            return
        goes_on = self._decide(name, epoch, value) or epoch >= self.max_epochs
        record = None if goes_on else self.record(run_dir, epoch, step, value)
        self.log.judged(name, epoch, value, record)
        if record is not None:
            self.stopped[name] = record

    def _decide(self, name: str, epoch: int, value: float) -> bool:
        trial: Any = SimpleNamespace(trial_id=name)  # all that the scheduler reads of one
        if name not in self._seen:
            self._asha.on_trial_add(None, trial)
        self._seen[name] = epoch
        decision = self._asha.on_trial_result(None, trial, {"epoch": epoch, "value": value})
        return bool(decision != TrialScheduler.STOP)


class HalvingScheduler(FIFOScheduler):
    """Ends Tune's trials as `halving` says.

    Args:
        run_dir: Of a trial of Tune's.
    """

    def __init__(self, halving: Halving, run_dir: Callable[[Any], Path]) -> None:
        super().__init__()
        self.halving, self.run_dir = halving, run_dir

    def on_trial_result(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """After every epoch, and of epochs whose result was lost with a worker."""
        if self.halving.metric not in result:
            return str(TrialScheduler.CONTINUE)
        goes_on = self.halving.look(self.run_dir(trial), up_to=result["epoch"])
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves what it never restores here: the log has it all."""
        return {}
