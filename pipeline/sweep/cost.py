"""What a training costs, before it is done: from earlier runs where there are any, else from its arithmetic."""

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dart.baselines.schedule import plan_counts
from dart.registry import VARIANTS
from pipeline.config import Trial
from pipeline.provenance import hash_json

STATE_SIZE = 16  # of Mamba, where a variant does not say
WARP_MACS = {"tiny": 79e6, "small": 103e6, "base": 145e6}  # of Swin and UPerNet, for a cell of 16 px (dart.cost)
ASSUMED_MACS_PER_S = 2e9  # forward multiply-accumulates per second while one core trains


class Speed(NamedTuple):
    """Training seconds per sample and worker, by architecture and precision, and the rate for those never trained."""

    seconds: Mapping[str, float]
    macs_per_s: float
    source: str


def relative_cost(trial: Trial, num_samples: int) -> float:
    """About the forward multiply-accumulates of a training, without building the model: to order trials and for ETAs.

    Args:
        num_samples: Training samples of an epoch.
    """
    return _macs(trial.science()) * num_samples * trial.train.epochs


def macs_of_tokens(backbone: str, variant: str, tokens: int) -> float:
    """Multiply-accumulates of the blocks, a transformer's or a state-space model's, for one sample of this budget."""
    size = VARIANTS[backbone][variant]
    if "embed_dim" not in size:  # hierarchical
        return WARP_MACS[variant] * tokens
    width = size["embed_dim"]
    if "mlp_ratio" in size:
        per_token = (4 + 2 * size["mlp_ratio"]) * width**2 + 2 * tokens * width
    else:  # projections, and in both directions the states of twice the width, each some ten operations
        per_token = 6.5 * width**2 + 4 * width * (11 * size.get("state_size", STATE_SIZE) + 4)
    return size["depth"] * tokens * per_token


def load_speed(run_dirs: Iterable[Path]) -> Speed:
    """Measured from finished runs."""
    measured: dict[str, list[float]] = {}
    rates: list[float] = []
    for folder in run_dirs:
        files = folder / "spec.json", folder / "done.json"
        if not all(file.is_file() for file in files):
            continue
        spec, done = (json.loads(file.read_text()) for file in files)
        if done["wall_s"] > 0 and done["num_samples"]:  # one that diverged at once has none
            seconds = done["wall_s"] * done["world_size"] / done["num_samples"]
            measured.setdefault(_speed_key(spec["science"]), []).append(seconds)
            rates.append(_macs(spec["science"]) / seconds)
    if not rates:
        return Speed(
            {},
            ASSUMED_MACS_PER_S,
            f"assuming {ASSUMED_MACS_PER_S / 1e9:g} GMAC/s per core, nothing was trained yet",
        )
    seconds_of = {key: statistics.median(values) for key, values in measured.items()}
    return Speed(seconds_of, statistics.median(rates), f"from {len(rates)} earlier runs")


def estimate_worker_s(trial: Trial, num_samples: int, speed: Speed) -> float:
    """Seconds of training, summed over workers."""
    known = speed.seconds.get(_speed_key(trial.science()))
    per_sample = known if known is not None else _macs(trial.science()) / speed.macs_per_s
    return per_sample * num_samples * trial.train.epochs


def _speed_key(science: dict[str, Any]) -> str:
    train = science["train"]
    budgets = [sorted(train["token_budgets"])] if train.get("token_budgets") else []
    warmup = [train["token_warmup"]] if train.get("token_warmup") else []
    return hash_json([science["model"], science["tokenizer"], train["precision"], *budgets, *warmup])


def _macs(science: dict[str, Any]) -> float:
    """Of a training sample, on average: several budgets come equally often, after the steps with few tokens."""
    budgets = science["train"].get("token_budgets") or [science["tokenizer"]["token_budget"]]
    usual = statistics.fmean(_macs_at(science["model"], budget) for budget in budgets)
    if not (warmup := science["train"].get("token_warmup")):
        return usual
    first = _macs_at(science["model"], warmup["token_budget"])
    return warmup["frac"] * first + (1 - warmup["frac"]) * usual


def _macs_at(model: dict[str, Any], tokens: int) -> float:
    backbone, variant = model["backbone"], model["variant"]
    if (reducer := model.get("reducer")) is None or "ratio_weight" in reducer:  # which masks tokens while it learns
        return macs_of_tokens(backbone, variant, tokens)
    left = plan_counts(reducer["name"], reducer["keep"], tokens, VARIANTS[backbone][variant]["depth"])
    return sum(macs_of_tokens(backbone, variant, count) for count in (tokens, *left[:-1])) / len(left)
