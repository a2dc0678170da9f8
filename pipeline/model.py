"""A trial, or the record of one -> its model."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.config import Trial


def build_model(trial: Trial, num_classes: int) -> nn.Module:
    """The timm model of a trial, freshly initialised from torch's global random state."""
    train_only = {"drop_path_rate": trial.train.drop_path} if trial.train.drop_path else {}
    return build_architecture(trial.model_name, trial.architecture(), num_classes, **train_only)


def build_architecture(
    model_name: str, architecture: Mapping[str, Any], num_classes: int, **train_only: Any
) -> nn.Module:
    """The same from a record: `architecture` has what `Trial.architecture` returns, and may have more.

    Args:
        train_only: Options of timm's that no weight has a shape by, and only training reads.
    """
    import dart.models  # registers with timm

    return dart.models.build(model_name, **model_kwargs(architecture, num_classes), **train_only)


def model_kwargs(architecture: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The keyword arguments of `timm.create_model` for such a record; they are kept with the weights."""
    options = {**architecture["model"], **architecture["tokenizer"]}
    kwargs = {k: v for k, v in options.items() if k not in ("name", "backbone", "variant") and v is not None}
    # How images become numbers (`pipeline.data.transforms`), for whoever reads pictures for the model.
    return {**kwargs, "num_classes": num_classes, "pretrained_cfg_overlay": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}
