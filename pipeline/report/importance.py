"""Which keys of a sweep its results depend on: what a random forest loses that does not know one of them.

The forest predicts every point without having seen it (cross-validation). Then one key's values are shuffled among the
points: the growth of the squared error over twice the variance of the results is Jansen's estimate of the key's total
effect, alone and with others, if keys were drawn independently. A key without effect is near zero, on either side.
`explained` is the share of the variance that the forest predicts: where it is small, nothing can be said of the keys.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.dotted import flatten
from pipeline.report.records import Records, Run

MIN_POINTS = 20
FOLDS, TREES, SHUFFLES = 5, 32, 10
LEAST_EXPLAINED = 0.3  # of the variance, by predictions of unseen points
ESTIMATED, UNDETERMINED = "estimated", "not determined: the keys do not predict the results"
COLUMNS = ["key", "importance", "std", "explained", "num_points", "status"]
Array = NDArray[np.float64]


class Point(NamedTuple):
    """A point of the sweep: its keys, and the mean of its complete trainings, which differ in their seed alone."""

    keys: dict[str, Any]
    value: float


def importance(records: Records) -> pd.DataFrame:
    """One row per key that differs between complete points of the sweep, with `COLUMNS`, the weightiest first.

    `std` is that over `SHUFFLES` shuffles: of the estimate, for these points and this forest. Where nothing can be
    said, it and the importance are nan, and `status` says why.
    """
    points = complete_points(records)
    keys = varied([point.keys for point in points])
    if not keys:
        return pd.DataFrame(columns=COLUMNS)
    if len(points) < MIN_POINTS:
        few = f"too few points: {len(points)} complete, needs {MIN_POINTS}"
        return pd.DataFrame([[key, np.nan, np.nan, np.nan, len(points), few] for key in keys], columns=COLUMNS)
    inputs = np.stack([_numbers([point.keys.get(key) for point in points]) for key in keys], axis=1)
    effects, explained = total_effects(inputs, np.array([point.value for point in points]))
    said = [(e.mean(), e.std(ddof=1), explained, len(points), ESTIMATED) for e in effects]
    if explained < LEAST_EXPLAINED:
        said = [(np.nan, np.nan, explained, len(points), UNDETERMINED)] * len(keys)
    table = pd.DataFrame([[key, *row] for key, row in zip(keys, said, strict=True)], columns=COLUMNS)
    return table.sort_values(["importance", "key"], ascending=[False, True])


def complete_points(records: Records) -> list[Point]:
    """The points of which a training is complete. Seeds are averaged: the forest may not have seen a point's twin."""
    name = records.task.first.name
    found: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for run in records.trials:
        value = (run.test or {}).get(name)
        if not run.problem and value is not None:
            found.setdefault(json.dumps(_flat(run), sort_keys=True), []).append((_flat(run), value))
    return [Point(seeds[0][0], float(np.mean([value for _, value in seeds]))) for seeds in found.values()]


def varied(points: Sequence[dict[str, Any]]) -> list[str]:
    """The dotted keys that differ between these points; a point that lacks one has null there.

    A key that only some points have (`tokenizer.scorer` beside uniform ones) counts where it tells points apart as no
    other key does: else it says no more than which points have it.
    """
    everywhere = set.intersection(*map(set, points)) if points else set()
    keys = {key for flat in points for key in flat}
    kept: dict[str, tuple[int, ...]] = {}
    for key in sorted(keys, key=lambda key: (key not in everywhere, not key.endswith(".name"), key)):
        parts = _parts([point.get(key) for point in points])
        if max(parts) and (key in everywhere or parts not in kept.values()):
            kept[key] = parts
    return sorted(kept)


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
    return flatten({section: run.science[section] for section in ("model", "tokenizer", "train")})


def _parts(values: Sequence[Any]) -> tuple[int, ...]:
    """Which points have equal values: equal for two keys that tell points apart alike."""
    seen: dict[str, int] = {}
    return tuple(seen.setdefault(json.dumps(value, sort_keys=True), len(seen)) for value in values)


def _numbers(values: Sequence[Any]) -> Array:
    """Numbers as they are, and null below all of them; anything else by the place of its text in order."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        below = min(known, default=0) - 1
        return np.array([below if value is None else value for value in values], dtype=float)
    texts = [json.dumps(value) for value in values]
    places = {text: place for place, text in enumerate(sorted(set(texts)))}
    return np.array([places[text] for text in texts], dtype=float)
