"""Runs as training leaves them, and what MLflow shows of them."""

import socket
from pathlib import Path
from typing import Any

from pipeline.files import write_json_atomic
from pipeline.journal import JOURNAL_NAME, Journal, curves, read_journal
from pipeline.tracking.uri import resolve_uri

SUITE = "tiny"
DATA_SHA = "ab" * 32
PROVENANCE = {"commit": "c0ffee", "dirty": False, "versions": {"torch": "2.13"}}


def start_run(runs: Path, fingerprint: str, stage: str = "train") -> Journal:
    """A run folder as training makes it, before its first step."""
    spec = {
        "suite": SUITE,
        "stage": stage,
        "name": "dart-4",
        "seed": 0,
        "fingerprint": fingerprint,
        "model_name": "dart_vit_nano_patch4_16",
        "science": {"tokenizer": {"token_budget": 4}, "train": {"lr": 1e-3, "betas": [0.9, 0.98]}, "seed": 0},
        "dataset": {"name": "tiny-digits", "manifest_sha256": DATA_SHA},
    }
    write_json_atomic(runs / SUITE / fingerprint / "spec.json", spec)
    return Journal(runs / SUITE / fingerprint)


def end_run(runs: Path, fingerprint: str, num_steps: int) -> None:
    metrics = {"val_top1": 0.5, "train_loss": 1.0 / num_steps}
    done = {"status": "done", "metrics": metrics, "num_steps": num_steps, "wall_s": 2.5, "provenance": PROVENANCE}
    write_json_atomic(runs / SUITE / fingerprint / "done.json", done)


def train(runs: Path, fingerprint: str, num_steps: int = 5, stage: str = "train") -> None:
    """A whole run."""
    journal = start_run(runs, fingerprint, stage)
    for step in range(1, num_steps + 1):
        journal.metrics(step, train_loss=1.0 / step, lr=0.1)
    end_run(runs, fingerprint, num_steps)


def shown(uri: str, key: str) -> Any:
    """MLflow's run of a key, through a client of its own."""
    from mlflow import MlflowClient

    client = MlflowClient(resolve_uri(uri))
    experiment = client.get_experiment_by_name(SUITE)
    runs = client.search_runs([experiment.experiment_id], f"tags.`dart.key` = '{key}'")
    assert len(runs) == 1
    return runs[0]


def history(uri: str, key: str, metric: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    run_id = shown(uri, key).info.run_id
    return sorted((p.step, p.value) for p in MlflowClient(resolve_uri(uri)).get_metric_history(run_id, metric))


def journalled(runs: Path, fingerprint: str, metric: str) -> list[tuple[int, float]]:
    return list(curves(read_journal(runs / SUITE / fingerprint / JOURNAL_NAME))[metric].items())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
