"""A sample -> the members of a tar, and what index and manifest say of it."""

import io
import json
import tarfile
import zlib

import numpy as np
from PIL import Image

from pipeline.data.catalog import Encoded, Sample
from pipeline.data.index import CLASSES, Members


def encode_members(sample: Sample) -> dict[str, bytes]:
    """Extension -> bytes: the image or clip, cls or seg.png, and where the sample has them mask.png and box.json."""
    image = sample.image
    extension, data = (image.extension, image.data) if isinstance(image, Encoded) else ("png", encode_png(image))
    members = {extension: data}
    if sample.label is not None:
        members["cls"] = str(sample.label).encode()
    if sample.classes is not None:
        members[CLASSES] = encode_png(sample.classes)
    if sample.mask is not None:
        members["mask.png"] = encode_png(sample.mask)
    if sample.box is not None:
        members["box.json"] = json.dumps(sample.box).encode()
    return members


def encode_png(image: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 -> PNG."""
    buffer = io.BytesIO()
    # Run-length coding of the filtered rows: written and read a third faster than the default, no larger.
    Image.fromarray(image).save(buffer, "png", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def size_of(image: np.ndarray | Encoded) -> tuple[int, int]:
    """(H, W) of an image, or of every frame of a clip."""
    return image.size if isinstance(image, Encoded) else (image.shape[0], image.shape[1])


def count_classes(sample: Sample, num_classes: int) -> np.ndarray:
    """What a sample adds to `SplitInfo.class_counts`: (num_classes,) int64; pixels of class IGNORE count nowhere."""
    found = sample.label if sample.classes is None else sample.classes.ravel()
    assert found is not None
    return np.bincount(np.atleast_1d(found), minlength=num_classes)[:num_classes]


def locate_members(position: int, members: dict[str, bytes]) -> Members:
    """Where the data of `members` will lie in a tar that ends at byte `position`.

    webdataset writes them by extension; each is a header of one block, then the data padded to whole blocks.
    """
    spans: Members = {}
    for extension, data in sorted(members.items()):
        spans[extension] = (position + tarfile.BLOCKSIZE, len(data))
        position += tarfile.BLOCKSIZE * (1 + -(-len(data) // tarfile.BLOCKSIZE))
    return spans
