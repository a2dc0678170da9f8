"""Training that starts from the weights of another run."""

import json
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file
from torch import nn

from pipeline.config import Trial
from pipeline.errors import UserError, problem
from pipeline.train.run import DONE, WEIGHTS


def borrows(trial: Trial) -> bool:
    """Whether its weights begin as others': published ones, or those of another run."""
    published = trial.model.pretrained or trial.architecture()["tokenizer"].get("pretrained_scorer")
    return bool(published) or trial.init_from is not None


def load_start(model: nn.Module, trial: Trial, init_dir: Path | None) -> None:
    """Load the final weights of the run that `trial.init_from` has, whose folder is `init_dir`, into the model.

    Raises:
        UserError: they are not there, of a training that diverged, or of another shape.
    """
    assert trial.init_from is not None
    path = init_dir / WEIGHTS if init_dir else None
    where = f"experiments.{trial.name}.init_from"
    if path is None or not path.is_file():
        raise UserError(problem(where, trial.init_from.name, "has left no weights", "see why its run failed"))
    record = path.parent / DONE
    if record.is_file() and (status := json.loads(record.read_text())["status"]) != "done":
        raise UserError(problem(where, trial.init_from.name, status, "mend its recipe first"))
    from dart.models.checkpoint import filter_checkpoint  # a table of positions is resampled to the model's

    try:
        model.load_state_dict(filter_checkpoint(load_file(path), cast(Any, model)))
    except (RuntimeError, ValueError) as error:
        rule = f"its weights are another model's ({str(error).splitlines()[-1].strip()})"
        raise UserError(problem(where, trial.init_from.name, rule)) from None
