"""What does not change while a model is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from pipeline.config import Trial
from pipeline.data.clips import clip_sampling
from pipeline.data.masks import recorded_masks
from pipeline.data.source import SOURCE_FILE
from pipeline.train.watch import Beat, beat_unheard


class Setup(NamedTuple):
    """What stays the same for the whole training, on one of its processes."""

    trial: Trial
    data_dir: Path
    num_classes: int
    run_dir: Path
    rank: int
    world_size: int
    device: torch.device
    loader_workers: int
    steps_per_epoch: int
    log_every_steps: int
    checkpoint_every_s: float
    dropped: Mapping[str, Sequence[int]] = MappingProxyType({})  # samples of a split that are left out: their indices
    device_batch_size: int | None = None  # samples at once; None: all of this rank's
    sharded: bool = False  # weights, gradients and moments are spread over the ranks
    ledger: bool = False  # what was read is written down
    beat: Beat = beat_unheard

    @property
    def num_steps(self) -> int:
        return self.trial.train.epochs * self.steps_per_epoch

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the images."""
        return torch.float64 if self.trial.train.precision == "fp64" else torch.float32

    @property
    def slow_source(self) -> bool:
        """Whether the shards come from elsewhere, so that a sample may be long in coming."""
        return (self.data_dir / SOURCE_FILE).is_file()

    @property
    def views(self) -> dict[str, Any]:
        """How stored pictures become what the model reads: arguments of the loaders."""
        train, science = self.trial.train, self.trial.science()
        masks, clips = recorded_masks(science), clip_sampling(science)
        return {
            "augment": train.augment, "img_size": self.trial.model.img_size, "clips": clips, "masks": masks,
            "verify": "samples",  # who started the run has looked at whole shards, once for all ranks
        }  # fmt: skip
