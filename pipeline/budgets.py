"""Finished runs at many token budgets: the same weights asked at each of a list, and with budgets that follow images.

What it adds to the record of an evaluation is `budgets` and `adaptive` of each run, and a file of answers for each.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dart.cost import count_macs
from pipeline.adaptive import Outcome, predict_adaptive, write_csv
from pipeline.classification import score
from pipeline.config import EvaluateConfig
from pipeline.data.clips import Views
from pipeline.data.drops import Drops
from pipeline.data.index import load_manifest, load_split_index
from pipeline.evaluate import task_of
from pipeline.model import build_architecture
from pipeline.part import RULE_SPLIT, SPLIT, Part, is_little
from pipeline.placement import Placement
from pipeline.provenance import hash_json
from pipeline.spread import spread
from pipeline.weights import Entry, set_budget


class Answers(NamedTuple):
    """What runs said of the whole test split: with each budget of a list, and with each way of adapting it."""

    fixed: dict[str, dict[int, Any]]  # {fingerprint: {token budget: the task's predictions}}
    adaptive: dict[str, list[Outcome]]


def evaluate_budgets(
    entries: Sequence[Entry],
    weights: Mapping[str, Path],
    shards: Path,
    config: EvaluateConfig,
    placement: Placement,
    progress: Callable[[int, int], None] = lambda done, total: None,
    drops: Drops | None = None,
) -> Answers:
    """Ask every run at every budget of `config.token_budgets`, and those trained at several as `config.adaptive` says.

    Args:
        weights: {fingerprint: model.safetensors}, compared with the models already.
        drops: What of the test split, and of the val split where budgets adapt, is damaged and left out.
    """
    task, manifest = task_of(shards), load_manifest(shards)
    views = None if config.clips is None else Views(config.clips.num_segments, config.clips.num_crops)
    common: dict[str, Any] = {
        "shards": shards.resolve(), "batch_size": config.batch_size, "rank": 0, "world_size": 1, "views": views,
        "loader_workers": placement.loader_workers, "masks": config.masks,
        "dropped": drops.indices(SPLIT) if drops else (), "val_dropped": drops.indices(RULE_SPLIT) if drops else (),
    }  # fmt: skip
    parts = [
        Part(**common, entry=entry, weights=weights[entry["fingerprint"]].resolve(), **asked)
        for entry in entries
        for asked in _asked(entry, config)
    ]
    if not parts:
        return Answers({}, {})
    answers = Answers({}, {})
    for part, found in spread(_predict, lambda slots: parts, placement, progress, little=is_little(parts, manifest)):
        fingerprint = part.entry["fingerprint"]
        if part.adaptive is not None:
            answers.adaptive[fingerprint] = found
        elif part.token_budget is not None:
            merged = task.merge([found], manifest.split(SPLIT).num_samples, part.dropped)
            answers.fixed.setdefault(fingerprint, {})[part.token_budget] = merged
    return answers


def record_budgets(answers: Answers, entries: Sequence[Entry], shards: Path) -> dict[str, dict[str, Any]]:
    """{fingerprint: what metrics.json gets to know of the run}: scores, and multiply-accumulates per image."""
    task, counted = task_of(shards), _Counter(load_manifest(shards).num_classes)
    records: dict[str, dict[str, Any]] = {}
    for entry in entries:
        fixed, adaptive = answers.fixed.get(entry["fingerprint"]), answers.adaptive.get(entry["fingerprint"])
        records[entry["fingerprint"]] = {}
        if fixed:
            records[entry["fingerprint"]]["budgets"] = [
                {"token_budget": budget, "macs": counted.model(entry, budget), **task.score(found)}
                for budget, found in fixed.items()
            ]
        if adaptive:
            records[entry["fingerprint"]]["adaptive"] = [_record(outcome, entry, counted) for outcome in adaptive]
    return records


def write_answers(folder: Path, answers: Answers, shards: Path) -> None:
    """budgets/FINGERPRINT-BUDGET.csv as other predictions, and FINGERPRINT-SIGNAL-HELD-MEAN.csv with all budgets."""
    keys, task = load_split_index(shards, SPLIT).keys, task_of(shards)
    for fingerprint, fixed in answers.fixed.items():
        for budget, predictions in fixed.items():
            task.write_csv(folder / "budgets" / f"{fingerprint}-{budget}.csv", keys, predictions)
    for fingerprint, outcomes in answers.adaptive.items():
        for outcome in outcomes:
            write_csv(folder / "budgets" / f"{fingerprint}-{outcome.way.label}.csv", keys, outcome)


def _predict(part: Part, device: str) -> Any:
    """What is done with a part, in whatever process."""
    return (task_of(part.shards).predict if part.adaptive is None else predict_adaptive)(part, device)


class _Counter:
    """Multiply-accumulates of runs' models for one image, each counted once."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes, self.known = num_classes, dict[str, int]()

    def model(self, entry: Entry, token_budget: int) -> int:
        """Of a whole forward pass."""
        return self._count(entry, token_budget, lambda model: model)

    def scorer(self, entry: Entry) -> int:
        """Of what leads to the density."""
        return self._count(entry, None, lambda model: model.patch_embed.scorer)

    def _count(self, entry: Entry, token_budget: int | None, part: Callable[[Any], Any]) -> int:
        key = hash_json([entry["science"][section] for section in ("model", "tokenizer")] + [token_budget])
        if key not in self.known:
            model = build_architecture(entry["model_name"], entry["science"], self.num_classes).eval()
            if token_budget is not None:
                set_budget(model, entry, token_budget)
            self.known[key] = count_macs(part(model), _shape(entry))
        return self.known[key]


def _shape(entry: Entry) -> tuple[int, ...]:
    """(1, C, H, W) of an image, (1, C, T, H, W) of a clip."""
    model = entry["science"]["model"]
    frames = (model["num_frames"],) if model.get("num_frames") else ()
    return 1, model["in_chans"], *frames, model["img_size"], model["img_size"]


def _asked(entry: Entry, config: EvaluateConfig) -> list[dict[str, Any]]:
    """The further fields of the parts that a run is asked with."""
    asked: list[dict[str, Any]] = [{"token_budget": budget} for budget in config.token_budgets or ()]
    if config.adaptive is not None and entry["science"]["train"].get("token_budgets"):
        asked.append({"adaptive": config.adaptive})
    return asked


def _record(outcome: Outcome, entry: Entry, counted: _Counter) -> dict[str, Any]:
    """One way's scores, and what it takes on average: the look that tells the need, and the pass that answers.

    An image that stays at the lowest budget keeps the answer of the look of `uncertainty`.
    """
    (signal, held, mean_budget), budgets = outcome.way, outcome.budgets.tolist()
    spent = {budget: budgets.count(budget) for budget in sorted(set(budgets))}
    look = counted.scorer(entry) if signal == "spread" else counted.model(entry, outcome.low)
    read = {b: n for b, n in spent.items() if signal == "spread" or b > outcome.low}
    macs = look + sum(n * counted.model(entry, b) for b, n in read.items()) / len(budgets)
    return {
        "signal": signal,
        "held": held,
        "token_budget": mean_budget,
        "mean_tokens": sum(budgets) / len(budgets),
        "macs": round(macs),
        "spent": {str(budget): num_images for budget, num_images in spent.items()},
        **score(outcome.predictions),
    }
