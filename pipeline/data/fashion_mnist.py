"""fashion-mnist: 70,000 grey pictures of clothes, 28 x 28 (Xiao et al. 2017, arXiv 1708.07747)."""

import gzip
from pathlib import Path

import numpy as np

from pipeline.data.download import RemoteFile, fetch_files
from pipeline.data.lazy import LazySamples
from pipeline.data.options import FashionMnistOptions
from pipeline.data.published import Published, published_part, split_samples
from pipeline.errors import UserError

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
FILES = (
    RemoteFile(
        "train-images-idx3-ubyte.gz",
        26421880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    RemoteFile(
        "train-labels-idx1-ubyte.gz",
        29515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    RemoteFile(
        "t10k-images-idx3-ubyte.gz",
        4422102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    RemoteFile(
        "t10k-labels-idx1-ubyte.gz",
        5148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PREFIX = {"train": "train", "test": "t10k"}
UINT8_CODE = 0x08  # in an idx header


def fetch(options: FashionMnistOptions, raw_dir: Path) -> None:
    """Download the four published files."""
    fetch_files(options.url or URL, FILES, raw_dir)


def load_class_names(options: FashionMnistOptions, raw_dir: Path) -> list[str]:
    """As the authors name them."""
    return list(CLASS_NAMES)


def load_samples(options: FashionMnistOptions, raw_dir: Path, split: str) -> LazySamples:
    """The samples of a split."""
    prefix = PREFIX[published_part(split)]
    images = read_idx(raw_dir / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(raw_dir / f"{prefix}-labels-idx1-ubyte.gz")
    return split_samples(Published(images, labels), options, split)


def read_idx(path: Path) -> np.ndarray:
    """A gzipped idx file of bytes: two zeros, a type, the number of dimensions, their sizes, the data."""
    data = gzip.decompress(path.read_bytes())
    num_dims = data[3]
    if data[:3] != bytes([0, 0, UINT8_CODE]):
        raise UserError(f"{path}: not an idx file of bytes; run the stage `fetch` again")
    shape = np.frombuffer(data, ">u4", num_dims, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)
