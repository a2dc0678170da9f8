"""The theorem of all loaders: workers, ranks and resumes change no byte of the global batches."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.index import INDEX_FILE, Members

Batches = Sequence[tuple[Tensor, ...]]


def assert_same(batches: Batches, expected: Batches) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def assert_one_order(read: Callable[..., Batches], expected: Batches) -> None:
    """`read` takes what `train_loader` takes, and gives `expected` without."""
    assert_same(read(loader_workers=2), expected)
    assert_same(read(loader_workers=2, start_batch=1), expected[1:])
    ranks = [read(rank=rank, world_size=2) for rank in range(2)]
    assert_same([tuple(map(torch.cat, zip(*shares, strict=True))) for shares in zip(*ranks, strict=True)], expected)


def load_members(directory: Path) -> dict[str, list[tuple[str, Members]]]:
    """Shard file -> its samples in order, each with all its members, as index.json has them."""
    return json.loads((directory / INDEX_FILE).read_text())["shards"]
