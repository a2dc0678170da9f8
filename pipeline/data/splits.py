"""Which split a picture of the user's own is in: no two splits ever share one, by their sha256."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.index import Dropped
from pipeline.data.listing import Listed, Picture
from pipeline.data.options import ExpectOptions
from pipeline.errors import ConfigError, problem


def given_splits(root: Path, listed: list[Listed]) -> dict[str, str]:
    """sha256 -> split as the folder has it; raises UserError if the same picture lies in two splits."""
    first: dict[str, Listed] = {}
    problems = []
    for picture in listed:
        other = first.setdefault(picture.sha256, picture)
        if other.split != picture.split:
            problems.append(problem(picture.file, picture.sha256[:12], f"the same picture is {other.file}"))
    if problems:
        raise ConfigError(f"{root}: a picture lies in two splits", problems)
    return {sha256: str(picture.split) for sha256, picture in first.items()}


def published_splits(listed: list[Listed], val_frac: float, seed: int) -> dict[str, str]:
    """sha256 -> split of a published train and val: its val is our test, our val is taken from its train."""
    tests = {picture.sha256: "test" for picture in listed if picture.split == "val"}
    rest = [picture for picture in listed if picture.sha256 not in tests]
    return choose_splits(rest, {"val": val_frac}, seed) | tests


def choose_splits(listed: list[Listed], fracs: dict[str, float], seed: int) -> dict[str, str]:
    """sha256 -> split: every class is divided by the fractions, at least one picture staying in train.

    Copies of a picture have one sha256 and so one split; it counts in the class where it is found first.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for sha256, picture in {p.sha256: p for p in reversed(listed)}.items():
        by_class[picture.class_name].append(sha256)
    splits: dict[str, str] = {}
    rng = np.random.default_rng(seed)
    for _, members in sorted(by_class.items()):
        order = [sorted(members)[i] for i in rng.permutation(len(members))]
        names = [split for split, frac in fracs.items() for _ in range(max(1, round(frac * len(order))))]
        for i, sha256 in enumerate(reversed(order)):
            splits[sha256] = names[i] if i < len(names) else "train"
        splits[order[0]] = "train"
    return splits


def leave_doubles(listed: list[Listed], splits: dict[str, str]) -> tuple[list[tuple[Listed, str]], list[Dropped]]:
    """The pictures with their splits, without those of a published train that are in its val, and those."""
    kept, doubles = [], []
    for picture in listed:
        split = splits[picture.sha256]
        if picture.split == "train" and split == "test":
            doubles.append(Dropped(picture.file, "also in the test split"))
        else:
            kept.append((picture, split))
    return kept, doubles


def check_expected(path: str, expect: ExpectOptions | None, pictures: Sequence[Picture], num_damaged: int = 0) -> None:
    """Raise ConfigError where the copy at `path` is not the complete one that the options expect.

    Args:
        num_damaged: Files that are there and could not be listed; of which split or class, they do not say.
    """
    if expect is None:
        return
    tests = "test" if any(picture.split == "test" for picture in pictures) else "val"
    num_test = sum(picture.split == tests for picture in pictures)
    num_classes = len({picture.class_name for picture in pictures})
    found = {"num_classes": num_classes, "num_train": len(pictures) - num_test, "num_test": num_test}
    problems = [
        problem(f"dataset.expect.{key}", value, f"the folder has {found[key]}", "complete it, or drop dataset.expect")
        for key, value in expect.model_dump().items()
        if not 0 <= value - found[key] <= num_damaged
    ]
    if problems:
        raise ConfigError(path, problems)
