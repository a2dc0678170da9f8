"""What a sweep is: the section `sweep` of a suite. Which points it tries, and which trainings it ends early."""

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.errors import problem
from pipeline.schema import DIFFERENT, Seed, Seeds, Strict, inconsistent, several

ADAPTIVE = ("asha", "optuna")  # what they do next depends on results
STOPPED = "stopped early"  # so begins the status of a training that a search has ended
SPACE_TAGS = ("a list", "a mapping")
NEEDS = {  # a search -> the keys that it reads, beside `seeds`
    "grid": ("grid",),
    "random": ("space", "num_samples", "seed"),
    "asha": ("space", "num_samples", "seed", "halving"),
    "optuna": ("space", "num_samples", "seed"),
}


class Interval(Strict):
    """Any value from `low` to `high`, both included; whole numbers where both ends are."""

    low: int | float
    high: int | float
    log: bool = False  # every doubling is as likely as any other

    @model_validator(mode="after")
    def _ends_agree(self) -> "Interval":
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise inconsistent("high", self.high, f"must be a number above low ({self.low})")
        if self.log and self.low <= 0:
            raise inconsistent("low", self.low, "must be above 0 where log is true")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class HalvingConfig(Strict):
    """Asynchronous successive halving (ASHA, arXiv 1810.05934), over epochs.

    After `grace_epochs`, and again after every `reduction_factor` times as many, a training goes on only where it is
    among the best 1 / `reduction_factor` of those that have come so far.
    """

    grace_epochs: int = Field(ge=1)
    reduction_factor: int = Field(ge=2)


Choices = Annotated[list[Any], Field(min_length=1), DIFFERENT]
Dimension = Annotated[
    Annotated[Choices, Tag("a list")] | Annotated[Interval, Tag("a mapping")],
    Discriminator(lambda value: "a mapping" if isinstance(value, dict | Interval) else "a list"),
]


class SweepConfig(Strict):
    """Points of a space of keys such as `tokenizer.token_budget`, each trained and compared.

    grid (or null): every point of `grid`, with every seed. random: `num_samples` points of `space`, drawn by
    arithmetic from `seed`. asha: the same points, but what is behind is stopped early. optuna: every point is chosen in
    view of the results so far (Optuna's TPE). The last two judge a point by one training: they take one seed.
    """

    seeds: Seeds
    search: Literal["grid", "random", "asha", "optuna"] | None = None  # null: grid
    grid: dict[str, Choices] | None = None  # dotted key -> values
    space: dict[str, Dimension] | None = None  # dotted key -> values, or {low, high, log}
    num_samples: Annotated[int, Field(ge=1)] | None = None
    seed: Seed | None = None  # of the choice of points
    halving: HalvingConfig | None = None

    @model_validator(mode="after")
    def _keys_agree(self) -> "SweepConfig":
        needed = NEEDS[self.kind]
        problems = []
        for key in ("grid", "space", "num_samples", "seed", "halving"):
            value = getattr(self, key)
            if key in needed and value in (None, {}):
                problems.append(f"{key}: missing; search {self.kind} needs it")
            elif key not in needed and value is not None:
                shown = value.model_dump() if isinstance(value, Strict) else value
                problems.append(problem(key, shown, f"search {self.kind} has no such choice", "leave it out"))
        if self.adaptive and len(self.seeds) > 1:
            rule = f"search {self.kind} judges a point by one training: of several seeds the luckiest would stay"
            remedy = "give one, and compare what it finds with several seeds, as experiments"
            problems.append(problem("seeds", self.seeds, rule, remedy))
        if problems:
            raise several(problems)
        return self

    @property
    def kind(self) -> str:
        """The search, by name."""
        return self.search or "grid"

    @property
    def adaptive(self) -> bool:
        """Whether what is done next depends on results."""
        return self.kind in ADAPTIVE

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys that vary."""
        return tuple(self.grid or self.space or ())
