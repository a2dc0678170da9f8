"""Points of a search space. Pure: the same space and seed give the same points on every machine.

The first `n` points do not depend on how many are drawn, so that a larger search contains the smaller one.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.provenance import hash_json
from pipeline.search_rules import Interval

Space = Mapping[str, list[Any] | Interval]
DIGITS = 4  # significant ones of a value that is not whole: it is part of the trial's name
DRAWS = 1000  # for every point that is wanted, before it is believed that there are no more
MAX_CORNERS = 256


def num_points(space: Space) -> float:
    """How many different points there are; infinite where an interval is not of whole numbers."""
    return math.prod(
        len(values) if isinstance(values, list) else values.high - values.low + 1 if values.whole else math.inf
        for values in space.values()
    )


def sample_points(space: Space, num_samples: int, seed: int) -> list[dict[str, Any]]:
    """`num_samples` different points, in the order in which they are drawn; fewer where no more are found."""
    draw = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(DRAWS * num_samples):  # an interval may be narrow for its digits
        point = {key: at(values, draw.random()) for key, values in space.items()}
        found.setdefault(hash_json(point), point)
        if len(found) == num_samples:
            break
    return list(found.values())


def at(values: list[Any] | Interval, share: float) -> Any:
    """The value that lies at `share`, from 0 to below 1, of the way through a dimension."""
    if isinstance(values, list):
        return values[int(share * len(values))]
    half = 0.5 if values.whole else 0.0  # every whole number has an interval of length 1
    low, high = values.low - half, values.high + half
    value = low * (high / low) ** share if values.log else low + (high - low) * share
    return tidied(value, values)


def tidied(value: float, values: Interval) -> int | float:
    """A value as it is written into a trial: whole, or with few digits; never outside its interval."""
    value = round(value) if values.whole else float(f"{value:.{DIGITS}g}")
    return min(max(value, values.low), values.high)


def corners(space: Space) -> Iterator[dict[str, Any]]:
    """Points at the edges of every dimension, all combinations of the listed values: what a check must look at.

    Of more than `MAX_CORNERS`, every value alone, beside the first ones of the other keys.
    """
    ends = [values if isinstance(values, list) else [values.low, values.high] for values in space.values()]
    if math.prod(map(len, ends)) <= MAX_CORNERS:
        yield from (dict(zip(space, point, strict=True)) for point in itertools.product(*ends))
        return
    first = {key: values[0] for key, values in zip(space, ends, strict=True)}
    yield from (first | {key: value} for key, values in zip(space, ends, strict=True) for value in values)
