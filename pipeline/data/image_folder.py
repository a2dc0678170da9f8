"""image-folder: the user's own pictures, one folder per class.

Either PATH/CLASS/*, which we split, or PATH/{train,val,test}/CLASS/*, which is kept as it is, or, with
test_frac null, PATH/{train,val}/CLASS/* as ImageNet is published: val is our test split, and our val comes out of
train. The same file twice never ends in two splits. Fetching copies nothing: it checks every picture and writes down a
listing with hashes; sharding reads the pictures where they lie and refuses one that has changed since.
"""

import hashlib
import io
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from pipeline.data.catalog import SPLITS, Encoded, Sample
from pipeline.data.index import Dropped
from pipeline.data.lazy import LazySamples
from pipeline.data.listed import read_listed
from pipeline.data.options import ImageFolderOptions, StoreOptions
from pipeline.errors import ConfigError, UserError, problem
from pipeline.files import write_json_atomic

LISTING = "listing.json"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Listed(NamedTuple):
    """One picture of the folder."""

    file: str  # relative to the folder, with /
    class_name: str
    split: str | None  # as the folder says; None where it is ours to choose
    sha256: str


def fetch(options: ImageFolderOptions, raw_dir: Path) -> None:
    """Check every picture and write listing.json.

    Raises:
        UserError: naming every folder that is empty and every picture that cannot be read.
    """
    root = Path(options.path).expanduser()
    listed = check_pictures(root, find_pictures(root, published=options.test_frac is None))
    splits = assign_splits(root, listed, options)
    kept = [p for p in listed if not is_double(p, splits)]
    class_names = sorted({picture.class_name for picture in listed})
    images = [
        {"file": p.file, "label": class_names.index(p.class_name), "split": splits[p.sha256], "sha256": p.sha256}
        for p in kept
    ]
    for split in SPLITS:
        if not any(image["split"] == split for image in images):
            raise UserError(problem("dataset.path", str(root), f"no picture for the split {split}", "add pictures"))
    check_expected(options, len(class_names), listed)
    doubles = [p.file for p in listed if is_double(p, splits)]
    write_json_atomic(raw_dir / LISTING, {"class_names": class_names, "images": images, "doubles": doubles})


def load_class_names(options: ImageFolderOptions, raw_dir: Path) -> list[str]:
    """The folders' names, sorted."""
    return json.loads((raw_dir / LISTING).read_text())["class_names"]


def load_samples(options: ImageFolderOptions, raw_dir: Path, split: str) -> LazySamples:
    """The pictures of a split, as squares of `img_size`; raises UserError on a picture that has changed."""
    root = Path(options.path).expanduser()
    images = [i for i in json.loads((raw_dir / LISTING).read_text())["images"] if i["split"] == split]

    def make(index: int) -> Sample:
        image = images[index]
        path = root / image["file"]
        data = read_listed(path, image["sha256"], "picture")
        stored = to_stored(data, path, options)
        return Sample(f"{split}-{index:06d}", stored, image["label"], (image["sha256"],))

    return LazySamples(len(images), make)


def load_dropped(options: ImageFolderOptions, raw_dir: Path) -> list[Dropped]:
    """Pictures of train that are in the published test split too."""
    doubles = json.loads((raw_dir / LISTING).read_text())["doubles"]
    return [Dropped(file, "also in the test split") for file in doubles]


def to_stored(data: bytes, path: Path, options: ImageFolderOptions) -> np.ndarray | Encoded:
    """The bytes of a picture as they are stored: a square of pixels, or a whole JPEG."""
    if options.store is not None:
        return to_jpeg(data, path, options.store)
    assert options.img_size is not None
    return to_square(decode(data, path), options.img_size)


def find_pictures(root: Path, published: bool) -> list[tuple[Path, str, str | None]]:
    """(path, class, split) of every picture file, sorted; hidden and other files are passed over.

    Args:
        published: train/ and val/ are enough.

    Raises:
        UserError: if there is no folder, no class, or a class without a picture.
    """
    if not root.is_dir():
        raise UserError(problem("dataset.path", str(root), "no such directory"))
    tops = _subdirs(root)
    given = [top.name for top in tops] and all(top.name in SPLITS for top in tops)
    if given and len(tops) < len(SPLITS) and not (published and [top.name for top in tops] == ["train", "val"]):
        rule = "must have train/, val/ and test/, or classes only"
        remedy = "or train/ and val/, the latter for the tests, with dataset.test_frac: null"
        raise UserError(problem("dataset.path", str(root), rule, remedy))
    classes = [(c, s.name) for s in tops for c in _subdirs(s)] if given else [(c, None) for c in tops]
    if not classes:
        raise UserError(problem("dataset.path", str(root), "is empty", "put one folder of pictures per class there"))
    found = {folder: _pictures(folder) for folder, _ in classes}
    empty = [problem("dataset.path", str(folder), "class without a picture") for folder in found if not found[folder]]
    if empty:
        raise ConfigError(str(root), empty)
    return [(path, folder.name, split) for folder, split in classes for path in found[folder]]


