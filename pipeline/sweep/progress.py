"""One line per epoch and trial, with the time that the whole stage still needs."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.measures import validated
from pipeline.train.run import Run


class Progress:
    """Follows the runs of a stage.

    Args:
        runs: Those to be done, by fingerprint.
        costs: What each costs, in any unit.
        num_done: Runs of the stage that were done before.
        echo: Shows a line.
        clock: Seconds, monotonic.
        num_more: Runs that a search has still to choose.
    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        costs: Mapping[str, float],
        num_done: int = 0,
        echo: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
        num_more: int = 0,
    ) -> None:
        self._runs, self._costs, self._echo, self._clock = dict(runs), dict(costs), echo, clock
        self._finished, self._total, self._num = num_done, num_done + len(runs) + num_more, len(runs) + num_more
        self._shares = dict.fromkeys(runs, 0.0)  # of each run's cost, paid
        self._start: float | None = None

    def start(self) -> None:
        """The first run begins: what was before says nothing about the rate."""
        if self._start is None:
            self._start = self._clock()

    def epoch(self, fingerprint: str, metrics: Mapping[str, Any]) -> None:
        """A run has finished an epoch with these metrics; a repeated epoch (after a retry) is shown again."""
        run = self._runs[fingerprint]
        epoch, epochs = int(metrics["epoch"]), run.trial.train.epochs
        if epoch == epochs and self._shares[fingerprint] < 1:
            self._finished += 1
        self._shares[fingerprint] = max(self._shares[fingerprint], epoch / epochs)
        width, task = len(str(self._total)), validated(metrics)
        reached = f"val {task.said} {metrics[task.val]:.3f}  " if task else ""
        self._echo(
            f"[{self._finished:{width}d}/{self._total}] {run.label}  epoch {epoch}/{epochs}  "
            f"{reached}{metrics['train_s']:.0f} s   {self._time_left()}".rstrip()
        )

    def add(self, run: Run, cost: float) -> None:
        """A run that a search has chosen by now."""
        self._runs[run.fingerprint], self._costs[run.fingerprint] = run, cost
        self._shares[run.fingerprint] = 0.0

    def stop(self, fingerprint: str, status: str) -> None:
        """A run was ended before its last epoch."""
        self._finished += self._shares[fingerprint] < 1
        self._shares[fingerprint] = 1.0
        self._echo(f"[{self._finished}/{self._total}] {self._runs[fingerprint].label}  {status}")

    def retry(self, fingerprint: str, cause: str) -> None:
        """A run's attempt failed and may be repeated."""
        self._echo(f"{self._runs[fingerprint].label}: the attempt failed ({cause})")

    def say(self, text: str) -> None:
        """A line of its own."""
        self._echo(text)

    def _time_left(self) -> str:
        known = sum(self._costs[key] for key in self._runs)
        total = known * self._num / len(self._runs)  # what is not chosen yet costs what the others do
        paid = sum(self._costs[key] * share for key, share in self._shares.items())
        if paid >= total or self._start is None:
            return ""
        return f"about {words((self._clock() - self._start) * (total - paid) / paid)} left"


def words(seconds: float) -> str:
    """12.3 -> '12 s', 200 -> '3 min', 9000 -> '2.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
