"""A complete tree of results with fixed numbers, as the stages leave it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dart.registry import model_name
from pipeline.report.records import Records, load_records

NUM_TEST = 200
TOP1 = {
    "uniform-36": [0.455, 0.545, 0.54],
    "uniform-64": [0.405, 0.47, 0.44],
    "dart-36": [0.795, 0.8, 0.675],
    "dart-16": [0.525],
    "dart-16-2workers": [0.525],
}
MACS = {16: 1_840_000, 36: 4_410_000, 64: 8_540_000}


class Lab(NamedTuple):
    """Where a suite's results are, and how to read them."""

    root: Path
    suite: str

    @property
    def results(self) -> Path:
        return self.root / "results" / self.suite

    @property
    def manifest(self) -> Path:
        return self.root / "data" / self.suite / "shards" / "manifest.json"

    def load(self) -> Records:
        return load_records(self.suite, self.results, self.manifest)

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change one of the JSON files of results/SUITE in place."""
        path = self.results / name
        content = json.loads(path.read_text())
        change(content)
        write_json(path, content)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A finished `digits` in a temporary folder."""
    return write_lab(tmp_path, "digits")


@pytest.fixture(scope="session")
def make_lab() -> Callable[[Path, str], Lab]:
    """For tests that need several suites, or one at a given place."""
    return write_lab


def write_lab(root: Path, suite: str) -> Lab:
    lab = Lab(root, suite)
    write_json(lab.manifest, manifest())
    sha256 = hashlib.sha256(lab.manifest.read_bytes()).hexdigest()
    runs = [
        write_run(lab, "train", name, seed, top1, sha256)
        for name, all_top1 in TOP1.items()
        for seed, top1 in enumerate(all_top1)
    ]
    trials = [
        write_run(lab, "sweep", f"{tokenizer}-{budget}-{variant}", 0, top1, sha256)
        for tokenizer, budget, variant, top1 in sweep_points()
    ]
    write_json(lab.results / "train/runs.json", {"suite": suite, "stage": "train", "runs": runs})
    write_json(lab.results / "sweep/runs.json", {"suite": suite, "stage": "sweep", "runs": trials})
    write_evaluation(lab, [*runs, *trials])
    write_json(lab.results / "benchmark.json", benchmark([*runs, *trials]))
    return lab


def sweep_points() -> list[tuple[str, int, str, float]]:
    budgets = {16: 0.3, 36: 0.5, 64: 0.45}
    return [
        (tokenizer, budget, variant, top1 + 0.25 * (tokenizer == "dart") - 0.1 * (variant == "nano"))
        for tokenizer in ("uniform", "dart")
        for budget, top1 in budgets.items()
        for variant in ("nano", "micro")
    ]


def manifest() -> dict[str, Any]:
    split = {"num_samples": NUM_TEST, "shards": []}
    return {
        "dataset": "cluttered-digits",
        "source": "scikit-learn, UCI digits",
        "licence": "CC BY 4.0",
        "class_names": [str(digit) for digit in range(10)],
        "in_chans": 1,
        "image_size": [96, 96],
        "splits": {"train": split, "val": split, "test": split},
    }


def science(name: str, seed: int) -> dict[str, Any]:
    tokenizer, budget, *rest = name.split("-")
    variant = rest[0] if rest and rest[0] in ("nano", "micro") else "micro"
    return {
        "model": {"backbone": "vit", "variant": variant, "img_size": 96, "patch_size": 8, "in_chans": 1},
        "tokenizer": {"name": tokenizer, "token_budget": int(budget), "num_rows": None, "scorer": "conv"},
        "train": {"epochs": 3, "global_batch_size": 50, "lr": 0.002},
        "seed": seed,
        **({"num_workers": 2} if "2workers" in rest else {}),
    }


def write_run(lab: Lab, stage: str, name: str, seed: int, top1: float, manifest_sha256: str) -> dict[str, Any]:
    """The record of one run; its journal is written beside."""
    facts = science(name, seed)
    fingerprint = hashlib.sha256(json.dumps([stage, facts]).encode()).hexdigest()[:16]
    write_journal(lab.results / stage / fingerprint, top1, seed, 1e-6 if "2workers" in name else 0.0)
    model = facts["model"]
    return {
        "suite": lab.suite,
        "stage": stage,
        "name": name,
        "seed": seed,
        "fingerprint": fingerprint,
        "model_name": model_name(facts["tokenizer"]["name"], "vit", model["variant"]),
        "science": facts,
        "dataset": {"name": "cluttered-digits", "manifest_sha256": manifest_sha256},
        "status": "done",
        "metrics": {"val_top1": top1 + 0.01, "val_top5": 0.9, "val_loss": 1.2, "train_loss": 1.1},
        "num_steps": 600,
        "num_samples": 30000,
        "world_size": 2 if "2workers" in name else 1,
        "wall_s": 61.25,
        "provenance": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    }