def check_pictures(root: Path, pictures: Iterable[tuple[Path, str, str | None]]) -> list[Listed]:
    """Decode and hash every picture; raises UserError with all that cannot be read."""
    listed: list[Listed] = []
    problems: list[str] = []
    for path, class_name, split in tqdm(list(pictures), desc="check", unit="img", disable=None):
        try:
            data = path.read_bytes()
            decode(data, path)
            file = path.relative_to(root).as_posix()
            listed.append(Listed(file, class_name, split, hashlib.sha256(data).hexdigest()))
        except (UserError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(str(root), problems)
    return listed


def given_splits(root: Path, listed: list[Listed]) -> dict[str, str]:
    """sha256 -> split as the folder has it; raises UserError if the same picture lies in two splits."""
    first: dict[str, Listed] = {}
    problems = []
    for picture in listed:
        other = first.setdefault(picture.sha256, picture)
        if other.split != picture.split:
            problems.append(problem(picture.file, picture.sha256[:12], f"the same picture is {other.file}"))
    if problems:
        raise ConfigError(f"{root}: a picture lies in two splits", problems)
    return {sha256: str(picture.split) for sha256, picture in first.items()}


def assign_splits(root: Path, listed: list[Listed], options: ImageFolderOptions) -> dict[str, str]:
    """sha256 -> split, as the folder has it or as the options say; raises UserError where they do not fit."""
    found = {picture.split for picture in listed}
    if found == set(SPLITS):
        return given_splits(root, listed)
    if found == {"train", "val"}:
        tests = {picture.sha256: "test" for picture in listed if picture.split == "val"}
        rest = [picture for picture in listed if picture.sha256 not in tests]
        return choose_splits(rest, {"val": options.val_frac}, options.seed) | tests
    if options.test_frac is None:
        raise UserError(problem("dataset.test_frac", None, "the folder has no split of its own", "write a fraction"))
    return choose_splits(listed, {"test": options.test_frac, "val": options.val_frac}, options.seed)


def choose_splits(listed: list[Listed], fracs: dict[str, float], seed: int) -> dict[str, str]:
    """sha256 -> split: every class is divided by the fractions, at least one picture staying in train.

    Copies of a picture have one sha256 and so one split; it counts in the class where it is found first.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for sha256, picture in {p.sha256: p for p in reversed(listed)}.items():
        by_class[picture.class_name].append(sha256)
    splits: dict[str, str] = {}
    rng = np.random.default_rng(seed)
    for _, members in sorted(by_class.items()):
        order = [sorted(members)[i] for i in rng.permutation(len(members))]
        names = [split for split, frac in fracs.items() for _ in range(max(1, round(frac * len(order))))]
        for i, sha256 in enumerate(reversed(order)):
            splits[sha256] = names[i] if i < len(names) else "train"
        splits[order[0]] = "train"
    return splits


def is_double(picture: Listed, splits: dict[str, str]) -> bool:
    """Whether a picture of a published train/ is in the test split, and must not be trained on."""
    return picture.split == "train" and splits[picture.sha256] == "test"


def check_expected(options: ImageFolderOptions, num_classes: int, listed: list[Listed]) -> None:
    """Raise ConfigError where the folder is not the complete copy that the options expect."""
    if options.expect is None:
        return
    tests = "test" if any(picture.split == "test" for picture in listed) else "val"
    num_test = sum(picture.split == tests for picture in listed)
    found = {"num_classes": num_classes, "num_train": len(listed) - num_test, "num_test": num_test}
    problems = [
        problem(f"dataset.expect.{key}", value, f"the folder has {found[key]}", "complete it, or drop dataset.expect")
        for key, value in options.expect.model_dump().items()
        if value != found[key]
    ]
    if problems:
        raise ConfigError(options.path, problems)


def decode(data: bytes, path: Path) -> Image.Image:
    """Bytes -> RGB, upright; raises UserError naming `path` if they are not a whole picture."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a picture that would fill the memory when it is unpacked.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, *BOMBS) as error:
        raise UserError(f"{path}: not a readable picture ({error}); mend or remove it") from None


def to_square(image: Image.Image, side: int) -> np.ndarray:
    """Resize the shorter side to `side` (bicubic) and keep the centre: (side, side, 3) uint8."""
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))


def to_jpeg(data: bytes, path: Path, store: StoreOptions) -> Encoded:
    """The picture as a JPEG whose shorter side is at most `shorter_side`; one that is so already keeps its bytes."""
    image = decode(data, path)
    scale = store.shorter_side / min(image.size)
    if scale >= 1 and is_plain_jpeg(data):
        return Encoded(data, store.format, (image.height, image.width))
    if scale < 1:
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=store.quality)
    return Encoded(buffer.getvalue(), store.format, (image.height, image.width))


def is_plain_jpeg(data: bytes) -> bool:
    """Whether the bytes are a JPEG in RGB that nothing says to turn: every reader sees the same in it."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return image.format == "JPEG" and image.mode == "RGB" and upright


def _subdirs(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    paths = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES)
