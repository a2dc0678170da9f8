"""A finished classifier on the test split with budgets that follow the image: who gets how much, and what it says.

`dart.adaptive` has the arithmetic. What holds over a data set is chosen on the val split, never on the test split.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dart.adaptive import (
    Ladder,
    budgets_of,
    fit_scale,
    forward_bucketed,
    has_density,
    measure_need,
    share_total,
)
from pipeline.budget_rules import AdaptiveConfig
from pipeline.classification import TOP, Predictions, how_to_read
from pipeline.data.index import load_manifest
from pipeline.data.loader import eval_loader
from pipeline.files import write_text_atomic
from pipeline.part import RULE_SPLIT, SPLIT, Part, in_order
from pipeline.weights import load_model


class Way(NamedTuple):
    """How tokens are shared out: by what signal, held over what, and how many per image on average."""

    signal: str
    held: str
    mean_budget: int

    @property
    def label(self) -> str:
        return f"{self.signal}-{self.held}-{self.mean_budget}"


class Outcome(NamedTuple):
    """What came of one way: the answers, and each sample's budget (n,), in the order of the answers.

    low: The lowest budget there is.
    """

    way: Way
    low: int
    predictions: Predictions
    budgets: np.ndarray


@torch.inference_mode()
def predict_adaptive(part: Part, device: str = "cpu") -> list[Outcome]:
    """All ways of `part.adaptive` on the whole test split: batches are shared out whole, so a run is one part."""
    assert part.adaptive is not None
    config, num_classes = part.adaptive, load_manifest(part.shards).num_classes
    model: Any = load_model(part.entry, part.weights, num_classes).to(device)
    ladder = Ladder(config.low, config.high, config.step)
    ways = list_ways(config, has_density(model))
    signals = {way.signal for way in ways}
    rules = fit_rules(model, part, ways, ladder, device)
    found: list[tuple[np.ndarray, ...]] = []
    for images, labels, indices in _batches(part, SPLIT, part.dropped) if ways else ():
        images = images.to(device)
        needs = {signal: measure_need(model, images, signal, ladder.low) for signal in signals}
        budgets = torch.stack([_share(way, needs[way.signal], rules, ladder) for way in ways])  # (S, B)
        probabilities = forward_bucketed(model, images, budgets).float().softmax(-1)
        best = probabilities.topk(min(TOP, num_classes), sorted=True)  # (S, B, k)
        found.append((indices.numpy(), labels.numpy(), budgets.cpu().numpy(), best.indices.cpu().numpy(),
                      best.values[..., 0].cpu().numpy()))  # fmt: skip
    return _outcomes(ways, ladder.low, found, load_manifest(part.shards).split(SPLIT).num_samples, part.dropped)


def list_ways(config: AdaptiveConfig, with_density: bool) -> list[Way]:
    """What is asked of a run; nothing of the density where there is none that follows the image."""
    signals = [signal for signal in config.signals if signal != "spread" or with_density]
    return [Way(signal, held, mean) for signal in signals for held in config.held for mean in config.mean_budgets]


def fit_rules(model: Any, part: Part, ways: Sequence[Way], ladder: Ladder, device: str) -> dict[Way, float]:
    """The scales of the ways that are held over the data set, from the needs of the whole val split."""
    fixed = [way for way in ways if way.held == "dataset"]
    signals = list(dict.fromkeys(way.signal for way in fixed))
    needs: dict[str, list[Tensor]] = {signal: [] for signal in signals}
    for images, _, _ in _batches(part, RULE_SPLIT, part.val_dropped) if fixed else ():
        for signal in signals:
            needs[signal].append(measure_need(model, images.to(device), signal, ladder.low).cpu())
    return {way: fit_scale(torch.cat(needs[way.signal]), way.mean_budget, ladder) for way in fixed}


def write_csv(path: Path, keys: Sequence[str], outcome: Outcome) -> None:
    """Every sample's budget and answer."""
    lines = ["key,label,prediction,confidence,token_budget"]
    samples = zip(*outcome.predictions, outcome.budgets, strict=True)
    for index, label, classes, confidence, budget in samples:
        lines.append(f"{keys[index]},{label},{classes[0]},{confidence:.4f},{budget}")
    write_text_atomic(path, "\n".join(lines) + "\n")


def _share(way: Way, needs: Tensor, rules: dict[Way, float], ladder: Ladder) -> Tensor:
    if way.held == "batch":
        return share_total(needs, way.mean_budget * len(needs), ladder)
    return budgets_of(needs, rules[way], ladder)


def _batches(part: Part, split: str, dropped: Sequence[int]) -> Iterable[Any]:
    """All batches of a split, in order."""
    return eval_loader(
        part.shards, split, part.batch_size, 0, 1, part.loader_workers, verify="samples", dropped=dropped,
        **how_to_read(part.entry),
    )  # fmt: skip


def _outcomes(
    ways: Sequence[Way], low: int, found: Sequence[tuple[np.ndarray, ...]], num_samples: int, dropped: Sequence[int]
) -> list[Outcome]:
    """The batches of each way put together, in the order of the split; raises RuntimeError as `in_order`."""
    if not ways:
        return []
    indices, labels = (np.concatenate(arrays) for arrays in list(zip(*found, strict=True))[:2])
    budgets, classes, confidences = (np.concatenate(a, axis=1) for a in list(zip(*found, strict=True))[2:])
    order = in_order(indices, num_samples, dropped)
    return [
        Outcome(way, low, Predictions(indices[order], labels[order], classes[i][order], confidences[i][order]),
                budgets[i][order])
        for i, way in enumerate(ways)
    ]  # fmt: skip
