"""How people keep Kinetics-400 and Something-Something V2: which clips of which class there should be, and where."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.index import CLIPS, Dropped
from pipeline.errors import ConfigError, UserError, problem

PARTS = ("train", "val")  # as they are published
TREE = "PATH/{train,val}/CLASS/*.mp4, or the annotations train.csv and val.csv with the clips anywhere below PATH"


class Candidate(NamedTuple):
    """A clip that may turn out to be unusable."""

    file: str  # relative to the folder, with /
    class_name: str
    part: str  # of PARTS


class Layout(NamedTuple):
    """What a copy consists of."""

    class_names: list[str]
    clips: list[Candidate]
    missing: list[Dropped]  # clips that are annotated and not there


def read_kinetics(root: Path) -> Layout:
    """By the annotation files if there are any, else by folders named after the classes.

    Raises:
        UserError: if there is neither.
    """
    words = {"train": ("train",), "val": ("val", "validate")}
    tables = {
        part: _find(root, *(pattern for word in words[part] for pattern in (f"{word}.csv", f"kinetics*{word}.csv")))
        for part in PARTS
    }
    if any(tables.values()):
        return _kinetics_tables(root, tables)
    folders = [(folder, part) for part in PARTS for folder in _subdirs(root / part)]
    if {part for _, part in folders} != set(PARTS):
        raise UserError(problem("dataset.path", str(root), "is no copy of kinetics400", f"it needs {TREE}"))
    clips = [
        Candidate(path.relative_to(root).as_posix(), folder.name, part)
        for folder, part in folders
        for path in sorted(folder.iterdir())
        if is_clip(path)
    ]
    return Layout(sorted({folder.name for folder, _ in folders}), clips, [])


def _kinetics_tables(root: Path, tables: dict[str, Path | None]) -> Layout:
    """Rows of label, youtube_id, time_start, time_end, split; clips are named ID_START_END, seconds of six digits."""
    rows: list[tuple[str, list[str], str]] = []  # part, possible stems, class
    for part, path in tables.items():
        if path is None:
            raise UserError(problem("dataset.path", str(root), f"no {part}.csv beside the other one"))
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file):
                    start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
                    names = [f"{row['youtube_id']}_{start:06d}_{end:06d}", row["youtube_id"]]
                    rows.append((part, names, row["label"]))
        except (KeyError, OverflowError, TypeError, ValueError, csv.Error):
            columns = "label, youtube_id, time_start, time_end"
            raise UserError(f"{path}: not Kinetics' annotation; it needs the columns {columns}, in UTF-8") from None
    return _by_stem(root, rows)


def read_ssv2(root: Path) -> Layout:
    """Three JSON files, of the labels and the two parts, and clips named by their number anywhere below PATH.

    Raises:
        UserError: if a file is missing or says something else.
    """
    words = {"labels": "labels", "train": "train", "val": "validation"}
    tables = {key: _find(root, f"something-something-v2-{word}.json", f"{word}.json") for key, word in words.items()}
    if absent := [f"something-something-v2-{words[key]}.json" for key, path in tables.items() if path is None]:
        raise UserError(problem("dataset.path", str(root), f"is no copy of ssv2, it has no {', '.join(absent)}"))
    read = {key: _read_json(path) for key, path in tables.items() if path is not None}
    try:
        names = sorted(read["labels"], key=lambda name: int(read["labels"][name]))
        rows = [
            (part, [str(clip["id"])], clip["template"].replace("[", "").replace("]", ""))
            for part in PARTS
            for clip in read[part]
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(problem("dataset.path", str(root), "its JSON files are not those of ssv2")) from None
    if unknown := sorted({name for _, _, name in rows} - set(names)):
        lines = [problem("template", name, f"not in {tables['labels']}") for name in unknown[:10]]
        raise ConfigError(str(root), lines)
    return _by_stem(root, rows)._replace(class_names=names)


def is_clip(path: Path) -> bool:
    """A visible file with the suffix of a format that shards may hold."""
    return path.suffix[1:].lower() in CLIPS and not path.name.startswith(".") and path.is_file()


def _by_stem(root: Path, rows: Sequence[tuple[str, list[str], str]]) -> Layout:
    """The files below `root` that are called as the rows say; a file in a folder of its part goes before others."""
    found: dict[str, list[str]] = {}
    for path in sorted(_clips_below(root)):
        found.setdefault(path.stem, []).append(path.relative_to(root).as_posix())
    clips, missing = [], []
    for part, stems, class_name in rows:
        files = next((found[stem] for stem in stems if stem in found), [])
        if files:
            clips.append(Candidate(min(files, key=lambda file: part not in file.split("/")), class_name, part))
        else:
            missing.append(Dropped(stems[0], "is missing"))
    return Layout(sorted({class_name for _, _, class_name in rows}), clips, missing)


def _clips_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if is_clip(path))


def _find(root: Path, *patterns: str) -> Path | None:
    """The first file in the folder, or in one directly below it, whose name fits."""
    for pattern in patterns:
        for path in sorted([*root.glob(pattern), *root.glob(f"*/{pattern}")]):
            return path
    return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _subdirs(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".") if folder.is_dir() else []
