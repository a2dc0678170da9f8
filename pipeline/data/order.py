"""Which sample comes when is arithmetic, not the outcome of a race.

The order of an epoch is a function of (number of samples, seed, epoch) alone. Global batch b is the b-th slice
of it, whatever the ranks and loader workers, so a run resumes at any batch, at the same cost, on any world size.

With repeated augmentation a sample comes several times in an epoch. What is ordered are then draws: draw d is sample
d % n, for the (d // n)-th time.
"""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.config import indivisible_batch
from pipeline.errors import UserError, problem


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation (n,) int64 in which an epoch visits the samples."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def epoch_draws(num_samples: int, seed: int, epoch: int, aug_repeats: int) -> np.ndarray:
    """The draws (n,) int64 of an epoch with repeated augmentation (arXiv 1901.09335), as DeiT counts them.

    The first n / aug_repeats samples of the order come `aug_repeats` times each, one time after the other: an epoch
    has as many draws as without, of fewer samples.
    """
    order = epoch_order(num_samples, seed, epoch)
    repeats = np.arange(aug_repeats, dtype=np.int64) * num_samples
    return (order[:, None] + repeats).reshape(-1)[:num_samples]


@dataclass(frozen=True)
class GlobalBatches:
    """The batches of one epoch as one rank sees them: a batch sampler for a DataLoader.

    Global batch b is `epoch_draws(...)[b * G : (b + 1) * G]`; rank r reads the r-th of `world_size` equal
    slices of it. A last batch that is not full is left out.

    Args:
        paired: Rank r reads the r-th slice of the batch's first half, and its mirror image in the second. A rank's
            i-th sample from the front and from the back are then those of the global batch, whatever the ranks:
            mixing them mixes the same pairs everywhere.

    Raises:
        UserError: if the batch does not divide by the ranks, or is larger than the data set.
    """

    num_samples: int
    global_batch_size: int
    seed: int
    epoch: int
    rank: int = 0
    world_size: int = 1
    start_batch: int = 0  # global batches of this epoch that are done already
    aug_repeats: int = 1
    paired: bool = False

    def __post_init__(self) -> None:
        where = "train.global_batch_size"
        for line in indivisible_batch(where, self.global_batch_size, self.world_size, self.paired):
            raise UserError(line)
        if self.global_batch_size > self.num_samples:
            rule = f"more than the {self.num_samples} samples of the training split"
            raise UserError(problem(where, self.global_batch_size, rule, f"at most {self.num_samples}"))

    @property
    def num_batches(self) -> int:
        """Global batches in the whole epoch, those before `start_batch` included."""
        return self.num_samples // self.global_batch_size

    def __len__(self) -> int:
        return max(0, self.num_batches - self.start_batch)

    def __iter__(self) -> Iterator[list[int]]:
        draws = epoch_draws(self.num_samples, self.seed, self.epoch, self.aug_repeats)
        size = self.global_batch_size
        share = size // self.world_size
        for batch in range(self.start_batch, self.num_batches):
            whole = draws[batch * size : (batch + 1) * size]
            if self.paired:
                front = slice(self.rank * share // 2, (self.rank + 1) * share // 2)
                yield np.concatenate([whole[front], whole[::-1][front][::-1]]).tolist()
            else:
                yield whole[self.rank * share : (self.rank + 1) * share].tolist()


def eval_batches(num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """One rank's batches of all samples, in order: over the ranks each sample comes exactly once.

    Ranks have whole batches, so that who is in a batch with whom does not depend on their number: a model in paper
    mode, whose answers depend on it, then gives the same.
    """
    batches = [list(range(i, min(i + batch_size, num_samples))) for i in range(0, num_samples, batch_size)]
    start, stop = (len(batches) * r // world_size for r in (rank, rank + 1))
    return batches[start:stop]


class Batches(Iterable[list[int]], Sized, Protocol):
    """What a DataLoader takes for its batches."""


def kept_indices(num_samples: int, dropped: Sequence[int]) -> np.ndarray:
    """The samples of a split that are not left out: increasing (m,) int64."""
    return np.delete(np.arange(num_samples, dtype=np.int64), np.asarray(dropped, np.int64))


@dataclass(frozen=True)
class KeptBatches:
    """Batches of the m samples that are kept -> the same as draws of the whole split of n.

    Draw d of the kept is the (d % m)-th kept sample, for the (d // m)-th time.
    """

    batches: Batches
    num_samples: int  # n
    dropped: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        kept = kept_indices(self.num_samples, self.dropped)
        for batch in self.batches:
            repeats, places = np.divmod(np.asarray(batch, np.int64), len(kept))
            yield (kept[places] + repeats * self.num_samples).tolist()


def keep(batches: Batches, num_samples: int, dropped: Sequence[int]) -> Batches:
    """`batches` of the samples that remain, in numbers of the whole split; themselves if none is left out."""
    return KeptBatches(batches, num_samples, tuple(dropped)) if len(dropped) else batches
