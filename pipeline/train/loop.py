"""The training loop: plain torch, one process of one or many. Nothing here knows of a cluster.

Randomness is arithmetic: the weights come from the trial's seed, the order of samples from (seed, epoch), and
torch's generator is seeded anew for every step from (seed, step, rank). A position is therefore the whole state
beside the tensors, and a resumed training continues bit for bit.
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from pipeline.config import Trial, absurd_precision
from pipeline.data.index import load_manifest
from pipeline.data.loader import train_loader
from pipeline.data.order import GlobalBatches
from pipeline.errors import UserError, problem
from pipeline.journal import Journal
from pipeline.model import build_model, model_kwargs
from pipeline.provenance import hash_json
from pipeline.train.checkpoint import Identity, Position, load_checkpoint, save_checkpoint, save_weights
from pipeline.train.objective import build_objective, step_seed
from pipeline.train.optim import build_optimizer, lr_factor, set_lr
from pipeline.train.ranks import share_buffers, sum_over_ranks
from pipeline.train.setup import Setup

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoint"
WEIGHTS = "model.safetensors"


class FitResult(NamedTuple):
    """What a finished training is recorded with; `wall_s` counts all attempts."""

    metrics: dict[str, float]
    num_steps: int
    num_samples: int
    wall_s: float


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
) -> FitResult:
    """Train `trial` on the shards of `data_dir`, going on from a checkpoint in `run_dir` if there is one.

    Rank 0 writes the journal, the checkpoints and at the end model.safetensors into `run_dir`; with more than one
    process, torch.distributed must be initialised.

    Args:
        report: Is given the metrics after each epoch, on every rank.
        wrap: Makes the model data parallel; its gradients must be averaged over the ranks.
        init_dir: The folder of the finished run whose weights are started from, where the trial has an `init_from`.

    Raises:
        UserError: the loss is not finite, the data is smaller than a batch, or the checkpoint is another's; the
            weights to start from are missing.
    """
    manifest = load_manifest(data_dir)
    steps_per_epoch = GlobalBatches(
        manifest.split("train").num_samples,
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
        log_every_steps, checkpoint_every_s,
    )  # fmt: skip
    torch.manual_seed(trial.seed)
    model = build_model(trial, num_classes, to_train=True).to(device, setup.dtype)
    if trial.init_from is not None:
        load_start(model, trial, init_dir)
    optimizer = build_optimizer(model, trial.train)
    identity = Identity(trial.model_name, hash_json(trial.science()), manifest.sha256)
    log.info("%s seed %d: rank %d of %d on %s", trial.model_name, trial.seed, rank, world_size, device)
    fitting = _Fitting(setup, identity, model, optimizer)
    fitting.resume()
    return fitting.run(wrap(model), report)


class _Fitting:
    """A training in progress: the model, the optimizer, and the position."""

    def __init__(self, setup: Setup, identity: Identity, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.setup, self.identity, self.model, self.optimizer = setup, identity, model, optimizer
        train = setup.trial.train
        self.ema = ModelEmaV3(model, decay=train.model_ema_decay) if train.model_ema_decay else None
        self.objective = build_objective(setup)
        self.journal = Journal(setup.run_dir) if setup.rank == 0 else None
        self.position = Position(0, 0.0, {})
        self.saved_at = self.logged_at = time.monotonic()

    @property
    def averaged(self) -> nn.Module | None:
        """The model whose weights are the running average, if there is one."""
        return self.ema.module if self.ema else None

    @property
    def result(self) -> nn.Module:
        """The model that is validated, and kept in the end."""
        return self.averaged or self.model

    def resume(self) -> None:
        """Load the newest sound checkpoint, on every rank before the ranks meet."""
        root = self.setup.run_dir / CHECKPOINTS
        self.position = load_checkpoint(root, self.identity, self.model, self.optimizer, self.note, self.averaged)
        if self.position.step:
            self.note(f"resumed at step {self.position.step}")

    def run(self, net: nn.Module, report: Callable[[dict[str, Any]], None]) -> FitResult:
        """Train from the position to the end, epoch by epoch."""
        setup = self.setup
        for epoch in range(self.position.step // setup.steps_per_epoch, setup.trial.train.epochs):
            self.train_epoch(net, epoch)
            share_buffers(self.result, setup.world_size)
            self.log(self.objective.validate(self.result))
            self.save()
            position = self.position
            report({"epoch": epoch + 1, "step": position.step, "train_s": position.train_s, **position.metrics})
        if self.journal:
            trial = setup.trial
            kwargs = model_kwargs(trial.architecture(), setup.num_classes, trial.train.normalised)
            save_weights(setup.run_dir / WEIGHTS, self.result, self.identity.model_name, kwargs)
            self.journal.artifact(WEIGHTS)
        num_samples = setup.num_steps * setup.trial.train.global_batch_size
        return FitResult(self.position.metrics, setup.num_steps, num_samples, self.position.train_s)

    def train_epoch(self, net: nn.Module, epoch: int) -> None:
        """The rest of an epoch from the position on."""
        setup, train = self.setup, self.setup.trial.train
        net.train()
        self.advance_clock()  # what came before is not part of this epoch's images per second
        loss_sum = torch.zeros((), dtype=torch.float64, device=setup.device)
        since = start = self.position.step
        for images, labels, _ in self.batches(epoch, start - epoch * setup.steps_per_epoch):
            loss_sum += self.train_step(net, images.to(setup.device, setup.dtype), labels.to(setup.device))
            step = self.position.step + 1
            self.position = self.position._replace(step=step)
            if step % setup.log_every_steps == 0 or step % setup.steps_per_epoch == 0:
                loss = self.mean_loss(loss_sum, step - since)
                rate = (step - since) * train.global_batch_size / self.advance_clock()
                self.log({"train_loss": loss, "lr": self.lr(step - 1), "epoch": step / setup.steps_per_epoch,
                          "images_per_s": rate})  # fmt: skip
                loss_sum.zero_()
                since = step
                if step % setup.steps_per_epoch:  # an epoch is saved when it has been validated
                    self.save_now_and_then()

    def batches(self, epoch: int, start_batch: int) -> Any:
        """This rank's slices of the epoch's global batches, from `start_batch` on."""
        setup, train = self.setup, self.setup.trial.train
        return train_loader(
            setup.data_dir,
            global_batch_size=train.global_batch_size,
            seed=setup.trial.seed,
            epoch=epoch,
            start_batch=start_batch,
            rank=setup.rank,
            world_size=setup.world_size,
            loader_workers=setup.loader_workers,
            **setup.views,
        )

    def train_step(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """One optimizer step; returns this rank's mean loss, detached, still on the device."""
        setup, train = self.setup, self.setup.trial.train
        torch.manual_seed(step_seed(setup.trial.seed, self.position.step, setup.rank))
        set_lr(self.optimizer, self.lr(self.position.step))
        loss = self.objective.loss(net, images, labels, self.position.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_grad or math.inf)
        if not torch.isfinite(norm):  # the same on every rank, and seen before the weights are spoilt
            rule = f"not finite at step {self.position.step + 1} of {setup.num_steps}, the training diverged"
            raise UserError(problem("gradient norm", float(norm), rule, "lower train.lr or train.clip_grad"))
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model)
        return loss.detach().double()

    def lr(self, step: int) -> float:
        """The learning rate of optimizer step `step`."""
        train = self.setup.trial.train
        warmup_steps = round(train.warmup_frac * self.setup.num_steps)
        return train.lr * lr_factor(step, self.setup.num_steps, warmup_steps, train.min_lr / train.lr)

    def mean_loss(self, loss_sum: Tensor, count: int) -> float:
        """The mean over the ranks and the `count` steps that this rank's `loss_sum` is of."""
        total = sum_over_ranks(loss_sum.clone(), self.setup.world_size)
        return float(total) / (count * self.setup.world_size)

    def log(self, values: dict[str, float]) -> None:
        """Into the journal, and into the position for the metrics that a finished run is recorded with."""
        kept = {name: value for name, value in values.items() if name.startswith(("train_", "val_"))}
        self.position = self.position._replace(metrics={**self.position.metrics, **kept})
        if self.journal:
            self.journal.metrics(self.position.step, **values)

    def note(self, text: str) -> None:
        """An event worth knowing later."""
        if self.journal:
            self.journal.event(text)
            log.info(text)

    def advance_clock(self) -> float:
        """Seconds since the last call, added to the time spent training."""
        now = time.monotonic()
        elapsed_s, self.logged_at = now - self.logged_at, now
        self.position = self.position._replace(train_s=self.position.train_s + elapsed_s)
        return elapsed_s

    def save_now_and_then(self) -> None:
        if time.monotonic() - self.saved_at >= self.setup.checkpoint_every_s:
            self.save()

    def save(self) -> None:
        """Rank 0 publishes a checkpoint; the others need not wait for it."""
        self.advance_clock()
        if self.journal:
            root = self.setup.run_dir / CHECKPOINTS
            save_checkpoint(root, self.identity, self.position, self.model, self.optimizer, self.averaged)
        self.saved_at = time.monotonic()


def load_start(model: nn.Module, trial: Trial, init_dir: Path | None) -> None:
    """Load the final weights of the run that `trial.init_from` has, whose folder is `init_dir`, into the model.

    Raises:
        UserError: they are not there, or of another shape.
    """
    assert trial.init_from is not None
    path = init_dir / WEIGHTS if init_dir else None
    where = f"experiments.{trial.name}.init_from"
    if path is None or not path.is_file():
        raise UserError(problem(where, trial.init_from.name, "has left no weights", "see why its run failed"))
    from dart.models.checkpoint import filter_checkpoint  # a table of positions is resampled to the model's

    try:
        model.load_state_dict(filter_checkpoint(load_file(path), cast(Any, model)))
    except (RuntimeError, ValueError) as error:
        rule = f"its weights are another model's ({str(error).splitlines()[-1].strip()})"
        raise UserError(problem(where, trial.init_from.name, rule)) from None
