"""ade20k: scenes with a class for every pixel, from the user's own copy of ADEChallengeData2016.

PATH/images/{training,validation}/NAME.jpg and PATH/annotations/{training,validation}/NAME.png, where 0 is no class and
1 to 150 are ours from 0 on. Fetching copies nothing: it decodes every picture and its mask once, on all cores or
nodes, and writes down a listing with hashes. What cannot be used is listed with its reason and left out, as long as it
is no more than `max_bad_frac` of all pictures. The published validation part is the test split; val is taken from
training.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.data.catalog import IGNORE, Encoded, Sample
from pipeline.data.checking import CHECKED, Found, How, check_all
from pipeline.data.index import Dropped
from pipeline.data.lazy import LazySamples
from pipeline.data.listed import refuse_too_many
from pipeline.data.listing import finish_listing, load_class_names, load_dropped, load_listing
from pipeline.data.options import Ade20kOptions
from pipeline.data.pictures import MAX_BYTES, BadPicture, is_plain_jpeg, open_picture
from pipeline.data.places import read_place, read_same
from pipeline.data.published import choose_splits
from pipeline.errors import UserError, problem
from pipeline.placement import Placement

__all__ = ["fetch", "load_class_names", "load_dropped", "load_samples"]

SCENES = How("img", group_size=200, little=500)
NAMES = "objectInfo150.txt"  # beside the pictures in the published archive
NUM_CLASSES = 150
PARTS = ("validation", "training")  # of two copies of a picture the first one's stays: no test picture is trained on
LAYOUT = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png, as in ADEChallengeData2016"


class Pair(NamedTuple):
    """A picture and its mask, relative to the folder, with /."""

    part: str
    image: str
    mask: str


class Checked(NamedTuple):
    """A pair that can be used."""

    pair: Pair
    sha256: tuple[str, str]  # of the picture, and of its mask


def fetch(options: Ade20kOptions, raw_dir: Path, placement: Placement | None = None) -> None:
    """Check every picture and its mask, and write listing.json.

    Raises:
        UserError: if the folder is no copy of the data set, or more of its pictures are bad than `max_bad_frac` allows.
    """
    root = Path(options.path).expanduser()
    if not root.is_dir():
        raise UserError(problem("dataset.path", str(root), "no such directory"))
    pairs, alone = find_pairs(root)
    if not pairs:
        raise UserError(problem("dataset.path", str(root), f"is no copy of {options.name}", f"it needs {LAYOUT}"))
    checked, bad = check_pairs(root, pairs, raw_dir, placement)
    dropped = sorted(alone + bad)
    refuse_too_many(options.max_bad_frac, len(checked) + len(dropped), dropped, "pictures")
    splits = choose_splits([c.pair.part == "validation" for c in checked], options)
    pictures = [
        {"image": c.pair.image, "mask": c.pair.mask, "split": split, "sha256": c.sha256}
        for c, split in zip(checked, splits, strict=True)
    ]
    listing = {"class_names": read_names(root / NAMES), "pictures": pictures, "dropped": dropped}
    finish_listing(root, raw_dir, listing, set(splits), "picture")


def load_samples(options: Ade20kOptions, raw_dir: Path, split: str) -> LazySamples:
    """The pictures of a split in full size, as the bytes they came in; raises UserError on a file that has changed."""
    root = Path(options.path).expanduser()
    pictures = [picture for picture in load_listing(raw_dir)["pictures"] if picture["split"] == split]

    def make(index: int) -> Sample:
        picture = pictures[index]
        image_sha256, mask_sha256 = picture["sha256"]
        image = to_stored(read_same(root, [picture["image"]], image_sha256, "picture", MAX_BYTES))
        classes = to_classes(read_same(root, [picture["mask"]], mask_sha256, "mask", MAX_BYTES))
        return Sample(f"{split}-{index:06d}", image, None, (image_sha256,), classes=classes)

    return LazySamples(len(pictures), make)


def find_pairs(root: Path) -> tuple[list[Pair], list[Dropped]]:
    """Every picture with its mask, by part and name, and what is without the other."""
    pairs, alone = [], []
    for part in PARTS:
        images, masks = (
            _files(root, f"images/{part}", (".jpg", ".jpeg")),
            _files(root, f"annotations/{part}", (".png",)),
        )
        pairs += [Pair(part, images[name], masks[name]) for name in images if name in masks]
        alone += [Dropped(images[name], "has no mask") for name in images if name not in masks]
        alone += [Dropped(masks[name], "has no picture") for name in masks if name not in images]
    return pairs, alone


def check_pairs(
    root: Path, pairs: Sequence[Pair], raw_dir: Path, placement: Placement | None
) -> tuple[list[Checked], list[Dropped]]:
    """Decode all; what is damaged, does not fit together, or is in the data set already is dropped."""
    memory = raw_dir / CHECKED if len(pairs) > SCENES.group_size else None
    check, files_of = functools.partial(check_pair, root), functools.partial(find_files, root)
    results = check_all(check, pairs, files_of, SCENES, memory, placement)
    first: dict[str, str] = {}
    checked, dropped = [], []
    for pair, result in zip(pairs, results, strict=True):
        image_sha256, *others = result
        if not image_sha256:
            dropped.append(Dropped(*others))
        elif (other := first.setdefault(image_sha256, pair.image)) != pair.image:
            dropped.append(Dropped(pair.image, f"is a copy of another picture: {other}"))
        else:
            checked.append(Checked(pair, (image_sha256, *others)))
    return checked, dropped


def check_pair(root: Path, pair: Pair) -> Found:
    """(sha256 of the picture, of its mask), or ("", the file that is bad, why)."""
    file = pair.image
    try:
        image_data = read_place(root, [file], MAX_BYTES)
        height, width = to_pixels(image_data).shape[:2]
        file = pair.mask
        mask_data = read_place(root, [file], MAX_BYTES)
        classes = to_classes(mask_data)
        if classes.shape != (height, width):
            sizes = f"{classes.shape[0]} x {classes.shape[1]} instead of {height} x {width} pixels"
            raise BadPicture(f"is a mask of another size than its picture: {sizes}")
        if (classes == IGNORE).all():
            raise BadPicture("has no pixel with a class")
    except BadPicture as error:
        return "", file, str(error)
    except OSError as error:
        return "", file, f"cannot be read ({error.strerror})"
    return hashlib.sha256(image_data).hexdigest(), hashlib.sha256(mask_data).hexdigest()


def find_files(root: Path, pair: Pair) -> list[Path]:
    """The files of a pair."""
    return [root / pair.image, root / pair.mask]


def to_stored(data: bytes) -> np.ndarray | Encoded:
    """A picture as it is stored: its bytes, or, of what not every reader sees alike, its pixels."""
    pixels = to_pixels(data)
    height, width = pixels.shape[:2]
    return Encoded(data, "jpg", (height, width)) if is_plain_jpeg(data) else pixels


def to_pixels(data: bytes) -> np.ndarray:
    """A picture -> (H, W, 3) uint8, as its mask lies over it: not turned. Raises BadPicture."""
    return open_picture(data, ("JPEG", "PNG"), lambda image: np.asarray(image.convert("RGB")))


def to_classes(data: bytes) -> np.ndarray:
    """A mask -> (H, W) uint8: our classes, from 0, and IGNORE for the published 0. Raises BadPicture."""
    published = open_picture(data, ("PNG",), _read_mask)
    if published.max() > NUM_CLASSES:
        raise BadPicture(f"has an unknown class: {published.max()}, they end with {NUM_CLASSES}")
    return np.where(published == 0, np.uint8(IGNORE), published - np.uint8(1))


def _read_mask(mask: Image.Image) -> np.ndarray:
    if mask.mode not in ("L", "P"):
        raise BadPicture(f"is no mask of one byte per pixel: mode {mask.mode}")
    return np.asarray(mask)


def read_names(path: Path) -> list[str]:
    """The names of the 150 classes, the first of those that each has."""
    names = [str(number) for number in range(1, NUM_CLASSES + 1)]
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        number, *others = line.split("\t")
        if others and number.strip().isdecimal() and 1 <= int(number) <= NUM_CLASSES:
            names[int(number) - 1] = others[-1].split(",")[0].strip()
    return names


def _files(root: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Name without suffix -> file relative to the folder, sorted; hidden files are passed over."""
    paths = sorted((root / folder).iterdir()) if (root / folder).is_dir() else []
    shown = [path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    found: dict[str, str] = {}
    for path in shown:
        if path.stem in found:
            raise UserError(
                problem("dataset.path", str(path), f"the same name as {found[path.stem]}", "keep one of them")
            )
        found[path.stem] = f"{folder}/{path.name}"
    return found
