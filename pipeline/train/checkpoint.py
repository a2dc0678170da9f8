"""Checkpoints that are whole or not there: safetensors and JSON, written aside, published by a rename, verified.

A folder `step-00000120/` holds model.safetensors, optimizer.safetensors, state.json, ema.safetensors where weights are
averaged, and, written last, manifest.json with the sha256 of the others. Nothing here is pickled. There is no state of
random generators: the loop derives all randomness from (seed, step), so a position is enough.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dart.registry import WEIGHTS_METADATA
from pipeline.errors import UserError, problem
from pipeline.files import building_dir, write_bytes_atomic, write_json_atomic
from pipeline.provenance import hash_file

KEEP = 2  # the newest, and one to fall back to
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
EMA_FILE = "ema.safetensors"


class Identity(NamedTuple):
    """Whose checkpoint it is: it may only be continued by the same model, science and data."""

    model_name: str
    science_sha256: str
    manifest_sha256: str


class Position(NamedTuple):
    """How far training is.

    step: optimizer steps taken; (epoch, batch) follow from it.
    train_s: seconds spent training, over all attempts.
    metrics: the latest results of training and validation.
    """

    step: int
    train_s: float
    metrics: dict[str, float]


class Damaged(Exception):
    """A checkpoint that is not what was written."""


def save_checkpoint(
    root: Path,
    identity: Identity,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None = None,
) -> None:
    """Publish a checkpoint under `root`, then remove all but the newest `KEEP`.

    Args:
        ema: The model with averaged weights, if the training averages them.
    """
    with building_dir(root / f"step-{position.step:08d}") as folder:
        write_bytes_atomic(folder / "model.safetensors", save(_contiguous(model.state_dict())))
        write_bytes_atomic(folder / "optimizer.safetensors", save(_optimizer_tensors(optimizer)))
        state = {"identity": identity._asdict(), "position": position._asdict()}
        write_json_atomic(folder / "state.json", state)
        files: tuple[str, ...] = FILES
        if ema is not None:
            write_bytes_atomic(folder / EMA_FILE, save(_contiguous(ema.state_dict())))
            files = (*FILES, EMA_FILE)
        write_json_atomic(folder / "manifest.json", {name: hash_file(folder / name) for name in files})
    for folder in _newest_first(root)[KEEP:]:
        shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(
    root: Path,
    identity: Identity,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    note: Callable[[str], None],
    ema: nn.Module | None = None,
) -> Position:
    """Load the newest sound checkpoint into `model`, `optimizer` and `ema`; without one, the position is the start.

    Args:
        note: Is told of every damaged checkpoint that was passed over.

    Raises:
        UserError: the checkpoint belongs to another model, science or data; nothing has been loaded then.
    """
    for folder in _newest_first(root):
        try:
            return _load(folder, identity, model, optimizer, ema)
        except Damaged as damage:
            note(f"checkpoint {folder.name} is damaged ({damage}) and was passed over")
    return Position(0, 0.0, {})


def save_weights(path: Path, model: nn.Module, model_name: str, kwargs: dict[str, Any]) -> None:
    """The model's state dict as one safetensors file that says how to build its model, written atomically.

    `dart.weights.load` and `python -m dart.draw --checkpoint` read it.
    """
    made = json.dumps({"model": model_name, "kwargs": kwargs}, sort_keys=True)
    # One entry only: safetensors writes several in random order, and the same weights should be the same bytes.
    write_bytes_atomic(path, save(_contiguous(model.state_dict()), metadata={WEIGHTS_METADATA: made}))


def _load(
    folder: Path, identity: Identity, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None
) -> Position:
    try:
        for name, sha256 in json.loads((folder / "manifest.json").read_text()).items():
            if hash_file(folder / name) != sha256:
                raise Damaged(f"{name} is not as written")
        state = json.loads((folder / "state.json").read_text())
        _check_owner(folder, Identity(**state["identity"]), identity)
        weights = load((folder / "model.safetensors").read_bytes())
        moments = load((folder / "optimizer.safetensors").read_bytes())
        averages = load((folder / EMA_FILE).read_bytes()) if ema is not None else {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise Damaged(f"{type(error).__name__}: {error}") from error
    model.load_state_dict(weights)
    _load_optimizer(optimizer, moments)
    if ema is not None:
        ema.load_state_dict(averages)
    return Position(**state["position"])


def _check_owner(folder: Path, found: Identity, expected: Identity) -> None:
    differences = [key for key in Identity._fields if getattr(found, key) != getattr(expected, key)]
    if differences:
        theirs, ours = ({key: getattr(owner, key)[:40] for key in differences} for owner in (found, expected))
        rule = "a checkpoint of another " + " and ".join(differences)
        remedy = f"this run is {_words(ours)}; move {folder.parent} away, or train with DART_FRESH=1"
        raise UserError(problem(str(folder), _words(theirs), rule, remedy))


def _words(parts: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in parts.items())


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{'exp_avg/PARAMETER': tensor}; names, not positions, so the order of parameters may change."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value.contiguous()
    return tensors


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `_optimizer_tensors`; everything lies with its parameter, where fused AdamW keeps it."""
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    for full_name, value in tensors.items():
        key, name = full_name.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _newest_first(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"), reverse=True)
