"""What one process of a training reads."""

from collections.abc import Iterable
from typing import Any

from pipeline.data.loader import eval_loader, train_loader
from pipeline.train.setup import Setup


def train_batches(setup: Setup, epoch: int, start_batch: int) -> Iterable[Any]:
    """This rank's slices of the epoch's global batches, from `start_batch` on: (images, labels, indices)."""
    return train_loader(
        setup.data_dir,
        global_batch_size=setup.trial.train.global_batch_size,
        seed=setup.trial.seed,
        epoch=epoch,
        start_batch=start_batch,
        rank=setup.rank,
        world_size=setup.world_size,
        loader_workers=setup.loader_workers,
        dropped=setup.dropped.get("train", ()),
        **setup.views,
    )


def val_batches(setup: Setup, batch_size: int) -> Iterable[Any]:
    """This rank's batches of the val split."""
    return eval_loader(
        setup.data_dir, "val", batch_size, setup.rank, setup.world_size, setup.loader_workers,
        dropped=setup.dropped.get("val", ()), **setup.views,
    )  # fmt: skip
