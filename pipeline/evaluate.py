"""Finished runs on the test split: every sample exactly once, whatever the number of workers.

`predict` does one worker's part and `merge` puts the parts together, refusing a sample that is missing or double.
Both are plain torch; `evaluate_runs` spreads the parts over Ray where there is more than one core.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from dart.registry import WEIGHTS_METADATA
from pipeline.config import Placement
from pipeline.data.clips import Views, clip_sampling
from pipeline.data.index import Manifest, load_manifest, load_split_index
from pipeline.data.loader import eval_dataset, eval_loader
from pipeline.data.transforms import recorded_views
from pipeline.data.verify import verify_shards
from pipeline.errors import ConfigError, UserError, problem
from pipeline.files import write_json_atomic, write_text_atomic
from pipeline.gallery import choose_samples, save_gallery
from pipeline.model import build_architecture
from pipeline.spread import spread

SPLIT = "test"
TOP = 5
FEW_PASSES = 20_000  # of one image, or of one frame of a clip, that take about as long as Ray needs to start
Entry = Mapping[str, Any]  # one record of runs.json
Progress = Callable[[int, int], None]  # (parts done, parts in all)


class Predictions(NamedTuple):
    """What a model says about samples, best first; k is 5, or the number of classes if that is less."""

    indices: np.ndarray  # (n,) int64, in the split
    labels: np.ndarray  # (n,) int64
    classes: np.ndarray  # (n, k) int64
    confidences: np.ndarray  # (n,) float32, probability of the first class


class Part(NamedTuple):
    """One worker's share of one run's evaluation; paths are absolute."""

    entry: Entry
    weights: Path
    shards: Path
    batch_size: int
    rank: int
    world_size: int
    views: Views | None = None  # of a clip; None where the samples are images
    loader_workers: int = 0


def load_model(entry: Entry, weights: Path, num_classes: int) -> nn.Module:
    """The trained model of a run, in evaluation mode, on the CPU.

    Raises:
        UserError: the file is missing, damaged, or the checkpoint of another model.
    """
    model = build_architecture(entry["model_name"], entry["science"], num_classes)
    for line in weights_problems(entry, weights, model):
        raise UserError(line)
    model.load_state_dict(load_file(weights))
    return model.eval()


def weights_problems(entry: Entry, weights: Path, model: nn.Module) -> list[str]:
    """At most one line: why `weights` are not those of `model`. Reads the file's header only."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    where, remedy = f"run {entry['fingerprint']}: weights", "delete the run folder and run: dvc repro"
    try:
        with safe_open(weights, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            other = json.loads((file.metadata() or {}).get(WEIGHTS_METADATA, "{}")).get("model", "another model")
    except FileNotFoundError:
        return [problem(where, str(weights), "no such file", remedy)]
    except SafetensorError as error:
        return [problem(where, str(weights), f"not a checkpoint ({error})", remedy)]
    odd = next((name for name in sorted(wanted.keys() | found) if wanted.get(name) != found.get(name)), None)
    if odd is None:
        return []
    differs = f"{odd} has shape {found.get(odd)}, not {wanted.get(odd)}"
    rule = f"a checkpoint of {other}, not of {entry['model_name']} ({entry['name']}): {differs}"
    return [problem(where, str(weights), rule, remedy)]


@torch.inference_mode()
def predict(part: Part, device: str = "cpu") -> Predictions:
    """This rank's batches of the test split, in one pass.

    In invariant mode no sample's answer depends on its batch mates. In paper mode it does, and not on the ranks: the
    batches are the same for any number of them.
    """
    num_classes = load_manifest(part.shards).num_classes
    model = load_model(part.entry, part.weights, num_classes).to(device)
    found = []
    # The stage has verified the shards once for all parts.
    loader = eval_loader(
        part.shards, SPLIT, part.batch_size, part.rank, part.world_size, part.loader_workers,
        verify="size", views=part.views, **how_to_read(part.entry),
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


def merge(parts: Iterable[Predictions], num_samples: int) -> Predictions:
    """The parts of all ranks as one, ordered by index.

    Raises:
        RuntimeError: a sample of the split is missing or occurs twice.
    """
    every = Predictions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    order = np.argsort(every.indices, kind="stable")
    counts = np.bincount(every.indices, minlength=num_samples)
    if len(counts) != num_samples or (counts != 1).any():
        odd = np.flatnonzero(counts != 1)[:5].tolist()
        raise RuntimeError(f"evaluation is not exact: of {num_samples} samples, {odd} were not seen exactly once")
    return Predictions(*(array[order] for array in every))


def score(predictions: Predictions) -> dict[str, float]:
    """Shares of samples whose label is the first, or among the first five, and their number."""
    hits = predictions.classes == predictions.labels[:, None]
    return {
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits.any(axis=1).mean()),
        "num_samples": len(hits),
    }


def evaluate_runs(
    entries: Sequence[Entry],
    weights: Mapping[str, Path],
    shards: Path,
    batch_size: int,
    placement: Placement,
    progress: Progress = lambda done, total: None,
    views: Views | None = None,
) -> dict[str, Predictions]:
    """{fingerprint: predictions on the whole test split} of runs with different fingerprints.

    Args:
        weights: {fingerprint: model.safetensors}.
        views: Of each clip; the probabilities of all are averaged. None where the samples are images.

    Raises:
        ShardError: the test shards are not what the manifest says.
        ConfigError: naming every run whose weights do not fit.
    """
    manifest = verify_shards(shards, "sha256", [SPLIT])
    check_weights(entries, weights, manifest.num_classes)

    def plan(slots: int) -> list[Part]:
        # One part per run keeps the cores busy; where there are more cores than runs, each run is split.
        world_size = max(1, slots // max(1, len(entries)))
        common: dict[str, Any] = {
            "shards": shards.resolve(), "batch_size": batch_size, "world_size": world_size, "views": views,
            "loader_workers": placement.loader_workers,
        }  # fmt: skip
        return [
            Part(**common, entry=entry, weights=weights[entry["fingerprint"]].resolve(), rank=rank)
            for entry in entries
            for rank in range(world_size)
        ]

    num_samples = manifest.split(SPLIT).num_samples
    passes = sum((entry["science"]["model"].get("num_frames") or 1) for entry in entries)
    passes *= num_samples * (views.num_views if views else 1)
    few = passes < FEW_PASSES
    done = spread(predict, plan, placement, progress, little=few)
    parts: dict[str, list[Predictions]] = {}
    for part, predictions in done:
        parts.setdefault(part.entry["fingerprint"], []).append(predictions)
    return {fingerprint: merge(found, num_samples) for fingerprint, found in parts.items()}


def check_weights(entries: Sequence[Entry], weights: Mapping[str, Path], num_classes: int) -> None:
    """Compare every checkpoint's header with its model; raises ConfigError with all that differ."""
    models: dict[str, nn.Module] = {}
    problems = []
    for entry in entries:
        key = json.dumps([entry["science"][part] for part in ("model", "tokenizer")])
        if key not in models:
            models[key] = build_architecture(entry["model_name"], entry["science"], num_classes)
        problems += weights_problems(entry, weights[entry["fingerprint"]], models[key])
    if problems:
        raise ConfigError("evaluate", problems)


def write_evaluation(
    folder: Path,
    suite: str,
    entries: Sequence[Entry],
    predictions: Mapping[str, Predictions],
    shards: Path,
) -> None:
    """metrics.json and predictions/FINGERPRINT.csv."""
    keys = load_split_index(shards, SPLIT).keys
    runs = []
    for entry in entries:
        fingerprint = entry["fingerprint"]
        identity = {key: entry[key] for key in ("fingerprint", "name", "seed", "model_name")}
        runs.append({**identity, **score(predictions[fingerprint])})
        _write_csv(folder / "predictions" / f"{fingerprint}.csv", keys, predictions[fingerprint])
    write_json_atomic(folder / "metrics.json", {"suite": suite, "split": SPLIT, "runs": runs})


def _write_csv(path: Path, keys: Sequence[str], predictions: Predictions) -> None:
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
    dataset = eval_dataset(shards, SPLIT, verify="size", **how_to_read(entry))
    images = torch.stack([dataset[i][0] for i in chosen])
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
