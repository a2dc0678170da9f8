"""Folders that are made whole: raw data, shards, results, the report. After a death there is the old one or the new."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.attempts import Change, attempt
from tests.chaos.report import Row
from tests.chaos.training import boundaries, share

State = dict[str, str]


@dataclass(frozen=True)
class Publishing:
    """Work that makes `folder`.

    old, new: Make what is there before, and what takes its place.
    may_vanish: The work may leave nothing in the place of the old folder, and goes on from what it has finished.
    """

    name: str
    folder: Path
    old: Callable[[], object]
    new: Callable[[], object]
    may_vanish: bool = False


def killed_while_publishing(work: Publishing, at_most: int | None) -> Row:
    """Die before each change of a file, or so many of them, look at the folder, and do the same again."""
    room = work.folder.parent
    old, new, changes = before_and_after(work)
    kept, numbers = room.with_name(f"{room.name}.kept"), boundaries(changes, at_most)
    row = Row(f"kill -9 at {share(numbers, changes)} of {work.name}")
    for i, torn in numbers:
        where = f"killed before change {i} ({changes[i]}){', the last write torn' if torn else ''}"
        restore(kept, room)
        if not attempt(work.new, room, at=i, tear=torn).killed:
            row.note(["the change did not happen again"], where)
        found = state(work.folder)
        if found not in (old, new) and (found or not work.may_vanish):
            row.note(["the folder is neither the old one nor the new one"], where)
        again = attempt(work.new, room)
        lost = [f"it did not go on: {again.error}"] if again.error else []
        if state(work.folder) != new:
            lost.append("the new folder is not what it should be")
        left = sorted(path.name for path in room.iterdir() if path.name.startswith(f".{work.folder.name}"))
        row.goes_on(lost + [f"{name} is left" for name in left], where)
    return row


def before_and_after(work: Publishing) -> tuple[State, State, list[Change]]:
    """The old folder, which is kept beside for `restore`, the new one, and the changes that lead there."""
    room = work.folder.parent
    room.mkdir(parents=True, exist_ok=True)
    first = attempt(work.old, room)
    old = state(work.folder)
    shutil.copytree(room, room.with_name(f"{room.name}.kept"), dirs_exist_ok=True)
    second = attempt(work.new, room)
    new = state(work.folder)
    assert not first.error, first.error
    assert not second.error, second.error
    assert old != new
    return old, new, second.changes


def restore(kept: Path, room: Path) -> None:
    """Make `room` what it was when it was copied to `kept`."""
    shutil.rmtree(room)
    shutil.copytree(kept, room)


def state(folder: Path) -> State:
    """Every file of a folder with its hash; empty where there is none."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
