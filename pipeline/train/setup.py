"""What does not change while a model is trained."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.config import Trial
from pipeline.data.clips import clip_sampling
from pipeline.data.masks import recorded_masks


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

    @property
    def num_steps(self) -> int:
        return self.trial.train.epochs * self.steps_per_epoch

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the images."""
        return torch.float64 if self.trial.train.precision == "fp64" else torch.float32

    @property
    def views(self) -> dict[str, Any]:
        """How stored pictures become what the model reads: arguments of the loaders."""
        train, science = self.trial.train, self.trial.science()
        masks, clips = recorded_masks(science), clip_sampling(science)
        return {"augment": train.augment, "img_size": self.trial.model.img_size, "clips": clips, "masks": masks}
