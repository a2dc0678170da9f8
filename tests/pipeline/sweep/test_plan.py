"""The plan is a pure list: file order, every seed, and all its mistakes at once."""

from typing import Any

import pytest

from pipeline.config import ExperimentConfig, Suite, SweepConfig
from pipeline.errors import ConfigError
from pipeline.model_rules import ReducerConfig
from pipeline.recipe import AugmentConfig
from pipeline.sweep.plan import plan_experiments, plan_sweep
from pipeline.validation import validate
from tests.pipeline.test_config import MAPPING


def with_experiments(suite: Suite, **experiments: dict[str, Any]) -> Suite:
    parsed = {name: ExperimentConfig(**options) for name, options in experiments.items()}
    return suite.model_copy(update={"experiments": parsed})


def with_sweep(suite: Suite, grid: dict[str, list[Any]], seeds: tuple[int, ...] = (0,)) -> Suite:
    return suite.model_copy(update={"sweep": SweepConfig(seeds=list(seeds), grid=grid)})


def test_experiments_come_in_file_order_with_all_their_seeds(tiny_suite: Suite) -> None:
    names = [(trial.name, trial.seed) for trial in plan_experiments(tiny_suite)]
    twin = ("dart-4-2workers", 0)
    assert names == [("uniform-4", 0), ("uniform-4", 1), ("dart-4", 0), ("dart-4", 1), twin]


def test_an_experiment_is_the_suite_but_for_what_it_names(tiny_suite: Suite) -> None:
    suite = with_experiments(tiny_suite, long={"train": {"epochs": 9}, "seeds": [3], "num_workers": 2})
    (trial,) = plan_experiments(suite)
    assert trial.train == suite.train.model_copy(update={"epochs": 9})
    assert (trial.model, trial.tokenizer) == (suite.model, suite.tokenizer)
    assert (trial.seed, trial.num_workers) == (3, 2)


def test_the_first_key_of_a_grid_varies_slowest(tiny_suite: Suite) -> None:
    grid = {"tokenizer.token_budget": [9, 4], "train.lr": [0.1, 0.2]}
    trials = plan_sweep(with_sweep(tiny_suite, grid, seeds=(5, 6)))
    points = [(trial.tokenizer.token_budget, trial.train.lr, trial.seed) for trial in trials]
    assert points == [(n, lr, seed) for n in (9, 4) for lr in (0.1, 0.2) for seed in (5, 6)]
    assert len({trial.name for trial in trials}) == 4


def test_a_grid_of_reducers_is_one_of_names_and_shares(tiny_suite: Suite) -> None:
    grid = {"model.reducer.name": ["tome", "ats"], "model.reducer.keep": [1.0, 0.5]}
    trials = plan_sweep(with_sweep(tiny_suite, grid))
    assert [trial.name for trial in trials] == ["tome-1.0", "tome-0.5", "ats-1.0", "ats-0.5"]
    assert [trial.model.reducer.model_dump() for trial in trials[:2]] == [
        {"name": "tome", "keep": 1.0}, {"name": "tome", "keep": 0.5},
    ]  # fmt: skip
    whole = [{"name": "evit", "keep": 0.5, "fuse": True}, {"name": "ats", "keep": 0.25}, None]
    trials = plan_sweep(with_sweep(tiny_suite, {"tokenizer.token_budget": [9], "model.reducer": whole}))
    assert [trial.name for trial in trials] == ["9-evit-0.5-True", "9-ats-0.25", "9-None"]
    with pytest.raises(ConfigError, match=r"sweep.grid = 'model.reducer.kepe': unknown; did you mean 'model.reducer.k"):
        plan_sweep(with_sweep(tiny_suite, {"model.reducer.kepe": [0.5]}))


def test_a_reducer_of_another_name_has_none_of_the_old_ones_options(tiny_suite: Suite) -> None:
    base = {"name": "evit", "keep": 0.5, "fuse": True}
    model = tiny_suite.model.model_copy(update={"reducer": ReducerConfig(**base)})
    suite = tiny_suite.model_copy(update={"model": model})
    (trial,) = plan_sweep(with_sweep(suite, {"model.reducer": [{"name": "tome"}]}))
    assert trial.model.reducer.model_dump() == {"name": "tome", "keep": 0.5}
    (trial,) = plan_sweep(with_sweep(suite, {"model.reducer.keep": [0.75]}))
    assert trial.model.reducer.model_dump() == base | {"keep": 0.75}


