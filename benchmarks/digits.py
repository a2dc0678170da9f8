"""The models of the default suite."""

from collections.abc import Iterator

import torch

from benchmarks.compare import Comparison
from dart.models import build


def comparisons() -> Iterator[Comparison]:
    chosen = [("uniform_vit_micro", 36), ("dart_vit_micro", 36), ("uniform_vit_micro", 64), ("dart_vit_micro", 64)]
    contestants = {
        f"{name}, {budget} tokens": build(name, token_budget=budget, in_chans=1, num_classes=10).eval()
        for name, budget in chosen
    }
    yield Comparison("models of the digits suite, forward", torch.rand(50, 1, 96, 96), dict(contestants))
