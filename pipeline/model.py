"""A trial, or the record of one -> its model."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.config import Trial


def build_model(trial: Trial, num_classes: int) -> nn.Module:
    """The timm model of a trial, freshly initialised from torch's global random state."""
    return build_architecture(trial.model_name, trial.architecture(), num_classes)


def build_architecture(model_name: str, architecture: Mapping[str, Any], num_classes: int) -> nn.Module:
    """The same from a record: `architecture` has what `Trial.architecture` returns, and may have more."""
    import dart.models  # registers with timm

    options = {**architecture["model"], **architecture["tokenizer"]}
    kwargs = {k: v for k, v in options.items() if k not in ("name", "backbone", "variant")}
    return dart.models.build(model_name, num_classes=num_classes, **kwargs)
