"""What it takes to give every image a budget of its own: images of equal budget are one forward pass."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.compare import Comparison, Contestant
from dart.adaptive import Ladder, forward_bucketed, measure_need, share_total
from dart.models import build

BATCH, MEAN, LADDER = 180, 32, Ladder(16, 48, 4)


def comparisons() -> Iterator[Comparison]:
    torch.manual_seed(0)
    model = build("dart_vit_micro", token_budget=MEAN, in_chans=1, num_classes=10).eval()
    images = torch.rand(BATCH, 1, 96, 96)
    # As many images at every rung, in no order: untrained scores would give all the same.
    spent = torch.tensor(LADDER.rungs).repeat(BATCH // len(LADDER.rungs))[torch.randperm(BATCH)]
    ends = torch.tensor([LADDER.low, LADDER.high]).repeat(BATCH // 2)[torch.randperm(BATCH)]

    def adaptive(signal: str, budgets: Tensor) -> Contestant:
        def run(batch: Tensor) -> Tensor:
            share_total(measure_need(model, batch, signal, LADDER.low), MEAN * len(batch), LADDER)
            return forward_bucketed(model, batch, budgets)

        return run

    contestants: dict[str, Contestant] = {
        f"{MEAN} tokens for every image": model,
        f"{LADDER.low} or {LADDER.high}, mean {MEAN}: 2 passes": lambda batch: forward_bucketed(model, batch, ends),
        f"9 budgets, mean {MEAN}: 9 passes": lambda batch: forward_bucketed(model, batch, spent),
        "the same, with the look of `spread`": adaptive("spread", spent),
        "the same, with the look of `uncertainty`": adaptive("uncertainty", spent),
    }
    yield Comparison("budgets that follow the image, forward", images, contestants)
