"""cifar10: 60,000 colour pictures, 32 x 32 (Krizhevsky 2009), from the binary archive: no pickle is ever opened."""

import tarfile
from pathlib import Path

import numpy as np

from pipeline.data.download import RemoteFile, fetch_files
from pipeline.data.lazy import LazySamples
from pipeline.data.options import Cifar10Options
from pipeline.data.published import Published, published_part, split_samples
from pipeline.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz"
ARCHIVE = "cifar-10-binary.tar.gz"
FILES = (RemoteFile(ARCHIVE, 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),)
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE_PX = 32
RECORD_BYTES = 1 + 3 * SIDE_PX**2  # the label, then the red, green and blue planes
BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


def fetch(options: Cifar10Options, raw_dir: Path) -> None:
    """Download the published archive; it is never unpacked to disk."""
    fetch_files(options.url or URL, FILES, raw_dir)


def load_class_names(options: Cifar10Options, raw_dir: Path) -> list[str]:
    """As the authors name them."""
    return list(CLASS_NAMES)


def load_samples(options: Cifar10Options, raw_dir: Path, split: str) -> LazySamples:
    """The samples of a split."""
    return split_samples(read_archive(raw_dir / ARCHIVE, published_part(split)), options, split)


def read_archive(path: Path, part: str) -> Published:
    """The published `part` ("train" or "test"), out of the archive by the names of its members."""
    names = [f"cifar-10-batches-bin/{name}" for name in BATCHES[part]]
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r|gz") as tar:  # in one pass: looking a member up would unpack all before it again
        for member in tar:
            file = tar.extractfile(member) if member.name in names else None
            if file is not None:
                found[member.name] = file.read()
    if len(found) != len(names) or any(len(data) % RECORD_BYTES for data in found.values()):
        raise UserError(f"{path}: not the binary version of CIFAR-10; run the stage `fetch` again")
    records = np.frombuffer(b"".join(found[name] for name in names), np.uint8).reshape(-1, RECORD_BYTES)
    planes = records[:, 1:].reshape(-1, 3, SIDE_PX, SIDE_PX)
    return Published(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0])
