"""Exact reading of plain WebDataset tars, by the index's offsets: random access to the samples of a split."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.data.clips import ClipTransform
from pipeline.data.decoding import SMALL_BYTES, decode, decode_classes_once, decode_clip_once, decode_once
from pipeline.data.index import ShardError, load_split_index
from pipeline.data.masks import MaskTransform
from pipeline.data.transforms import Transform
from pipeline.data.verify import Verify, verify_shards
from pipeline.data.video import BadClip, decode_clip
from pipeline.errors import UserError, problem

AnyTransform = Transform | ClipTransform | MaskTransform
# Image (C, H, W), clip (C, T, H, W) or its views (V, C, T, H, W), float32; its label, or the classes of the image's
# pixels (H, W) as `MaskTransform` has them; index in the split.
Loaded = tuple[torch.Tensor, Any, int]


class ShardDataset(Dataset[Loaded]):
    """Random access to the samples of one split, by the index's offsets.

    Args:
        directory: Where manifest.json, index.json and the tars lie.
        split: "train", "val" or "test".
        transform: From (H, W[, C]) uint8 to a (C, H, W) float tensor; a `ClipTransform` where the samples are clips,
            a `MaskTransform` where their pixels have classes.
        verify: How thoroughly the shards are checked here, before the first sample is read.

    Raises:
        ShardError: naming the file that is missing, cut short or altered.
        UserError: if the model reads clips and the samples are images, or the other way round; labels or classes.
    """

    def __init__(self, directory: Path, split: str, transform: AnyTransform, verify: Verify = "sha256") -> None:
        self.manifest = verify_shards(directory, verify, [split])
        self._check_kind(transform)
        self.directory = directory
        self.transform = transform
        self._index = load_split_index(directory, split)
        height, width = self.manifest.image_size or (SMALL_BYTES, 2)
        _, most_frames = self.manifest.num_frames or (1, 1)
        self._small = height * width * most_frames * self.manifest.in_chans <= SMALL_BYTES
        self._decode = decode_once if self._small else decode
        self._files: dict[int, BinaryIO] = {}
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self._index.keys)

    def __getitem__(self, draw: int) -> Loaded:
        repeat, index = divmod(draw, len(self))
        if isinstance(self.transform, MaskTransform):
            return *self.transform(self.image(index), self.classes(index), index, repeat), index
        assert self._index.label_spans is not None
        label = int(self._read(index, self._index.label_spans))
        if isinstance(self.transform, Transform):
            return self.transform(self.image(index), index, repeat), label, index
        available = self.num_frames(index)
        return self.transform(functools.partial(self.frames, index), available, index, repeat), label, index

    def image(self, index: int) -> np.ndarray:
        """The stored image: (H, W) or (H, W, 3) uint8."""
        return self._pixels(index, self._index.image_spans, self._decode)

    def classes(self, index: int) -> np.ndarray:
        """The class of every pixel of the stored image: (H, W) uint8."""
        assert self._index.mask_spans is not None
        return self._pixels(index, self._index.mask_spans, decode_classes_once if self._small else decode)

    def num_frames(self, index: int) -> int:
        """How many frames the stored clip has."""
        assert self._index.num_frames is not None
        return int(self._index.num_frames[index])

    def frames(self, index: int, wanted: Sequence[int]) -> np.ndarray:
        """Frames of the stored clip: (len(wanted), H, W, C) uint8."""
        data, grey = self._read(index, self._index.image_spans), self.manifest.in_chans == 1
        try:
            if self._small:
                found = decode_clip_once(data, self.num_frames(index), grey)[wanted]
            else:
                found = decode_clip(data, wanted, grey)
        except BadClip as error:
            raise self._damaged(index, error) from None
        return found[..., None] if grey else found

    def sample_key(self, index: int) -> str:
        """The key under which sample `index` of the split is stored."""
        return self._index.keys[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # open files do not travel to another process

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

    def _pixels(self, index: int, spans: np.ndarray, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
        data = self._read(index, spans)
        try:
            return decode(data)
        except (OSError, SyntaxError, ValueError) as error:
            raise self._damaged(index, error) from None

    def _damaged(self, index: int, error: Exception) -> ShardError:
        file = self._index.files[self._index.shards[index]]
        return ShardError(f"{self.directory / file}: sample {self.sample_key(index)}: {error}")

    def _read(self, index: int, spans: np.ndarray) -> bytes:
        if self._pid != os.getpid():  # after a fork
            self._files, self._pid = {}, os.getpid()
        shard = int(self._index.shards[index])
        if shard not in self._files:
            self._files[shard] = (self.directory / self._index.files[shard]).open("rb", buffering=0)
        offset, length = spans[index].tolist()
        return os.pread(self._files[shard].fileno(), length, offset)
