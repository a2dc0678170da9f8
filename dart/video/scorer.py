"""Where something happens: frames scored as images are, and by what is there only now.

# B batch, C channels, T frames, H W frame pixels, G_h G_w score grid of a frame, d feature channels, h w feature map
"""

from typing import Any

import torch
from torch import Tensor, nn

from dart.registry import CONTROL_SCORERS
from dart.scorer import ConvScorer, FeatureScorer, build_scorer

MAX_HIDDEN = 96  # channels between features and scores, as in the paper's heads


class VideoScorer(nn.Module):
    """An image's scores for every frame, plus the scores of its motion, weighed by what the clip is about.

    Motion is how much a frame's features differ from those of the frame before and after: where both differ, something
    is there only now (the smaller difference); where one does, it came or went (the larger). One layer picks from
    these, a gate from the clip's mean feature weighs what it found (as in arXiv 2506.10390, which compares with the
    frame before alone), and a 3 x 3 convolution makes scores of it. Without motion they are exactly zero: a still clip
    is scored as its image. The last layers start at zero, so training starts exactly at the uniform partition.

    No clip depends on its batch mates, in training either: see `FeatureScorer`.

    Args:
        frames: Scores frames, and has the features.
        dim: d.
    """

    def __init__(self, frames: ConvScorer | FeatureScorer, dim: int) -> None:
        super().__init__()
        hidden = min(dim, MAX_HIDDEN)
        self.frames = frames
        self.change = nn.Conv2d(2 * dim, hidden, 1, bias=False)
        self.topic = nn.Linear(dim, hidden)
        self.head = nn.Conv2d(hidden, 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) -> raw scores (B, T, G_h, G_w), any real number; T at least 1."""
        num_frames = clips.shape[2]
        images = clips.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
        # A blank frame's features may have gradients beyond the range of floats, see `FeatureScorer`.
        seen = (images != 0).flatten(1).any(1)[:, None, None, None]

        def motion(features: Tensor) -> Tensor:
            return self.score_motion(torch.where(seen, features, 0).unflatten(0, (-1, num_frames))).flatten(0, 1)

        return self.frames(images, motion).unflatten(0, (-1, num_frames))

    def score_motion(self, features: Tensor) -> Tensor:
        """Features of frames (B, T, d, h, w) -> scores (B, T, 1, h, w), zero where nothing changes."""
        still = features.shape[1] == 1
        step = torch.zeros_like(features) if still else features.diff(dim=1).abs()  # (B, T - 1, d, h, w)
        # The first frame has no frame before, the last none after: there the one difference counts as both.
        before = step if still else torch.cat([step[:, :1], step], 1)
        after = step if still else torch.cat([step, step[:, -1:]], 1)
        change = torch.cat([torch.minimum(before, after), torch.maximum(before, after)], 2)
        topic = self.topic(features.mean((1, 3, 4))).sigmoid()[:, None, :, None, None]
        found = self.change(change.flatten(0, 1)).relu().unflatten(0, features.shape[:2])
        return self.head((found * topic).flatten(0, 1)).unflatten(0, features.shape[:2])


def build_video_scorer(name: str, in_chans: int, **options: Any) -> VideoScorer:
    """A scorer by its name: clips (B, C, T, H, W) -> raw scores (B, T, G_h, G_w), all zero until trained.

    Args:
        name: A name of `dart.scorer.build_scorer`, none of its controls; its features are compared between frames.
        in_chans: C.
        options: Those of `build_scorer`.

    Raises:
        ValueError: as `build_scorer`.
    """
    if name in CONTROL_SCORERS:
        raise ValueError(f"scorer = {name!r}: a control that scores images, it has no features of clips; use another")
    frames: Any = build_scorer(name, in_chans, **options)
    first: Any = frames.head[0] if isinstance(frames.head, nn.Sequential) else frames.head
    return VideoScorer(frames, first.in_channels)
