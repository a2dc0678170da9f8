"""image-folder: the user's own pictures, one folder per class.

Either PATH/CLASS/*, which we split, or PATH/{train,val,test}/CLASS/*, which is kept as it is, or, with
test_frac null, PATH/{train,val}/CLASS/* as ImageNet is published: val is our test split, and our val comes out of
train. The same file twice never ends in two splits. Fetching copies nothing: it checks every picture and writes down a
listing with hashes; what cannot be used is left out, as long as it is no more than `max_bad_frac` of all. Sharding
reads the pictures where they lie and refuses one that has changed since.
"""

from pathlib import Path

from pipeline.data.catalog import SPLITS
from pipeline.data.listed import refuse_too_many
from pipeline.data.listing import (
    Listed,
    Picture,
    check_pictures,
    load_class_names,
    load_dropped,
    load_samples,
    write_listing,
)
from pipeline.data.options import ImageFolderOptions
from pipeline.data.pictures import SUFFIXES
from pipeline.data.splits import check_expected, choose_splits, given_splits, leave_doubles, published_splits
from pipeline.errors import ConfigError, UserError, problem
from pipeline.placement import Placement

__all__ = ["fetch", "load_class_names", "load_dropped", "load_samples"]


def fetch(options: ImageFolderOptions, raw_dir: Path, placement: Placement | None = None) -> None:
    """Check every picture and write listing.json.

    Raises:
        UserError: naming every folder that is empty, or more pictures that cannot be used than `max_bad_frac` allows.
    """
    root = Path(options.path).expanduser()
    pictures = find_pictures(root, published=options.test_frac is None)
    check_expected(options.path, options.expect, pictures)
    listed, bad = check_pictures(root, pictures, raw_dir, placement, options.store)
    refuse_too_many(options.max_bad_frac, len(pictures), bad, "pictures")
    kept, doubles = leave_doubles(listed, assign_splits(root, listed, options))
    class_names = sorted({picture.class_name for picture in pictures})
    write_listing(root, raw_dir, class_names, class_names, kept, [*bad, *doubles])


def find_pictures(root: Path, published: bool) -> list[Picture]:
    """Every picture file, sorted; hidden and other files are passed over.

    Args:
        published: train/ and val/ are enough.

    Raises:
        UserError: if there is no folder, no class, or a class without a picture.
    """
    if not root.is_dir():
        raise UserError(problem("dataset.path", str(root), "no such directory"))
    tops = list_subdirs(root)
    given = [top.name for top in tops] and all(top.name in SPLITS for top in tops)
    if given and len(tops) < len(SPLITS) and not (published and [top.name for top in tops] == ["train", "val"]):
        rule = "must have train/, val/ and test/, or classes only"
        remedy = "or train/ and val/, the latter for the tests, with dataset.test_frac: null"
        raise UserError(problem("dataset.path", str(root), rule, remedy))
    classes = [(c, s.name) for s in tops for c in list_subdirs(s)] if given else [(c, None) for c in tops]
    if not classes:
        raise UserError(problem("dataset.path", str(root), "is empty", "put one folder of pictures per class there"))
    found = {folder: list_pictures(folder) for folder, _ in classes}
    empty = [problem("dataset.path", str(folder), "class without a picture") for folder in found if not found[folder]]
    if empty:
        raise ConfigError(str(root), empty)
    files = [(path.relative_to(root).as_posix(), folder.name, s) for folder, s in classes for path in found[folder]]
    return [Picture(file, class_name, split, [file]) for file, class_name, split in files]


def assign_splits(root: Path, listed: list[Listed], options: ImageFolderOptions) -> dict[str, str]:
    """sha256 -> split, as the folder has it or as the options say; raises UserError where they do not fit."""
    found = {picture.split for picture in listed}
    if found == set(SPLITS):
        return given_splits(root, listed)
    if found == {"train", "val"}:
        return published_splits(listed, options.val_frac, options.seed)
    if options.test_frac is None:
        raise UserError(problem("dataset.test_frac", None, "the folder has no split of its own", "write a fraction"))
    return choose_splits(listed, {"test": options.test_frac, "val": options.val_frac}, options.seed)


def list_subdirs(folder: Path) -> list[Path]:
    """Its folders, sorted; hidden ones are passed over."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_pictures(folder: Path) -> list[Path]:
    """The picture files below it, by their names, sorted; hidden ones are passed over."""
    paths = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES)
