"""Every parameter is in one group, and the learning rate goes up once and down to nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Suite
from pipeline.model import build_model
from pipeline.sweep.plan import plan_experiments
from pipeline.train.optim import SCORER_PART, build_optimizer, lr_factor, param_groups, set_lr


@pytest.fixture
def groups(tiny_suite: Suite) -> dict:
    trial = next(trial for trial in plan_experiments(tiny_suite) if trial.name == "dart-4")
    model = build_model(trial, num_classes=10)
    kinds = ("decay", "no_decay", "scorer")
    found = dict(zip(kinds, param_groups(model, trial.train), strict=True))
    return {"model": model, "train": trial.train, **found}


def test_every_trainable_parameter_is_in_exactly_one_group(groups: dict) -> None:
    names = [name for kind in ("decay", "no_decay", "scorer") for name in groups[kind]["names"]]
    assert sorted(names) == sorted(name for name, p in groups["model"].named_parameters() if p.requires_grad)


def test_biases_norms_and_the_scorer_do_not_decay(groups: dict) -> None:
    assert groups["decay"]["weight_decay"] == groups["train"].weight_decay > 0
    assert groups["no_decay"]["weight_decay"] == groups["scorer"]["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in groups["decay"]["params"])


def test_the_scorer_learns_at_its_own_rate(groups: dict) -> None:
    assert groups["scorer"]["names"]
    assert all(SCORER_PART in name for name in groups["scorer"]["names"])
    optimizer = build_optimizer(groups["model"], groups["train"])
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 0.5 * groups["train"].scorer_lr_scale]


@given(num_steps=st.integers(1, 500), frac=st.floats(0, 0.99))
def test_the_rate_rises_to_its_peak_and_falls_to_zero(num_steps: int, frac: float) -> None:
    warmup = round(frac * num_steps)
    factors = [lr_factor(step, num_steps, warmup) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if warmup < num_steps:
        assert lr_factor(warmup, num_steps, warmup) == 1
        assert lr_factor(num_steps, num_steps, warmup) == pytest.approx(0, abs=1e-12)


@given(num_steps=st.integers(2, 500), last=st.floats(0, 1))
def test_the_cosine_ends_at_the_smallest_rate(num_steps: int, last: float) -> None:
    factors = [lr_factor(step, num_steps, 1, last) for step in range(1, num_steps + 1)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(last)
    assert lr_factor(0, num_steps, 2, last) == 0.5  # the warm-up rises from nothing all the same
