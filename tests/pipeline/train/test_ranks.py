"""The whole recipe on two ranks: as on one, and bit for bit after a death."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Suite, Trial, load_suite, load_yaml
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import load_manifest
from pipeline.data.ledger import RankLedger, check_ledger
from pipeline.data.shards import write_shards
from pipeline.journal import curves, read_journal
from pipeline.model import build_model
from pipeline.model_rules import ReducerConfig
from pipeline.recipe import DivergenceConfig
from pipeline.sweep.plan import plan_experiments
from pipeline.train.loop import WEIGHTS, fit
from pipeline.train.ranks import share_buffers
from pipeline.train.run import Run
from pipeline.train.sharding import _layers
from pipeline.train.watch import READ
from tests.pipeline.train.recipes import FULL

ROOT = Path(__file__).resolve().parents[3]
WORLD_SIZE = 2


class Dies(nn.Module):
    """The data-parallel model, until a certain step; its logits are wrong in step `spoils_at` of this attempt."""

    def __init__(self, model: nn.Module, steps: int, spoils_at: int = -1) -> None:
        super().__init__()
        self.inner, self.left, self.to_spoil = DistributedDataParallel(model), steps, spoils_at

    def forward(self, *batch: Tensor, **options: Any) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.to_spoil -= 1
        return self.inner(*batch) * 1e4 if self.to_spoil == -1 else self.inner(*batch, **options)


def work(
    rank: int, meeting: Path, trial: str, shards: Path, run_dir: Path, steps: int, num_classes: int, options: dict
) -> None:
    """One of two ranks; dies before step `steps` of this attempt, or of its forward pass where that is sharded."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD_SIZE)
    folder = [run_dir, options.pop("other_dir", run_dir)][rank]
    spoils_at = options.pop("spoils_at", [-1] * WORLD_SIZE)[rank]
    try:
        fit(
            Trial.model_validate_json(trial), shards, folder,
            num_classes=num_classes, rank=rank, world_size=WORLD_SIZE,
            wrap=lambda model: Dies(model, steps, spoils_at), log_every_steps=4, checkpoint_every_s=0, **options,
        )  # fmt: skip
    except KeyboardInterrupt:
        pass
    finally:
        dist.destroy_process_group()


def train(trial: Trial, shards: Path, run_dir: Path, steps: int = 10**6, num_classes: int = 10, **options: Any) -> None:
    run_dir.mkdir(exist_ok=True)
    with TemporaryDirectory() as tmp:  # of its own: the file must be new
        arguments = (Path(tmp) / "rendezvous", trial.model_dump_json(), shards, run_dir, steps, num_classes, options)
        # Autograd's threads do not survive a fork; a server that has only imported forks well.
        multiprocessing.set_forkserver_preload(["pipeline.train.loop", "torch.optim.adamw", __name__])
        multiprocessing.start_processes(work, arguments, WORLD_SIZE, start_method="forkserver")


