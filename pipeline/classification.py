"""Finished classifiers on the test split: the class of every sample, how often it is right, and what a model sees."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.data.clips import clip_sampling
from pipeline.data.index import Manifest, load_manifest
from pipeline.data.loader import eval_dataset, eval_loader
from pipeline.data.transforms import recorded_views
from pipeline.files import write_text_atomic
from pipeline.gallery import choose_samples, save_gallery
from pipeline.part import SPLIT, Part, in_order
from pipeline.weights import Entry, load_model

TOP = 5


class Predictions(NamedTuple):
    """What a model says about samples, best first; k is 5, or the number of classes if that is less."""

    indices: np.ndarray  # (n,) int64, in the split
    labels: np.ndarray  # (n,) int64
    classes: np.ndarray  # (n, k) int64
    confidences: np.ndarray  # (n,) float32, probability of the first class


@torch.inference_mode()
def predict(part: Part, device: str = "cpu") -> Predictions:
    """This rank's batches of the test split, in one pass.

    In invariant mode no sample's answer depends on its batch mates. In paper mode it does, and not on the ranks: the
    batches are the same for any number of them.
    """
    num_classes = load_manifest(part.shards).num_classes
    model = load_model(part.entry, part.weights, num_classes, part.token_budget).to(device)
    found = []
    # The stage has hashed the shards once for all parts.
    loader = eval_loader(
        part.shards, SPLIT, part.batch_size, part.rank, part.world_size, part.loader_workers,
        verify="samples", dropped=part.dropped, views=part.views, **how_to_read(part.entry),
    )  # fmt: skip
    for images, labels, indices in loader:
        views = [images] if part.views is None else images.unbind(1)
        probabilities = torch.stack([model(view.to(device)).float().softmax(-1).cpu() for view in views]).mean(0)
        best = probabilities.topk(min(TOP, num_classes), sorted=True)
        found.append((indices.numpy(), labels.numpy(), best.indices.numpy(), best.values[:, 0].numpy()))
    if not found:  # more ranks than batches
        empty = np.empty(0, np.int64)
        return Predictions(empty, empty, np.empty((0, min(TOP, num_classes)), np.int64), np.empty(0, np.float32))
    return Predictions(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def how_to_read(entry: Entry) -> dict[str, Any]:
    """How stored samples become what the run's model reads: arguments of `eval_loader`."""
    return {**recorded_views(entry["science"]), "clips": clip_sampling(entry["science"])}


def merge(parts: Iterable[Predictions], num_samples: int, dropped: Sequence[int] = ()) -> Predictions:
    """The parts of all ranks as one, ordered by index.

    Raises:
        RuntimeError: as `in_order`.
    """
    every = Predictions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    order = in_order(every.indices, num_samples, dropped)
    return Predictions(*(array[order] for array in every))


def score(predictions: Predictions) -> dict[str, float]:
    """Shares of samples whose label is the first, or among the first five, and their number."""
    hits = predictions.classes == predictions.labels[:, None]
    return {
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits.any(axis=1).mean()),
        "num_samples": len(hits),
    }


def write_csv(path: Path, keys: Sequence[str], predictions: Predictions) -> None:
    others = [f"top{i + 1}" for i in range(1, predictions.classes.shape[1])]
    lines = [",".join(["key", "label", "prediction", "confidence", *others])]
    for index, label, classes, confidence in zip(*predictions, strict=True):
        first, *rest = classes.tolist()
        lines.append(",".join(map(str, [keys[index], label, first, f"{confidence:.4f}", *rest])))
    write_text_atomic(path, "\n".join(lines) + "\n")


def read_predictions(path: Path) -> list[dict[str, str]]:
    """The rows of a predictions file, in the order of the split."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@torch.inference_mode()
def write_gallery(
    path: Path, entry: Entry, weights: Path, shards: Path, predictions: Predictions, num_chosen: int
) -> None:
    """What the run's model sees in a few test samples, as gallery/FINGERPRINT.npz; the samples are always the same.

    Of a clip it is the view from the middle, whatever views its prediction is the mean of.
    """
    manifest: Manifest = load_manifest(shards)
    chosen = choose_samples(predictions.labels, manifest.num_classes, num_chosen)
    dataset = eval_dataset(shards, SPLIT, verify="samples", **how_to_read(entry))
    images = torch.stack([dataset[int(i)][0] for i in predictions.indices[chosen]])
    tokens = load_model(entry, weights, manifest.num_classes).patch_embed.inspect(images)  # type: ignore[operator,union-attr]
    save_gallery(
        path,
        manifest.class_names,
        images=images.numpy(),
        labels=predictions.labels[chosen],
        predictions=predictions.classes[chosen, 0],
        confidences=predictions.confidences[chosen],
        density=tokens.density.numpy(),
        regions=tokens.regions.expand(len(images), -1, -1).numpy(),  # one partition may serve all
        patches=tokens.patches.numpy(),
    )
