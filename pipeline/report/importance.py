"""Which keys of a sweep its results depend on: what a random forest loses that does not know one of them.

The forest predicts every point without having seen it (cross-validation). Then one key's values are shuffled among the
points: the growth of the squared error over twice the variance of the results is Jansen's estimate of the key's total
effect, alone and with others, if keys were drawn independently. A key without effect is near zero, on either side.
`explained` is the share of the variance that the forest predicts: where it is small, nothing can be said of the keys.
"""

import json
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.report.records import Records, Run

MIN_POINTS = 20
FOLDS, TREES, SHUFFLES = 5, 32, 10
LEAST_EXPLAINED = 0.3  # of the variance, by predictions of unseen points
ESTIMATED = "estimated"
COLUMNS = ["key", "importance", "std", "explained", "num_points", "status"]
Array = NDArray[np.float64]


def importance(records: Records) -> pd.DataFrame:
    """One row per key that differs between complete points of the sweep, with `COLUMNS`, the weightiest first.

    `std` is that over `SHUFFLES` shuffles: of the estimate, for these points and this forest.
    """
    name = records.task.first.name
    points = [run for run in records.trials if not run.problem and (run.test or {}).get(name) is not None]
    keys = varied(points)
    if len(points) < MIN_POINTS:
        few = f"too few points: {len(points)} complete, needs {MIN_POINTS}"
        return pd.DataFrame([[key, np.nan, np.nan, np.nan, len(points), few] for key in keys], columns=COLUMNS)
    inputs = np.stack([_numbers([_flat(run)[key] for run in points]) for key in keys], axis=1)
    results = np.array([(run.test or {})[name] for run in points])
    effects, explained = total_effects(inputs, results)
    status = ESTIMATED if explained >= LEAST_EXPLAINED else "not determined: the keys do not predict the results"
    table = [
        [key, e.mean(), e.std(ddof=1), explained, len(points), status] for key, e in zip(keys, effects, strict=True)
    ]
    return pd.DataFrame(table, columns=COLUMNS).sort_values(["importance", "key"], ascending=[False, True])


def varied(points: list[Run]) -> list[str]:
    """The dotted keys that all of the points have, and not all with one value."""
    flats = [_flat(run) for run in points]
    common = set.intersection(*(set(flat) for flat in flats)) if flats else set()
    return sorted(key for key in common if len({json.dumps(flat[key]) for flat in flats}) > 1)


def total_effects(inputs: Array, results: Array) -> tuple[list[Array], float]:
    """(`SHUFFLES` estimates of each column's share of the variance, the share that is predicted at all).

    Args:
        inputs: (N, K).
        results: (N,), not all equal.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    order = np.lexsort((*inputs.T[::-1], results))  # the same points in another order give the same bits
    inputs, results = inputs[order], results[order]
    variance = float(results.var())
    if variance == 0:
        return [np.zeros(SHUFFLES) for _ in inputs.T], 0.0
    random = np.random.default_rng(0)
    shuffles = np.stack([random.permutation(len(results)) for _ in range(SHUFFLES)])  # (S, N)
    growth, lost = np.zeros((inputs.shape[1], SHUFFLES)), 0.0
    for seen, unseen in KFold(FOLDS, shuffle=True, random_state=0).split(inputs):
        forest = RandomForestRegressor(TREES, random_state=0).fit(inputs[seen], results[seen])
        before = ((forest.predict(inputs[unseen]) - results[unseen]) ** 2).sum()
        lost += before
        for key in range(inputs.shape[1]):
            changed = np.repeat(inputs[None, unseen], SHUFFLES, axis=0)  # (S, n, K)
            changed[:, :, key] = inputs[shuffles[:, unseen], key]
            found = forest.predict(changed.reshape(-1, inputs.shape[1])).reshape(SHUFFLES, -1)
            growth[key] += ((found - results[unseen]) ** 2).sum(1) - before
    scale = 2 * variance * len(results)
    return list(growth / scale), 1 - lost / (variance * len(results))


def _flat(run: Run) -> dict[str, Any]:
    """{"train.lr": 0.002} of what a sweep can change."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}", inner)
        else:
            flat[prefix] = value

    for section in ("model", "tokenizer", "train"):
        add(section, run.science[section])
    return flat


def _numbers(values: list[Any]) -> Array:
    """Numbers as they are, anything else by the place of its text in order."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return np.array(values, dtype=float)
    texts = [json.dumps(value) for value in values]
    places = {text: place for place, text in enumerate(sorted(set(texts)))}
    return np.array([places[text] for text in texts], dtype=float)