def write_shared(rank: int, folder: Path) -> None:
    """One of two ranks whose batch norms have seen different data."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE)
    norm = nn.BatchNorm1d(3)
    norm(torch.arange(6.0).view(2, 3) * (rank + 1))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    share_buffers(norm, WORLD_SIZE)
    torch.save((before, dict(norm.named_buffers())), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_validate_with_the_statistics_of_the_model_that_is_kept(tmp_path: Path) -> None:
    multiprocessing.start_processes(write_shared, (tmp_path,), WORLD_SIZE, start_method="forkserver")
    (kept, first), (other, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD_SIZE))
    assert not torch.equal(kept["running_mean"], other["running_mean"])
    assert all(torch.equal(kept[name], found[name]) for found in (first, second) for name in kept)


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit_and_agree_with_one(tiny_suite: Suite, tiny_shards: Path, tmp_path: Path) -> None:
    """In float64 and with a small rate, where rounding is not multiplied."""
    trial = next(trial for trial in plan_experiments(tiny_suite) if trial.name == "dart-4")
    recipe = {"model_ema_decay": 0.9, "augment": FULL, "epochs": 1, "precision": "fp64", "lr": 1e-4}
    trial = trial.model_copy(update={"train": trial.train.model_copy(update=recipe)})
    train(trial, tiny_shards, tmp_path / "two")
    for steps in (9, 10**6):
        train(trial, tiny_shards, tmp_path / "died", steps)
    (tmp_path / "one").mkdir()
    fit(trial, tiny_shards, tmp_path / "one", num_classes=10)
    two, died, one = ((tmp_path / name / WEIGHTS) for name in ("two", "died", "one"))
    assert two.read_bytes() == died.read_bytes()
    ours, theirs = load_file(two), load_file(one)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in ours)


@pytest.mark.slow
def test_two_ranks_learn_pixels_as_one_also_where_few_of_them_count(tmp_path: Path) -> None:
    """Squares larger than what is cut into them: how many of their pixels count differs from rank to rank."""
    raw = load_yaml(ROOT / "suites/digits-segmentation.yaml")
    raw["dataset"] |= {"img_size": 32, "train_samples": 24, "val_samples": 5, "test_samples": 2}
    raw["model"] |= {"img_size": 32, "variant": "nano"}
    raw["tokenizer"] |= {"token_budget": 9}
    raw["train"] |= {"epochs": 1, "global_batch_size": 4, "precision": "fp64", "lr": 1e-4}
    raw["train"]["masks"] = {"short_side": 32, "ratio": [0.3, 1.2], "cat_max_frac": 1.0, "hflip": 0.5,
                             "photometric": False, "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    raw["experiments"], raw["seeds"], raw["sweep"] = {"dart": {}}, [0], None
    YAML().dump(raw, tmp_path / "masks.yaml")
    suite = load_suite("masks", tmp_path / "masks.yaml")
    fetch_dataset(suite.dataset, tmp_path / "raw")
    write_shards(suite.dataset, tmp_path / "raw", tmp_path / "shards", 20)
    trial = plan_experiments(suite)[0]
    train(trial, tmp_path / "shards", tmp_path / "two", num_classes=2)
    (tmp_path / "one").mkdir()
    fit(trial, tmp_path / "shards", tmp_path / "one", num_classes=2, log_every_steps=4)
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("two", "one"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in ours)
    ours, theirs = (curves(read_journal(tmp_path / name / "journal.jsonl")) for name in ("two", "one"))
    for name in ("train_loss", "val_loss", "val_miou"):
        assert list(ours[name].values()) == pytest.approx(list(theirs[name].values()), abs=1e-9)


def dies_at(step: int, place: float, patient: bool) -> None:
    """For `beat`: before step `step` is computed, whatever the model is wrapped in."""
    if place == step + READ:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_training_goes_on_with_other_ranks_in_other_ways(
    tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    """Sharded on two ranks, whole on two in other pieces, then alone: the order of samples of one, and its weights."""
    trial = next(trial for trial in plan_experiments(tiny_suite) if trial.name == "dart-4")
    recipe = {"model_ema_decay": 0.9, "augment": FULL, "epochs": 1, "precision": "fp64", "lr": 1e-4}
    trial = trial.model_copy(update={"train": trial.train.model_copy(update=recipe)})
    alone, changing = tmp_path / "alone", tmp_path / "changing"
    for folder in (alone, changing):
        sha256 = load_manifest(tiny_shards).sha256
        Run("tiny", "train", trial, "f" * 16, "cluttered-digits", sha256, folder).prepare()
    fit(trial, tiny_shards, alone, num_classes=10, ledger=True, log_every_steps=4)
    train(
        trial, tiny_shards, changing, sharded=True, device_batch_size=4, ledger=True, beat=functools.partial(dies_at, 6)
    )
    assert (changing / "checkpoint/step-00000004").is_dir()
    train(trial, tiny_shards, changing, device_batch_size=3, ledger=True, beat=functools.partial(dies_at, 13))
    assert (changing / "checkpoint/step-00000012").is_dir()
    fit(trial, tiny_shards, changing, num_classes=10, ledger=True, log_every_steps=4)
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (changing, alone))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in theirs)
    ours, theirs = (curves(read_journal(folder / "journal.jsonl")) for folder in (changing, alone))
    assert list(ours["train_loss"].values()) == pytest.approx(list(theirs["train_loss"].values()), abs=1e-9)
    assert check_ledger(changing, tiny_shards).replace("changing", "alone") == check_ledger(alone, tiny_shards)
    mine, one = (RankLedger(folder / "ledger/rank-00000.bin") for folder in (changing, alone))
    assert [len(ledger.indices(19)) for ledger in (mine, one)] == [20, 20]
    assert len(mine.indices(3)) == 10


@pytest.mark.slow
def test_sharded_training_resumes_bit_for_bit_and_keeps_whole_weights(
    tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    trial = next(trial for trial in plan_experiments(tiny_suite) if trial.name == "dart-4")
    trial = trial.model_copy(update={"train": trial.train.model_copy(update={"epochs": 1})})
    train(trial, tiny_shards, tmp_path / "whole", sharded=True)
    train(trial, tiny_shards, tmp_path / "parts", sharded=True, beat=functools.partial(dies_at, 9))
    train(trial, tiny_shards, tmp_path / "parts", sharded=True)
    network: Any = build_model(trial, 10)
    assert {id(block) for block in network.blocks} <= {id(layer) for layer in _layers(network)}
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "parts" / WEIGHTS).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks_train_what_takes_tokens_away_as_one_does(
    sharded: bool, tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    """One that draws nothing; the one that learns, and draws on every rank by itself, comes to its end."""
    trial = next(trial for trial in plan_experiments(tiny_suite) if trial.name == "dart-4")
    recipe = {"epochs": 1, "precision": "fp64", "lr": 1e-4}
    trial = trial.model_copy(update={"train": trial.train.model_copy(update=recipe)})
    evit = ReducerConfig(name="evit", keep=0.5, fuse=True)
    trial = trial.model_copy(update={"model": trial.model.model_copy(update={"reducer": evit})})
    train(trial, tiny_shards, tmp_path / "two", sharded=sharded)
    (tmp_path / "one").mkdir()
    fit(trial, tiny_shards, tmp_path / "one", num_classes=10)
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("two", "one"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in theirs)
    learned = ReducerConfig(name="dynamicvit", keep=0.5, ratio_weight=2.0)
    trial = trial.model_copy(update={"model": trial.model.model_copy(update={"reducer": learned})})
    train(trial, tiny_shards, tmp_path / "learned", sharded=sharded)
    found = load_file(tmp_path / "learned" / WEIGHTS)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.slow
def test_what_one_rank_loses_is_lost_for_all(tiny_suite: Suite, tiny_shards: Path, tmp_path: Path) -> None:
    """Both go back, though only one has seen the accident: the weights are those of an accident that both have seen."""
    trial = next(trial for trial in plan_experiments(tiny_suite) if trial.name == "uniform-4")
    config = DivergenceConfig(action="rewind", spike_factor=3.0, max_rewinds=1)
    trial = trial.model_copy(update={"train": trial.train.model_copy(update={"divergence": config, "epochs": 1})})
    for name, steps in (("one", [-1, 12]), ("both", [12, 12])):
        train(trial, tiny_shards, tmp_path / name, spoils_at=steps)
        assert "lost at step 13 of 20: loss " in (tmp_path / name / "journal.jsonl").read_text()
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "both" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_ranks_that_find_different_checkpoints_do_not_go_on(
    tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    trial = next(trial for trial in plan_experiments(tiny_suite) if trial.name == "uniform-4")
    train(trial, tiny_shards, tmp_path / "ours", steps=9)
    (tmp_path / "theirs").mkdir()
    with pytest.raises(multiprocessing.ProcessRaisedException, match=r"the ranks find checkpoints of steps \d+, 0"):
        train(trial, tiny_shards, tmp_path / "ours", other_dir=tmp_path / "theirs")
