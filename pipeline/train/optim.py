"""AdamW with the house's parameter groups, and the learning rate as a function of the step alone."""

import math
from typing import Any

import torch
from torch import nn

from pipeline.config import TrainConfig

SCORER_PART = ".scorer."  # of a parameter's name, in all our models


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over three groups: matrices (decayed), biases and norms (not), the scorer (not, at its own rate).

    Each group keeps its share of the scheduled rate under `lr_scale` and its parameters' names under `names`.
    """
    groups = [group for group in param_groups(model, train) if group["params"]]
    # Fused: one call for all parameters. Small models have many small ones, and are slowed down by the calls.
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), fused=True)


def param_groups(model: nn.Module, train: TrainConfig) -> list[dict]:
    """Every trainable parameter in exactly one group, in the model's order."""
    no_weight_decay: Any = getattr(model, "no_weight_decay", set)  # timm's convention: a method
    exempt = set(no_weight_decay())
    settings = {
        "decay": (train.weight_decay, 1.0),
        "no_decay": (0.0, 1.0),
        "scorer": (0.0, train.scorer_lr_scale),
    }
    members: dict[str, dict[str, nn.Parameter]] = {kind: {} for kind in settings}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[_kind(name, parameter, exempt)][name] = parameter
    return [
        {
            "params": list(members[kind].values()),
            "names": list(members[kind]),
            "weight_decay": decay,
            "lr_scale": scale,
        }
        for kind, (decay, scale) in settings.items()
    ]


def lr_factor(step: int, num_steps: int, warmup_steps: int, last: float = 0.0) -> float:
    """The share of the peak rate that optimizer step `step` (0-based) uses: linear warm-up, then cosine to `last`.

    The last warm-up step uses the whole rate; step `num_steps`, which is never taken, would use `last`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))
    return last + (1 - last) * cosine


def scheduled_lr(train: TrainConfig, step: int, num_steps: int) -> float:
    """The learning rate of optimizer step `step`, 0-based."""
    warmup_steps = round(train.warmup_frac * num_steps)
    return train.lr * lr_factor(step, num_steps, warmup_steps, train.min_lr / train.lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the scheduled rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _kind(name: str, parameter: nn.Parameter, exempt: set[str]) -> str:
    if SCORER_PART in name:
        return "scorer"
    return "no_decay" if parameter.ndim <= 1 or name.endswith(".bias") or name in exempt else "decay"
