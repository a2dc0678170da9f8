"""The samples of a split in batches, in the order that `pipeline.data.order` says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.data.clips import ClipSampling, ClipTransform, Views
from pipeline.data.dataset import AnyTransform, Loaded, ShardDataset
from pipeline.data.index import load_manifest
from pipeline.data.masks import MaskTransform
from pipeline.data.order import GlobalBatches, eval_batches, keep
from pipeline.data.transforms import Transform
from pipeline.data.verify import Verify
from pipeline.errors import UserError, problem
from pipeline.mask_rules import MasksConfig
from pipeline.recipe import Augment, AugmentConfig


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
    masks: MasksConfig | None = None,
    verify: Verify = "sha256",
    dropped: Sequence[int] = (),
) -> DataLoader[Any]:
    """This rank's batches of one epoch: (images (B, C, H, W) float32, labels (B,) int64, indices (B,) int64).

    Images of clips are (B, C, T, H, W); where every pixel has a class, labels are its classes (B, H, W) int64. Indices
    are those of the samples in the split: what was read, for the record.

    Args:
        augment, img_size: See `Transform`; where pixels have classes, `masks` takes the place of `augment`.
        clips: How the frames of a clip are chosen; None where the samples are images.
        masks: See `MaskTransform`; None where the samples have labels.
        dropped: See `ShardDataset`; the order is the permutation of the samples that remain.

    Raises:
        ShardError: if a shard is not what the manifest says.
        UserError: as `GlobalBatches`.
    """
    transform = _for_samples(directory, Transform(augment, seed, epoch, img_size), clips, masks=masks)
    dataset = ShardDataset(directory, "train", transform, verify, dropped)
    repeats, paired = (augment.aug_repeats, augment.mixes) if isinstance(augment, AugmentConfig) else (1, False)
    batches = GlobalBatches(
        len(dataset.kept), global_batch_size, seed, epoch, rank, world_size, start_batch, repeats, paired
    )
    return _loader(dataset, keep(batches, len(dataset), dropped), loader_workers, _collate)


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
    masks: MasksConfig | None = None,
    dropped: Sequence[int] = (),
) -> DataLoader[Any]:
    """This rank's part of a split: (images (B, C, H, W) float32, labels (B,) int64, indices (B,) int64).

    Of clips it is (B, C, T, H, W), the view from the middle, or with `views` (B, V, C, T, H, W), all of them. Where
    every pixel has a class, images and classes differ in size: lists of B images (C, h, w) float32 and of B (H, W)
    uint8, the classes of the image as it is stored.

    Over the ranks every sample that is not left out comes exactly once, in batches that do not depend on the number
    of ranks; nothing is padded, so the last batch may be short and, with more ranks than batches, a rank may have none.

    Args:
        augment, img_size: How a picture is cropped for a test, see `Transform`; nothing is random.
        clips: How the frames of a clip are chosen; None where the samples are images.
        masks: How an image is resized, see `MaskTransform`.
        dropped: See `ShardDataset`.

    Raises:
        ShardError: if a shard is not what the manifest says.
    """
    dataset = eval_dataset(directory, split, verify, augment, img_size, clips, views, masks, dropped)
    collate = _collate_lists if isinstance(dataset.transform, MaskTransform) else _collate
    batches = keep(eval_batches(len(dataset.kept), batch_size, rank, world_size), len(dataset), dropped)
    return _loader(dataset, batches, loader_workers, collate)


def eval_dataset(
    directory: Path,
    split: str,
    verify: Verify = "sha256",
    augment: Augment = "none",
    img_size: int = 0,
    clips: ClipSampling | None = None,
    views: Views | None = None,
    masks: MasksConfig | None = None,
    dropped: Sequence[int] = (),
) -> ShardDataset:
    """What `eval_loader` makes its batches of; its `kept` are the samples that are not left out."""
    transform = _for_samples(directory, Transform(augment, img_size=img_size, training=False), clips, views, masks)
    return ShardDataset(directory, split, transform, verify, dropped)


def _for_samples(
    directory: Path,
    base: Transform,
    clips: ClipSampling | None,
    views: Views | None = None,
    masks: MasksConfig | None = None,
) -> AnyTransform:
    """The transform for what is in the shards: images with labels, clips, or images with classes of their pixels."""
    if load_manifest(directory).task == "segmentation" and clips is None:
        return MaskTransform(masks, base.seed, base.epoch, base.img_size, base.training)
    if masks is not None:
        raise UserError(problem("train.masks", masks.model_dump(), "the shards have labels", "leave it out"))
    return base if clips is None else ClipTransform(base, clips, base.img_size, views)


class _Loader(DataLoader[Any]):
    """A refusal of a worker's is that of this process: torch says it behind its own words and the traceback."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except UserError as error:
            name = f"\n{type(error).__module__}.{type(error).__qualname__}: "
            said, found, sentence = str(error).rpartition(name)
            if not (found and said.startswith("Caught ")):
                raise
            raise type(error)(sentence.removesuffix("\n")) from None


def _loader(dataset: ShardDataset, batches: Any, loader_workers: int, collate: Any) -> DataLoader[Any]:
    # A DataLoader draws a number whenever it is iterated. With a generator of its own it leaves torch's global
    # one alone, on which dropout depends, so that a resumed run draws what the uninterrupted one does.
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=loader_workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(0),
    )


def _collate(samples: Sequence[Loaded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, truths, indices = zip(*samples, strict=True)
    labels = torch.stack(truths) if isinstance(truths[0], torch.Tensor) else torch.tensor(truths)
    return torch.stack(images), labels, torch.tensor(indices)


def _collate_lists(samples: Sequence[Loaded]) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    images, classes, indices = zip(*samples, strict=True)
    return list(images), list(classes), torch.tensor(indices)
