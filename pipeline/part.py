"""One worker's share of an evaluation, and the proof that the shares are the whole."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

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


def in_order(indices: np.ndarray, num_samples: int) -> np.ndarray:
    """Where the samples 0, 1, ... of the split are in `indices` (n,).

    Raises:
        RuntimeError: a sample of the split is missing or occurs twice.
    """
    counts = np.bincount(indices, minlength=num_samples)
    if len(counts) != num_samples or (counts != 1).any():
        odd = np.flatnonzero(counts != 1)[:5].tolist()
        raise RuntimeError(f"evaluation is not exact: of {num_samples} samples, {odd} were not seen exactly once")
    return np.argsort(indices, kind="stable")
