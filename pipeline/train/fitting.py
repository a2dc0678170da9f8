"""A training in progress: its steps, what is due between them, and its end. `pipeline.train.loop` sets it up."""

import copy
import logging
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from pipeline.data.ledger import Ledger
from pipeline.journal import Journal
from pipeline.model import model_kwargs
from pipeline.train import divergence, state
from pipeline.train.batches import train_batches
from pipeline.train.checkpoint import Identity, Position, Rewind, load_checkpoint, save_checkpoint, save_weights
from pipeline.train.divergence import Diverged
from pipeline.train.gradients import backward, clip
from pipeline.train.objective import build_objective, step_seed
from pipeline.train.optim import scheduled_lr, set_lr
from pipeline.train.ranks import all_say, first_says, share_buffers, sum_over_ranks
from pipeline.train.run import CHECKPOINTS, WEIGHTS
from pipeline.train.setup import Setup
from pipeline.train.sharding import shard
from pipeline.train.watch import READ

log = logging.getLogger(__name__)


class FitResult(NamedTuple):
    """What a finished training is recorded with; `wall_s` counts all attempts.

    diverged: Where and why it was lost, if it did not reach its end; the weights are those before.
    """

    metrics: dict[str, float]
    num_steps: int
    num_samples: int
    wall_s: float
    rewinds: tuple[Rewind, ...] = ()
    diverged: str = ""


