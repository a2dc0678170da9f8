"""DART-DeiT-S against the models that the paper compares it with: DeiT-B, and DeiT-S at the same number of tokens."""

from collections.abc import Iterator

import timm
import torch
from torch import nn

from benchmarks.compare import Comparison, Contestant
from dart.deploy import optimize_for_inference
from dart.models import build

# What the arithmetic promises: multiply-accumulates of DeiT-B over those of DART-DeiT-S.
PROMISED = {196: 3.2, 288: 2.3, 392: 1.7}


def comparisons() -> Iterator[Comparison]:
    batch = 4
    contestants: dict[str, Contestant] = {
        "DeiT-B, 196 tokens (224 px)": at_size(timm.create_model("deit_base_patch16_224"), (224, 224))
    }
    for budget in PROMISED:
        size = plain_size(budget)
        plain = timm.create_model("deit_small_patch16_224", img_size=size)
        contestants[f"DeiT-S, {budget} tokens ({size[0]} x {size[1]} px)"] = at_size(plain, size)
        ours = build("dart_deit_small", token_budget=budget, scorer="mobilenetv3_small", scorer_norm="batch").eval()
        contestants[label(budget)] = optimize_for_inference(ours)
        paper = build("dart_deit_small", token_budget=budget, mode="paper").eval()
        contestants[f"DART-DeiT-S, {budget} tokens, paper mode"] = paper
    targets = {label(budget): promised for budget, promised in PROMISED.items()}
    yield Comparison("DeiT models, forward", torch.rand(batch, 3, 448, 448), contestants, targets)


def label(budget: int) -> str:
    return f"DART-DeiT-S, {budget} tokens"


def plain_size(budget: int) -> tuple[int, int]:
    """Height and width in pixels of the image that has as many 16 px patches: what a plain model reads."""
    rows = max(r for r in range(1, int(budget**0.5) + 1) if budget % r == 0)
    return rows * 16, budget // rows * 16


def at_size(model: nn.Module, size: tuple[int, int]) -> Contestant:
    """The model on a corner of the images, of its own size: what it need not read costs it nothing."""
    model.eval()
    return lambda images: model(images[..., : size[0], : size[1]].contiguous())