WHOLE = [{"name": "tome", "keep": 0.5}]


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ({"grid": {"tokenizer.token_budget": [4, 4]}}, "grid.tokenizer.token_budget = [4, 4]: 4 is twice in the list"),
        ({"grid": {"train.lr": [1, 0.5, 1.0]}}, "grid.train.lr = [1, 0.5, 1.0]: 1.0 is twice in the list"),
        ({"grid": {"train.lr": [1]}, "seeds": [0, 3, 0]}, "seeds = [0, 3, 0]: 0 is twice in the list"),
        (
            {"search": "random", "seed": 0, "num_samples": 2, "space": {"tokenizer.token_budget": [4, 4]}},
            "space.tokenizer.token_budget = [4, 4]: 4 is twice in the list",
        ),
        (
            {"search": "random", "seed": 0, "num_samples": 9, "space": {"train.lr": {"low": 0.001, "high": 0.0010001}}},
            "sweep.num_samples = 9: the space has 1 point; ask for fewer",
        ),
        (
            {"grid": {"model.reducer": [None, *WHOLE], "model.reducer.keep": [0.5]}},
            "sweep.grid = 'model.reducer.keep': lies in 'model.reducer', which is swept as well",
        ),
        (
            {"grid": {"model.reducer.keep": [0.3, 0.4], "model.reducer": WHOLE}},
            "sweep.grid = 'model.reducer.keep': lies in 'model.reducer', which is swept as well",
        ),
    ],
)
def test_what_would_be_two_points_of_one_name_or_one_of_two_is_refused(
    tiny_suite: Suite, sweep: dict, sentence: str
) -> None:
    found: list[str] = []
    config = validate(SweepConfig, {"seeds": [0], **sweep}, "sweep.", found)
    if config is not None:
        with pytest.raises(ConfigError) as error:
            plan_sweep(tiny_suite.model_copy(update={"sweep": config}))
        found = error.value.problems
    assert len(found) == 1
    assert sentence in found[0]


def test_two_points_do_not_share_a_name(tiny_suite: Suite) -> None:
    """Of mappings it has the values alone, which may be equal under other keys."""
    train = tiny_suite.train.model_copy(update={"augment": AugmentConfig(**MAPPING)})
    suite = tiny_suite.model_copy(update={"train": train})
    with pytest.raises(ConfigError, match=r"sweep.grid = '0.5': the name of two points"):
        plan_sweep(with_sweep(suite, {"train.augment": [{"mixup": 0.5}, {"cutmix": 0.5}]}))


def test_weights_are_handed_on_between_reducers_with_the_same_predictors_alone(tiny_suite: Suite) -> None:
    learned = {"name": "dynamicvit", "ratio_weight": 2.0}
    first, second = ({"model": {"reducer": {**learned, "keep": keep}}} for keep in (1.0, 0.5))
    with pytest.raises(ConfigError, match=r"reducer.name = 'dynamicvit': first, where it starts from, has None"):
        plan_experiments(with_experiments(tiny_suite, first=first, second={**second, "init_from": "first"}))
    with pytest.raises(ConfigError, match=r"reducer.name = None: second, where it starts from, has 'dynamicvit'"):
        plan_experiments(with_experiments(tiny_suite, second=second, first={**first, "init_from": "second"}))


def test_weights_are_not_handed_on_to_a_reducer_that_has_some_of_its_own(tiny_suite: Suite) -> None:
    learned = {"reducer": {"name": "dynamicvit", "keep": 0.5, "ratio_weight": 2.0}}
    merged = {"reducer": {"name": "tome", "keep": 0.5}}
    suite = with_experiments(tiny_suite, plain={}, tome={"model": merged, "init_from": "plain"})
    assert [trial.init_from is None for trial in plan_experiments(suite)] == [True, True, False, False]
    suite = with_experiments(tiny_suite, plain={}, x={"model": learned, "init_from": "plain"})
    with pytest.raises(
        ConfigError, match=r"x.model.reducer.name = 'dynamicvit': plain, where it starts from, has None"
    ):
        plan_experiments(suite)


def test_a_suite_may_have_no_sweep(tiny_suite: Suite) -> None:
    assert plan_sweep(tiny_suite.model_copy(update={"sweep": None})) == []


