"""Weights in any format that we meet -> a model: the authors' files, the pipeline's, and timm's.

What a file does not say of its model is read off its entries and their shapes.
"""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import dart.models  # noqa: F401 (registers the models with timm)
from dart.official import compare, convert, read_checkpoint
from dart.registry import CONTROL_SCORERS, SCORERS, WEIGHTS_METADATA
from dart.scorer import build_scorer
from dart.video import build_video_scorer


class Weights(NamedTuple):
    """A file of weights: which model they are of, as far as the file says, and the entries by our names."""

    model_name: str | None
    kwargs: dict[str, Any]
    state: dict[str, Tensor]


def read_weights(path: Path, model_name: str | None) -> Weights:
    """Weights of any of the formats that we meet.

    Args:
        path: A safetensors file of `dart.official`, of the pipeline's training or of timm; or the authors' .pth.
        model_name: One of ours, where the file does not say it.

    Raises:
        ValueError: it is none of these.
    """
    if path.suffix != ".safetensors":
        try:
            return Weights(*convert(read_checkpoint(path), model_name))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if WEIGHTS_METADATA in metadata:
            spec = json.loads(metadata[WEIGHTS_METADATA])
            return Weights(spec["model"], spec["kwargs"], state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a safetensors file of ours ({error})") from error
    return Weights(None, infer_kwargs(state), state)


def load(path: str | Path) -> nn.Module:
    """The model of a file that says which one it is, with its weights, in evaluation mode.

    `python -m dart.official` and the pipeline's training write such files.
    """
    return build_model(None, read_weights(Path(path), None), {})


def infer_kwargs(state: dict[str, Tensor]) -> dict[str, Any]:
    """What entries and shapes say of a model of `dart.models`: channels, patch side, classes, frames, scorer ..."""
    kwargs: dict[str, Any] = {}
    projection, head, table = (state.get(k) for k in ("patch_embed.proj.weight", "head.weight", "pos_embed"))
    if projection is not None and projection.ndim == 4:
        kwargs |= {"in_chans": projection.shape[1], "patch_size": projection.shape[-1]}
    if head is not None:
        kwargs["num_classes"] = len(head)
    kwargs |= _infer_paint(state)
    if any(name.startswith("patch_embed.pos_embed.") for name in state):
        kwargs["pos_embed"] = "geometry"
    elif table is not None and table.ndim == 3:
        kwargs |= {"pos_embed": "table", "table_size": int((table.shape[1] - ("cls_token" in state)) ** 0.5)}
    own = {k.removeprefix("patch_embed.scorer."): v.shape for k, v in state.items() if ".scorer." in k}
    if (times := state.get("temporal_pos_embedding")) is not None and times.ndim == 3:
        kwargs["num_frames"] = times.shape[1]
    make = build_video_scorer if "num_frames" in kwargs else build_scorer
    return kwargs | _infer_scorer(own, kwargs.get("in_chans", 3), make)


def build_model(model_name: str | None, weights: Weights | None, options: dict[str, Any]) -> nn.Module:
    """A model in evaluation mode; weights are loaded strictly.

    Args:
        model_name: One of timm's registered names; None: the one that the weights say.
        options: Keyword arguments of the model, before those of the weights.

    Raises:
        ValueError: weights of another model; options that this one does not have, or that exclude each other.
    """
    name = model_name or (weights.model_name if weights else None)
    if name is None:
        raise ValueError("checkpoint: does not say which model it is of; add --model NAME")
    kwargs = {**(weights.kwargs if weights else {}), **options}
    try:
        model = timm.create_model(name, **kwargs)
    except TypeError as error:
        raise ValueError(f"model = {name!r}: cannot be built with {', '.join(kwargs)} ({error})") from error
    if weights is not None:
        if problems := compare(weights.state, model.state_dict()):
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise ValueError(f"checkpoint: of another architecture than {name}: {problems[0]}{more}")
        model.load_state_dict(weights.state)
    return model.eval()


def check_name(name: str, family: str) -> None:
    """Refuse a name that is not of a family ("dart" or "uniform") of ours; nothing is built for that."""
    known = timm.list_models(f"{family}_*")
    if name in known:
        return
    what = f"not a {family.upper() if family == 'dart' else family} model" if timm.is_model(name) else "unknown"
    near = difflib.get_close_matches(f"{family}_{name.removeprefix('dart_').removeprefix('uniform_')}", known, n=2)
    plain = [model for model in known if not model[-1].isdigit()]  # the rest differ in their budget alone
    remedy = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(plain)}"
    raise ValueError(f"model = {name!r}: {what}; {remedy}")


def _infer_paint(state: dict[str, Tensor]) -> dict[str, Any]:
    """A segmenter's head, but for its stride, which no entry depends on."""
    decode, last = state.get("head.decode.weight"), state.get("head.classifier.weight")
    if decode is None or last is None:
        return {}
    num_classes, dim = last.shape[:2]
    depth = sum(name.startswith("head.refine.") and name.endswith(".weight") for name in state)
    sizes = {"head_points": int((len(decode) / dim) ** 0.5), "head_dim": dim, "head_depth": depth}
    return {"num_classes": num_classes, **sizes}


def _infer_scorer(entries: dict[str, torch.Size], in_chans: int, make: Callable[..., nn.Module]) -> dict[str, Any]:
    """The scorer with exactly these entries, of those that `make` builds, as keyword arguments of a model."""
    # Batch norms have running statistics; features that were trained from scratch have group norms.
    frozen = any(name.endswith("running_mean") for name in entries)
    known = [name for name in SCORERS if name not in CONTROL_SCORERS] if entries else []  # those have no weights
    for name in known:
        options: dict[str, Any] = {} if name == "conv" else {"frozen": frozen}
        with torch.device("meta"):  # names and shapes are all that is asked for
            state = make(name, in_chans, **options).state_dict()
        if {key: value.shape for key, value in state.items()} == entries:
            return {"scorer": name} | ({"frozen_scorer": frozen} if frozen else {})
    return {}
