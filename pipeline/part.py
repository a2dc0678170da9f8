"""One worker's share of an evaluation, and the proof that the shares are the whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.budget_rules import AdaptiveConfig
from pipeline.data.clips import Views
from pipeline.mask_rules import TestMasksConfig
from pipeline.weights import Entry

SPLIT = "test"


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
