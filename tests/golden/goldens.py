"""The golden arrays and how ours are held against them.

Any folder of this layout can be tested in this one's place: DART_GOLDEN_DIR names it, DART_GOLDEN_SALT and
DART_GOLDEN_SEED0 say how its parameters and pictures are filled (README.md). A test computes a value for every array
that it finds, from names and shapes alone; an array that nobody has a rule for is a failure.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from . import fill_rule

FOLDER = Path(os.environ.get("DART_GOLDEN_DIR") or Path(__file__).parent)
SALT = os.environ.get("DART_GOLDEN_SALT", "dart-public-0:")
SEED0 = int(os.environ.get("DART_GOLDEN_SEED0", "1000"))

both_precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])

# Five times the distance of the reference's own float32 run from its float64 run, by what the name of an array
# contains, first match first. Absolute, except gradients, whose limit is a share of the peak.
FLOAT32_LIMITS = {
    "grad": 5e-3,
    "score": 5e-5,
    "logits": 5e-4,
    "heights": 2e-4,  # px
    "widths": 2e-4,
    "edges": 2.5e-2,  # px
    "": 2e-3,  # tokens, positions, patches, pictures
}


def load(file: str) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of one file."""
    with np.load(FOLDER / file) as arrays:
        return dict(arrays)


def files(pattern: str) -> list[str]:
    """The names of the files that match, at least one."""
    return sorted(path.name for path in FOLDER.glob(pattern)) or [pattern]


def entry_names(model: str) -> dict[str, list[int]]:
    """Official entry names and shapes of a model."""
    lists = [json.loads((FOLDER / f"{name}_names.json").read_text()) for name in ("small_model", "state_dict")]
    return next(found[model] for found in lists if model in found)


def parameters(shapes: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    """The parameters of the reference run, by official name."""
    return {name: torch.as_tensor(fill_rule.fill_one(name, shape, SALT)) for name, shape in shapes.items()}


def fill(module: nn.Module, official: Callable[[str], str]) -> nn.Module:
    """Fill a part of a model that no official checkpoint holds by itself; `official` says the names of its entries."""
    ours = module.state_dict()
    values = parameters({official(name): value.shape for name, value in ours.items()})
    module.load_state_dict({name: values[official(name)] for name in ours})
    return module.eval()


def picture(shape: tuple[int, ...], seed: int, dtype: torch.dtype, period: int = 448) -> Tensor:
    """Waves of the given shape; `seed` counts from the folder's base."""
    return torch.as_tensor(fill_rule.waves(shape, SEED0 + seed, period=period)).to(dtype)


def tensor(array: Any, dtype: torch.dtype) -> Tensor:
    """An array of the goldens as an input of ours."""
    return torch.as_tensor(np.asarray(array)).to(dtype)


def check(
    arrays: Mapping[str, Any],
    ours: Mapping[str, Tensor],
    inputs: Iterable[str],
    limits: Mapping[str, float] | None = None,
) -> None:
    """Every array is an input or has a value of ours that agrees; all that do not are named at once.

    In float64 the limit is 1e-5 of an array's peak. In float32 it is `FLOAT32_LIMITS`, where `limits` go first.
    """
    own = limits or {}
    limits = {**own, **FLOAT32_LIMITS, **own}  # the keys in this order, the values of `own` first
    known = set(inputs)
    problems = [f"no rule for array {name}" for name in arrays if name not in ours and name not in known]
    for name in arrays.keys() & ours.keys():
        problems += _compare(name, arrays[name], ours[name].detach(), limits)
    assert not problems, "\n" + "\n".join(problems)


def _compare(name: str, golden: Any, ours: Tensor, limits: Mapping[str, float]) -> list[str]:
    golden = torch.as_tensor(np.asarray(golden)).double()
    if ours.shape != golden.shape:
        return [f"{name}: shape {tuple(ours.shape)}, must be {tuple(golden.shape)}"]
    peak = float(golden.abs().max())
    limit = next(value for part, value in limits.items() if part in name)
    limit = 1e-5 * peak if ours.dtype == torch.float64 else limit * (peak if "grad" in name else 1)
    # The derivative of what cancels, such as a score's constant, is nothing but rounding.
    limit = max(limit, 1e-10 if ours.dtype == torch.float64 else 5e-4 * ("grad" in name))
    error = float((ours.double() - golden).abs().max())
    return [] if error <= limit else [f"{name}: off by {error:.3g} (limit {limit:.3g}, peak {peak:.3g})"]
