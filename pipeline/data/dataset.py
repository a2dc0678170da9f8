"""Exact reading of plain WebDataset tars, by the index's offsets: random access to the samples of a split."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.data.clips import ClipTransform
from pipeline.data.decoding import (
    SMALL_BYTES,
    BadImage,
    decode,
    decode_classes_once,
    decode_clip_once,
    decode_once,
    decode_picture,
)
from pipeline.data.index import ShardError, load_split_index
from pipeline.data.masks import MaskTransform
from pipeline.data.order import kept_indices
from pipeline.data.source import REMEDY, open_source, read_sample
from pipeline.data.transforms import Transform
from pipeline.data.verify import Verify, verify_shards
from pipeline.data.video import BadClip, decode_clip
from pipeline.errors import UserError, problem

AnyTransform = Transform | ClipTransform | MaskTransform
# Image (C, H, W), clip (C, T, H, W) or its views (V, C, T, H, W), float32; its label, or the classes of the image's
# pixels (H, W) as `MaskTransform` has them; index in the split.
Loaded = tuple[torch.Tensor, Any, int]


class Stored(NamedTuple):
    """The piece of a tar that has all of a sample's members."""

    data: bytes
    start: int  # its offset in the tar

    def part(self, spans: np.ndarray, index: int) -> bytes:
        """The member that lies at `spans[index]` of the tar."""
        offset, length = spans[index].tolist()
        return self.data[offset - self.start : offset - self.start + length]


class ShardDataset(Dataset[Loaded]):
    """Random access to the samples of one split, by the index's offsets; each is checked by its CRC when it is read.

    Args:
        directory: Where manifest.json, index.json and the tars lie, or source.json, which says where these are.
        split: "train", "val" or "test".
        transform: From (H, W[, C]) uint8 to a (C, H, W) float tensor; a `ClipTransform` where the samples are clips,
            a `MaskTransform` where their pixels have classes.
        verify: How thoroughly the shards are checked here, before the first sample is read.
        dropped: Indices in the split of damaged samples that are left out: those of all others stay what they are.

    Raises:
        ShardError: naming the file that is missing, cut short or altered.
        UserError: if the model reads clips and the samples are images, or the other way round; labels or classes.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        transform: AnyTransform,
        verify: Verify = "sha256",
        dropped: Sequence[int] = (),
    ) -> None:
        self.manifest = verify_shards(directory, verify, [split])
        self._check_kind(transform)
        self.transform = transform
        self._index = load_split_index(directory, split)
        self._shards = self.manifest.split(split).shards
        self._source = open_source(directory)
        self.kept = kept_indices(len(self), dropped)  # (m,) int64
        height, width = self.manifest.image_size or (SMALL_BYTES, 2)
        _, most_frames = self.manifest.num_frames or (1, 1)
        self._small = height * width * most_frames * self.manifest.in_chans <= SMALL_BYTES
        self._decode = decode_once if self._small else decode
        pictures = isinstance(transform, Transform) and transform.takes_pictures and not self._small
        self._decode_input: Callable[[bytes], Any] = decode_picture if pictures else self._decode
        self._decode_classes = decode_classes_once if self._small else decode

    def __len__(self) -> int:
        """Samples of the split, those that are left out included."""
        return len(self._index.keys)

    def __getitem__(self, draw: int) -> Loaded:
        repeat, index = divmod(draw, len(self))
        stored = self.read(index)
        if isinstance(self.transform, MaskTransform):
            image, classes = self._image(stored, index), self._classes(stored, index)
            return *self.transform(image, classes, index, repeat), index
        assert self._index.label_spans is not None
        label = int(stored.part(self._index.label_spans, index))
        if isinstance(self.transform, Transform):
            data = stored.part(self._index.image_spans, index)
            return self.transform(self._pixels(data, index, self._decode_input), index, repeat), label, index
        read_frames = functools.partial(self._frames, stored, index)
        return self.transform(read_frames, self.num_frames(index), index, repeat), label, index

    def image(self, index: int) -> np.ndarray:
        """The stored image: (H, W) or (H, W, 3) uint8."""
        return self._image(self.read(index), index)

    def classes(self, index: int) -> np.ndarray:
        """The class of every pixel of the stored image: (H, W) uint8."""
        return self._classes(self.read(index), index)

    def num_frames(self, index: int) -> int:
        """How many frames the stored clip has."""
        assert self._index.num_frames is not None
        return int(self._index.num_frames[index])

    def frames(self, index: int, wanted: Sequence[int]) -> np.ndarray:
        """Frames of the stored clip: (len(wanted), H, W, C) uint8."""
        return self._frames(self.read(index), index, wanted)

    def sample_key(self, index: int) -> str:
        """The key under which sample `index` of the split is stored."""
        return self._index.keys[index]

    def read(self, index: int) -> Stored:
        """All members of a sample, in one piece; raises ShardError if a byte of them is not what was written."""
        data, whole = read_sample(self._source, self._shards[self._index.shards[index]], self._index, index)
        if not whole:
            raise self._damaged(index, f"its bytes are not those that were written; {REMEDY}")
        return Stored(data, int(self._index.extents[index, 0]))

    def _check_kind(self, transform: AnyTransform) -> None:
        clips, by_pixel = self.manifest.num_frames is not None, self.manifest.task == "segmentation"
        if by_pixel != isinstance(transform, MaskTransform):
            what, remedy = ("a class for every pixel", "MaskTransform") if by_pixel else ("labels", "Transform")
            raise UserError(f"{type(transform).__name__}: the shards have {what}; use {remedy}")
        if clips and not isinstance(transform, ClipTransform):
            raise UserError(problem("model.num_frames", None, "the shards have clips", "say how many frames it reads"))
        if not clips and isinstance(transform, ClipTransform):
            value = transform.clip.num_frames
            raise UserError(problem("model.num_frames", value, "the shards have images", "leave it out"))

    def _image(self, stored: Stored, index: int) -> np.ndarray:
        return self._pixels(stored.part(self._index.image_spans, index), index, self._decode)

    def _classes(self, stored: Stored, index: int) -> np.ndarray:
        assert self._index.mask_spans is not None
        return self._pixels(stored.part(self._index.mask_spans, index), index, self._decode_classes)

    def _pixels(self, data: bytes, index: int, decode: Callable[[bytes], Any]) -> Any:
        try:
            return decode(data)
        except BadImage as error:
            raise self._damaged(index, error) from None

    def _frames(self, stored: Stored, index: int, wanted: Sequence[int]) -> np.ndarray:
        data, grey = stored.part(self._index.image_spans, index), self.manifest.in_chans == 1
        try:
            if self._small:
                found = decode_clip_once(data, self.num_frames(index), grey)[wanted]
            else:
                found = decode_clip(data, wanted, grey)
        except BadClip as error:
            raise self._damaged(index, error) from None
        return found[..., None] if grey else found

    def _damaged(self, index: int, reason: object) -> ShardError:
        shard = self._shards[self._index.shards[index]]
        return ShardError(f"{self._source.where(shard)}: sample {self.sample_key(index)}: {reason}")
