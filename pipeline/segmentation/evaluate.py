"""Finished segmenters on the test split: the class of every pixel of the stored images, and what a model sees."""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.index import load_manifest
from pipeline.data.loader import eval_dataset, eval_loader
from pipeline.data.masks import IGNORE, recorded_masks, resize
from pipeline.files import write_text_atomic
from pipeline.gallery import save_segmentation_gallery
from pipeline.mask_rules import TestMasksConfig
from pipeline.part import SPLIT, Part, in_order
from pipeline.segmentation.tally import Tally, count, mean_iou, measure, pixel_accuracy
from pipeline.segmentation.windows import Windows, look
from pipeline.weights import Entry, load_model


class Segmentations(NamedTuple):
    """What a model makes of samples: the counts of all of them, and two figures of each."""

    indices: np.ndarray  # (n,) int64, in the split
    accuracies: np.ndarray  # (n,) float64: share of the pixels that are right; NaN where none counts
    mious: np.ndarray  # (n,) float64: mean over the classes of this image
    tally: Tally


@torch.inference_mode()
def predict(part: Part, device: str = "cpu") -> Segmentations:
    """This rank's batches of the test split, every pixel once."""
    assert part.masks is not None
    manifest = load_manifest(part.shards)
    model = load_model(part.entry, part.weights, manifest.num_classes, part.token_budget).to(device)
    # The stage has hashed the shards once for all parts.
    loader = eval_loader(
        part.shards, SPLIT, part.batch_size, part.rank, part.world_size, part.loader_workers,
        verify="samples", dropped=part.dropped, **how_to_read(part.entry),
    )  # fmt: skip
    windows = windows_of(part.masks, part.entry["science"]["model"]["img_size"])
    tally, rows = Tally.zero(manifest.num_classes), []
    for images, truths, indices in loader:
        for predicted, truth, index in zip(
            classes_of(model, images, truths, windows, device), truths, indices, strict=True
        ):
            found = count(truth, predicted, manifest.class_names, part.masks.small_frac)
            tally = tally.plus(found)
            rows.append((int(index), pixel_accuracy(found.confusion), mean_iou(found.confusion)))
    indices, accuracies, mious = zip(*rows, strict=True) if rows else ((), (), ())  # more ranks than batches
    return Segmentations(np.array(indices, np.int64), np.array(accuracies, float), np.array(mious, float), tally)


def how_to_read(entry: Entry) -> dict[str, Any]:
    """How stored samples become what the run's model reads: arguments of `eval_loader`."""
    science = entry["science"]
    return {"img_size": science["model"]["img_size"], "masks": recorded_masks(science)}


def windows_of(masks: TestMasksConfig, side: int) -> Windows | None:
    """The windows that slide over a picture, or None for one look."""
    return None if masks.stride is None else Windows(side, masks.stride)


def classes_of(
    model: Any, images: Sequence[Tensor], truths: Sequence[Tensor], windows: Windows | None, device: str = "cpu"
) -> Iterator[Tensor]:
    """The likeliest class of every pixel, (H, W) uint8 of each image."""
    sizes = [(truth.shape[0], truth.shape[1]) for truth in truths]
    for logits in look(model, [image.to(device) for image in images], sizes, windows):
        yield logits.argmax(0).to(torch.uint8).cpu()


def merge(parts: Iterable[Segmentations], num_samples: int, dropped: Sequence[int] = ()) -> Segmentations:
    """The parts of all ranks as one, ordered by index.

    Raises:
        RuntimeError: as `in_order`.
    """
    *columns, tallies = zip(*parts, strict=True)
    indices, accuracies, mious = (np.concatenate(arrays) for arrays in columns)
    order = in_order(indices, num_samples, dropped)
    return Segmentations(indices[order], accuracies[order], mious[order], reduce(Tally.plus, tallies))


def score(found: Segmentations) -> dict[str, float | None]:
    """`measure` of all pixels of the split, and the number of samples."""
    return {**measure(found.tally), "num_samples": len(found.indices)}


def write_csv(path: Path, keys: Sequence[str], found: Segmentations) -> None:
    """key, pixel_accuracy, miou of every sample; empty where no pixel counts."""
    lines = ["key,pixel_accuracy,miou"]
    for index, *figures in zip(*found[:3], strict=True):
        lines.append(",".join([keys[index], *("" if np.isnan(value) else f"{value:.6f}" for value in figures)]))
    write_text_atomic(path, "\n".join(lines) + "\n")


@torch.inference_mode()
def write_gallery(path: Path, entry: Entry, weights: Path, shards: Path, found: Segmentations, num_chosen: int) -> None:
    """What the run's model sees in the first test samples, and says of their pixels, as gallery/FINGERPRINT.npz.

    Pictures of other sizes than the model's are shown as the square in their middle.
    """
    manifest = load_manifest(shards)
    dataset = eval_dataset(shards, SPLIT, verify="samples", **how_to_read(entry))
    model: Any = load_model(entry, weights, manifest.num_classes)
    side = entry["science"]["model"]["img_size"]
    chosen = [dataset[int(i)][:2] for i in found.indices[:num_chosen]]
    images = torch.stack([_middle(image, side, 0) for image, _ in chosen])
    truths = torch.stack([_middle_classes(truth, image, side) for image, truth in chosen])
    seen = model.inspect(images)
    save_segmentation_gallery(
        path,
        manifest.class_names,
        images=images.numpy(),
        truths=truths.numpy(),
        predictions=model(images).argmax(1).to(torch.uint8).numpy(),
        density=seen.density.numpy(),
        regions=seen.regions.expand(len(images), -1, -1).numpy(),  # one partition may serve all
        patches=seen.patches.numpy(),
    )


def _middle(values: Tensor, side: int, fill: int) -> Tensor:
    """The square in the middle of (C, h, w), filled up where that is smaller."""
    missing = [max(0, side - extent) for extent in values.shape[-2:]]
    (above, left), (below, right) = [m // 2 for m in missing], [m - m // 2 for m in missing]
    padded = F.pad(values, (left, right, above, below), value=fill)
    top, start = ((extent - side) // 2 for extent in padded.shape[-2:])
    return padded[:, top : top + side, start : start + side]


def _middle_classes(truth: Tensor, image: Tensor, side: int) -> Tensor:
    """The same square of the classes (H, W) of the stored image, resized as the image was."""
    resized = resize(truth[None], min(image.shape[-2:]), nearest=True)
    return _middle(resized, side, IGNORE)[0]
