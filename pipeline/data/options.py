"""What a suite's `dataset:` section may say of each data set. Imports nothing heavy."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.schema import inconsistent

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
BadFraction = Annotated[float, Field(ge=0, lt=1)]


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


class DigitsSegmentationOptions(DatasetOptions):
    """Whole handwritten digits of many sizes, apart from each other, and pieces of other digits; every pixel named."""

    name: Literal["digits-segmentation"]
    img_size: int = Field(ge=16)  # pixels on the canvas's side
    num_digits: int = Field(ge=1, le=100)  # per canvas; one that finds no free place is left out
    digit_px: Annotated[list[Annotated[int, Field(ge=8, le=96)]], Field(min_length=2, max_length=2)]  # sides of digits
    num_clutter: int = Field(ge=0, le=100)  # pieces of other digits per canvas; val has 269 digits in all
    label: Literal["object", "digit"]  # of a digit's pixels: that there is one, or which one
    train_samples: Count
    val_samples: Count
    test_samples: Count
    seed: Seed

    @model_validator(mode="after")
    def _sides_increase(self) -> "DigitsSegmentationOptions":
        if self.digit_px[0] > self.digit_px[1]:
            rule = "must be the smallest and the largest side, both included, in pixels of a canvas of 96"
            raise inconsistent("digit_px", self.digit_px, rule, f"try {self.digit_px[::-1]}")
        return self

    def planned(self) -> Planned:
        """Ten digits, or one class of all of them, and what is behind them."""
        return Planned(11 if self.label == "digit" else 2, self.train_samples)


class StoreOptions(BaseModel):
    """Pictures kept whole, as JPEG: for sets that are too large, and crops too random, for squares as PNG."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    shorter_side: int = Field(ge=8)  # pixels: what is larger is resized to it; nothing is made larger
    format: Literal["jpg"]
    quality: int = Field(ge=1, le=100)  # of what is resized, or was no JPEG; other pictures keep their bytes


def _squares_or_whole(img_size: int | None, store: StoreOptions | None) -> None:
    if (img_size is None) == (store is None):
        rule = "write one of img_size (squares) and store (whole pictures)"
        raise inconsistent("img_size", img_size, rule)


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
    max_bad_frac: BadFraction = 0.0  # share of the pictures that may be unusable; they are left out

    @model_validator(mode="after")
    def _keys_agree(self) -> "ImageFolderOptions":
        _squares_or_whole(self.img_size, self.store)
        if self.val_frac + (self.test_frac or 0) >= 1:
            raise inconsistent("test_frac", self.test_frac, "with val_frac leaves nothing to train on")
        return self

    def planned(self) -> Planned | None:
        """What is expected, without the val that is taken from it."""
        if self.expect is None:
            return None
        return Planned(self.expect.num_classes, round(self.expect.num_train * (1 - self.val_frac)))


class Imagenet1kOptions(DatasetOptions):
    """The user's own copy of ImageNet-1k, in whatever of its published forms it is; its val is the test split.

    PATH has the official archives, which are read where they are (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar,
    ILSVRC2012_devkit_t12.tar.gz), or train/CLASS/* and val/CLASS/*, or data/{train,validation}-*.parquet.
    """

    name: Literal["imagenet1k"]
    path: str
    store: StoreOptions
    val_frac: Fraction  # of every class of train, for choices
    seed: Seed
    max_bad_frac: BadFraction  # share of the pictures that may be unusable; they are left out
    expect: ExpectOptions | None = None

    def planned(self) -> Planned | None:
        """What is expected, without the val that is taken from it."""
        if self.expect is None:
            return None
        return Planned(self.expect.num_classes, round(self.expect.num_train * (1 - self.val_frac)))


class TarPatterns(BaseModel):
    """The tars of every split, relative to the folder; * and ** as in a shell."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    train: str = "train/*.tar"
    val: str = "val/*.tar"
    test: str = "test/*.tar"

    @model_validator(mode="after")
    def _are_patterns(self) -> "TarPatterns":
        for split, pattern in self:
            parts = PurePosixPath(pattern).parts
            odd = any("**" in part and part != "**" for part in parts)
            if not parts or parts[0].startswith("/") or odd or "\0" in pattern:
                rule = "must be a pattern of files below dataset.path, ** a whole part of it"
                raise inconsistent(split, pattern, rule, "as train/*.tar")
        return self


class WebdatasetOptions(DatasetOptions):
    """The user's own tars of pictures with labels, as WebDataset has them: PATH/{train,val,test}/*.tar."""

    name: Literal["webdataset"]
    path: str
    tars: TarPatterns = TarPatterns()
    label: str  # the member with the label: cls, a whole number, or json:KEY, a number or a name
    img_size: Annotated[int, Field(ge=8)] | None = None  # pixels: squares; the shorter side is resized to it
    store: StoreOptions | None = None  # or whole pictures
    max_bad_frac: BadFraction  # share of the samples that may be unusable; they are left out

    @model_validator(mode="after")
    def _keys_agree(self) -> "WebdatasetOptions":
        _squares_or_whole(self.img_size, self.store)
        if self.label != "cls" and not (self.label.startswith("json:") and len(self.label) > 5):
            raise inconsistent("label", self.label, "must be cls, or json:KEY for a key of the member .json")
        return self


class PublishedOptions(DatasetOptions):
    """A published data set with a test split of its own; val is taken from its training samples."""

    val_samples: Count
    seed: Seed


class DownloadOptions(PublishedOptions):
    """One that we download."""

    url: str | None = None  # folder of a mirror; not science, the files' sha256 are fixed


class PublishedShardsOptions(DatasetOptions):
    """Shards that somebody has published, images with labels: a folder with manifest.json, index.json and the tars."""

    name: Literal["published-shards"]
    url: str  # https://, s3://, gs:// or file://; not science, the manifest's sha256 is
    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


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


class Ade20kOptions(PublishedOptions):
    """The user's own copy of ADEChallengeData2016: scenes, and for every pixel which of 150 things it shows.

    Its validation part is our test split, as in papers.
    """

    name: Literal["ade20k"]
    path: str
    max_bad_frac: float = Field(ge=0, lt=1)  # share of the pictures that may be unusable; they are left out

    def planned(self) -> Planned:
        """As published."""
        return Planned(150, 20_210 - self.val_samples)
