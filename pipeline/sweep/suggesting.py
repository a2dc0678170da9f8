"""Optuna through Ray Tune's searcher: every point is chosen in view of the results so far (TPE, arXiv 2304.11127).

The sampler is a function of its seed and of the order in which it was asked and told. That order is logged, so a stage
that was killed asks and tells it again, gets the same points, and goes on with those that have no result yet.
"""

from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from pipeline.errors import UserError, problem
from pipeline.search_rules import Interval, SweepConfig
from pipeline.sweep.search_log import ASKED, TOLD, SearchLog
from pipeline.sweep.space import tidied

METRIC = "value"


class Suggestions:
    """The points of a search by number, from 0 on, and which of them have no result yet.

    Args:
        sweep: Of kind optuna.

    Raises:
        UserError: the log was written by a search that chooses otherwise, such as another version of Optuna's.
    """

    def __init__(self, sweep: SweepConfig, log: SearchLog) -> None:
        assert sweep.space is not None
        assert sweep.num_samples is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._limit, self._log = sweep.space, sweep.num_samples, log
        space = {key: _distribution(values) for key, values in self._space.items()}
        self._search = OptunaSearch(space, METRIC, "max", seed=sweep.seed)
        self.values: list[dict[str, Any]] = []
        self.open: set[int] = set()
        for event in log.events():
            self._repeat(event)

    def ask(self) -> int | None:
        """The number of a new point; None where there are as many as wanted."""
        if len(self.values) >= self._limit:
            return None
        number = self._suggest()
        self._log.asked(number, self.values[number])
        return number

    def tell(self, number: int, value: float | None) -> None:
        """What became of a point, once and for all."""
        self._log.told(number, value)
        self._hear(number, value)

    def give_up(self, number: int) -> None:
        """A training that may succeed another time: this process goes on without it, the next one tries it again."""
        self._search.on_trial_complete(str(number), None, error=True)

    def _suggest(self) -> int:
        number = len(self.values)
        chosen = self._search.suggest(str(number)) or {}
        self.values.append({key: _value(values, chosen[key]) for key, values in self._space.items()})
        self.open.add(number)
        return number

    def _hear(self, number: int, value: float | None) -> None:
        result = None if value is None else {METRIC: value}
        self._search.on_trial_complete(str(number), result, error=value is None)
        self.open.discard(number)

    def _repeat(self, event: dict[str, Any]) -> None:
        if event["kind"] == TOLD:
            self._hear(event["number"], event["value"])
        elif event["kind"] == ASKED and self.values[self._suggest()] != event["values"]:
            rule = f"the search would choose {self.values[-1]} now (another version of Optuna?)"
            remedy = "delete this file to search anew; finished trainings are kept"
            raise UserError(problem(str(self._log.path), event["values"], rule, remedy))


class Asking(Searcher):
    """Gives Tune the points of a search that are still to be trained, one whenever there is room.

    Args:
        start: The next point's number and the configuration of its trial; None where there is no more.
        end: Is told the number of a point whose trial is over, however it ended.
    """

    def __init__(self, start: Callable[[], tuple[int, dict[str, Any]] | None], end: Callable[[int], None]) -> None:
        super().__init__()
        self.start, self.end = start, end
        self._numbers: dict[str, int] = {}  # by Tune's identifier of a trial

    def suggest(self, trial_id: str) -> Any:
        """The configuration of a new trial."""
        if (started := self.start()) is None:
            return Searcher.FINISHED
        self._numbers[trial_id], config = started
        return config

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Whatever Tune says, the run's folder says what became of it."""
        self.end(self._numbers.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the log has it all."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _distribution(values: list[Any] | Interval) -> BaseDistribution:
    if isinstance(values, list):
        return CategoricalDistribution(range(len(values)))  # positions: Optuna keeps plain values only
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)


def _value(values: list[Any] | Interval, chosen: Any) -> Any:
    return values[chosen] if isinstance(values, list) else tidied(chosen, values)
