"""Finished runs on the test split: every sample exactly once, whatever the number of workers.

A task's module does one worker's part (`predict`) and puts the parts together (`merge`), refusing a sample that is
missing or double. Both are plain torch; `evaluate_runs` spreads the parts over Ray where there is more than one core.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from pipeline import classification, provenance
from pipeline.data.clips import Views
from pipeline.data.drops import Drops
from pipeline.data.index import load_manifest, load_split_index
from pipeline.data.verify import verify_shards
from pipeline.files import write_json_atomic
from pipeline.mask_rules import TestMasksConfig
from pipeline.part import SPLIT, Part, is_little
from pipeline.placement import Placement
from pipeline.segmentation import evaluate as segmentation
from pipeline.spread import spread
from pipeline.weights import Entry, check_weights

# What is asked of samples -> predict, merge, score, write_csv and write_gallery.
TASKS: dict[str, ModuleType] = {"classification": classification, "segmentation": segmentation}
PRECISION = "fp32"  # of weights and images, whatever a run was trained in
Progress = Callable[[int, int], None]  # (parts done, parts in all)


def task_of(shards: Path) -> ModuleType:
    """The module of the task that these shards are for."""
    return TASKS[load_manifest(shards).task]


def evaluate_runs(
    entries: Sequence[Entry],
    weights: Mapping[str, Path],
    shards: Path,
    batch_size: int,
    placement: Placement,
    progress: Progress = lambda done, total: None,
    views: Views | None = None,
    masks: TestMasksConfig | None = None,
    drops: Drops | None = None,
) -> dict[str, Any]:
    """{fingerprint: what the task's `predict` says of the whole test split} of runs with different fingerprints.

    Args:
        weights: {fingerprint: model.safetensors}.
        views: Of each clip; the probabilities of all are averaged. None where the samples are images.
        masks: How pictures are looked at where every pixel has a class.
        drops: What was found damaged and is left out; None: nobody has looked, and nothing may be damaged.

    Raises:
        ShardError: the test shards are not what the manifest says.
        ConfigError: naming every run whose weights do not fit.
    """
    manifest = verify_shards(shards, "sha256", [SPLIT]) if drops is None else load_manifest(shards)
    dropped = () if drops is None else drops.indices(SPLIT)
    check_weights(entries, weights, manifest.num_classes)

    def plan(slots: int) -> list[Part]:
        # One part per run keeps the cores busy; where there are more cores than runs, each run is split.
        world_size = max(1, slots // max(1, len(entries)))
        common: dict[str, Any] = {
            "shards": shards.resolve(), "batch_size": batch_size, "world_size": world_size, "views": views,
            "loader_workers": placement.loader_workers, "masks": masks, "dropped": dropped,
        }  # fmt: skip
        return [
            Part(**common, entry=entry, weights=weights[entry["fingerprint"]].resolve(), rank=rank)
            for entry in entries
            for rank in range(world_size)
        ]

    num_samples = manifest.split(SPLIT).num_samples
    task = TASKS[manifest.task]
    parts: dict[str, list[Any]] = {}
    for part, found in spread(task.predict, plan, placement, progress, little=is_little(plan(1), manifest)):
        parts.setdefault(part.entry["fingerprint"], []).append(found)
    return {fingerprint: task.merge(found, num_samples, dropped) for fingerprint, found in parts.items()}


def settings_record(batch_size: int, views: Views | None, params: Sequence[Path]) -> dict[str, Any]:
    """How the test split is looked at, by which code and on what machine, for whoever asks where a figure comes from.

    Args:
        params: The params files that the stage has read.
    """
    seen = {} if views is None else {"views": views._asdict()}
    return {"batch_size": batch_size, "precision": PRECISION, **seen, **provenance.collect(params)}


def write_evaluation(
    folder: Path,
    suite: str,
    entries: Sequence[Entry],
    predictions: Mapping[str, Any],
    shards: Path,
    masks: TestMasksConfig | None = None,
    drops: Drops | None = None,
    how: Mapping[str, Any] | None = None,
    more: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """metrics.json, with what `masks` says of how pictures were looked at and what was left out, and the predictions.

    These are predictions/FINGERPRINT.csv.

    Args:
        how: What `settings_record` says.
        more: {fingerprint: what else is known of the run}.
    """
    keys, task = load_split_index(shards, SPLIT).keys, task_of(shards)
    settings = {} if masks is None else {"masks": masks.model_dump()}
    if drops:
        settings["dropped"] = drops.to_json()
    if how is not None:
        settings["evaluation"] = dict(how)
    runs = []
    for entry in entries:
        fingerprint = entry["fingerprint"]
        identity = {key: entry[key] for key in ("fingerprint", "name", "seed", "model_name")}
        runs.append({**identity, **task.score(predictions[fingerprint]), **more.get(fingerprint, {})})
        task.write_csv(folder / "predictions" / f"{fingerprint}.csv", keys, predictions[fingerprint])
    write_json_atomic(folder / "metrics.json", {"suite": suite, "split": SPLIT, **settings, "runs": runs})
