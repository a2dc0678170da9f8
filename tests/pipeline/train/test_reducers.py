"""Models that take tokens away train by the same loop; one that learns which adds its loss to the task's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from dart.registry import REDUCERS
from dart.weights import load
from pipeline.config import Suite, Trial
from pipeline.model import build_model
from pipeline.model_rules import ReducerConfig
from pipeline.train.loop import WEIGHTS, FitResult, fit
from pipeline.train.objective import Classification
from pipeline.train.setup import Setup
from tests.pipeline.train.small_suites import Killed, trial_of

VALUES = {"fuse": True, "ratio_weight": 2.0}


def reduced(suite: Suite, name: str, **recipe: Any) -> Trial:
    """uniform-4 of the suite `tiny` from 16 tokens, half of which are left in the end."""
    trial = trial_of(suite, "uniform-4")
    reducer = ReducerConfig(name=name, keep=0.5, **{key: VALUES[key] for key in REDUCERS[name]})
    changes = {"model": {"reducer": reducer}, "tokenizer": {"token_budget": 16}, "train": {"epochs": 1, **recipe}}
    return trial.model_copy(update={key: getattr(trial, key).model_copy(update=v) for key, v in changes.items()})


def train(trial: Trial, shards: Path, run_dir: Path, **options: Any) -> FitResult:
    torch.set_num_threads(1)
    run_dir.mkdir(exist_ok=True)
    return fit(trial, shards, run_dir, num_classes=10, **{"log_every_steps": 4, "checkpoint_every_s": 0, **options})


class Dies(torch.nn.Module):
    """The model, for a few steps."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.left = model, 7

    def forward(self, *batch: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.inner(*batch, **options)


@pytest.mark.parametrize("name", REDUCERS)
def test_a_reducer_trains_and_resumes_bit_for_bit(
    name: str, tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    trial = reduced(tiny_suite, name)
    train(trial, tiny_shards, tmp_path / "whole")
    with pytest.raises(Killed):
        train(trial, tiny_shards, tmp_path / "killed", wrap=Dies)
    train(trial, tiny_shards, tmp_path / "killed")
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "killed" / WEIGHTS).read_bytes()
    model = load(tmp_path / "whole" / WEIGHTS)  # the file says which reducer it is
    assert model.reducer.name == name
    torch.manual_seed(trial.seed)
    before, after = build_model(trial, 10).state_dict(), load_file(tmp_path / "whole" / WEIGHTS)
    learned = [key for key in after if key.startswith("reducer.")]
    assert bool(learned) == (name == "dynamicvit")
    assert not [key for key in learned if torch.equal(before[key], after[key])]


def test_a_batch_in_pieces_gives_the_same_weights(tiny_suite: Suite, tiny_shards: Path, tmp_path: Path) -> None:
    """Of methods that draw nothing."""
    trial = reduced(tiny_suite, "tome", precision="fp64", lr=1e-4)
    train(trial, tiny_shards, tmp_path / "whole")
    train(trial, tiny_shards, tmp_path / "pieces", device_batch_size=7)
    ours, theirs = (load_file(tmp_path / part / WEIGHTS) for part in ("pieces", "whole"))
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-11) for key in theirs)


@pytest.mark.parametrize("name", REDUCERS)
def test_the_loss_is_cross_entropy_and_what_the_reducer_adds(
    name: str, tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    trial = reduced(tiny_suite, name)
    model = build_model(trial, 10).train()
    setup = Setup(trial, tiny_shards, 10, tmp_path, 0, 1, torch.device("cpu"), 0, 1, 1, 1.0)
    images, labels = torch.rand(6, 1, 32, 32), torch.arange(6)
    torch.manual_seed(3)
    found = Classification(setup).loss(model, images, labels)
    torch.manual_seed(3)
    answer = model(images, auxiliary=True)
    task = F.cross_entropy(answer.logits, labels, label_smoothing=trial.train.label_smoothing)
    assert found == task + answer.auxiliary
    assert (found > task) == (name == "dynamicvit")
