"""What a report of 500 runs takes: records to tables (two seconds are 250 a second), to the page, and until that is
there for use in Chromium (one second is 500 a second)."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.browser import chromium, find_chromium
from benchmarks.compare import Comparison
from dart.registry import model_name
from pipeline.report.records import Records, load_records
from pipeline.report.site import build_page, write_tables

SEEDS, NUM_EXPERIMENTS, NUM_POINTS = (0, 1, 2), 100, 200
NUM_RUNS = len(SEEDS) * NUM_EXPERIMENTS + NUM_POINTS
SUITE = "synthetic"
TABLES_S, READY_S = 2.0, 1.0


def comparisons() -> Iterator[Comparison]:
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_results(root)
        records = load(root)

        def read(runs: Tensor) -> Any:
            return load(root)

        def tables(runs: Tensor) -> None:
            write_tables(load(root), root / "report")

        def page(runs: Tensor) -> str:
            return build_page([records], root / "report", {}, {})

        tables(torch.arange(0))
        size = (root / "index.html").write_text(page(torch.arange(0)))
        contestants = {
            "records read and checked": read,
            f"records to tables (goal {NUM_RUNS / TABLES_S:.0f}/s)": tables,
            f"the page without figures, {size / 1e6:.2f} MB": page,
        }
        path = find_chromium()
        if path is not None:
            window = stack.enter_context(chromium(path)).new_page()

            def visit(runs: Tensor) -> None:
                window.goto((root / "index.html").as_uri())  # until it is loaded and its script has run

            contestants[f"the page opened in Chromium (goal {NUM_RUNS / READY_S:.0f}/s)"] = visit
        yield Comparison(f"a report of {NUM_RUNS} runs", torch.arange(NUM_RUNS), contestants, rounds=5)


def load(root: Path) -> Records:
    """The records below a folder that `write_results` has filled."""
    return load_records(SUITE, root / "results", root / "manifest.json")


def write_results(root: Path) -> None:
    """Leave what the stages leave of 500 runs: made-up numbers, arithmetic in experiment and seed."""
    split = {"num_samples": 2000, "shards": []}
    manifest = {
        "dataset": "made-up", "source": "arithmetic", "licence": "none", "class_names": ["a", "b"],
        "splits": dict.fromkeys(("train", "val", "test"), split),
    }  # fmt: skip
    _write(root / "manifest.json", manifest)
    sha256 = hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()
    plans = {
        "train": [(f"experiment-{i:03d}", i, seed) for i in range(NUM_EXPERIMENTS) for seed in SEEDS],
        "sweep": [(f"point-{i:03d}", i, 0) for i in range(NUM_POINTS)],
    }
    runs = {stage: [_run(stage, *planned, sha256) for planned in plan] for stage, plan in plans.items()}
    for stage, made in runs.items():
        _write(root / "results" / stage / "runs.json", {"suite": SUITE, "stage": stage, "runs": made})
    every = [run for made in runs.values() for run in made]
    scores = [{"fingerprint": r["fingerprint"], "top1": r["metrics"]["val_top1"], "top5": 0.9} for r in every]
    _write(root / "results/evaluate/metrics.json", {"suite": SUITE, "split": "test", "runs": scores})
    _write(root / "results/benchmark.json", _benchmark(every))


def _run(stage: str, name: str, number: int, seed: int, manifest_sha256: str) -> dict[str, Any]:
    model = {"backbone": "vit", "variant": "micro", "img_size": 96, "patch_size": 8, "in_chans": 1}
    tokenizer = {"name": ("uniform", "dart")[number % 2], "token_budget": 9 + number}
    train = {"epochs": 3, "global_batch_size": 24, "lr": 0.002, "weight_decay": 0.05, "precision": "fp32"}
    science = {"model": model, "tokenizer": tokenizer, "train": train, "seed": seed}
    top1 = (4000 + 17 * number + 113 * seed * (number % 7)) / 10_000
    machine = {"cpu": "a processor", "cores": 2, "memory_gb": 16.0, "gpus": []}
    hashes = {f"{what}_sha256": hashlib.sha256(what.encode()).hexdigest() for what in ("code", "lock", "params")}
    return {
        "suite": SUITE, "stage": stage, "name": name, "seed": seed, "science": science, "status": "done",
        "fingerprint": hashlib.sha256(json.dumps([stage, science]).encode()).hexdigest()[:16],
        "model_name": model_name(tokenizer["name"], "vit", "micro"),
        "dataset": {"name": "made-up", "manifest_sha256": manifest_sha256},
        "metrics": {"val_top1": top1}, "num_samples": 30_000, "world_size": 1, "wall_s": 60.0,
        "provenance": {"commit": "0" * 40, "dirty": False, "hardware": machine, "versions": {"torch": "2"}, **hashes},
    }  # fmt: skip


def _benchmark(runs: list[dict[str, Any]]) -> dict[str, Any]:
    sciences = {json.dumps([run["science"]["model"], run["science"]["tokenizer"]]): run["science"] for run in runs}
    models = [
        {
            "model": science["model"], "tokenizer": science["tokenizer"], "params": 112_000,
            "macs": 120_000 * science["tokenizer"]["token_budget"],
            "images_per_s": {"median": 2000.0, "q25": 1900.0, "q75": 2100.0},
        }
        for science in sciences.values()
    ]  # fmt: skip
    hardware = {"device": "cpu", "threads": 1, "cpu": "a processor", "gpus": []}
    counter = {"name": "arithmetic", "counts": "what it likes."}
    return {"counter": counter, "hardware": hardware, "batch_size": 50, "rounds": 5, "models": models}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
