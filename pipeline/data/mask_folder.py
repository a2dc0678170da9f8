"""ade20k: scenes with a class for every pixel, from the user's own copy of ADEChallengeData2016.

PATH/images/{training,validation}/NAME.jpg and PATH/annotations/{training,validation}/NAME.png, where 0 is no class and
1 to 150 are ours from 0 on. Fetching copies nothing: it decodes every picture and its mask once, on all cores, and
writes down a listing with hashes. What cannot be used is listed with its reason and left out, as long as it is no more
than `max_bad_frac` of all pictures. The published validation part is the test split; val is taken from training.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.data.catalog import IGNORE, SPLITS, Encoded, Sample
from pipeline.data.image_folder import BOMBS, is_plain_jpeg
from pipeline.data.index import Dropped
from pipeline.data.lazy import LazySamples
from pipeline.data.listed import read_listed, refuse_too_many
from pipeline.data.options import Ade20kOptions
from pipeline.data.published import choose_splits
from pipeline.errors import UserError, problem
from pipeline.files import write_json_atomic
from pipeline.provenance import usable_cores

LISTING = "listing.json"
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


class BadFile(Exception):
    """A picture or a mask cannot be used; the message says why."""


def fetch(options: Ade20kOptions, raw_dir: Path) -> None:
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
    checked, bad = check_pairs(root, pairs)
    dropped = sorted(alone + bad)
    refuse_too_many(options.max_bad_frac, len(checked) + len(dropped), dropped, "pictures")
    splits = choose_splits([c.pair.part == "validation" for c in checked], options)
    for split in SPLITS:
        if split not in splits:
            raise UserError(problem("dataset.path", str(root), f"no picture for the split {split}", "add pictures"))
    pictures = [
        {"image": c.pair.image, "mask": c.pair.mask, "split": split, "sha256": c.sha256}
        for c, split in zip(checked, splits, strict=True)
    ]
    listing = {"class_names": read_names(root / NAMES), "pictures": pictures, "dropped": dropped}
    write_json_atomic(raw_dir / LISTING, listing)


def load_class_names(options: Ade20kOptions, raw_dir: Path) -> list[str]:
    """As published; '1' to '150' where the copy has lost the names."""
    return _listing(raw_dir)["class_names"]


def load_dropped(options: Ade20kOptions, raw_dir: Path) -> list[Dropped]:
    """The pictures that cannot be used, each with its reason."""
    return [Dropped(*pair) for pair in _listing(raw_dir)["dropped"]]


def load_samples(options: Ade20kOptions, raw_dir: Path, split: str) -> LazySamples:
    """The pictures of a split in full size, as the bytes they came in; raises UserError on a file that has changed."""
    root = Path(options.path).expanduser()
    pictures = [picture for picture in _listing(raw_dir)["pictures"] if picture["split"] == split]

    def make(index: int) -> Sample:
        picture = pictures[index]
        image_sha256, mask_sha256 = picture["sha256"]
        image = to_stored(read_listed(root / picture["image"], image_sha256, "picture"))
        classes = to_classes(read_listed(root / picture["mask"], mask_sha256, "mask"))
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


def check_pairs(root: Path, pairs: Sequence[Pair]) -> tuple[list[Checked], list[Dropped]]:
    """Decode all; what is damaged, does not fit together, or is in the data set already is dropped."""
    with ThreadPoolExecutor(usable_cores()) as pool:  # decoding releases the interpreter
        try:
            found = pool.map(lambda pair: check_pair(root, pair), pairs)
            results = list(tqdm(found, desc="check", total=len(pairs), unit="img", disable=None))
        finally:
            pool.shutdown(cancel_futures=True)  # who interrupts it need not wait for the rest
    first: dict[str, str] = {}
    checked, dropped = [], []
    for result in results:
        if isinstance(result, Dropped):
            dropped.append(result)
        elif (other := first.setdefault(result.sha256[0], result.pair.image)) != result.pair.image:
            dropped.append(Dropped(result.pair.image, f"is a copy of another picture: {other}"))
        else:
            checked.append(result)
    return checked, dropped


def check_pair(root: Path, pair: Pair) -> Checked | Dropped:
    """One picture and its mask, read and decoded."""
    file = pair.image
    try:
        image_data = (root / file).read_bytes()
        height, width = to_pixels(image_data).shape[:2]
        file = pair.mask
        mask_data = (root / file).read_bytes()
        classes = to_classes(mask_data)
        if classes.shape != (height, width):
            sizes = f"{classes.shape[0]} x {classes.shape[1]} instead of {height} x {width} pixels"
            raise BadFile(f"is a mask of another size than its picture: {sizes}")
        if (classes == IGNORE).all():
            raise BadFile("has no pixel with a class")
    except BadFile as error:
        return Dropped(file, str(error))
    except OSError as error:
        return Dropped(file, f"cannot be read ({error.strerror})")
    return Checked(pair, (hashlib.sha256(image_data).hexdigest(), hashlib.sha256(mask_data).hexdigest()))


def to_stored(data: bytes) -> np.ndarray | Encoded:
    """A picture as it is stored: its bytes, or, of what not every reader sees alike, its pixels."""
    pixels = to_pixels(data)
    height, width = pixels.shape[:2]
    return Encoded(data, "jpg", (height, width)) if is_plain_jpeg(data) else pixels


def to_pixels(data: bytes) -> np.ndarray:
    """A picture -> (H, W, 3) uint8, as its mask lies over it: not turned. Raises BadFile."""
    return np.asarray(_decode(data, ("JPEG", "PNG")).convert("RGB"))


def to_classes(data: bytes) -> np.ndarray:
    """A mask -> (H, W) uint8: our classes, from 0, and IGNORE for the published 0. Raises BadFile."""
    mask = _decode(data, ("PNG",))
    if mask.mode not in ("L", "P"):
        raise BadFile(f"is no mask of one byte per pixel: mode {mask.mode}")
    published = np.asarray(mask)
    if published.max() > NUM_CLASSES:
        raise BadFile(f"has an unknown class: {published.max()}, they end with {NUM_CLASSES}")
    return np.where(published == 0, np.uint8(IGNORE), published - np.uint8(1))


def read_names(path: Path) -> list[str]:
    """The names of the 150 classes, the first of those that each has."""
    names = [str(number) for number in range(1, NUM_CLASSES + 1)]
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        number, *others = line.split("\t")
        if others and number.strip().isdecimal() and 1 <= int(number) <= NUM_CLASSES:
            names[int(number) - 1] = others[-1].split(",")[0].strip()
    return names


def _decode(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """The whole picture; raises BadFile if it is not one."""
    if not data:
        raise BadFile("is empty")
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a picture that would fill the memory when it is unpacked.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=formats)
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, *BOMBS) as error:
        raise BadFile(f"cannot be decoded ({str(error).split('<')[0].strip()})") from None


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


def _listing(raw_dir: Path) -> dict:
    return json.loads((raw_dir / LISTING).read_text())
