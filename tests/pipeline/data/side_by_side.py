"""Fetch and shard a folder of pictures on a Ray runtime of its own, however small it is: python -m ... PATH OUT."""

import sys
from pathlib import Path

from pipeline.data import listing, shards
from pipeline.data.fetch import fetch_dataset
from pipeline.data.options import ImageFolderOptions
from pipeline.placement import Placement

SIZE = 3


def options(path: Path) -> ImageFolderOptions:
    return ImageFolderOptions(name="image-folder", path=str(path), img_size=16, val_frac=0.2, test_frac=0.2, seed=0)


def main(path: Path, out: Path) -> None:
    listing.PICTURES = listing.PICTURES._replace(group_size=4, little=0)
    shards.LITTLE = 0
    fetch_dataset(options(path), out / "raw", Placement())
    shards.write_shards(options(path), out / "raw", out / "shards", SIZE, Placement())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
