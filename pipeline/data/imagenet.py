"""imagenet1k: ILSVRC 2012 from the user's own copy, in whatever of its published forms that is.

Fetching copies and unpacks nothing: it decodes every picture once, on all cores or nodes, and writes down a listing of
where each lies, with hashes. The published val is the test split; our val comes out of train; a picture of train that
is in val too is left out. From every form of the copy come the same samples, in the same order, with the same labels.
"""

import functools
from pathlib import Path

from pipeline.data import listing
from pipeline.data.imagenet_layouts import find_copy
from pipeline.data.index import Dropped
from pipeline.data.lazy import LazySamples
from pipeline.data.listed import refuse_too_many
from pipeline.data.listing import check_pictures, listed_samples, load_listing, write_listing
from pipeline.data.options import Imagenet1kOptions
from pipeline.data.pictures import to_stored
from pipeline.data.splits import check_expected, leave_doubles, published_splits
from pipeline.placement import Placement


def fetch(options: Imagenet1kOptions, raw_dir: Path, placement: Placement | None = None) -> None:
    """Check every picture and write listing.json.

    Raises:
        UserError: if the folder is no copy, an incomplete one, or more of its pictures are bad than `max_bad_frac`
            allows.
    """
    root = Path(options.path).expanduser()
    copy = find_copy(root)
    check_expected(options.path, options.expect, copy.pictures)
    listed, bad = check_pictures(root, copy.pictures, raw_dir, placement)
    bad = [*copy.damaged, *bad]
    refuse_too_many(options.max_bad_frac, len(copy.pictures) + len(copy.damaged), bad, "pictures")
    kept, doubles = leave_doubles(listed, published_splits(listed, options.val_frac, options.seed))
    class_names = [copy.names.get(name, name) for name in copy.classes]
    write_listing(root, raw_dir, copy.classes, class_names, kept, [*bad, *doubles])


def load_class_names(options: Imagenet1kOptions, raw_dir: Path) -> list[str]:
    """In the order of the sorted WordNet ids: the development kit's names, or where it is missing the ids."""
    return load_listing(raw_dir)["class_names"]


def load_samples(options: Imagenet1kOptions, raw_dir: Path, split: str) -> LazySamples:
    """The pictures of a split, whole; raises UserError on one that has changed."""
    store = functools.partial(to_stored, img_size=None, store=options.store)
    return listed_samples(Path(options.path).expanduser(), raw_dir, split, store)


def load_dropped(options: Imagenet1kOptions, raw_dir: Path) -> list[Dropped]:
    """Pictures that cannot be used, and those of train that are in the test split too."""
    return listing.load_dropped(raw_dir)
