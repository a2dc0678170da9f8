"""The loop continues bit for bit from any death, stops when the loss is lost, and says what it cannot do."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import Suite, Trial
from pipeline.data.ledger import RankLedger
from pipeline.data.order import GlobalBatches, epoch_draws, epoch_order
from pipeline.errors import UserError
from pipeline.journal import curves, read_journal
from pipeline.sweep.plan import plan_experiments
from pipeline.train.loop import WEIGHTS, FitResult, fit
from pipeline.train.mixing import Mixing
from pipeline.train.objective import step_seed
from pipeline.train.run import CHECKPOINTS
from tests.pipeline.train.recipes import FULL
from tests.pipeline.train.small_suites import DiesAtStep, Killed

STEPS = 40  # 2 epochs of 400 samples in batches of 20


@pytest.fixture(scope="module")
def trial(tiny_suite: Suite) -> Trial:
    return next(trial for trial in plan_experiments(tiny_suite) if trial.name == "dart-4")


def train(trial: Trial, shards: Path, run_dir: Path, **options: Any) -> FitResult:
    torch.set_num_threads(1)
    run_dir.mkdir(exist_ok=True)
    return fit(trial, shards, run_dir, num_classes=10, **{"log_every_steps": 4, "checkpoint_every_s": 0, **options})


@pytest.fixture(scope="module")
def uninterrupted(trial: Trial, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    train(trial, tiny_shards, run_dir)
    return run_dir


@pytest.mark.parametrize("deaths", [[3], [17], [20], [21, 9], [39], [4, 4, 4]])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(
    trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path, deaths: list[int]
) -> None:
    for steps in deaths:
        with pytest.raises(Killed):
            train(trial, tiny_shards, tmp_path, wrap=lambda model, steps=steps: DiesAtStep(model, steps))
    train(trial, tiny_shards, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (uninterrupted / WEIGHTS).read_bytes()
    ours, theirs = (curves(read_journal(folder / "journal.jsonl")) for folder in (tmp_path, uninterrupted))
    for name in ("train_loss", "val_loss", "val_top1", "lr"):
        assert ours[name] == theirs[name]


def test_a_training_that_only_missed_its_last_line_repeats_nothing(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    first = train(trial, tiny_shards, tmp_path)
    again = train(trial, tiny_shards, tmp_path, wrap=lambda model: DiesAtStep(model, 0))
    assert again.metrics == first.metrics
    assert (again.num_steps, again.num_samples) == (STEPS, STEPS * 20)


@pytest.mark.parametrize("at_once", [1, 3, 10, 20])
def test_a_batch_in_pieces_gives_the_same_weights(
    trial: Trial, tiny_shards: Path, tmp_path: Path, at_once: int
) -> None:
    """In float64 and with a small rate; mixed samples too, whose pairs are in different pieces."""
    recipe = {"precision": "fp64", "lr": 1e-4, "epochs": 1, "augment": FULL}
    exact = trial.model_copy(update={"train": trial.train.model_copy(update=recipe)})
    train(exact, tiny_shards, tmp_path / "whole")
    train(exact, tiny_shards, tmp_path / "pieces", device_batch_size=at_once)
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("pieces", "whole"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-11) for name in theirs)
    losses = [curves(read_journal(tmp_path / name / "journal.jsonl"))["train_loss"] for name in ("pieces", "whole")]
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), abs=1e-11)


def test_what_is_left_out_is_never_read_and_everything_else_once_an_epoch(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    dropped = {"train": [*range(0, 60, 2)], "val": [3, 4]}
    result = train(trial, tiny_shards, tmp_path, dropped=dropped, ledger=True)
    assert result.num_steps == 2 * ((400 - 30) // 20)
    read = RankLedger(tmp_path / "ledger/rank-00000.bin")
    for epoch in range(2):
        steps = range(epoch * 18, (epoch + 1) * 18)
        found = np.concatenate([read.indices(step) for step in steps])
        assert len(found) == len(set(found.tolist())) == 18 * 20
        assert not set(found.tolist()) & set(dropped["train"])


def test_a_checkpoint_with_other_samples_left_out_is_refused(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(trial, tiny_shards, tmp_path, wrap=lambda model: DiesAtStep(model, 9))
    with pytest.raises(UserError, match="a checkpoint of another dropped_sha256"):
        train(trial, tiny_shards, tmp_path, dropped={"train": [5]})


def test_a_killed_training_has_a_ledger_of_what_its_weights_have_seen(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    train(trial, tiny_shards, tmp_path / "whole", ledger=True)
    for steps in (7, 14):
        with pytest.raises(Killed):
            train(trial, tiny_shards, tmp_path / "parts", ledger=True, wrap=lambda m, s=steps: DiesAtStep(m, s))
    train(trial, tiny_shards, tmp_path / "parts", ledger=True)
    whole, parts = (RankLedger(tmp_path / name / "ledger/rank-00000.bin") for name in ("whole", "parts"))
    assert all(np.array_equal(whole.indices(step), parts.indices(step)) for step in range(STEPS))


def test_how_often_is_logged_and_saved_changes_nothing(
    trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    train(trial, tiny_shards, tmp_path, log_every_steps=7, checkpoint_every_s=1e9)
    assert (tmp_path / WEIGHTS).read_bytes() == (uninterrupted / WEIGHTS).read_bytes()


def test_the_seed_decides_the_weights(trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path) -> None:
    train(trial.model_copy(update={"seed": 7}), tiny_shards, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() != (uninterrupted / WEIGHTS).read_bytes()


def test_every_epoch_is_validated_and_reported(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    reports: list[dict] = []
    result = train(trial, tiny_shards, tmp_path, report=reports.append)
    assert [(r["epoch"], r["step"]) for r in reports] == [(1, 20), (2, 40)]
    assert result.metrics.keys() == {"train_loss", "val_loss", "val_top1", "val_top5"}
    assert 0 <= result.metrics["val_top1"] <= result.metrics["val_top5"] <= 1
    json.dumps(reports)


def test_a_diverged_training_stops(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    wild = trial.model_copy(update={"train": trial.train.model_copy(update={"lr": 1e30})})
    with pytest.raises(UserError, match=r"gradient norm = nan: not finite at step \d+ of 40, the training diverged"):
        train(wild, tiny_shards, tmp_path)


def test_bfloat16_is_refused_on_a_processor(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    half = trial.model_copy(update={"train": trial.train.model_copy(update={"precision": "bf16"})})
    with pytest.raises(UserError, match=r"train\.precision = 'bf16': needs a GPU.*; use fp32"):
        train(half, tiny_shards, tmp_path)


def test_a_batch_larger_than_the_data_is_refused(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    big = trial.model_copy(update={"train": trial.train.model_copy(update={"global_batch_size": 401})})
    with pytest.raises(UserError, match=r"train\.global_batch_size = 401.*400"):
        train(big, tiny_shards, tmp_path)


def test_steps_and_ranks_have_seeds_of_their_own() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(4)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.fixture(scope="module")
def rich(trial: Trial) -> Trial:
    """The whole recipe: averaged weights, mixing, augmentation, stochastic depth, a smallest rate, no clipping."""
    changes = {"model_ema_decay": 0.9, "augment": FULL, "drop_path": 0.1, "min_lr": 1e-4,
               "clip_grad": None, "epochs": 1}  # fmt: skip
    return trial.model_copy(update={"train": trial.train.model_copy(update=changes)})


def test_the_whole_recipe_resumes_bit_for_bit(rich: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    train(rich, tiny_shards, tmp_path / "whole")
    for steps in (3, 9):
        with pytest.raises(Killed):
            train(rich, tiny_shards, tmp_path / "parts", wrap=lambda model, steps=steps: DiesAtStep(model, steps))
    train(rich, tiny_shards, tmp_path / "parts")
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    assert (whole / WEIGHTS).read_bytes() == (parts / WEIGHTS).read_bytes()
    ours, theirs = (curves(read_journal(folder / "journal.jsonl")) for folder in (whole, parts))
    assert ours["train_loss"] == theirs["train_loss"]
    assert ours["val_loss"] == theirs["val_loss"]


def test_what_is_validated_and_kept_is_the_running_average(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    """The average of a training computed from its weights after every step, as its definition says."""
    decay, weights = 0.8, []

    class Watched(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images: Tensor) -> Tensor:
            weights.append({name: tensor.clone() for name, tensor in self.inner.state_dict().items()})
            return self.inner(images)

    train_config = trial.train.model_copy(update={"epochs": 1, "model_ema_decay": decay})
    averaging = trial.model_copy(update={"train": train_config})
    result = train(averaging, tiny_shards, tmp_path / "ema", wrap=Watched)
    plain = averaging.model_copy(update={"train": train_config.model_copy(update={"model_ema_decay": None})})
    without = train(plain, tiny_shards, tmp_path / "plain")
    weights.append(load_file(tmp_path / "plain" / WEIGHTS))  # averaging does not change the training itself
    average = weights[0]
    for after in weights[1:]:
        average = {name: decay * old + (1 - decay) * after[name] for name, old in average.items()}
    kept = load_file(tmp_path / "ema" / WEIGHTS)
    assert all(torch.allclose(kept[name], average[name], atol=1e-6) for name in kept)
    assert result.metrics["val_loss"] != without.metrics["val_loss"]


def test_mixing_does_not_depend_on_the_number_of_ranks() -> None:
    """The parts of a global batch, mixed rank by rank, are the mixed global batch."""
    torch.manual_seed(0)
    images, labels = torch.rand(24, 1, 8, 8), torch.randint(0, 10, (24,))
    whole = GlobalBatches(24, 24, seed=0, epoch=0, paired=True)
    for seed in range(6):  # of both kinds
        mix = Mixing(FULL, 0.1, 10)
        order = next(iter(whole))
        expected, targets = mix(images[order], labels[order], seed)
        for world_size in (2, 3, 4):
            for rank in range(world_size):
                part = next(iter(GlobalBatches(24, 24, 0, 0, rank, world_size, paired=True)))
                mixed, soft = mix(images[part], labels[part], seed)
                places = [order.index(index) for index in part]
                assert torch.equal(mixed, expected[places])
                assert torch.equal(soft, targets[places])


def test_targets_of_mixed_clips_sum_to_one_and_frames_are_mixed_alike() -> None:
    clips = torch.rand(4, 1, 1, 8, 8).expand(4, 3, 5, 8, 8).contiguous()  # all planes of a clip are equal
    mixed, targets = Mixing(FULL, 0.1, 7)(clips.clone(), torch.arange(4), seed=1)
    assert mixed.shape == clips.shape
    assert not torch.equal(mixed, clips)
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
    assert torch.allclose(targets.sum(1), torch.ones(4))


def test_a_batch_whose_pairs_the_ranks_would_part_is_refused() -> None:
    with pytest.raises(UserError, match=r"global_batch_size = 10: mixup and cutmix mix pairs.*2 x world_size \(2\)"):
        GlobalBatches(100, 10, 0, 0, world_size=2, paired=True)


def test_repeated_augmentation_repeats_samples_and_keeps_the_number_of_draws() -> None:
    draws = epoch_draws(100, seed=1, epoch=2, aug_repeats=3)
    assert len(draws) == len(set(draws.tolist())) == 100
    assert (draws[:6] % 100).tolist() == [i for i in epoch_order(100, 1, 2)[:2].tolist() for _ in range(3)]
    assert (draws[:6] // 100).tolist() == [0, 1, 2, 0, 1, 2]
    assert epoch_draws(100, 1, 2, 1).tolist() == epoch_order(100, 1, 2).tolist()


def test_a_start_is_the_final_weights_of_another_run(
    trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    """At a rate of nothing the weights stay what they were, whatever the number of tokens."""
    still = trial.train.model_copy(update={"lr": 1e-30, "epochs": 1})
    tokenizer = trial.tokenizer.model_copy(update={"token_budget": 9})
    child = trial.model_copy(update={"train": still, "tokenizer": tokenizer, "init_from": trial})
    train(child, tiny_shards, tmp_path / "child", init_dir=uninterrupted)
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (tmp_path / "child", uninterrupted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_training_that_goes_on_needs_the_weights_it_began_with_no_more(
    trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    """They may be gone, or out of reach; only where no checkpoint is sound they are asked for again."""
    child = trial.model_copy(update={"init_from": trial})
    train(child, tiny_shards, tmp_path / "whole", init_dir=uninterrupted)
    run_dir = tmp_path / "killed"
    with pytest.raises(Killed):
        train(child, tiny_shards, run_dir, init_dir=uninterrupted, wrap=lambda model: DiesAtStep(model, 17))
    shutil.copytree(run_dir, tmp_path / "damaged")
    train(child, tiny_shards, run_dir, init_dir=tmp_path / "gone")
    for manifest in (tmp_path / "damaged" / CHECKPOINTS).glob("*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(UserError, match=r"dart-4\.init_from = 'dart-4': has left no weights"):
        train(child, tiny_shards, tmp_path / "damaged", init_dir=tmp_path / "gone")
    train(child, tiny_shards, tmp_path / "damaged", init_dir=uninterrupted)
    whole, *others = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "killed", "damaged"))
    assert others == [whole, whole]


def test_a_start_without_weights_or_with_others_is_one_sentence(
    trial: Trial, tiny_shards: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    child = trial.model_copy(update={"init_from": trial})
    with pytest.raises(UserError, match=r"dart-4\.init_from = 'dart-4': has left no weights"):
        train(child, tiny_shards, tmp_path, init_dir=tmp_path)
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / WEIGHTS).write_bytes((uninterrupted / WEIGHTS).read_bytes())
    (tmp_path / "lost/done.json").write_text('{"status": "diverged at step 3 of 40"}')
    with pytest.raises(UserError, match=r"init_from = 'dart-4': diverged at step 3 of 40; mend its recipe first"):
        train(child, tiny_shards, tmp_path, init_dir=tmp_path / "lost")
    model = trial.model.model_copy(update={"variant": "micro"})
    with pytest.raises(UserError, match=r"dart-4\.init_from = 'dart-4': its weights are another model's"):
        train(child.model_copy(update={"model": model}), tiny_shards, tmp_path, init_dir=uninterrupted)
