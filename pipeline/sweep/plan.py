"""A suite -> the list of its trials. Pure: nothing is read, started or written, so `--dry-run` is true."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from pipeline.search_rules import SweepConfig
from pipeline.sweep.space import corners, num_points, sample_points
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
    """Every point of the sweep times its seeds: of a grid the first key varies slowest, others are in the order drawn.

    Nothing of a search that chooses its points in view of results (optuna); its space is checked all the same.

    Raises:
        ConfigError: with every problem of every point, each once.
    """
    sweep = suite.sweep
    if sweep is None:
        return []
    where = "sweep.grid" if sweep.space is None else "sweep.space"
    problems = [unknown_name(where, key, _dotted_keys()) for key in sweep.keys if key not in _dotted_keys()]
    problems = problems or _nested_problems(sweep, where) or _space_problems(sweep)
    trials: list[Trial] = []
    for values in () if problems else _points(sweep):
        trials += _at_point(suite, values, f"{where}: ", problems)
    names = Counter(trial.name for trial in trials if trial.seed == sweep.seeds[0])
    if sweep.kind != "optuna":  # whose corners are no points of its own
        problems += [problem(where, name, "the name of two points") for name, count in names.items() if count > 1]
    if sweep.kind == "asha" and not problems:
        problems += _halving_problems(sweep, trials)
    if problems:
        raise ConfigError(f"suites/{suite.name}.yaml", dict.fromkeys(problems))
    return [] if sweep.kind == "optuna" else trials


def plan_point(suite: Suite, values: Mapping[str, Any]) -> Trial:
    """The trial at a point of a search's space, with the search's one seed.

    Raises:
        ConfigError: the values do not go together.
    """
    assert suite.sweep is not None
    problems: list[str] = []
    trials = _at_point(suite, values, "sweep.space: ", problems)
    if problems:
        raise ConfigError(f"suites/{suite.name}.yaml", dict.fromkeys(problems))
    return trials[0]


def _points(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """The points of the plan, or where there is none, those that a check must look at."""
    if sweep.space is None:
        grid = sweep.grid or {}
        yield from (dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values()))
    elif sweep.kind == "optuna":
        yield from corners(sweep.space)
    else:
        yield from sample_points(sweep.space, sweep.num_samples or 0, sweep.seed or 0)


def _at_point(suite: Suite, values: Mapping[str, Any], where: str, problems: list[str]) -> list[Trial]:
    assert suite.sweep is not None
    name = "-".join(_word(value) for value in values.values())
    return _trials(suite, name, _overrides(values), suite.sweep.seeds, where, problems)


def _nested_problems(sweep: SweepConfig, where: str) -> list[str]:
    """A key that is swept whole cannot be swept by its parts at once: the later one would win."""
    return [
        problem(where, inner, f"lies in {key!r}, which is swept as well", "leave one of them out")
        for key in sweep.keys
        for inner in sweep.keys
        if inner.startswith(f"{key}.")
    ]


def _space_problems(sweep: SweepConfig) -> list[str]:
    if sweep.space is None or sweep.num_samples is None:
        return []
    most = num_points(sweep.space)
    if sweep.num_samples <= most and sweep.kind != "optuna":  # values of few digits may be fewer than it seems
        most = len(sample_points(sweep.space, sweep.num_samples, sweep.seed or 0))
    if sweep.num_samples <= most:
        return []
    rule = f"the space has {most} point" + "s" * (most > 1)
    return [problem("sweep.num_samples", sweep.num_samples, rule, "ask for fewer, or search the whole grid")]


def _halving_problems(sweep: SweepConfig, trials: Sequence[Trial]) -> list[str]:
    """Trainings are compared after equal numbers of epochs of equally long ones."""
    lengths = sorted({trial.train.epochs for trial in trials})
    if len(lengths) > 1:
        rule = "asha compares trainings epoch by epoch"
        return [problem("sweep.space: train.epochs", lengths, rule, "give all of them the same number")]
    assert sweep.halving is not None
    if sweep.halving.grace_epochs >= lengths[0]:
        rule = f"no training of {lengths[0]} epochs could be stopped after as many"
        return [problem("sweep.halving.grace_epochs", sweep.halving.grace_epochs, rule, f"below {lengths[0]}")]
    return []


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
