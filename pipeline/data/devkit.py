"""ImageNet's development kit: what its classes are called, and what the pictures of its validation part show."""

import gzip
import io
import re
import zlib
from pathlib import Path
from typing import Any

from pipeline.data.archives import Member, walk_tar
from pipeline.errors import UserError

ARCHIVE, FOLDER = "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
MAX_BYTES = 1 << 26  # unpacked; the published one has 20 MB


def find_devkit(root: Path) -> Path | None:
    """The kit beside the pictures, packed or not."""
    return next((root / name for name in (FOLDER, ARCHIVE) if (root / name).exists()), None)


def read_names(devkit: Path) -> dict[str, str]:
    """wnid -> the first of the class's names; two classes of one name have their wnids behind it."""
    words = {wnid: name.split(",")[0].strip() for _, wnid, name in _read_classes(devkit)}
    names = list(words.values())
    return {wnid: name if names.count(name) == 1 else f"{name} ({wnid})" for wnid, name in words.items()}


def read_truth(devkit: Path) -> list[str]:
    """The wnids of the validation pictures 1, 2, ..."""
    wnids = {number: wnid for number, wnid, _ in _read_classes(devkit)}
    lines = _read(devkit, TRUTH).split()
    try:
        return [wnids[int(line)] for line in lines]
    except (ValueError, KeyError):
        raise _damaged(devkit, TRUTH) from None


def _read_classes(devkit: Path) -> list[tuple[int, str, str]]:
    """(number, wnid, names) of every class that has no others below it."""
    from scipy.io import loadmat

    try:
        table: Any = loadmat(io.BytesIO(_read(devkit, META)), squeeze_me=True, variable_names=["synsets"])["synsets"]
        fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
        rows = [tuple(row[field] for field in fields) for row in table]
        found = [(int(number), str(wnid), str(words)) for number, wnid, words, below in rows if int(below) == 0]
    except UserError:
        raise
    except Exception:  # damaged, it breaks scipy's reader in whatever way it finds
        raise _damaged(devkit, META) from None
    if not all(re.fullmatch(r"n\d{8}", wnid) for _, wnid, _ in found):
        raise _damaged(devkit, META)
    return found


def _read(devkit: Path, name: str) -> bytes:
    """A file of the kit, by its name."""
    if devkit.is_dir():
        path = devkit / "data" / name
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return path.read_bytes()
        raise _damaged(devkit, name)
    tar = io.BytesIO(_unpack(devkit))
    for member in walk_tar(tar):
        if isinstance(member, Member) and member.name.rpartition("/")[2] == name:
            tar.seek(member.offset)
            return tar.read(member.size)
    raise _damaged(devkit, name)


def _unpack(path: Path) -> bytes:
    """In memory, and no more than a kit can have."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise UserError(f"{path}: damaged; download it again") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: unpacks to more than {MAX_BYTES} bytes; it is not the development kit")
    return data


def _damaged(devkit: Path, name: str) -> UserError:
    return UserError(f"{devkit}: has no {name} that can be read; download the development kit again")
