"""Images to tokens: our default profile against the paper's way, and against plain patches."""

from collections.abc import Iterator

import torch
from timm.layers import PatchEmbed
from torch import nn

from benchmarks.compare import Comparison
from dart.deploy import optimize_for_inference
from dart.models import build


def comparisons() -> Iterator[Comparison]:
    images = torch.rand(4, 3, 448, 448)
    for variant, scorer, width in (("tiny", "mobilenetv3_small", 192), ("small", "mobilenetv3_large", 384)):
        ours = "ours: scorer at 224 px, folded norms, channels last"
        as_trained = {"scorer": scorer, "scorer_norm": "batch"}  # as with published weights, which have batch norms
        contestants = {
            "paper mode: scorer at full size": tokenizer(f"dart_deit_{variant}", mode="paper", score_input="full"),
            "paper mode: scorer at 224 px": tokenizer(f"dart_deit_{variant}", mode="paper", score_input="224"),
            ours: optimize_for_inference(tokenizer(f"dart_deit_{variant}", **as_trained)),
            "ours, area sampling": optimize_for_inference(
                tokenizer(f"dart_deit_{variant}", sampling="area", **as_trained)
            ),
            "ours, light scorer": optimize_for_inference(tokenizer(f"dart_deit_{variant}", scorer="conv")),
            "uniform regions": tokenizer(f"uniform_deit_{variant}"),
            "timm PatchEmbed, 32 px patches": PatchEmbed(448, 32, 3, width).eval(),
        }
        title = f"DeiT-{variant} tokenizer, {scorer}, 196 tokens of width {width}, forward"
        yield Comparison(title, images, contestants, {ours: 4.0})


def tokenizer(name: str, **options: object) -> nn.Module:
    """The patch embedding of a model."""
    return build(name, num_classes=0, **options).patch_embed.eval()  # type: ignore[union-attr]
