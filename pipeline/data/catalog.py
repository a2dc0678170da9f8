"""The data sets this laboratory knows: one entry each. Imports nothing heavy.

A new data set is its options (what a suite's `dataset:` section may say, in `pipeline.data.options`), a module with
the three functions of `DatasetModule`, and one entry in `DATASETS`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from pipeline.data.options import (
    Ade20kOptions,
    Cifar10Options,
    DatasetOptions,
    DigitsOptions,
    DigitsSegmentationOptions,
    FashionMnistOptions,
    ImageFolderOptions,
    Imagenet1kOptions,
    Kinetics400Options,
    MovingDigitsOptions,
    PublishedShardsOptions,
    Ssv2Options,
    WebdatasetOptions,
)

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data.index import Dropped, Manifest
    from pipeline.placement import Placement

SPLITS = ("train", "val", "test")

IGNORE = 255  # the class of pixels that do not count
Box = tuple[int, int, int, int]  # x0, y0, x1, y1: pixels, half-open


class Encoded(NamedTuple):
    """An image or a clip that is stored as the bytes it comes in."""

    data: bytes
    extension: str  # of `pipeline.data.index.IMAGES` or `CLIPS`
    size: tuple[int, int]  # (H, W) of the image, or of every frame
    num_frames: int | None = None  # None: an image


@dataclass(frozen=True)
class Sample:
    """One image or clip with its label or the classes of its pixels, before it is written to a shard."""

    key: str  # unique in its split, without dots
    image: "np.ndarray | Encoded"  # pixels are (H, W) or (H, W, 3), uint8, and stored as PNG
    label: int | None  # None where every pixel has a class of its own
    sources: tuple[str, ...]  # the source images it is made of: no two splits may share one
    mask: "np.ndarray | None" = None  # (H, W) uint8: how much of each pixel is the object
    box: Box | tuple[Box, ...] | None = None  # of the object; of every object, or of it in every frame of the clip
    classes: "np.ndarray | None" = None  # (H, W) uint8: the class of every pixel, IGNORE where it does not count


class DatasetModule(Protocol):
    """What the module behind an entry provides; of shards that are there already, `fetch` and `write_shards`."""

    def fetch(self, options: Any, raw_dir: Path) -> None:
        """Bring what the data set is made of into the existing directory `raw_dir`."""

    def load_samples(self, options: Any, raw_dir: Path, split: str) -> Sequence[Sample]:
        """The samples of a split; each is made when it is asked for, and is always the same."""

    def load_class_names(self, options: Any, raw_dir: Path) -> list[str]:
        """The names of the classes 0, 1, ..."""


@dataclass(frozen=True)
class DatasetEntry:
    """A data set: what may be chosen, where it comes from, under which terms, and the code that makes it."""

    options: type[DatasetOptions]
    module: str  # imported at the first use, so that naming a data set costs nothing
    source: str
    licence: str
    in_chans: int
    resumable: bool = False  # its fetch goes on from what an interrupted one left
    own_files: bool = False  # checked and read where the user has them, side by side; fetch takes the placement too
    video: bool = False  # its samples are clips
    masks: bool = False  # its samples have a class for every pixel, instead of a label
    mirror_safe: bool = True  # a mirrored sample still has its label

    def fetch(self, options: DatasetOptions, raw_dir: Path, placement: "Placement | None" = None) -> None:
        """Write the raw data into the directory `raw_dir`; raises UserError.

        Args:
            placement: Where a user's own files are checked; None: in this process.
        """
        module: Any = self._module()
        if self.own_files:
            module.fetch(options, raw_dir, placement)
        else:
            module.fetch(options, raw_dir)

    def samples(self, options: DatasetOptions, raw_dir: Path, split: str) -> Sequence[Sample]:
        """The samples of `split`, lazily; raises UserError."""
        return self._module().load_samples(options, raw_dir, split)

    def class_names(self, options: DatasetOptions, raw_dir: Path) -> list[str]:
        """The names of the classes 0, 1, ..."""
        return self._module().load_class_names(options, raw_dir)

    def write_ready(self, options: DatasetOptions, raw_dir: Path, out_dir: Path) -> "Manifest | None":
        """Write shards that are published as such; None: they are to be made of the samples."""
        write = getattr(self._module(), "write_shards", None)
        return write(options, raw_dir, out_dir) if write else None

    def dropped(self, options: DatasetOptions, raw_dir: Path) -> "list[Dropped]":
        """What was left out of the raw data, for modules that may leave something out."""
        load_dropped = getattr(self._module(), "load_dropped", None)
        return load_dropped(options, raw_dir) if load_dropped else []

    def _module(self) -> DatasetModule:
        return cast(DatasetModule, importlib.import_module(self.module))


DATASETS: dict[str, DatasetEntry] = {
    "cluttered-digits": DatasetEntry(
        options=DigitsOptions,
        module="pipeline.data.digits",
        source="UCI optical recognition of handwritten digits, the test part, as in scikit-learn",
        licence="CC BY 4.0",
        in_chans=1,
    ),
    "moving-digits": DatasetEntry(
        options=MovingDigitsOptions,
        module="pipeline.data.moving_digits",
        source="UCI optical recognition of handwritten digits, the test part, as in scikit-learn",
        licence="CC BY 4.0",
        in_chans=1,
        video=True,
        mirror_safe=False,
    ),
    "digits-segmentation": DatasetEntry(
        options=DigitsSegmentationOptions,
        module="pipeline.data.digits_segmentation",
        source="UCI optical recognition of handwritten digits, the test part, as in scikit-learn",
        licence="CC BY 4.0",
        in_chans=1,
        masks=True,
    ),
    "image-folder": DatasetEntry(
        options=ImageFolderOptions,
        module="pipeline.data.image_folder",
        source="the user's own images",
        licence="as the images",
        in_chans=3,
        resumable=True,
        own_files=True,
    ),
    "imagenet1k": DatasetEntry(
        options=Imagenet1kOptions,
        module="pipeline.data.imagenet",
        source="the user's own copy of ImageNet-1k (ILSVRC 2012, arXiv 1409.0575)",
        licence="for research, see its publisher",
        in_chans=3,
        resumable=True,
        own_files=True,
    ),
    "webdataset": DatasetEntry(
        options=WebdatasetOptions,
        module="pipeline.data.tar_folder",
        source="the user's own shards",
        licence="as the images",
        in_chans=3,
        resumable=True,
        own_files=True,
    ),
    "published-shards": DatasetEntry(
        options=PublishedShardsOptions,
        module="pipeline.data.remote_shards",
        source="as the manifest says",
        licence="as the manifest says",
        in_chans=3,
    ),
    "fashion-mnist": DatasetEntry(
        options=FashionMnistOptions,
        module="pipeline.data.fashion_mnist",
        source="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        in_chans=1,
        resumable=True,
    ),
    "cifar10": DatasetEntry(
        options=Cifar10Options,
        module="pipeline.data.cifar10",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="not stated by the authors",
        in_chans=3,
        resumable=True,
    ),
    "kinetics400": DatasetEntry(
        options=Kinetics400Options,
        module="pipeline.data.video_folder",
        source="the user's own copy of Kinetics-400 (arXiv 1705.06950)",
        licence="CC BY 4.0 for the annotations, as the uploaders say for the clips",
        in_chans=3,
        resumable=True,
        own_files=True,
        video=True,
    ),
    "ssv2": DatasetEntry(
        options=Ssv2Options,
        module="pipeline.data.video_folder",
        source="the user's own copy of Something-Something V2 (arXiv 1706.04261)",
        licence="for research, see its publisher",
        in_chans=3,
        resumable=True,
        own_files=True,
        video=True,
        mirror_safe=False,  # "from left to right"
    ),
    "ade20k": DatasetEntry(
        options=Ade20kOptions,
        module="pipeline.data.mask_folder",
        source="the user's own copy of ADEChallengeData2016 (arXiv 1608.05442)",
        licence="BSD 3-Clause for the annotations, research and teaching only for the pictures",
        in_chans=3,
        resumable=True,
        own_files=True,
        masks=True,
    ),
}
