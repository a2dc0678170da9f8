"""Exact reading of plain WebDataset tars: by the index's offsets, in the order that `pipeline.data.order` says."""

import functools
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.data.clips import ClipSampling, ClipTransform, Views
from pipeline.data.index import ShardError, load_split_index
from pipeline.data.order import GlobalBatches, eval_batches
from pipeline.data.transforms import Transform
from pipeline.data.verify import Verify, verify_shards
from pipeline.data.video import BadClip, decode_clip
from pipeline.errors import UserError, problem
from pipeline.recipe import Augment, AugmentConfig

# Images and clips of this many bytes are decoded once per process, over all epochs and trials: at most 512 MiB of them.
SMALL_BYTES = 32 * 2**10
NUM_REMEMBERED = 2**14

# Image (C, H, W), clip (C, T, H, W) or its views (V, C, T, H, W), float32; label; index in the split.
Loaded = tuple[torch.Tensor, int, int]


class ShardDataset(Dataset[Loaded]):
    """Random access to the samples of one split, by the index's offsets.

    Args:
        directory: Where manifest.json, index.json and the tars lie.
        split: "train", "val" or "test".
        transform: From (H, W[, C]) uint8 to a (C, H, W) float tensor; a `ClipTransform` where the samples are clips.
        verify: How thoroughly the shards are checked here, before the first sample is read.

    Raises:
        ShardError: naming the file that is missing, cut short or altered.
        UserError: if the model reads clips and the samples are images, or the other way round.
    """

    def __init__(
        self, directory: Path, split: str, transform: Transform | ClipTransform, verify: Verify = "sha256"
    ) -> None:
        self.manifest = verify_shards(directory, verify, [split])
        self._check_kind(transform)
        self.directory = directory
        self.transform = transform
        self._index = load_split_index(directory, split)
        height, width = self.manifest.image_size or (SMALL_BYTES, 2)
        _, most_frames = self.manifest.num_frames or (1, 1)
        self._small = height * width * most_frames * self.manifest.in_chans <= SMALL_BYTES
        self._decode = _decode_once if self._small else _decode
        self._files: dict[int, BinaryIO] = {}
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self._index.keys)

    def __getitem__(self, draw: int) -> Loaded:
        repeat, index = divmod(draw, len(self))
        label = int(self._read(index, self._index.label_spans))
        if isinstance(self.transform, Transform):
            return self.transform(self.image(index), index, repeat), label, index
        available = self.num_frames(index)
        return self.transform(functools.partial(self.frames, index), available, index, repeat), label, index

    def image(self, index: int) -> np.ndarray:
        """The stored image: (H, W) or (H, W, 3) uint8."""
        data = self._read(index, self._index.image_spans)
        try:
            return self._decode(data)
        except (OSError, SyntaxError, ValueError) as error:
            raise self._damaged(index, error) from None

    def num_frames(self, index: int) -> int:
        """How many frames the stored clip has."""
        assert self._index.num_frames is not None
        return int(self._index.num_frames[index])

    def frames(self, index: int, wanted: Sequence[int]) -> np.ndarray:
        """Frames of the stored clip: (len(wanted), H, W, C) uint8."""
        data, grey = self._read(index, self._index.image_spans), self.manifest.in_chans == 1
        try:
            if self._small:
                found = _decode_clip_once(data, self.num_frames(index), grey)[wanted]
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

    def _check_kind(self, transform: Transform | ClipTransform) -> None:
        clips = self.manifest.num_frames is not None
        if clips and isinstance(transform, Transform):
            raise UserError(problem("model.num_frames", None, "the shards have clips", "say how many frames it reads"))
        if not clips and isinstance(transform, ClipTransform):
            value = transform.clip.num_frames
            raise UserError(problem("model.num_frames", value, "the shards have images", "leave it out"))

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


def _decode(data: bytes) -> np.ndarray:
    """PNG or JPEG -> (H, W) or (H, W, 3) uint8, read-only."""
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG", "JPEG")))


