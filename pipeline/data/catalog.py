"""The data sets this laboratory knows: one entry each. Imports nothing heavy.

A new data set is its options (what a suite's `dataset:` section may say), a module with the three functions
of `DatasetModule`, and one entry in `DATASETS`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.schema import inconsistent

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data.index import Dropped

SPLITS = ("train", "val", "test")

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1: pixels, half-open


class Planned(NamedTuple):
    """What a data set will have, known before it is fetched: enough to plan and to count."""

    num_classes: int
    num_train: int


class DatasetOptions(BaseModel):
    """What every data set's options share: no unknown keys, no silent conversions, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str

    def planned(self) -> Planned | None:
        """As far as the options tell."""
        return None


class DigitsOptions(DatasetOptions):
    """Handwritten digits at a random place among pieces of other digits; generated, nothing is downloaded."""

    name: Literal["cluttered-digits"]
    img_size: int = Field(ge=16)  # pixels on the canvas's side
    num_clutter: int = Field(ge=0)  # pieces of other digits per canvas
    train_samples: Count
    val_samples: Count
    test_samples: Count
    seed: Seed

    def planned(self) -> Planned:
        """Ten digits."""
        return Planned(10, self.train_samples)


class MovingDigitsOptions(DatasetOptions):
    """A handwritten digit that moves over pieces of other digits, which stand still; generated."""

    name: Literal["moving-digits"]
    img_size: int = Field(ge=16)  # pixels on a frame's side
    num_frames: int = Field(ge=2)  # of every clip
    num_clutter: int = Field(ge=0)  # pieces of other digits per clip
    label: Literal["motion", "digit-motion"]  # where it moves, or which digit moves where
    train_samples: Count
    val_samples: Count
    test_samples: Count
    seed: Seed

    def planned(self) -> Planned:
        """Four directions, of ten digits or of one of them."""
        return Planned(4 if self.label == "motion" else 40, self.train_samples)


class StoreOptions(BaseModel):
    """Pictures kept whole, as JPEG: for sets that are too large, and crops too random, for squares as PNG."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    shorter_side: int = Field(ge=8)  # pixels: what is larger is resized to it; nothing is made larger
    format: Literal["jpg"]
    quality: int = Field(ge=1, le=100)  # of what is resized, or was no JPEG; other pictures keep their bytes


class ExpectOptions(BaseModel):
    """What a complete copy of a published set has: an incomplete one is refused, and plans need no data."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_classes: Count
    num_train: Count  # pictures that are not the test split's
    num_test: Count


class ImageFolderOptions(DatasetOptions):
    """The user's own pictures: PATH/CLASS/*.jpg, or PATH/{train,val,test}/CLASS/*.jpg, which is then kept.

    With test_frac null, PATH/{train,val}/CLASS/*.jpg as ImageNet is published: its val is the test split, and val is
    taken from its train.
    """

    name: Literal["image-folder"]
    path: str
    img_size: Annotated[int, Field(ge=8)] | None = None  # pixels: squares; the shorter side is resized to it
    store: StoreOptions | None = None  # or whole pictures
    val_frac: Fraction  # of every class, where the folder is not split already
    test_frac: Fraction | None
    seed: Seed
    expect: ExpectOptions | None = None

    @model_validator(mode="after")
    def _keys_agree(self) -> "ImageFolderOptions":
        if (self.img_size is None) == (self.store is None):
            rule = "write one of img_size (squares) and store (whole pictures)"
            raise inconsistent("img_size", self.img_size, rule)
        if self.val_frac + (self.test_frac or 0) >= 1:
            raise inconsistent("test_frac", self.test_frac, "with val_frac leaves nothing to train on")
        return self

    def planned(self) -> Planned | None:
        """What is expected, without the val that is taken from it."""
        if self.expect is None:
            return None
        return Planned(self.expect.num_classes, round(self.expect.num_train * (1 - self.val_frac)))


class PublishedOptions(DatasetOptions):
    """A published data set with a test split of its own; val is taken from its training samples."""

    val_samples: Count
    seed: Seed


class DownloadOptions(PublishedOptions):
    """One that we download."""

    url: str | None = None  # folder of a mirror; not science, the files' sha256 are fixed


