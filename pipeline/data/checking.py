"""Every file of the user's looked at once, on all cores or nodes; a check that was killed goes on where it was."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from pipeline.files import write_json_atomic
from pipeline.placement import Placement
from pipeline.spread import run_here, spread

Item = TypeVar("Item", bound=tuple)
Found = Sequence[Any]  # JSON: the sha256 first, "" where the file is bad, then why it is, then what else was found out
CHECKED = "checked"  # folder of what is known so far, only while the fetch is not finished


class How(NamedTuple):
    """How the files of a data set are checked."""

    unit: str  # of the progress
    group_size: int = 1000  # files that are checked together: what a kill loses, per worker
    little: int = 2000  # so many are checked in this process: they take no longer than to start Ray


class Group(NamedTuple):
    """Files that one worker checks."""

    number: int
    items: list[Any]


def check_all(
    check: Callable[[Any], Found],
    items: Sequence[Item],
    files_of: Callable[[Item], Sequence[Path]],
    how: How,
    memory: Path | None,
    placement: Placement | None,
) -> list[Found]:
    """`check(item)` of all, in their order.

    Args:
        check: Must be importable, it may run elsewhere.
        files_of: The files that an item lies in, importable too: a change of one has the item checked again.
        memory: Folder for what is found; None where that is not worth it. What was bad is looked at again.
        placement: Where it runs; None: in this process.

    Raises:
        UserError: what `check` raised first.
    """
    groups = [Group(n, list(items[i : i + how.group_size])) for n, i in enumerate(range(0, len(items), how.group_size))]
    work = functools.partial(check_group, check, files_of, memory)
    with tqdm(total=len(items), desc="check", unit=how.unit, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(min(done * how.group_size, len(items)) - bar.n)

        if placement is None or len(items) <= how.little:
            results = run_here(work, groups, progress, gpus=0)
        else:
            results = spread(work, lambda slots: groups, placement, progress, gpus=0)
    return [found for _, group in results for found in group]


def check_group(
    check: Callable[[Any], Found],
    files_of: Callable[[Any], Sequence[Path]],
    memory: Path | None,
    group: Group,
    device: str,
) -> list[Found]:
    """What is known of a group already, and the rest checked."""
    stamps = [stamp(item, files_of(item)) for item in group.items]
    path = None if memory is None else memory / f"{group.number:06d}.json"
    known = _load(path) if path is not None else {}
    found = [known.get(s) or check(item) for s, item in zip(stamps, group.items, strict=True)]
    if path is not None:
        good = {s: f for s, f in zip(stamps, found, strict=True) if f[0]}
        write_json_atomic(path, list((known | good).items()))
    return found


def stamp(item: Sequence[Any], files: Sequence[Path]) -> str:
    """Equal for an item none of whose files has another size or another time of its last change."""
    return json.dumps([item, *map(_state, files)])


def _state(file: Path) -> list[int]:
    try:
        state = file.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def _load(path: Path) -> dict[str, Found]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}
