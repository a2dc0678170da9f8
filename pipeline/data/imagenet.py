"""imagenet1k: ILSVRC 2012 from the user's own copy, in whatever of its published forms that is.

Fetching copies and unpacks nothing: it decodes every picture once, on all cores or nodes, and writes down a listing of
where each lies, with hashes. The published val is the test split; our val comes out of train; a picture of train that
is in val too is left out. From every form of the copy come the same samples, in the same order, with the same labels.
"""

from pathlib import Path

from pipeline.data.imagenet_layouts import find_copy
from pipeline.data.listed import refuse_too_many, refuse_unknown
from pipeline.data.listing import check_pictures, load_class_names, load_dropped, load_samples, write_listing
from pipeline.data.options import Imagenet1kOptions
from pipeline.data.splits import check_expected, leave_doubles, published_splits
from pipeline.placement import Placement

__all__ = ["fetch", "load_class_names", "load_dropped", "load_samples"]


def fetch(options: Imagenet1kOptions, raw_dir: Path, placement: Placement | None = None) -> None:
    """Check every picture and write listing.json.

    Raises:
        UserError: if the folder is no copy, an incomplete one, or more of its pictures are bad than `max_bad_frac`
            allows.
    """
    root = Path(options.path).expanduser()
    copy = find_copy(root)
    refuse_unknown(options.path, copy.unknown)
    check_expected(options.path, options.expect, copy.pictures, len(copy.damaged))
    listed, bad = check_pictures(root, copy.pictures, raw_dir, placement, options.store)
    bad = [*copy.damaged, *bad]
    refuse_too_many(options.max_bad_frac, len(copy.pictures) + len(copy.damaged), bad, "pictures")
    kept, doubles = leave_doubles(listed, published_splits(listed, options.val_frac, options.seed))
    class_names = [copy.names.get(name, name) for name in copy.classes]
    write_listing(root, raw_dir, copy.classes, class_names, kept, [*bad, *doubles])
