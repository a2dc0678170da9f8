"""What data sets with a published test split share: val comes out of the published training samples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data.catalog import Sample
from pipeline.data.lazy import LazySamples
from pipeline.data.options import PublishedOptions
from pipeline.errors import UserError, problem


class Published(NamedTuple):
    """One published part, train or test."""

    images: np.ndarray  # (n, H, W) or (n, H, W, 3) uint8
    labels: np.ndarray  # (n,) integers


def published_part(split: str) -> str:
    """The published part that our `split` is taken from."""
    return "test" if split == "test" else "train"


def split_samples(part: Published, options: PublishedOptions, split: str) -> LazySamples:
    """The samples of `split`, in the published order.

    Raises:
        UserError: if val would leave nothing to train on.
    """
    rows = choose_rows(len(part.labels), options, split)
    name = published_part(split)

    def make(index: int) -> Sample:
        row = int(rows[index])
        return Sample(f"{split}-{index:06d}", part.images[row], int(part.labels[row]), (f"{name}/{row}",))

    return LazySamples(len(rows), make)


def choose_splits(held_out: Sequence[bool], options: PublishedOptions) -> list[str]:
    """The split of every file: test is the published part that is held out, val is drawn from the rest.

    Raises:
        UserError: as `split_samples`.
    """
    splits = np.where(held_out, "test", "train")
    rest = np.flatnonzero(splits == "train")
    splits[rest[choose_rows(len(rest), options, "val")]] = "val"
    return splits.tolist()


def choose_rows(num_rows: int, options: PublishedOptions, split: str) -> np.ndarray:
    """Which rows of its published part make up `split`: increasing (n,) int64."""
    if split == "test":
        return np.arange(num_rows)
    if options.val_samples >= num_rows:
        rule = f"leaves nothing to train on, the published training samples are {num_rows}"
        raise UserError(problem("dataset.val_samples", options.val_samples, rule))
    order = np.random.default_rng(options.seed).permutation(num_rows)
    return np.sort(order[: options.val_samples] if split == "val" else order[options.val_samples :])