@functools.lru_cache(NUM_REMEMBERED)
def _decode_once(data: bytes) -> np.ndarray:
    """As `_decode`, and remembered."""
    return _decode(data)


@functools.lru_cache(NUM_REMEMBERED)
def _decode_clip_once(data: bytes, num_frames: int, grey: bool) -> np.ndarray:
    """A whole clip, remembered."""
    return decode_clip(data, range(num_frames), grey)


def train_loader(
    directory: Path,
    *,
    global_batch_size: int,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
    augment: Augment = "none",
    img_size: int = 0,
    clips: ClipSampling | None = None,
    verify: Verify = "sha256",
) -> DataLoader[Any]:
    """This rank's batches of one epoch: (images (B, C, H, W) float32, labels (B,) int64); of clips (B, C, T, H, W).

    Args:
        augment, img_size: See `Transform`.
        clips: How the frames of a clip are chosen; None where the samples are images.

    Raises:
        ShardError: if a shard is not what the manifest says.
        UserError: as `GlobalBatches`.
    """
    transform = _for_clips(Transform(augment, seed, epoch, img_size), clips)
    dataset = ShardDataset(directory, "train", transform, verify)
    repeats, paired = (augment.aug_repeats, augment.mixes) if isinstance(augment, AugmentConfig) else (1, False)
    batches = GlobalBatches(
        len(dataset), global_batch_size, seed, epoch, rank, world_size, start_batch, repeats, paired
    )
    return _loader(dataset, batches, loader_workers, _collate_train)


def eval_loader(
    directory: Path,
    split: str,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
    verify: Verify = "sha256",
    augment: Augment = "none",
    img_size: int = 0,
    clips: ClipSampling | None = None,
    views: Views | None = None,
) -> DataLoader[Any]:
    """This rank's part of a split: (images (B, C, H, W) float32, labels (B,) int64, indices (B,) int64).

    Of clips it is (B, C, T, H, W), the view from the middle, or with `views` (B, V, C, T, H, W), all of them.

    Over the ranks every sample comes exactly once, in batches that do not depend on the number of ranks; nothing is
    padded, so the last batch may be short and, with more ranks than batches, a rank may have none.

    Args:
        augment, img_size: How a picture is cropped for a test, see `Transform`; nothing is random.
        clips: How the frames of a clip are chosen; None where the samples are images.

    Raises:
        ShardError: if a shard is not what the manifest says.
    """
    dataset = eval_dataset(directory, split, verify, augment, img_size, clips, views)
    return _loader(dataset, eval_batches(len(dataset), batch_size, rank, world_size), loader_workers, _collate_eval)


def eval_dataset(
    directory: Path,
    split: str,
    verify: Verify = "sha256",
    augment: Augment = "none",
    img_size: int = 0,
    clips: ClipSampling | None = None,
    views: Views | None = None,
) -> ShardDataset:
    """What `eval_loader` makes its batches of."""
    transform = _for_clips(Transform(augment, img_size=img_size, training=False), clips, views)
    return ShardDataset(directory, split, transform, verify)


def _for_clips(
    transform: Transform, clips: ClipSampling | None, views: Views | None = None
) -> Transform | ClipTransform:
    return transform if clips is None else ClipTransform(transform, clips, transform.img_size, views)


def sample_key(directory: Path, split: str, index: int) -> str:
    """The key under which sample `index` of `split` is stored."""
    return load_split_index(directory, split).keys[index]


def _loader(dataset: ShardDataset, batches: Any, loader_workers: int, collate: Any) -> DataLoader[Any]:
    # A DataLoader draws a number whenever it is iterated. With a generator of its own it leaves torch's global
    # one alone, on which dropout depends, so that a resumed run draws what the uninterrupted one does.
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=loader_workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(0),
    )


def _collate_train(samples: Sequence[Loaded]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels, _ = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _collate_eval(samples: Sequence[Loaded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, labels, indices = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.tensor(indices)