class FashionMnistOptions(DownloadOptions):
    """Zalando's 28 x 28 pictures of clothes."""

    name: Literal["fashion-mnist"]


class Cifar10Options(DownloadOptions):
    """Ten classes of 32 x 32 colour pictures."""

    name: Literal["cifar10"]


class VideoFolderOptions(PublishedOptions):
    """The user's own copy of a published set of clips; its validation part is our test split, as in papers."""

    path: str
    max_bad_frac: float = Field(ge=0, lt=1)  # share of the clips that may be missing or damaged; they are left out


class Kinetics400Options(VideoFolderOptions):
    """Ten seconds of one of 400 human actions."""

    name: Literal["kinetics400"]

    def planned(self) -> Planned:
        """About as many as copies have: clips vanish from where they were published."""
        return Planned(400, 240_000 - self.val_samples)


class Ssv2Options(VideoFolderOptions):
    """Something-Something V2: hands doing one of 174 things to something."""

    name: Literal["ssv2"]

    def planned(self) -> Planned:
        """As published."""
        return Planned(174, 168_913 - self.val_samples)


class Encoded(NamedTuple):
    """An image or a clip that is stored as the bytes it comes in."""

    data: bytes
    extension: str  # of `pipeline.data.index.IMAGES` or `CLIPS`
    size: tuple[int, int]  # (H, W) of the image, or of every frame
    num_frames: int | None = None  # None: an image


@dataclass(frozen=True)
class Sample:
    """One labelled image or clip, before it is written to a shard."""

    key: str  # unique in its split, without dots
    image: "np.ndarray | Encoded"  # pixels are (H, W) or (H, W, 3), uint8, and stored as PNG
    label: int
    sources: tuple[str, ...]  # the source images it is made of: no two splits may share one
    mask: "np.ndarray | None" = None  # (H, W) uint8: how much of each pixel is the object
    box: Box | tuple[Box, ...] | None = None  # of the object: in the image, or in every frame of the clip


class DatasetModule(Protocol):
    """What the module behind an entry provides."""

    def fetch(self, options: Any, raw_dir: Path) -> None:
        """Bring what the data set is made of into the existing directory `raw_dir`."""

    def load_samples(self, options: Any, raw_dir: Path, split: str) -> Sequence[Sample]:
        """The samples of a split; each is made when it is asked for, and is always the same."""

    def load_class_names(self, options: Any, raw_dir: Path) -> list[str]:
        """The names of the labels 0, 1, ..."""


@dataclass(frozen=True)
class DatasetEntry:
    """A data set: what may be chosen, where it comes from, under which terms, and the code that makes it."""

    options: type[DatasetOptions]
    module: str  # imported at the first use, so that naming a data set costs nothing
    source: str
    licence: str
    in_chans: int
    resumable: bool = False  # its fetch goes on from what an interrupted one left
    video: bool = False  # its samples are clips
    mirror_safe: bool = True  # a mirrored sample still has its label

    def fetch(self, options: DatasetOptions, raw_dir: Path) -> None:
        """Write the raw data into the directory `raw_dir`; raises UserError."""
        self._module().fetch(options, raw_dir)

    def samples(self, options: DatasetOptions, raw_dir: Path, split: str) -> Sequence[Sample]:
        """The samples of `split`, lazily; raises UserError."""
        return self._module().load_samples(options, raw_dir, split)

    def class_names(self, options: DatasetOptions, raw_dir: Path) -> list[str]:
        """The names of the labels 0, 1, ..."""
        return self._module().load_class_names(options, raw_dir)

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
    "image-folder": DatasetEntry(
        options=ImageFolderOptions,
        module="pipeline.data.image_folder",
        source="the user's own images",
        licence="as the images",
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
        video=True,
    ),
    "ssv2": DatasetEntry(
        options=Ssv2Options,
        module="pipeline.data.video_folder",
        source="the user's own copy of Something-Something V2 (arXiv 1706.04261)",
        licence="for research, see its publisher",
        in_chans=3,
        resumable=True,
        video=True,
        mirror_safe=False,  # "from left to right"
    ),
}