def write_journal(folder: Path, top1: float, seed: int, shift: float) -> None:
    """A loss that falls and an accuracy that rises to `top1` + 0.01 in three epochs of 200 steps."""
    lines = []
    for step in range(50, 601, 50):
        values = {"train_loss": 2.3 - 1.2 * step / 600 + 0.01 * seed + shift * (step == 300), "lr": 0.002}
        if step % 200 == 0:
            values["val_top1"] = 0.1 + (top1 + 0.01 - 0.1) * (step / 600) ** 2
        lines.append({"kind": "metrics", "time": 1.7e9 + step, "step": step, "values": values})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_evaluation(lab: Lab, runs: list[dict[str, Any]]) -> None:
    results = []
    for run in runs:
        top1 = run["metrics"]["val_top1"] - 0.01
        results.append(
            {
                "fingerprint": run["fingerprint"],
                "top1": top1,
                "top5": min(1, top1 + 0.3),
                "num_samples": NUM_TEST,
            }
        )
        write_predictions(lab.results / "evaluate/predictions" / f"{run['fingerprint']}.csv", round(top1 * NUM_TEST))
        write_gallery(lab.results / "evaluate/gallery" / f"{run['fingerprint']}.npz", run["science"]["tokenizer"])
    write_json(lab.results / "evaluate/metrics.json", {"suite": lab.suite, "split": "test", "runs": results})


def write_predictions(path: Path, num_right: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{i:06d},{i % 10},{i % 10 if i < num_right else (i + 1) % 10}" for i in range(NUM_TEST)]
    path.write_text("\n".join(["key,label,prediction", *rows]) + "\n")


def write_gallery(path: Path, tokenizer: dict[str, Any]) -> None:
    """Two pictures: a bright bar on black, with the regions crowding around it for DART."""
    side, rows = 96, round(tokenizer["token_budget"] ** 0.5)
    edges = np.linspace(0, side, rows + 1)
    if tokenizer["name"] == "dart":
        edges = side * (np.linspace(-1, 1, rows + 1) ** 3 + 1) / 2
    corners = [(edges[c], edges[r], edges[c + 1], edges[r + 1]) for r in range(rows) for c in range(rows)]
    images = np.full((2, 1, side, side), -1, dtype=np.float32)
    images[:, :, 30:66, 42:54] = 1
    regions = np.broadcast_to(np.array(corners, dtype=np.float32), (2, rows * rows, 4))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        images=images,
        labels=np.array([1, 7]),
        predictions=np.array([1, 1]),
        confidences=np.array([0.72, 0.5], dtype=np.float32),
        density=np.pad(np.ones((2, 4, 4), dtype=np.float32), [(0, 0), (4, 4), (4, 4)], constant_values=0.1),
        regions=regions,
        patches=np.stack([read_patches(image, boxes) for image, boxes in zip(images, regions, strict=True)]),
    )


def read_patches(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N, C, 8, 8): the nearest pixel of each cell's centre."""
    steps = (np.arange(8) + 0.5) / 8
    x = (boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * steps).astype(int)
    y = (boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * steps).astype(int)
    return np.stack([image[:, rows][:, :, columns] for rows, columns in zip(y, x, strict=True)])


def benchmark(runs: list[dict[str, Any]]) -> dict[str, Any]:
    models = {}
    for run in runs:
        model, tokenizer = run["science"]["model"], run["science"]["tokenizer"]
        scale = (1.17 if tokenizer["name"] == "dart" else 1) * (0.3 if model["variant"] == "nano" else 1)
        macs = round(MACS[tokenizer["token_budget"]] * scale)
        speed = {"median": 1e10 / macs, "q25": 0.95e10 / macs, "q75": 1.02e10 / macs}
        models[json.dumps([model, tokenizer])] = {
            "model": model,
            "tokenizer": tokenizer,
            "params": 117_000 if tokenizer["name"] == "dart" else 112_000,
            "macs": macs,
            "images_per_s": speed,
        }
    return {
        "counter": {"name": "torch.utils.flop_counter", "counts": "matrix products and convolutions."},
        "hardware": {"device": "cpu", "threads": 1, "cpu": "a CPU", "cores": 2, "memory_gb": 4.0, "gpus": []},
        "batch_size": 50,
        "rounds": 7,
        "models": list(models.values()),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
