"""Mixup and CutMix as timm draws them: a function of (seed, step), the same on every rank.

Each batch is mixed with itself in reverse order. `pipeline.data.loader` hands the ranks such parts of the global batch
that its pairs stay together, so the mixed global batch does not depend on the number of ranks either.
"""

import numpy as np
from timm.data import Mixup
from torch import Tensor

from pipeline.recipe import AugmentConfig


class Mixing:
    """timm's `Mixup`, one draw for the batch; where both kinds are on, each batch is of one of them.

    Args:
        config: Its `mixup` and `cutmix` are the parameters of the Beta distributions.
        label_smoothing: Of the targets, before they are mixed.
    """

    def __init__(self, config: AugmentConfig, label_smoothing: float, num_classes: int) -> None:
        self._mix = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) or clips (B, C, T, H, W), labels (B,) -> mixed, and targets (B, num_classes).

        Frames of a clip are mixed alike. `images` may be overwritten.
        """
        before = np.random.get_state()
        np.random.seed(seed % 2**32)
        try:
            flat = images.flatten(1, -3)  # timm reads the last but one and the last dimension as rows and columns
            mixed, targets = self._mix(flat, labels)
        finally:
            np.random.set_state(before)
        return mixed.view(images.shape), targets
