"""The models of finished runs: a record and a file of weights -> the model, or one sentence why not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from dart.registry import WEIGHTS_METADATA
from pipeline.errors import ConfigError, UserError, problem
from pipeline.model import build_architecture

Entry = Mapping[str, Any]  # one record of runs.json


def load_model(entry: Entry, weights: Path, num_classes: int, token_budget: int | None = None) -> nn.Module:
    """The trained model of a run, in evaluation mode, on the CPU.

    Args:
        token_budget: What it spends per image or clip; None: what it was made for.

    Raises:
        UserError: the file is missing, damaged, or the checkpoint of another model.
    """
    model = build_architecture(entry["model_name"], entry["science"], num_classes)
    for line in weights_problems(entry, weights, model):
        raise UserError(line)
    model.load_state_dict(load_file(weights))
    if token_budget is not None:
        set_budget(model, entry, token_budget)
    return model.eval()


def set_budget(model: Any, entry: Entry, token_budget: int) -> None:
    """Make another budget the usual one of a run's model; its own keeps the rows that were chosen for it.

    Raises:
        UserError: the model has a token per patch, or its images too few pixels.
    """
    tokenizer = entry["science"]["tokenizer"]
    try:
        own = token_budget == tokenizer["token_budget"]
        model.set_token_budget(token_budget, tokenizer["num_rows"] if own else None)
    except ValueError as error:
        raise UserError(f"run {entry['fingerprint']} ({entry['name']}): {error}") from None


def weights_problems(entry: Entry, weights: Path, model: nn.Module) -> list[str]:
    """At most one line: why `weights` are not those of `model`. Reads the file's header only."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    where, remedy = f"run {entry['fingerprint']}: weights", "delete the run folder and run: dvc repro"
    try:
        with safe_open(weights, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            other = json.loads((file.metadata() or {}).get(WEIGHTS_METADATA, "{}")).get("model", "another model")
    except FileNotFoundError:
        return [problem(where, str(weights), "no such file", remedy)]
    except SafetensorError as error:
        return [problem(where, str(weights), f"not a checkpoint ({error})", remedy)]
    odd = next((name for name in sorted(wanted.keys() | found) if wanted.get(name) != found.get(name)), None)
    if odd is None:
        return []
    differs = f"{odd} has shape {found.get(odd)}, not {wanted.get(odd)}"
    rule = f"a checkpoint of {other}, not of {entry['model_name']} ({entry['name']}): {differs}"
    return [problem(where, str(weights), rule, remedy)]


def check_weights(entries: Sequence[Entry], weights: Mapping[str, Path], num_classes: int) -> None:
    """Compare every checkpoint's header with its model; raises ConfigError with all that differ."""
    models: dict[str, nn.Module] = {}
    problems = []
    for entry in entries:
        key = json.dumps([entry["science"][part] for part in ("model", "tokenizer")])
        if key not in models:
            models[key] = build_architecture(entry["model_name"], entry["science"], num_classes)
        problems += weights_problems(entry, weights[entry["fingerprint"]], models[key])
    if problems:
        raise ConfigError("evaluate", problems)
