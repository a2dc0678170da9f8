"""The listing that a fetch of the user's own pictures leaves: where each lies, its label, its sha256."""

import functools
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.catalog import SPLITS, Encoded, Sample
from pipeline.data.checking import CHECKED, Found, How, check_all
from pipeline.data.index import Dropped
from pipeline.data.lazy import LazySamples
from pipeline.data.options import DatasetOptions, StoreOptions
from pipeline.data.pictures import MAX_BYTES, BadPicture, check_picture, to_stored
from pipeline.data.places import Place, read_place, read_same
from pipeline.errors import UserError, problem
from pipeline.files import write_json_atomic
from pipeline.placement import Placement

LISTING = "listing.json"
PICTURES = How("img")


class Picture(NamedTuple):
    """One picture of the user's as it was found."""

    file: str  # its name in the data set, with /
    class_name: str
    split: str | None  # as the user has it; None where it is ours to choose
    place: Place


class Listed(NamedTuple):
    """One that can be used."""

    file: str
    class_name: str
    split: str | None
    place: Place
    sha256: str


def check_pictures(
    root: Path, pictures: Sequence[Picture], raw_dir: Path, placement: Placement | None, store: StoreOptions | None
) -> tuple[list[Listed], list[Dropped]]:
    """Decode and hash all; both lists are in the order of `pictures`.

    They are read in the order in which they lie in their files.

    Args:
        store: How they will be stored, if they are kept whole: what cannot be is bad.
    """
    order = sorted(range(len(pictures)), key=lambda i: tuple(pictures[i].place))
    known = raw_dir / CHECKED / (f"jpg-{store.shorter_side}" if store else "squares")
    memory = known if len(pictures) > PICTURES.group_size else None
    found: list[Found] = [()] * len(pictures)
    places = [tuple(pictures[i].place) for i in order]
    check, files_of = functools.partial(check_place, root, store), functools.partial(find_files, root)
    for i, result in zip(order, check_all(check, places, files_of, PICTURES, memory, placement), strict=True):
        found[i] = result
    pairs = list(zip(pictures, found, strict=True))
    bad = [Dropped(picture.file, reason) for picture, (sha256, reason) in pairs if not sha256]
    return [Listed(*picture, sha256) for picture, (sha256, _) in pairs if sha256], bad


def check_place(root: Path, store: StoreOptions | None, place: Place) -> Found:
    """See `check_picture`."""
    try:
        return check_picture(read_place(root, place, MAX_BYTES), store)
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"


def find_files(root: Path, place: Place) -> list[Path]:
    """The file that something lies in."""
    return [root / place[0]]


def write_listing(
    root: Path,
    raw_dir: Path,
    classes: Sequence[str],
    class_names: Sequence[str],
    kept: Iterable[tuple[Listed, str]],
    dropped: Iterable[Dropped],
) -> None:
    """Write listing.json, and forget what was remembered of the checks.

    Args:
        classes: Of `Listed.class_name`, in the order of their labels.
        class_names: How they are called.
        kept: Each with its split, in the order of the samples.

    Raises:
        UserError: if a split has no picture.
    """
    labels = {name: label for label, name in enumerate(classes)}
    splits: dict[str, dict[str, list]] = {name: {"places": [], "labels": [], "sha256": []} for name in SPLITS}
    for picture, split in kept:
        columns = splits[split]
        columns["places"].append(picture.place)
        columns["labels"].append(labels[picture.class_name])
        columns["sha256"].append(picture.sha256)
    found = [split for split, columns in splits.items() if columns["labels"]]
    listing = {"class_names": class_names, "splits": splits, "dropped": list(dropped)}
    finish_listing(root, raw_dir, listing, found, "picture")


def finish_listing(root: Path, raw_dir: Path, listing: Mapping[str, Any], splits: Collection[str], what: str) -> None:
    """Write listing.json, and forget what was remembered of the checks.

    Args:
        listing: With class_names, and what was dropped.
        splits: Those that have something.
        what: They have, in the singular.

    Raises:
        UserError: if a split has nothing.
    """
    for split in SPLITS:
        if split not in splits:
            raise UserError(problem("dataset.path", str(root), f"no {what} for the split {split}", f"add {what}s"))
    write_json_atomic(raw_dir / LISTING, listing)
    shutil.rmtree(raw_dir / CHECKED, ignore_errors=True)


def load_listing(raw_dir: Path) -> dict[str, Any]:
    """What listing.json says; remembered, of large sets it takes seconds."""
    stat = (raw_dir / LISTING).stat()
    return _load(raw_dir, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=1)
def _load(raw_dir: Path, *state: int) -> dict[str, Any]:
    return json.loads((raw_dir / LISTING).read_text())


def listed_samples(
    root: Path, raw_dir: Path, split: str, store: Callable[[bytes], np.ndarray | Encoded]
) -> LazySamples:
    """The pictures of a split, read where they lie; raises UserError on one that has changed.

    Args:
        store: From the bytes of a picture to what is stored; may raise BadPicture.
    """
    places, labels, hashes = (load_listing(raw_dir)["splits"][split][key] for key in ("places", "labels", "sha256"))

    def make(index: int) -> Sample:
        data = read_same(root, places[index], hashes[index], "picture", MAX_BYTES)
        try:
            stored = store(data)
        except BadPicture as error:
            raise UserError(f"{root / places[index][0]}: picture {error}; run the stage `fetch` again") from None
        return Sample(f"{split}-{index:06d}", stored, labels[index], (hashes[index],))

    return LazySamples(len(labels), make)


def load_class_names(options: DatasetOptions, raw_dir: Path) -> list[str]:
    """In the order of their labels, as the fetch has found them."""
    return load_listing(raw_dir)["class_names"]


def load_samples(options: Any, raw_dir: Path, split: str) -> LazySamples:
    """The pictures of a split, as squares of `img_size` or whole; raises UserError on one that has changed.

    Args:
        options: Of a data set in a folder of the user's: `path`, `store`, and where it may have squares `img_size`.
    """
    store = functools.partial(to_stored, img_size=getattr(options, "img_size", None), store=options.store)
    return listed_samples(Path(options.path).expanduser(), raw_dir, split, store)


def load_dropped(options: DatasetOptions, raw_dir: Path) -> list[Dropped]:
    """What was left out, each with its reason."""
    return [Dropped(*pair) for pair in load_listing(raw_dir)["dropped"]]
