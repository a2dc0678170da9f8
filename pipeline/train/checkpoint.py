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
from torch import nn

from dart.registry import WEIGHTS_METADATA
from pipeline.errors import UserError, problem
from pipeline.files import building_dir, write_bytes_atomic, write_json_atomic
from pipeline.provenance import hash_file
from pipeline.train.run import WEIGHTS
from pipeline.train.state import State, put, whole_tensors

KEEP = 2  # the newest, and one to fall back to
FILES = (WEIGHTS, "optimizer.safetensors", "state.json")
EMA_FILE = "ema.safetensors"


class Identity(NamedTuple):
    """Whose checkpoint it is: it may only be continued by the same model, science and data.

    dropped_sha256: Of the damaged samples that are left out; "" where there are none.
    """

    model_name: str
    science_sha256: str
    manifest_sha256: str
    dropped_sha256: str = ""


class Rewind(NamedTuple):
    """A training that was lost at `at` and went on from the snapshot of `to`: steps to + 1 to at changed nothing."""

    at: int
    to: int
    reason: str


class Position(NamedTuple):
    """How far training is.

    step: optimizer steps taken; (epoch, batch) follow from it.
    train_s: seconds spent training, over all attempts.
    metrics: the latest results of training and validation.
    recent: the last losses, where a spike among them is looked for.
    """

    step: int
    train_s: float
    metrics: dict[str, float]
    recent: tuple[float, ...] = ()
    rewinds: tuple[Rewind, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Position":
        rewinds = tuple(Rewind(*rewind) for rewind in values.get("rewinds", ()))
        return cls(**{**values, "recent": tuple(values.get("recent", ())), "rewinds": rewinds})


class Damaged(Exception):
    """A checkpoint that is not what was written."""


def save_checkpoint(
    root: Path,
    identity: Identity,
    position: Position,
    state: State,
) -> None:
    """Publish a checkpoint under `root`, then remove all but the newest `KEEP`.

    Args:
        state: Whole, see `pipeline.train.state`.

    Raises:
        UserError: the disk is full, or not to be written on; what was published before is still there.
    """
    published = root / f"step-{position.step:08d}"
    with building_dir(published) as folder:
        write_bytes_atomic(folder / WEIGHTS, save(state.model))
        write_bytes_atomic(folder / "optimizer.safetensors", save(state.optimizer))
        write_json_atomic(folder / "state.json", {"identity": identity._asdict(), "position": position._asdict()})
        files: tuple[str, ...] = FILES
        if state.ema:
            write_bytes_atomic(folder / EMA_FILE, save(state.ema))
            files = (*FILES, EMA_FILE)
        write_json_atomic(folder / "manifest.json", {name: hash_file(folder / name) for name in files})
    # Later ones are damaged: they were passed over when we resumed.
    later = [folder for folder in _newest_first(root) if folder.name > published.name]
    for folder in [*later, *_newest_first(root)[len(later) + KEEP :]]:
        shutil.rmtree(folder, ignore_errors=True)


def has_checkpoint(root: Path) -> bool:
    """Whether anything was published under `root`, sound or not."""
    return bool(_newest_first(root))


def load_checkpoint(
    root: Path,
    identity: Identity,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    note: Callable[[str], None],
    ema: nn.Module | None = None,
    moments_on: torch.device | None = None,
) -> Position:
    """Load the newest sound checkpoint into `model`, `optimizer` and `ema`; without one, the position is the start.

    Args:
        note: Is told of every damaged checkpoint that was passed over.
        moments_on: See `pipeline.train.state.put`.

    Raises:
        UserError: the checkpoint belongs to another model, science or data; nothing has been loaded then.
    """
    for folder in _newest_first(root):
        try:
            return _load(folder, identity, model, optimizer, ema, moments_on)
        except Damaged as damage:
            note(f"checkpoint {folder.name} is damaged ({damage}) and was passed over")
    return Position(0, 0.0, {})


def save_weights(path: Path, model: nn.Module, model_name: str, kwargs: dict[str, Any]) -> None:
    """The model's state dict as one safetensors file that says how to build its model, written atomically.

    `dart.weights.load` and `python -m dart.draw --checkpoint` read it.
    """
    made = json.dumps({"model": model_name, "kwargs": kwargs}, sort_keys=True)
    # One entry only: safetensors writes several in random order, and the same weights should be the same bytes.
    write_bytes_atomic(path, save(whole_tensors(model.state_dict()), metadata={WEIGHTS_METADATA: made}))


def _load(
    folder: Path,
    identity: Identity,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
    moments_on: torch.device | None,
) -> Position:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if not isinstance(manifest, dict) or not set(FILES) <= set(manifest):
            raise Damaged("manifest.json is not as written")
        for name, sha256 in manifest.items():
            if hash_file(folder / name) != sha256:
                raise Damaged(f"{name} is not as written")
        state = json.loads((folder / "state.json").read_text())
        _check_owner(folder, Identity(**state["identity"]), identity)
        position = Position.from_json(state["position"])
        weights = load((folder / WEIGHTS).read_bytes())
        moments = load((folder / "optimizer.safetensors").read_bytes())
        averages = load((folder / EMA_FILE).read_bytes()) if ema is not None else {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise Damaged(f"{type(error).__name__}: {error}") from error
    put(State(weights, moments, averages), model, optimizer, ema, moments_on)
    return position


def _check_owner(folder: Path, found: Identity, expected: Identity) -> None:
    differences = [key for key in Identity._fields if getattr(found, key) != getattr(expected, key)]
    if differences:
        theirs, ours = ({key: getattr(owner, key)[:40] for key in differences} for owner in (found, expected))
        rule = "a checkpoint of another " + " and ".join(differences)
        remedy = f"this run is {_words(ours)}; move {folder.parent} away, or train with DART_FRESH=1"
        raise UserError(problem(str(folder), _words(theirs), rule, remedy))


def _words(parts: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in parts.items())


def _newest_first(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"), reverse=True)
