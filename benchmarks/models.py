"""DART-DeiT-S against the models that the paper compares it with: DeiT-B, and DeiT-S at the same number of tokens."""

from collections.abc import Iterator

import timm
import torch
from torch import nn

from benchmarks.compare import Comparison, Contestant
from dart.deploy import optimize_for_inference
from dart.models import build

# Least speed relative to DeiT-B that the issue asks for. It is below the ratios of multiply-accumulates: 3.64, 2.43 and
# 1.73 with the paper's scorer, MobileNetV3-Large.
PROMISED = {196: 3.2, 288: 2.3, 392: 1.7}
# And relative to DeiT-S at the same tokens: adaptive ones cost at most a fifth more.
PROMISED_OF_PLAIN = 1 / 1.2
SCORERS = {"MobileNetV3-Small": "mobilenetv3_small", "MobileNetV3-Large": "mobilenetv3_large"}


def comparisons() -> Iterator[Comparison]:
    images = torch.rand(4, 3, 448, 448)
    groups = {budget: at_budget(budget) for budget in PROMISED}
    base = at_size(timm.create_model("deit_base_patch16_224"), (224, 224))
    contestants: dict[str, Contestant] = {"DeiT-B, 196 tokens (224 x 224 px)": base}
    for budget, group in groups.items():
        contestants |= group
        paper = build("dart_deit_small", token_budget=budget, mode="paper").eval()
        contestants[f"DART-DeiT-S paper, {budget} tokens, MobileNetV3-Large"] = paper
    targets = {label(budget): promised for budget, promised in PROMISED.items()}
    yield Comparison("DeiT models against DeiT-B, forward", images, contestants, targets)
    for budget, group in groups.items():
        title = f"DeiT-S models of {budget} tokens against plain patches, forward"
        yield Comparison(title, images, group, {label(budget): PROMISED_OF_PLAIN})


def at_budget(budget: int) -> dict[str, Contestant]:
    """DeiT-S with so many plain patches, and with so many regions."""
    size = plain_size(budget)
    plain = timm.create_model("deit_small_patch16_224", img_size=size)
    contestants: dict[str, Contestant] = {
        f"DeiT-S, {budget} tokens ({size[0]} x {size[1]} px)": at_size(plain, size),
    }
    for scorer in SCORERS:
        contestants[label(budget, scorer)] = dart(budget, scorer)
    return contestants


def dart(budget: int, scorer: str = "MobileNetV3-Small") -> nn.Module:
    """DART-DeiT-S ready to answer, its scorer with batch norms as published weights have them."""
    model = build("dart_deit_small", token_budget=budget, scorer=SCORERS[scorer], scorer_norm="batch")
    return optimize_for_inference(model.eval())


def label(budget: int, scorer: str = "MobileNetV3-Small") -> str:
    return f"DART-DeiT-S, {budget} tokens, {scorer}"


def plain_size(budget: int) -> tuple[int, int]:
    """Height and width in pixels of the image that has as many 16 px patches: what a plain model reads."""
    rows = max(r for r in range(1, int(budget**0.5) + 1) if budget % r == 0)
    return rows * 16, budget // rows * 16


def at_size(model: nn.Module, size: tuple[int, int]) -> Contestant:
    """The model on a corner of the images, of its own size: what it need not read costs it nothing."""
    model.eval()
    return lambda images: model(images[..., : size[0], : size[1]].contiguous())
