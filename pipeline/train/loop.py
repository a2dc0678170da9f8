"""The training loop: plain torch, one process of one or many. Nothing here knows of a cluster.

Randomness is arithmetic: the weights come from the trial's seed, the order of samples from (seed, epoch), and
torch's generator is seeded anew for every step from (seed, step, rank). A position is therefore the whole state
beside the tensors, and a resumed training continues bit for bit.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pipeline.config import Trial, absurd_precision
from pipeline.data.index import load_manifest
from pipeline.data.order import GlobalBatches
from pipeline.errors import UserError
from pipeline.model import build_model
from pipeline.provenance import hash_json
from pipeline.train.checkpoint import Identity, has_checkpoint
from pipeline.train.fitting import FitResult, Fitting
from pipeline.train.optim import build_optimizer
from pipeline.train.run import CHECKPOINTS, WEIGHTS
from pipeline.train.setup import Setup
from pipeline.train.start import borrows, load_start
from pipeline.train.watch import Beat, beat_unheard

__all__ = ["WEIGHTS", "FitResult", "fit"]

log = logging.getLogger(__name__)


def fit(
    trial: Trial,
    data_dir: Path,
    run_dir: Path,
    *,
    num_classes: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    loader_workers: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda metrics: None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    log_every_steps: int = 20,
    checkpoint_every_s: float = 30.0,
    init_dir: Path | None = None,
    dropped: Mapping[str, Sequence[int]] = MappingProxyType({}),
    device_batch_size: int | None = None,
    sharded: bool = False,
    ledger: bool = False,
    beat: Beat = beat_unheard,
) -> FitResult:
    """Train `trial` on the shards of `data_dir`, going on from a checkpoint in `run_dir` if there is one.

    Rank 0 writes the journal, the checkpoints and at the end model.safetensors into `run_dir`; with more than one
    process, torch.distributed must be initialised.

    Args:
        report: Is given the metrics after each epoch, on every rank.
        wrap: Makes the model data parallel; its gradients must be averaged over the ranks. Not called if `sharded`.
        init_dir: The folder of the finished run whose weights are started from, where the trial has an `init_from`.
        dropped: By split, the indices of samples that are left out; the same on every rank.
        device_batch_size, sharded, ledger, beat: See `Setup`.

    Raises:
        UserError: the training diverged and the trial does not say what then, the data is smaller than a batch, or the
            checkpoint is another's; the weights to start from are missing; the disk is full.
    """
    manifest = load_manifest(data_dir)
    dropped = {split: list(indices) for split, indices in dropped.items() if len(indices)}
    steps_per_epoch = GlobalBatches(
        manifest.split("train").num_samples - len(dropped.get("train", ())),
        trial.train.global_batch_size,
        trial.seed,
        0,
        rank,
        world_size,
        paired=trial.train.mixing is not None,
    ).num_batches
    device = torch.device(device)
    for line in absurd_precision(trial, device.type):
        raise UserError(line)
    setup = Setup(
        trial, data_dir, num_classes, run_dir, rank, world_size, device, loader_workers, steps_per_epoch,
        log_every_steps, checkpoint_every_s, dropped, device_batch_size, sharded and world_size > 1, ledger, beat,
    )  # fmt: skip
    left_out = hash_json(dropped) if dropped else ""
    identity = Identity(trial.model_name, hash_json(trial.science()), manifest.sha256, left_out)
    log.info("%s seed %d: rank %d of %d on %s", trial.model_name, trial.seed, rank, world_size, device)
    # Weights that a checkpoint replaces are not fetched: where a run goes on there may be no network.
    goes_on = borrows(trial) and has_checkpoint(run_dir / CHECKPOINTS)
    fitting = _begin(setup, identity, init_dir, fetch=not goes_on)
    if goes_on and fitting.position.step == 0:  # not one of its checkpoints was sound
        fitting = _begin(setup, identity, init_dir, fetch=True)
    return fitting.run(fitting.model if setup.sharded else wrap(fitting.model), report)


def _begin(setup: Setup, identity: Identity, init_dir: Path | None, *, fetch: bool) -> Fitting:
    """From the seed, or from the newest sound checkpoint; `fetch`: with the weights that the trial starts from."""
    trial = setup.trial
    torch.manual_seed(trial.seed)
    model = build_model(trial, setup.num_classes, to_train=True, fetch=fetch).to(setup.device, setup.dtype)
    if trial.init_from is not None and fetch:
        load_start(model, trial, init_dir)
    fitting = Fitting(setup, identity, model, build_optimizer(model, trial.train))
    fitting.resume()
    return fitting
