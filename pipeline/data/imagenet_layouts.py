"""The forms in which people have ImageNet-1k -> its pictures, with the same names and in the same order.

A picture is called PART/WNID/NAME.JPEG, as in an unpacked copy; pictures are sorted by that.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.data.archives import Damage, Member, shown, walk_tar
from pipeline.data.devkit import find_devkit, read_names, read_truth
from pipeline.data.image_folder import list_pictures, list_subdirs
from pipeline.data.index import Dropped
from pipeline.data.listing import Picture
from pipeline.data.places import list_rows
from pipeline.errors import UserError, problem

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
WNID = re.compile(r"n\d{8}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(JPEG|jpeg|jpg)")
PARTS = {"train": "train", "val": "validation"}  # and what parquet copies call them
LAYOUTS = (
    f"it needs {TRAIN_TAR}, {VAL_TAR} and ILSVRC2012_devkit_t12.tar.gz, or train/CLASS/*.JPEG and val/CLASS/*.JPEG, or "
    "data/{train,validation}-*.parquet"
)


class Bad(NamedTuple):
    """What of archives could not be listed, as in `Copy`."""

    damaged: list[Dropped]
    unknown: list[Dropped]

    def add(self, archive: str, damage: Damage) -> None:
        """What was found wrong at a place of an archive."""
        told = Dropped(f"{archive} at {damage.offset}", damage.reason)
        (self.unknown if damage.rest_lost else self.damaged).append(told)


class Copy(NamedTuple):
    """What a copy has."""

    pictures: list[Picture]  # sorted by file
    classes: list[str]  # sorted
    names: dict[str, str]  # class -> its name, where that is known
    damaged: list[Dropped]  # what could not even be listed
    unknown: list[Dropped]  # places in archives behind which nobody can say what is lost


def find_copy(root: Path) -> Copy:
    """The pictures below `root`.

    Raises:
        UserError: if it has none of the three forms, or lacks a part of it.
    """
    if not root.is_dir():
        raise UserError(problem("dataset.path", str(root), "no such directory"))
    if (root / TRAIN_TAR).is_file():
        found, bad = _find_in_archives(root)
    elif any((root / part).is_dir() for part in PARTS):
        found, bad = _find_in_folders(root), Bad([], [])
    else:
        found, bad = _find_in_parquet(root), Bad([], [])
    counts = {part: sum(picture.split == part for picture in found) for part in PARTS}
    for part, count in counts.items():
        if not count:
            rule = f"is no copy of imagenet1k: it has no picture of {part}"
            raise UserError(problem("dataset.path", str(root), rule, LAYOUTS))
    devkit = find_devkit(root)
    classes = sorted({picture.class_name for picture in found})
    return Copy(sorted(found), classes, read_names(devkit) if devkit else {}, *bad)


def _find_in_folders(root: Path) -> list[Picture]:
    found = []
    for part in PARTS:
        for folder in list_subdirs(root / part) if (root / part).is_dir() else ():
            files = [path.relative_to(root).as_posix() for path in list_pictures(folder)]
            found += [Picture(file, folder.name, part, [file]) for file in files]
    return found


def _find_in_archives(root: Path) -> tuple[list[Picture], Bad]:
    devkit = find_devkit(root)
    if devkit is None:
        rule = "has no ILSVRC2012_devkit_t12.tar.gz, which says what the pictures of val show"
        raise UserError(problem("dataset.path", str(root), rule))
    if not (root / VAL_TAR).is_file():
        raise UserError(problem("dataset.path", str(root), f"has no {VAL_TAR}"))
    truth = read_truth(devkit)
    found: list[Picture] = []
    bad = Bad([], [])
    with (root / TRAIN_TAR).open("rb", buffering=0) as file:
        for wnid, member in _walk_train(file, bad):
            found.append(_tar_picture("train", wnid, TRAIN_TAR, member))
    with (root / VAL_TAR).open("rb", buffering=0) as file:
        for member in _walk(VAL_TAR, walk_tar(file), bad):
            number = member.name.removesuffix(".JPEG").rpartition("_")[2]
            if not number.isdecimal() or not 1 <= int(number) <= len(truth):
                told = Dropped(f"{VAL_TAR}: {shown(member.name)}", "has no class in the development kit")
                bad.damaged.append(told)
            else:
                found.append(_tar_picture("val", truth[int(number) - 1], VAL_TAR, member))
    return found, bad


def _walk_train(file: BinaryIO, bad: Bad) -> Iterator[tuple[str, Member]]:
    """The pictures of a tar of one tar per class; what is damaged is added to `bad`."""
    for entry in walk_tar(file):
        if isinstance(entry, Damage):
            bad.add(TRAIN_TAR, entry)
            continue
        wnid = entry.name.rpartition("/")[2].removesuffix(".tar")
        if not WNID.fullmatch(wnid) or not entry.name.endswith(".tar"):
            bad.damaged.append(Dropped(f"{TRAIN_TAR}: {shown(entry.name)}", "is no archive of a class"))
            continue
        inside = walk_tar(file, entry.offset, entry.offset + entry.size)
        for member in _walk(f"{TRAIN_TAR}: {wnid}.tar", inside, bad):
            yield wnid, member


def _walk(archive: str, entries: Iterable[Member | Damage], bad: Bad) -> Iterator[Member]:
    """The pictures by their names without folders; all else is added to `bad`."""
    for entry in entries:
        if isinstance(entry, Damage):
            bad.add(archive, entry)
        elif NAME.fullmatch(name := entry.name.rpartition("/")[2]):
            yield entry._replace(name=name)
        else:
            bad.damaged.append(Dropped(f"{archive}: {shown(entry.name)}", "is no picture by its name"))


def _tar_picture(part: str, wnid: str, archive: str, member: Member) -> Picture:
    return Picture(f"{part}/{wnid}/{member.name}", wnid, part, [archive, member.offset, member.size])


def _find_in_parquet(root: Path) -> list[Picture]:
    """Rows of image and label, the latter counting the sorted WordNet ids.

    Where every path ends in the id of its class, as NAME_WNID.JPEG or WNID_NUMBER.JPEG, names are those of the other
    forms; where one does not, labels and row numbers take their place.
    """
    rows = []
    for part, prefix in PARTS.items():
        files = sorted([*root.glob(f"data/{prefix}-*.parquet"), *root.glob(f"{prefix}-*.parquet")])
        rows += [(part, row) for path in files for row in list_rows(path, path.relative_to(root).as_posix())]
    names = [found for _, row in rows if (found := _name_in_path(row.path or "")) is not None]
    if len(names) < len(rows):
        return [
            Picture(f"{part}/{row.label:04d}/{i:08d}", f"{row.label:04d}", part, row.place)
            for i, (part, row) in enumerate(rows)
        ]
    wnids = sorted({wnid for wnid, _ in names})
    for (_, row), (wnid, name) in zip(rows, names, strict=True):
        if row.label >= len(wnids) or wnids[row.label] != wnid:
            rule = f"label {row.label} is not the number of {wnid} among the sorted WordNet ids"
            raise UserError(problem(str(root / row.place[0]), shown(name), rule))
    return [Picture(f"{p}/{w}/{name}", w, p, row.place) for (p, row), (w, name) in zip(rows, names, strict=True)]


def _name_in_path(path: str) -> tuple[str, str] | None:
    """(wnid, name) as in the other forms; None if the path does not tell."""
    name = path.rpartition("/")[2]
    if not NAME.fullmatch(name):
        return None
    stem, _, suffix = name.rpartition(".")
    rest, _, last = stem.rpartition("_")
    if rest and WNID.fullmatch(last):
        return last, f"{rest}.{suffix}"
    first = stem.partition("_")[0]
    return (first, name) if WNID.fullmatch(first) else None
