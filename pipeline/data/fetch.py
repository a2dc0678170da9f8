"""Raw data into a directory that appears when it is complete."""

from pathlib import Path

from pipeline.data.catalog import DATASETS
from pipeline.data.options import DatasetOptions
from pipeline.data.parts import anchored
from pipeline.files import building_dir
from pipeline.placement import Placement


def fetch_dataset(options: DatasetOptions, raw_dir: Path, placement: Placement | None = None) -> None:
    """Fetch a data set of the catalogue into `raw_dir`, replacing what was there.

    An interrupted download or check goes on where it stopped when the same is called again.

    Args:
        placement: Where a user's own files are checked; None: in this process.

    Raises:
        UserError: if the source is unusable or unreachable, a checksum wrong or the disk full.
    """
    entry = DATASETS[options.name]
    with building_dir(raw_dir, resume_as=options.name if entry.resumable else None) as directory:
        entry.fetch(anchored(options), directory.absolute(), placement)