class Fitting:
    """A training in progress: the model, the optimizer, and the position."""

    def __init__(self, setup: Setup, identity: Identity, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.setup, self.identity, self.model, self.optimizer = setup, identity, model, optimizer
        train = setup.trial.train
        self.ema = ModelEmaV3(model, decay=train.model_ema_decay) if train.model_ema_decay else None
        self.objective = build_objective(setup)
        self.journal = Journal(setup.run_dir) if setup.rank == 0 else None
        self.ledger = Ledger(setup.run_dir, setup.rank) if setup.ledger else None
        self.position = Position(0, 0.0, {})
        self.rewinding = train.divergence is not None and train.divergence.action == "rewind"
        self.saved_at = self.logged_at = time.monotonic()
        self.losses = torch.zeros((), dtype=torch.float64, device=setup.device)  # since the last line of the journal
        self.num_losses = 0
        self.warm = False  # the first step of a process compiles, allocates, connects

    @property
    def averaged(self) -> nn.Module | None:
        """The model whose weights are the running average, if there is one."""
        return self.ema.module if self.ema else None

    def resume(self) -> None:
        """Load the newest sound checkpoint, on every rank.

        Raises:
            RuntimeError: ranks found different ones; storage that several nodes share may be slow to agree.
        """
        setup, root = self.setup, self.setup.run_dir / CHECKPOINTS
        moments_on = torch.device("cpu") if setup.sharded else None  # whole moments are more than weights
        self.position = load_checkpoint(
            root, self.identity, self.model, self.optimizer, self.note, self.averaged, moments_on
        )
        found = all_say(self.position.step, setup.world_size, setup.device)
        if len(set(found)) > 1:  # all ranks end here: none waits for another
            steps = ", ".join(map(str, found))
            raise RuntimeError(f"{root}: the ranks find checkpoints of steps {steps}; all nodes must share the storage")
        if self.position.step:
            self.note(f"resumed at step {self.position.step}")
        if setup.sharded:
            self.entire = copy.deepcopy(self.model)
            shard(self.model, self.optimizer, self.ema)
        self.take_snapshot()

    def run(self, net: nn.Module, report: Callable[[dict[str, Any]], None]) -> FitResult:
        """Train from the position to the end, epoch by epoch."""
        setup, diverged = self.setup, ""
        try:
            for epoch in range(self.position.step // setup.steps_per_epoch, setup.trial.train.epochs):
                self.train_epoch(net, epoch)
                setup.beat(self.position.step, True)
                share_buffers(self.averaged or self.model, setup.world_size)
                self.log(self.validate())
                self.save()
                self.take_snapshot()
                position = self.position
                report({"epoch": epoch + 1, "step": position.step, "train_s": position.train_s, **position.metrics})
        except Diverged as lost:
            diverged = self.give_up(lost)
        result = self.result()
        if self.journal:
            trial = setup.trial
            kwargs = model_kwargs(trial.architecture(), setup.num_classes, trial.train.normalised)
            save_weights(setup.run_dir / WEIGHTS, result, self.identity.model_name, kwargs)
            self.journal.artifact(WEIGHTS)
        position, num_steps = self.position, self.position.step
        num_samples = num_steps * setup.trial.train.global_batch_size
        return FitResult(position.metrics, num_steps, num_samples, position.train_s, position.rewinds, diverged)

    def result(self) -> nn.Module:
        """The model that is validated, and kept in the end: whole on every rank."""
        found = self.averaged or self.model
        if not self.setup.sharded:
            return found
        self.entire.load_state_dict(state.whole_tensors(found.state_dict()))
        return self.entire

    def train_epoch(self, net: nn.Module, epoch: int) -> None:
        """The rest of an epoch from the position on."""
        setup, start = self.setup, self.position.step
        net.train()
        self.advance_clock()  # what came before is not part of this epoch's images per second
        self.start_window()
        setup.beat(start, True)
        patient = setup.slow_source
        for images, labels, indices in train_batches(setup, epoch, start - epoch * setup.steps_per_epoch):
            setup.beat(self.position.step + READ, not self.warm)
            if self.ledger:
                self.ledger.append(self.position.step, indices.tolist())
            try:
                loss, recent = self.train_step(net, images.to(setup.device, setup.dtype), labels.to(setup.device))
                self.losses += loss
                self.num_losses += 1
                self.position = self.position._replace(step=self.position.step + 1, recent=recent)
            except Diverged as lost:
                lost.step = self.position.step + 1
                self.rewind(lost)
            self.warm = True
            self.after_step()
            setup.beat(self.position.step, patient)

    def after_step(self) -> None:
        """What is due now and then: a line in the journal, a snapshot, a checkpoint."""
        setup, step = self.setup, self.position.step
        ends = step % setup.steps_per_epoch == 0  # an epoch is saved when it has been validated
        snapshot = self.rewinding and divergence.is_snapshot(step, setup.steps_per_epoch)
        if not (step % setup.log_every_steps == 0 or ends or snapshot):
            return
        self.log_window()
        if snapshot and not ends:
            self.take_snapshot()
        if not ends and (snapshot or not self.rewinding):
            due = time.monotonic() - self.saved_at >= setup.checkpoint_every_s
            if first_says(due, setup.world_size, setup.device):
                self.save()

    def train_step(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[float, ...]]:
        """One optimizer step; returns this rank's mean loss, detached, and the last losses of all ranks.

        Raises:
            Diverged: on every rank, before the weights are spoilt.
        """
        setup, train = self.setup, self.setup.trial.train
        torch.manual_seed(step_seed(setup.trial.seed, self.position.step, setup.rank))
        set_lr(self.optimizer, scheduled_lr(train, self.position.step, setup.num_steps))
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(setup, self.objective, net, images, labels, self.position.step, not self.warm)
        norm = float(clip(self.model, train.clip_grad or math.inf))
        watched = train.divergence is not None and train.divergence.spike_factor is not None
        mean = float(sum_over_ranks(loss.clone(), setup.world_size)) / setup.world_size if watched else None
        recent = divergence.check(train.divergence, norm, mean, self.position.recent)
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model)
        return loss, recent

    def validate(self) -> dict[str, float]:
        """The scores of the val split; of the snapshot's weights, where the last step has spoilt them."""
        while True:
            found = self.objective.validate(self.result())
            try:
                divergence.check_validation(found, self.position.step)
                return found
            except Diverged as lost:  # equal on every rank
                self.rewind(lost)

    def take_snapshot(self) -> None:
        """Keep what a rewind goes back to, if there may be one."""
        if self.rewinding:
            self.snapshot = (state.copied(state.take(self.model, self.optimizer, self.averaged)), self.position)

    def rewind(self, lost: Diverged) -> None:
        """Go back to the snapshot, and on with the batch after the lost one; or raise `lost`, where that may not be."""
        config, now = self.setup.trial.train.divergence, self.position
        if not divergence.may_rewind(config, now.rewinds):
            raise lost
        tensors, then = self.snapshot
        state.put(tensors, self.model, self.optimizer, self.averaged)
        rewinds = (*now.rewinds, Rewind(lost.step, then.step, str(lost)))
        self.position = then._replace(step=lost.step, train_s=now.train_s, rewinds=rewinds)
        self.start_window()
        self.note(f"lost at step {lost.step} of {self.setup.num_steps}: {lost}; rewound to step {then.step}")
        self.snapshot = (tensors, self.position)

    def give_up(self, lost: Diverged) -> str:
        """What the record says of a training that was lost; raises UserError where there is to be no record."""
        told = divergence.told(self.setup.trial.train.divergence, lost, self.position, self.setup.num_steps)
        self.note(f"{told}: {lost}")
        return told

    def start_window(self) -> None:
        """Forget the losses that no line of the journal tells of."""
        self.losses.zero_()
        self.num_losses = 0

    def log_window(self) -> None:
        """The mean loss since the last line, into the journal."""
        setup, step = self.setup, self.position.step
        if not self.num_losses:
            return  # a rewind has just taken them back
        size = self.num_losses * setup.trial.train.global_batch_size
        mean = float(sum_over_ranks(self.losses.clone(), setup.world_size)) / (self.num_losses * setup.world_size)
        rate = scheduled_lr(setup.trial.train, step - 1, setup.num_steps)
        self.log({"train_loss": mean, "lr": rate, "epoch": step / setup.steps_per_epoch,
                  "images_per_s": size / self.advance_clock()})  # fmt: skip
        self.start_window()

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

    def save(self) -> None:
        """Rank 0 publishes a checkpoint; the others need not wait for it."""
        self.advance_clock()
        self.setup.beat(self.position.step, True)
        if self.journal or self.setup.sharded:
            taken = state.take(self.model, self.optimizer, self.averaged)
            tensors = state.whole(taken, keep=self.setup.rank == 0)
            if self.journal:
                save_checkpoint(self.setup.run_dir / CHECKPOINTS, self.identity, self.position, tensors)
        self.saved_at = time.monotonic()
