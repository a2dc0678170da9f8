"""What a suite says of many token budgets: trained over in turn, evaluated at, or following the image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from dart.registry import has_density
from pipeline.data.catalog import DATASETS
from pipeline.errors import problem
from pipeline.mask_rules import WARP_HEAD
from pipeline.model_rules import reducer_problems
from pipeline.schema import Budgets, Strict, several

if TYPE_CHECKING:
    from pipeline.config import Suite, Trial


class AdaptiveConfig(Strict):
    """`evaluate.adaptive`: the budget of every test image by what is in it; `dart.adaptive` explains.

    Of runs with `train.token_budgets` alone: others know one budget.
    """

    signals: Annotated[list[Literal["spread", "uncertainty"]], Field(min_length=1)]  # what tells how much is needed
    held: Annotated[list[Literal["batch", "dataset"]], Field(min_length=1)]  # over what the mean budget is held
    mean_budgets: Budgets  # patch tokens per image
    low: int = Field(ge=1)  # the fewest tokens of an image; also what the first look of `uncertainty` takes
    high: int = Field(ge=1)  # the most
    step: int = Field(ge=1)  # between one budget and the next: every budget is a forward pass

    @model_validator(mode="after")
    def _keys_agree(self) -> "AdaptiveConfig":
        problems = []
        if self.high <= self.low or (self.high - self.low) % self.step:
            nearest = self.low + max(1, round((self.high - self.low) / self.step)) * self.step
            rule = f"not whole steps of {self.step} above low ({self.low})"
            problems.append(problem("high", self.high, rule, f"try {nearest}"))
        for i, mean in enumerate(self.mean_budgets):
            if not self.low <= mean <= self.high or (mean - self.low) % self.step:
                rule = f"not whole steps of {self.step} above low ({self.low}), up to high ({self.high})"
                problems.append(problem(f"mean_budgets[{i}]", mean, rule))
        for key in ("signals", "held", "mean_budgets"):
            problems += _twice(key, getattr(self, key))
        if problems:
            raise several(problems)
        return self


def budget_problems(suite: "Suite", trial: "Trial", where: str = "") -> list[str]:
    """Budgets that a trial's images or model do not allow, and what no run of the suite could be asked."""
    if suite.dataset is None:  # unknown, which is said elsewhere
        return []
    lists = {f"{where}train.token_budgets": trial.train.token_budgets}
    lists["evaluate.token_budgets"] = suite.evaluate.token_budgets
    problems = []
    for key, budgets in lists.items():
        asked = {f"{key}[{i}]": budget for i, budget in enumerate(budgets or [])}
        problems += _twice(key, budgets or []) + _headless(key, budgets, trial)
        problems += _too_many(asked, trial) + _too_few(asked, trial, where)
    if warmup := trial.token_warmup:
        key = f"{where}train.token_warmup.token_budget"
        problems += _headless(key, [warmup.token_budget], trial) + _too_few({key: warmup.token_budget}, trial, where)
    return problems + (_adaptive_problems(suite, trial, where) if suite.evaluate.adaptive else [])


def unasked_adaptive(suite: "Suite", trials: Sequence["Trial"]) -> list[str]:
    """At most one line: that none of a suite's experiments is trained over the budgets that it adapts, or can tell."""
    adaptive = suite.evaluate.adaptive
    if adaptive is None or not trials:
        return []
    several = [trial.tokenizer for trial in trials if trial.train.token_budgets]
    if several:
        if "uncertainty" in adaptive.signals or any(has_density(each.name, each.scorer) for each in several):
            return []
        rule = "no experiment that is trained at several budgets has a density that follows the image"
        return [problem("evaluate.adaptive.signals", adaptive.signals, rule, "add uncertainty, or leave this out")]
    rule = "no experiment is trained at more than one budget"
    remedy = f"give one train.token_budgets: [{adaptive.low}, {adaptive.high}], or leave this out"
    return [problem("evaluate.adaptive", adaptive.model_dump(), rule, remedy)]


def _adaptive_problems(suite: "Suite", trial: "Trial", where: str) -> list[str]:
    """Answers that depend on batch mates are in nobody's bucket; only an image's one label is asked for twice."""
    adaptive, entry = suite.evaluate.adaptive, DATASETS[suite.dataset.name]
    assert adaptive is not None
    said = adaptive.model_dump()
    if entry.masks or entry.video:
        samples = "have a class for every pixel" if entry.masks else "are clips"
        rule = f"only of images with one label, the samples of {suite.dataset.name} {samples}"
        return [problem("evaluate.adaptive", said, rule, "leave it out")]
    if trial.tokenizer.mode == "paper" and trial.train.token_budgets:
        rule = "in paper mode an image's answer depends on its batch mates"
        return [problem("evaluate.adaptive", said, rule, "use mode: invariant, or leave it out")]
    if (large := _too_many({"evaluate.adaptive.high": adaptive.high}, trial)) or not trial.train.token_budgets:
        return large
    rungs = range(adaptive.low, adaptive.high + 1, adaptive.step)
    return _too_few({f"evaluate.adaptive, budget {i}": rung for i, rung in enumerate(rungs)}, trial, where)[:1]


def _twice(key: str, values: Sequence[object]) -> list[str]:
    return [
        problem(f"{key}[{i}]", value, "twice in the list", "leave one out")
        for i, value in enumerate(values)
        if value in values[:i]
    ]


def _too_many(budgets: Mapping[str, int], trial: "Trial") -> list[str]:
    pixels = trial.model.img_size**2 * (trial.model.num_frames or 1)
    return [
        problem(key, budget, f"more tokens than pixels ({pixels})", f"at most {pixels}")
        for key, budget in budgets.items()
        if budget > pixels
    ]


def _too_few(budgets: Mapping[str, int], trial: "Trial", where: str) -> list[str]:
    """Budgets of which the trial's reducer cannot leave the share that it is told to."""
    return [
        problem(key, budget, f"not with {line}")
        for key, budget in budgets.items()
        for line in reducer_problems(trial.model, budget, where)
    ]


def _headless(key: str, budgets: Sequence[int] | None, trial: "Trial") -> list[str]:
    if budgets is None or trial.model.head != WARP_HEAD:
        return []
    return [problem(key, list(budgets), f"the head {WARP_HEAD!r} reads one warped image", "leave it out")]
