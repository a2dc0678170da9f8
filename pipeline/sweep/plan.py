"""A suite -> the list of its trials. Pure: nothing is read, started or written, so `--dry-run` is true."""

import itertools
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from pipeline.budget_rules import budget_problems, unasked_adaptive
from pipeline.clip_rules import clip_problems
from pipeline.config import ExperimentConfig, Overrides, Strict, Suite, TrainConfig, Trial, check_trial
from pipeline.errors import ConfigError, problem, unknown_name
from pipeline.mask_rules import mask_problems
from pipeline.model_rules import ModelConfig, ReducerConfig, TokenizerConfig
from pipeline.recipe import merge
from pipeline.validation import explain_validation

# What decides which parameters a model has, and their shapes.
SHAPING = {
    "model": ("backbone", "variant", "patch_size", "in_chans", "num_frames", "head"),
    "tokenizer": ("name", "mode", "scorer", "pos_embed"),
}
SECTIONS: dict[str, type[Strict]] = {"model": ModelConfig, "tokenizer": TokenizerConfig, "train": TrainConfig}


def plan_experiments(suite: Suite) -> list[Trial]:
    """Every experiment with every one of its seeds, in the order of the file.

    Raises:
        ConfigError: with every problem of every experiment.
    """
    trials: list[Trial] = []
    problems: list[str] = []
    for name, experiment in suite.experiments.items():
        where = f"experiments.{name}."
        trials += _trials(
            suite, name, experiment, experiment.seeds or suite.seeds, where, problems, experiment.num_workers
        )
        problems += _twin_problems(suite, name, experiment)
        problems += _start_problems(suite, name, experiment)
    if not problems:
        trials = [_with_start(suite, trial, trials) for trial in trials]
        problems = [line for trial in trials for line in _shape_problems(trial)] + unasked_adaptive(suite, trials)
    if problems:
        raise ConfigError(f"suites/{suite.name}.yaml", dict.fromkeys(problems))
    return trials


def plan_sweep(suite: Suite) -> list[Trial]:
    """The full grid of `sweep.grid` times `sweep.seeds`, the first key varying slowest.

    Raises:
        ConfigError: with every problem of every point of the grid, each once.
    """
    if suite.sweep is None:
        return []
    trials: list[Trial] = []
    problems = [
        unknown_name("sweep.grid", key, _dotted_keys()) for key in suite.sweep.grid if key not in _dotted_keys()
    ]
    if not problems:
        for point in itertools.product(*suite.sweep.grid.values()):
            values = dict(zip(suite.sweep.grid, point, strict=True))
            name = "-".join(_word(value) for value in point)
            trials += _trials(suite, name, _overrides(values), suite.sweep.seeds, "sweep.grid: ", problems)
    if problems:
        raise ConfigError(f"suites/{suite.name}.yaml", dict.fromkeys(problems))
    return trials


def _trials(
    suite: Suite,
    name: str,
    overrides: Overrides,
    seeds: list[int],
    where: str,
    problems: list[str],
    num_workers: int | None = None,
) -> list[Trial]:
    """One trial per seed; none, and the reasons in `problems`, where the overrides make no sense."""
    sections: dict[str, Any] = {}
    found: list[str] = []
    for section, schema in SECTIONS.items():
        merged = merge(getattr(suite, section).model_dump(), getattr(overrides, section))
        try:
            sections[section] = schema.model_validate(merged)
        except ValidationError as error:
            found += explain_validation(schema, error, f"{where}{section}.")
    if not found:
        trials = [Trial(name=name, seed=seed, num_workers=num_workers, **sections) for seed in seeds]
        found = check_trial(trials[0], where) + clip_problems(suite, trials[0]) + mask_problems(suite, trials[0])
        found += budget_problems(suite, trials[0], where)
    problems += found
    return [] if found else trials


def _twin_problems(suite: Suite, name: str, experiment: ExperimentConfig) -> list[str]:
    twin = experiment.agrees_with
    if twin is None:
        return []
    where = f"experiments.{name}.agrees_with"
    if twin not in suite.experiments:
        return [unknown_name(where, twin, suite.experiments)]
    missing = sorted(set(experiment.seeds or suite.seeds) - set(suite.experiments[twin].seeds or suite.seeds))
    return [problem(where, twin, f"has no run of seed {missing[0]}", "give both the same seeds")] if missing else []


def _start_problems(suite: Suite, name: str, experiment: ExperimentConfig) -> list[str]:
    """An experiment may start from another one that has its seeds, and in the end from one that starts from none."""
    start, where = experiment.init_from, f"experiments.{name}.init_from"
    if start is None:
        return []
    if start not in suite.experiments:
        return [unknown_name(where, start, suite.experiments)]
    missing = sorted(set(experiment.seeds or suite.seeds) - set(suite.experiments[start].seeds or suite.seeds))
    if missing:
        return [problem(where, start, f"has no run of seed {missing[0]}", "give both the same seeds")]
    before, seen = suite.experiments[start].init_from, {start}
    while before is not None and before in suite.experiments:
        if before in (name, *seen):
            return [problem(where, start, "starts from itself in the end", "leave one of them out")]
        seen.add(before)
        before = suite.experiments[before].init_from
    return []


def _with_start(suite: Suite, trial: Trial, trials: list[Trial]) -> Trial:
    """The trial with the one that it starts from, and so on."""
    start = suite.experiments[trial.name].init_from
    if start is None:
        return trial
    parent = next(other for other in trials if (other.name, other.seed) == (start, trial.seed))
    return trial.model_copy(update={"init_from": _with_start(suite, parent, trials)})


def _shape_problems(trial: Trial) -> list[str]:
    """Weights are handed on between models whose parameters have the same shapes: budget and size may differ."""
    parent = trial.init_from
    if parent is None:
        return []
    values = {
        f"{section}.{key}": (getattr(getattr(trial, section), key), getattr(getattr(parent, section), key))
        for section, keys in SHAPING.items()
        for key in keys
    }
    values["model.reducer.name"] = (trial.model.learned_reducer, parent.model.learned_reducer)
    return [
        problem(f"experiments.{trial.name}.{key}", ours, f"{parent.name}, where it starts from, has {theirs!r}")
        for key, (ours, theirs) in values.items()
        if ours != theirs
    ]


def _word(value: Any) -> str:
    """A value as a part of a trial's name; of a mapping, its values."""
    return "-".join(map(_word, value.values())) if isinstance(value, Mapping) else str(value)


def _overrides(values: Mapping[str, Any]) -> Overrides:
    """{'model.variant': 'nano', 'model.reducer.keep': 0.5} -> Overrides(model={'variant': ..., 'reducer': {...}})."""
    nested: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, value in values.items():
        section, *inner, leaf = key.split(".")
        found = nested[section]
        for part in inner:
            found = found.setdefault(part, {})
        found[leaf] = deepcopy(value)
    return Overrides(**nested)


def _dotted_keys() -> list[str]:
    keys = [f"{section}.{key}" for section, schema in SECTIONS.items() for key in schema.model_fields]
    return [*keys, *(f"model.reducer.{key}" for key in ReducerConfig.model_fields)]
