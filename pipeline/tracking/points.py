"""The points of runs: which MLflow has, and with which value."""

import math
import re
import sys
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric

Key = tuple[str, int]  # metric, step
Point = tuple[float, int]  # value, Unix ms
_BATCH = 1000  # MLflow's limit of metrics per call
_NAME_LENGTH = 250  # MLflow's limit


class Points:
    """What MLflow's own history says is there is not sent again, unless its value is another one by now."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._sent: dict[str, dict[Key, Point]] = {}  # by run id

    def forget(self, run_id: str) -> None:
        """Read the run's history back before anything more is sent."""
        self._sent.pop(run_id, None)

    def send(self, run_id: str, points: Mapping[Key, Point]) -> None:
        """Send what is missing, and what has changed; of several values of a step the newest counts, here as there."""
        if run_id not in self._sent:
            self._sent[run_id] = self._history(run_id)
        sent, lacking = self._sent[run_id], {}
        for (name, step), (value, ms) in points.items():
            key = metric_name(name), step
            if key not in sent:
                lacking[key] = value, ms
            elif not same_value(sent[key][0], value):
                lacking[key] = value, max(ms, sent[key][1] + 1)  # a value of the same time would not be the newest
        todo = list(lacking.items())
        for i in range(0, len(todo), _BATCH):
            batch = todo[i : i + _BATCH]
            metrics = [Metric(name, value, ms, step) for (name, step), (value, ms) in batch]
            self._client.log_batch(run_id, metrics=metrics)
            sent.update(batch)

    def _history(self, run_id: str) -> dict[Key, Point]:
        names = self._client.get_run(run_id).data.metrics
        found = (point for name in names for point in self._client.get_metric_history(run_id, name))
        oldest_first = sorted(found, key=lambda point: point.timestamp)
        return {(point.key, point.step): (point.value, point.timestamp) for point in oldest_first}


def metric_name(name: str) -> str:
    """MLflow refuses other characters and longer names, and with them all points of the call."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:_NAME_LENGTH]


def same_value(stored: float, value: float) -> bool:
    """NaN is NaN; infinity is stored as the largest number there is."""
    if math.isnan(stored) or math.isnan(value):
        return math.isnan(stored) and math.isnan(value)
    return stored == max(-sys.float_info.max, min(sys.float_info.max, value))
