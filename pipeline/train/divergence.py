"""A training that loses what it learnt: how that is seen, and when it goes back.

It is lost where the gradient's norm is not finite, or where the loss of a global batch is above `spike_factor` x the
median of the last ones. That is seen before the weights change, from numbers that are equal on every rank. Where a step
with a finite gradient spoils the weights all the same, the next one shows it, or the validation.

To rewind is to put back the weights, moments and averages of the last snapshot, and to go on with the batch after the
one that was lost: steps since the snapshot have then changed nothing, and what follows has its place in the order of
samples and in the schedule as ever. Snapshots are taken at steps that arithmetic says, and only they are published, so
a training that is killed on the way does the same again.
"""

import math
from collections.abc import Mapping
from statistics import median

from pipeline.errors import UserError, problem
from pipeline.recipe import DivergenceConfig
from pipeline.train.checkpoint import Position, Rewind

SNAPSHOT_STEPS = 100  # between snapshots; there is one at the end of every epoch, too
RECENT = 50  # losses whose median a spike is measured by
FEWEST = 10  # of them, before anything is called a spike


class Diverged(Exception):
    """The step that was about to be taken would have spoilt the weights, or the last one has; says why.

    Args:
        what, value: What shows it.
        step: That was lost, counted from 1; whoever counts them says it.
    """

    def __init__(self, reason: str, what: str, value: float, step: int = 0) -> None:
        super().__init__(reason)
        self.what, self.value, self.step = what, value, step


def is_snapshot(step: int, steps_per_epoch: int) -> bool:
    """Whether there is a snapshot after `step` steps."""
    return step % steps_per_epoch % SNAPSHOT_STEPS == 0


def check(
    config: DivergenceConfig | None, norm: float, loss: float | None, recent: tuple[float, ...]
) -> tuple[float, ...]:
    """`recent` with the new loss, the last `RECENT` of them.

    Args:
        loss: Of the global batch; None where nobody looks for spikes.

    Raises:
        Diverged: the training is lost.
    """
    if not math.isfinite(norm):
        raise Diverged(f"gradient norm {norm} is not finite", "gradient norm", norm)
    if config is None or config.spike_factor is None or loss is None:
        return recent
    if len(recent) >= FEWEST and loss > config.spike_factor * (usual := median(recent)):
        reason = f"loss {loss:.4g} is above {config.spike_factor:g} x the median {usual:.4g} of the last ones"
        raise Diverged(reason, "loss", loss)
    return (*recent, loss)[-RECENT:]


def check_validation(found: Mapping[str, float], step: int) -> None:
    """Raise Diverged where the weights after `step` steps give no numbers: the last gradient may have been finite."""
    for name, value in found.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} {value} is not finite", name, value, step)


def may_rewind(config: DivergenceConfig | None, rewinds: tuple[Rewind, ...]) -> bool:
    """Whether a lost training goes on."""
    return config is not None and config.action == "rewind" and len(rewinds) < config.max_rewinds


def told(config: DivergenceConfig | None, lost: Diverged, position: Position, num_steps: int) -> str:
    """What the record says of a training that was lost; `position` knows how often it was before.

    Raises:
        UserError: the recipe does not say what then; there is no record.
    """
    rewinds = len(position.rewinds)
    if config is None:
        rule = f"not finite at step {lost.step} of {num_steps}, the training diverged"
        raise UserError(problem(lost.what, lost.value, rule, "lower train.lr or train.clip_grad"))
    return f"diverged at step {lost.step} of {num_steps}" + (f" after {rewinds} rewinds" if rewinds else "")