def test_planning_twice_gives_the_same(tiny_suite: Suite) -> None:
    assert plan_experiments(tiny_suite) == plan_experiments(tiny_suite)
    assert plan_sweep(tiny_suite) == plan_sweep(tiny_suite)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tokenizer": {"name": "drat"}}, "experiments.x.tokenizer.name = 'drat': unknown; did you mean 'dart'?"),
        ({"tokenizer": {"token_budget": 0}}, "experiments.x.tokenizer.token_budget = 0: "),
        ({"tokenizer": {"token_budget": -1}}, "experiments.x.tokenizer.token_budget = -1: "),
        ({"tokenizer": {"token_budget": 1025}}, "more tokens than the 32 x 32 = 1024 pixels"),
        ({"tokenizer": {"budget": 4}}, "experiments.x.tokenizer.budget = 'budget': unknown; did you mean"),
        ({"model": {"variant": "mikro"}}, "did you mean 'micro'?"),
        ({"train": {"lr": "fast"}}, "experiments.x.train.lr = 'fast': "),
        ({"num_workers": 3}, "train.global_batch_size = 20: not a multiple of world_size (3); try 21"),
        ({"agrees_with": "z"}, "experiments.x.agrees_with = 'z': unknown"),
        ({"init_from": "z"}, "experiments.x.init_from = 'z': unknown"),
        ({"init_from": "x"}, "experiments.x.init_from = 'x': starts from itself in the end"),
    ],
)
def test_a_bad_experiment_gives_its_sentence(tiny_suite: Suite, options: dict, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_experiments(with_experiments(tiny_suite, x=options))
    assert len(error.value.problems) == 1
    assert line in error.value.problems[0]


def test_a_twin_needs_the_same_seeds(tiny_suite: Suite) -> None:
    with pytest.raises(ConfigError, match="has no run of seed 5"):
        plan_experiments(with_experiments(tiny_suite, a={"seeds": [0]}, b={"seeds": [0, 5], "agrees_with": "a"}))


def test_all_problems_of_a_plan_come_at_once(tiny_suite: Suite) -> None:
    bad = {"a": {"tokenizer": {"name": "x"}}, "b": {"train": {"lr": -1.0}}, "c": {"agrees_with": "z"}}
    with pytest.raises(ConfigError) as error:
        plan_experiments(with_experiments(tiny_suite, **bad))
    assert len(error.value.problems) == 3


def test_a_bad_grid_names_its_keys_and_values_once(tiny_suite: Suite) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'tokenizer\.token_budget'"):
        plan_sweep(with_sweep(tiny_suite, {"tokenizer.token_budgets": [4]}))
    with pytest.raises(ConfigError) as error:
        plan_sweep(with_sweep(tiny_suite, {"model.variant": ["nano", "mikro"], "tokenizer.token_budget": [4, 9]}))
    assert len(error.value.problems) == 1


def test_a_trial_starts_from_the_same_seed_of_what_it_names_wherever_that_stands(tiny_suite: Suite) -> None:
    """c from b from a, in any order of the file; each is a science of its own, and holds its parents'."""
    long = {"tokenizer": {"token_budget": 9}, "init_from": "a"}
    suite = with_experiments(
        tiny_suite, c={"train": {"epochs": 1}, "tokenizer": {"token_budget": 16}, "init_from": "b"}, b=long, a={}
    )
    trials = {(trial.name, trial.seed): trial for trial in plan_experiments(suite)}
    for seed in suite.seeds:
        a, b, c = (trials[name, seed] for name in "abc")
        assert (a.init_from, b.init_from, c.init_from) == (None, a, b)
        assert c.science()["init_from"]["init_from"] == a.science()
    other = plan_experiments(with_experiments(tiny_suite, b={**long, "init_from": None}))[0]
    assert other.science() != trials["b", other.seed].science()
    changed = with_experiments(tiny_suite, b=long, a={"train": {"lr": 0.5}})
    assert plan_experiments(changed)[0].science() != trials["b", 0].science()


def test_weights_are_handed_on_between_equal_shapes_only(tiny_suite: Suite) -> None:
    bad = {"a": {}, "b": {"tokenizer": {"name": "uniform"}, "model": {"patch_size": 4}, "init_from": "a"}}
    with pytest.raises(ConfigError) as error:
        plan_experiments(with_experiments(tiny_suite, **bad))
    assert error.value.problems == [
        "experiments.b.model.patch_size = 4: a, where it starts from, has 8",
        "experiments.b.tokenizer.name = 'uniform': a, where it starts from, has 'dart'",
    ]


def test_a_start_needs_the_same_seeds_and_an_end(tiny_suite: Suite) -> None:
    with pytest.raises(ConfigError, match=r"b\.init_from = 'a': has no run of seed 5"):
        plan_experiments(with_experiments(tiny_suite, a={"seeds": [0]}, b={"seeds": [0, 5], "init_from": "a"}))
    circle = {"a": {"init_from": "b"}, "b": {"init_from": "c"}, "c": {"init_from": "b"}}
    with pytest.raises(ConfigError, match="starts from itself in the end"):
        plan_experiments(with_experiments(tiny_suite, **circle))
