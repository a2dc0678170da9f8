"""webdataset: the user's own tars of pictures with labels, one sample being what has one name up to its first dot.

Fetching copies and unpacks nothing. One process walks every tar and reads every label; then every picture is decoded
once, on all cores or nodes, and a listing says where each lies, with hashes. Where a usual reader loses samples without
a word, or mixes them up, each is listed with its reason and left out, as long as that is no more than `max_bad_frac` of
all; a tar that is cut off is refused, for nobody can count what it has lost. A picture that is in the test split too is
not trained on, nor chosen by.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.archives import Damage, Member, shown, walk_tar
from pipeline.data.catalog import SPLITS
from pipeline.data.index import Dropped
from pipeline.data.listed import refuse_too_many, refuse_unknown
from pipeline.data.listing import (
    Listed,
    Picture,
    check_pictures,
    load_class_names,
    load_dropped,
    load_samples,
    write_listing,
)
from pipeline.data.options import WebdatasetOptions
from pipeline.data.pictures import SUFFIXES
from pipeline.data.places import read_place
from pipeline.errors import UserError, problem
from pipeline.placement import Placement

__all__ = ["fetch", "load_class_names", "load_dropped", "load_samples"]

IMAGES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
MAX_LABEL_BYTES = 1 << 16
MAX_LABEL_CHARS = 100  # of a name: it will stand in tables
MAX_CLASSES = 100_000  # of classes that are numbers: one that nobody has is a class too


class Found(NamedTuple):
    """What the tars have."""

    pictures: list[Picture]
    dropped: list[Dropped]
    unknown: list[Dropped]  # places in tars behind which nobody can say what is lost


class Group(NamedTuple):
    """Members of one name that follow each other."""

    key: str
    members: dict[str, Member]  # by extension
    problem: str


def fetch(options: WebdatasetOptions, raw_dir: Path, placement: Placement | None = None) -> None:
    """Check every sample and write listing.json.

    Raises:
        UserError: if a split has no tar, or more samples are bad than `max_bad_frac` allows.
    """
    root = Path(options.path).expanduser()
    if not root.is_dir():
        raise UserError(problem("dataset.path", str(root), "no such directory"))
    found = find_samples(root, options)
    refuse_unknown(options.path, found.unknown)
    listed, bad = check_pictures(root, found.pictures, raw_dir, placement, options.store)
    kept, leaks = leave_leaks(listed)
    dropped = [*found.dropped, *bad, *leaks]
    refuse_too_many(options.max_bad_frac, len(found.pictures) + len(found.dropped), dropped, "samples")
    classes = name_classes([picture.class_name for picture in found.pictures])
    write_listing(root, raw_dir, classes, classes, kept, dropped)


def find_samples(root: Path, options: WebdatasetOptions) -> Found:
    """All samples that have a picture and a label, in order, and what is wrong with the others and with the tars."""
    found = Found([], [], [])
    for split in SPLITS:
        pattern = getattr(options.tars, split)
        tars = [path for path in sorted(root.glob(pattern)) if path.is_file()]
        if not tars:
            raise UserError(problem(f"dataset.tars.{split}", pattern, f"no such file below {root}"))
        keys: set[str] = set()
        for path in tars:
            read_tar(root, path.relative_to(root).as_posix(), split, options.label, keys, found)
    return found


def read_tar(root: Path, file: str, split: str, label: str, keys: set[str], found: Found) -> None:
    """Add the samples of one tar to `found`, and what is wrong with it.

    Args:
        keys: Of the split's samples so far; those of the tar are added.
    """
    damaged: list[Damage] = []
    groups = list(_group(root, file, damaged))
    times: dict[str, int] = {}
    for group in groups:
        times[group.key] = times.get(group.key, 0) + 1
    for group in groups:
        name = f"{file}: {shown(group.key)}"
        reason = group.problem
        if times[group.key] > 1:
            reason = "has members that lie apart, or two samples have its key"
        elif group.key in keys:
            reason = "has the key of a sample of another tar"
        keys.add(group.key)
        result = reason or _to_picture(root, file, split, label, group)
        if isinstance(result, str):
            found.dropped.append(Dropped(name, result))
        else:
            found.pictures.append(result)
    for offset, reason, rest_lost in damaged:
        (found.unknown if rest_lost else found.dropped).append(Dropped(f"{file} at {offset}", reason))


def _group(root: Path, file: str, damaged: list[Damage]) -> Iterator[Group]:
    key, reason = "", ""
    members: dict[str, Member] = {}
    with (root / file).open("rb", buffering=0) as opened:
        for entry in walk_tar(opened):
            if isinstance(entry, Damage):
                damaged.append(entry)
                continue
            folder, _, name = entry.name.rpartition("/")
            stem, _, extension = name.partition(".")
            found = f"{folder}/{stem}" if folder else stem
            if found != key and (members or reason):
                yield Group(key, members, reason)
                members, reason = {}, ""
            key, extension = found, extension.lower()
            if extension in members:
                reason = f"has two members .{shown(extension)}"
            members[extension] = entry
    if members:
        yield Group(key, members, reason)


def _to_picture(root: Path, file: str, split: str, label: str, group: Group) -> Picture | str:
    """The sample, or what is wrong with it."""
    images = [extension for extension in IMAGES if extension in group.members]
    kind, _, key = label.partition(":")
    if len(images) != 1:
        return "has two images" if images else "has no image"
    if kind not in group.members:
        return f"has no member .{kind}"
    label_member = group.members[kind]
    try:
        data = read_place(root, [file, label_member.offset, label_member.size], MAX_LABEL_BYTES)
        value: Any = json.loads(data)[key] if kind == "json" else int(data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"has no label in .{kind}"
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return "has a label that is neither a number nor a name"
    if isinstance(value, int) and not 0 <= value < MAX_CLASSES:
        return f"has a label that is not from 0 to {MAX_CLASSES - 1}"
    image = group.members[images[0]]
    text = str(value)
    if len(text) > MAX_LABEL_CHARS or not text.isprintable():
        return f"has a label that is longer than {MAX_LABEL_CHARS} characters, or cannot be printed"
    return Picture(f"{file}: {shown(group.key)}", text, split, [file, image.offset, image.size])


def name_classes(labels: list[str]) -> list[str]:
    """The classes in the order of their labels: numbers from 0 on, or names sorted.

    Labels are numbers if all are, below MAX_CLASSES and written as Python writes them: 00 and 01 are names.
    """
    found = set(labels)
    if all(map(_is_number, found)):
        return [str(number) for number in range(1 + max(map(int, found), default=-1))]
    return sorted(found)


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal() and str(int(label)) == label and int(label) < MAX_CLASSES


def leave_leaks(listed: list[Listed]) -> tuple[list[tuple[Listed, str]], list[Dropped]]:
    """The samples with their splits, without those whose picture a split that is judged by has too, and those."""
    splits: dict[str, str] = {}
    for split in reversed(SPLITS):
        for picture in listed:
            if picture.split == split:
                splits.setdefault(picture.sha256, split)
    kept: list[tuple[Listed, str]] = []
    leaks: list[Dropped] = []
    for picture in listed:
        split = splits[picture.sha256]
        if picture.split == split:
            kept.append((picture, split))
        else:
            leaks.append(Dropped(picture.file, f"also in the {split} split"))
    return kept, leaks
