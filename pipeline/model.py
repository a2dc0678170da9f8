"""A trial, or the record of one -> its model."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.config import Trial
from pipeline.errors import UserError
from pipeline.mask_rules import MasksConfig
from pipeline.recipe import AugmentConfig

# What a record says of a model and its constructor is not told: its name does, or weights take its place.
UNTOLD = ("name", "backbone", "variant", "head", "pretrained")


def build_model(trial: Trial, num_classes: int, *, to_train: bool = False, fetch: bool = True) -> nn.Module:
    """The timm model of a trial, freshly initialised from torch's global random state.

    Args:
        to_train: With what training alone needs: published weights to start from, stochastic depth.
        fetch: False where other weights take their place at once: the same model, and nothing is downloaded.

    Raises:
        UserError: the model cannot be built, or those weights not be had.
    """
    options: dict[str, Any] = {}
    if to_train and trial.train.drop_path:
        options["drop_path_rate"] = trial.train.drop_path
    if to_train and fetch and trial.architecture()["tokenizer"].get("pretrained_scorer"):
        options |= {"pretrained_scorer": True, "scorer_norm": None}
    if to_train and fetch and trial.model.pretrained:
        options["pretrained_backbone"] = True
    return build_architecture(trial.model_name, trial.architecture(), num_classes, **options)


def build_architecture(model_name: str, architecture: Mapping[str, Any], num_classes: int, **options: Any) -> nn.Module:
    """The same from a record: `architecture` has what `Trial.architecture` returns, and may have more.

    Nothing is downloaded, whatever the record says: who reads a record has weights of their own.

    Args:
        options: Replace what the record says.
    """
    import dart.models  # registers with timm

    kwargs = {**model_kwargs(architecture, num_classes), **options}
    try:
        return dart.models.build(model_name, **{key: value for key, value in kwargs.items() if value is not None})
    except (ImportError, ValueError) as error:  # of a library that only some models need
        raise UserError(f"{model_name}: {error}") from error


def model_kwargs(
    architecture: Mapping[str, Any], num_classes: int, views: AugmentConfig | MasksConfig | None = None
) -> dict[str, Any]:
    """The keyword arguments of `timm.create_model` for such a record; they are kept with the weights.

    Args:
        views: Says how pixels are normalised; None: from -1 to 1.
    """
    options = {**architecture["model"], **architecture["tokenizer"]}
    kwargs = {k: v for k, v in options.items() if k not in UNTOLD and v is not None}
    if kwargs.get("pretrained_scorer"):  # the same network without a download
        kwargs["pretrained_scorer"] = False
        kwargs |= {"scorer_norm": "batch"} if kwargs.get("mode") != "paper" else {}
    # How images become numbers (`pipeline.data.transforms`), for whoever reads pictures for the model.
    mean, std = (tuple(views.mean), tuple(views.std)) if views else ((0.5,) * 3, (0.5,) * 3)
    return {**kwargs, "num_classes": num_classes, "pretrained_cfg_overlay": {"mean": mean, "std": std}}
