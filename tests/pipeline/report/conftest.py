"""A complete tree of results with fixed numbers, as the stages leave it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dart.registry import model_name
from pipeline.report.records import Records, load_records

from .answers import ANSWERS, NUM_TEST

VALUES = {  # of the task's first measure
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
    task: str = "classification"

    @property
    def answers(self) -> Any:
        return ANSWERS[self.task]

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


@pytest.fixture
def dense_lab(tmp_path: Path) -> Lab:
    """A finished suite of segmentation in a temporary folder; its numbers are those of `lab`."""
    return write_lab(tmp_path, "dense", "segmentation")


@pytest.fixture(scope="session")
def make_lab() -> Callable[..., Lab]:
    """For tests that need several suites, or one at a given place."""
    return write_lab


def write_lab(root: Path, suite: str, task: str = "classification") -> Lab:
    lab = Lab(root, suite, task)
    write_json(lab.manifest, manifest(lab))
    sha256 = hashlib.sha256(lab.manifest.read_bytes()).hexdigest()
    runs = [
        write_run(lab, "train", name, seed, value, sha256)
        for name, values in VALUES.items()
        for seed, value in enumerate(values)
    ]
    trials = [
        write_run(lab, "sweep", f"{tokenizer}-{budget}-{variant}", 0, value, sha256)
        for tokenizer, budget, variant, value in sweep_points()
    ]
    write_json(lab.results / "train/runs.json", {"suite": suite, "stage": "train", "runs": runs})
    write_json(lab.results / "sweep/runs.json", {"suite": suite, "stage": "sweep", "runs": trials})
    write_evaluation(lab, [*runs, *trials])
    write_json(lab.results / "benchmark.json", benchmark([*runs, *trials]))
    return lab


def sweep_points() -> list[tuple[str, int, str, float]]:
    budgets = {16: 0.3, 36: 0.5, 64: 0.45}
    return [
        (tokenizer, budget, variant, value + 0.25 * (tokenizer == "dart") - 0.1 * (variant == "nano"))
        for tokenizer in ("uniform", "dart")
        for budget, value in budgets.items()
        for variant in ("nano", "micro")
    ]


def manifest(lab: Lab) -> dict[str, Any]:
    split = {"num_samples": NUM_TEST, "shards": []}
    return {
        "dataset": "cluttered-digits",
        "source": "scikit-learn, UCI digits",
        "licence": "CC BY 4.0",
        **lab.answers.manifest,
        "in_chans": 1,
        "image_size": [96, 96],
        "splits": {"train": split, "val": split, "test": split},
    }


def science(lab: Lab, name: str, seed: int) -> dict[str, Any]:
    tokenizer, budget, *rest = name.split("-")
    variant = rest[0] if rest and rest[0] in ("nano", "micro") else "micro"
    model = {"backbone": "vit", "variant": variant, "img_size": 96, "patch_size": 8, "in_chans": 1}
    return {
        "model": model | lab.answers.model,
        "tokenizer": {"name": tokenizer, "token_budget": int(budget), "num_rows": None, "scorer": "conv"},
        "train": {"epochs": 3, "global_batch_size": 50, "lr": 0.002},
        "seed": seed,
        **({"num_workers": 2} if "2workers" in rest else {}),
    }


def write_run(lab: Lab, stage: str, name: str, seed: int, value: float, manifest_sha256: str) -> dict[str, Any]:
    """The record of one run; its journal is written beside."""
    facts = science(lab, name, seed)
    fingerprint = hashlib.sha256(json.dumps([stage, facts]).encode()).hexdigest()[:16]
    write_journal(lab, lab.results / stage / fingerprint, value, seed, 1e-6 if "2workers" in name else 0.0)
    model = facts["model"]
    return {
        "suite": lab.suite,
        "stage": stage,
        "name": name,
        "seed": seed,
        "fingerprint": fingerprint,
        "model_name": model_name(facts["tokenizer"]["name"], "vit", model["variant"]) + lab.answers.suffix,
        "science": facts,
        "dataset": {"name": "cluttered-digits", "manifest_sha256": manifest_sha256},
        "status": "done",
        "metrics": lab.answers.metrics(value),
        "num_steps": 600,
        "num_samples": 30000,
        "world_size": 2 if "2workers" in name else 1,
        "wall_s": 61.25,
        "provenance": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    }


def write_journal(lab: Lab, folder: Path, value: float, seed: int, shift: float) -> None:
    """A loss that falls and a measure that rises to `value` + 0.01 in three epochs of 200 steps."""
    lines = []
    for step in range(50, 601, 50):
        values = {"train_loss": 2.3 - 1.2 * step / 600 + 0.01 * seed + shift * (step == 300), "lr": 0.002}
        if step % 200 == 0:
            values[lab.answers.val] = 0.1 + (value + 0.01 - 0.1) * (step / 600) ** 2
        lines.append({"kind": "metrics", "time": 1.7e9 + step, "step": step, "values": values})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_evaluation(lab: Lab, runs: list[dict[str, Any]]) -> None:
    folder, results = lab.results / "evaluate", []
    for name in ("predictions", "gallery"):
        (folder / name).mkdir(parents=True)
    for run in runs:
        value, fingerprint = run["metrics"][lab.answers.val] - 0.01, run["fingerprint"]
        results.append({"fingerprint": fingerprint, **lab.answers.test(value)})
        lab.answers.write_predictions(folder / f"predictions/{fingerprint}.csv", value)
        lab.answers.write_gallery(folder / f"gallery/{fingerprint}.npz", run["science"]["tokenizer"])
    write_json(folder / "metrics.json", {"suite": lab.suite, "split": "test", "runs": results})


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
