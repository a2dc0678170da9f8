"""Controls and baselines are trained by the same loop, to the same bits after a death, and are read back."""

from pathlib import Path

import pytest
import torch

from dart.registry import CONTROL_SCORERS
from dart.weights import load
from pipeline.config import Suite, Trial
from pipeline.journal import curves, read_journal
from pipeline.sweep.plan import plan_experiments
from pipeline.train.loop import WEIGHTS, fit
from tests.pipeline.train.small_suites import DiesAtStep, Killed

CUTS = [("quadtree", "conv"), ("deformable", "conv"), *(("dart", scorer) for scorer in CONTROL_SCORERS)]
every_cut = pytest.mark.parametrize(("name", "scorer"), CUTS)


def trial_of(suite: Suite, name: str, scorer: str) -> Trial:
    """Of 10 tokens, which let a quadtree choose; DART's own options stay written, as in a suite."""
    trial = next(trial for trial in plan_experiments(suite) if trial.name == "dart-4")
    changes = {"name": name, "scorer": scorer, "token_budget": 10}
    return trial.model_copy(update={"tokenizer": trial.tokenizer.model_copy(update=changes)})


@every_cut
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(
    name: str, scorer: str, tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    trial, folders = trial_of(tiny_suite, name, scorer), (tmp_path / "whole", tmp_path / "killed")
    options = {"num_classes": 10, "log_every_steps": 4, "checkpoint_every_s": 0}
    for folder in folders:
        folder.mkdir()
    fit(trial, tiny_shards, folders[0], **options)
    with pytest.raises(Killed):
        fit(trial, tiny_shards, folders[1], wrap=lambda model: DiesAtStep(model, 21), **options)
    fit(trial, tiny_shards, folders[1], **options)
    assert (folders[1] / WEIGHTS).read_bytes() == (folders[0] / WEIGHTS).read_bytes()
    losses = list(curves(read_journal(folders[0] / "journal.jsonl"))["train_loss"].values())
    assert losses[-1] < losses[0]
    model = load(folders[0] / WEIGHTS)
    assert model.patch_embed.num_patches == 10
    regions = model.patch_embed.inspect(torch.rand(2, 1, 32, 32)).regions
    assert regions.shape[1] == 10


@every_cut
def test_what_is_not_read_is_no_part_of_the_run(name: str, scorer: str, tiny_suite: Suite) -> None:
    trial = trial_of(tiny_suite, name, scorer)
    other = {"num_rows": None, "score_floor": 0.9, "partition": "grid"}
    tokenizer = trial.tokenizer.model_copy(update=other)
    changed = trial.model_copy(
        update={"tokenizer": tokenizer, "train": trial.train.model_copy(update={"scorer_lr_scale": 7.0})}
    )
    before, after = trial.science(), changed.science()
    assert ("scorer_lr_scale" in before["train"]) == (name == "deformable")
    differing = {key for key in before["tokenizer"] if before["tokenizer"][key] != after["tokenizer"].get(key)}
    assert differing == {"quadtree": set(), "deformable": {"partition"}, "dart": {"partition", "score_floor"}}[name]
