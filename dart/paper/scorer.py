"""The paper's score networks: ImageNet features, a small head, and statistics over the whole batch.

# B batch, C channels, H W image pixels, F feature channels, h w feature grid, G_h G_w score grid
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.features import torchvision_model
from dart.paper.geometry import EPS


class ScorerSpec(NamedTuple):
    """A score network: a torchvision model, how many of its stages, and the head that reads them."""

    features: str
    num_stages: int
    num_features: int
    hidden: int
    gated: bool  # the second version of the head

    @property
    def num_outputs(self) -> int:
        return self.num_features if self.gated else 1


SCORERS = {
    "mobilenetv3_small_v1": ScorerSpec("mobilenet_v3_small", 11, 96, 96, False),
    "mobilenetv3_small_v2": ScorerSpec("mobilenet_v3_small", 13, 576, 96, True),
    "mobilenetv3_large_v1": ScorerSpec("mobilenet_v3_large", 15, 160, 160, False),
    "mobilenetv3_large_v2": ScorerSpec("mobilenet_v3_large", 17, 960, 96, True),
    "efficientnet_b0_v1": ScorerSpec("efficientnet_b0", 9, 1280, 96, False),
    "efficientnet_b0_v2": ScorerSpec("efficientnet_b0", 9, 1280, 96, True),
}


class PaperScorer(nn.Module):
    """Features without gradient, a two-layer head with gradient (section 3.1).

    As in the paper, every score depends on the whole batch, in evaluation too, and in training mode the features'
    batch norms follow the data although nothing else of them is trained.

    Args:
        name: A key of `SCORERS`. Version 1 scores every position by itself; version 2 weighs the features by a
            gate that has seen all of them, and contrasts twice as strongly.
        score_input: "full" shows the network the image as it is, "224" resized to 224 x 224 px. The published
            GFLOPs belong to "224", the published code runs "full".
        pretrained: Load torchvision's ImageNet weights of the features.
    """

    def __init__(self, name: str, score_input: str = "full", pretrained: bool = False) -> None:
        super().__init__()
        if name not in SCORERS:
            raise ValueError(f"scorer = {name!r}: unknown in paper mode; known: {', '.join(SCORERS)}")
        if score_input not in ("full", "224"):
            raise ValueError(f"score_input = {score_input!r}: must be 'full' or '224'")
        self.spec = SCORERS[name]
        self.score_input = score_input
        self.features = first_stages(self.spec.features, self.spec.num_stages, pretrained)
        self.mlp = Perceptron(self.spec.num_features, self.spec.hidden, self.spec.num_outputs)

    def forward(self, images: Tensor, grid_size: tuple[int, int] = (14, 14)) -> Tensor:
        """(B, 3, H, W) -> positive scores (B, G_h, G_w); the gradient ends at the head."""
        if self.score_input == "224":
            images = resize(images, (224, 224))
        with torch.no_grad():
            features = self.features(images).permute(0, 2, 3, 1)  # (B, h, w, F)
        if self.spec.gated:
            gate = self.mlp(features.mean((1, 2))).sigmoid()
            raw = torch.einsum("bhwf,bf->bhw", features, gate)
        else:
            raw = self.mlp(features).squeeze(-1)
        standard = standardise(resize(raw[:, None], grid_size).squeeze(1))
        return (2 * standard).sigmoid() if self.spec.gated else standard.sigmoid() + 0.1


class Perceptron(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, num_inputs: int, hidden: int, num_outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(num_inputs, hidden), nn.GELU(), nn.Linear(hidden, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., num_inputs) -> (..., num_outputs)."""
        return self.net(x)


def first_stages(name: str, num_stages: int, pretrained: bool = False) -> nn.Sequential:
    """The leading stages of a torchvision model's `features`, frozen; ValueError if its weights cannot be had."""
    return torchvision_model(name, pretrained, name).features[:num_stages].requires_grad_(False)


def standardise(scores: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Mean 0 and (unbiased) standard deviation 1 over the whole batch, or over `dim`, in at least float32."""
    dim = tuple(range(scores.ndim)) if dim is None else dim
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    centred = scores - scores.mean(dim, keepdim=True)
    return centred / (centred.std(dim, keepdim=True) + EPS)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, pixel centres at +0.5, no filter against aliasing."""
    return F.interpolate(images, size, mode="bilinear", align_corners=False)
