"""One worker's share of an evaluation, and the proof that the shares are the whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.budget_rules import AdaptiveConfig
from pipeline.data.clips import Views
from pipeline.data.index import Manifest
from pipeline.mask_rules import TestMasksConfig
from pipeline.weights import Entry

SPLIT, RULE_SPLIT = "test", "val"  # what is evaluated, and where a rule for budgets is chosen
FEW_PASSES = 20_000  # of one image, or of one frame of a clip, that take about as long as Ray needs to start


class Part(NamedTuple):
    """One worker's share of one run's evaluation; paths are absolute."""

    entry: Entry
    weights: Path
    shards: Path
    batch_size: int
    rank: int
    world_size: int
    views: Views | None = None  # of a clip; None where the samples are images
    loader_workers: int = 0
    masks: TestMasksConfig | None = None  # where every pixel has a class
    dropped: tuple[int, ...] = ()  # damaged samples of the split, which nobody reads
    token_budget: int | None = None  # that the model is asked at; None: its own
    adaptive: AdaptiveConfig | None = None  # budgets follow the image instead
    val_dropped: tuple[int, ...] = ()  # damaged samples of the split that the rule is chosen on


def is_little(parts: Sequence[Part], manifest: Manifest) -> bool:
    """Whether parts take no longer in all than the start of a Ray runtime. A window is a large picture."""
    windows = any(part.masks is not None and part.masks.stride is not None for part in parts)
    return not windows and sum(count_passes(part, manifest) for part in parts) < FEW_PASSES


def count_passes(part: Part, manifest: Manifest) -> int:
    """At most so many passes of one image, or of one frame, does a part take."""
    frames = part.entry["science"]["model"].get("num_frames") or 1
    samples = -(-manifest.split(SPLIT).num_samples // part.world_size)
    if (config := part.adaptive) is None:
        return samples * frames * (part.views.num_views if part.views else 1)
    rungs = (config.high - config.low) // config.step + 1
    looks, ways = len(config.signals), len(config.signals) * len(config.held) * len(config.mean_budgets)
    rule = looks * manifest.split(RULE_SPLIT).num_samples if "dataset" in config.held else 0
    return frames * (samples * (looks + min(rungs, ways)) + rule)


def in_order(indices: np.ndarray, num_samples: int, dropped: Sequence[int] = ()) -> np.ndarray:
    """Where the samples 0, 1, ... of the split, but for those dropped, are in `indices` (n,).

    Raises:
        RuntimeError: a sample of the split is missing or occurs twice, or a dropped one was read.
    """
    counts, wanted = np.bincount(indices, minlength=num_samples), np.ones(num_samples, int)
    wanted[list(dropped)] = 0
    if len(counts) != num_samples or (counts != wanted).any():
        odd = np.flatnonzero(counts[:num_samples] != wanted)[:5].tolist()
        raise RuntimeError(f"evaluation is not exact: of {num_samples} samples, {odd} were not seen exactly once")
    return np.argsort(indices, kind="stable")
