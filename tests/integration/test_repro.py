"""The spine: a copy of the repository, a tiny suite, and `dvc repro` from nothing to the tables."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = """
dataset: {name: cluttered-digits, img_size: 32, num_clutter: 1, train_samples: 60, val_samples: 20, test_samples: 30,
          seed: 0}
shards: {samples_per_shard: 25}
max_bad_frac: 0
model: {backbone: vit, variant: nano, img_size: 32, patch_size: 4, in_chans: 1}
tokenizer: {name: dart, mode: invariant, token_budget: 4, num_rows: null, partition: flow, row_weight: mass,
            scorer: conv, score_floor: 0.3, score_blur: 1, sampling: area, pos_embed: geometry}
train: {epochs: 2, global_batch_size: 10, lr: 0.002, min_lr: 0.0, betas: [0.9, 0.98], weight_decay: 0.05,
        scorer_lr_scale: 2.0, warmup_frac: 0.1, clip_grad: 1.0, label_smoothing: 0.0, drop_path: 0.0,
        model_ema_decay: null, augment: none, precision: fp32}
seeds: [0, 1]
experiments:
  uniform-4: {tokenizer: {name: uniform}}
  dart-4: {tokenizer: {name: dart}}
sweep: {seeds: [0], grid: {tokenizer.name: [dart], tokenizer.token_budget: [4, 9]}}
evaluate: {batch_size: 20, gallery_samples: 2}
benchmark: {batch_size: 4, rounds: 2}
"""


def run(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A git repository with our files and the tiny suite, reproduced once."""
    folder = tmp_path_factory.mktemp("project")
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "suites/tiny.yaml").write_text(SUITE)
    (folder / "params.yaml").write_text("suites: [tiny]\n")
    (folder / "dvc.lock").unlink(missing_ok=True)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "tiny")
    run(folder, "dvc", "repro")
    return folder


@pytest.mark.timeout(600)
def test_one_command_makes_the_tables(project):
    rows = list(csv.DictReader((project / "report/tiny/table.csv").open()))
    assert [(row["experiment"], row["tokenizer"], row["token_budget"], row["num_seeds"]) for row in rows] == [
        ("uniform-4", "uniform", "4", "2"),
        ("dart-4", "dart", "4", "2"),
    ]
    assert all(0 <= float(row["top1_mean"]) <= 1 and float(row["gflops"]) > 0 for row in rows)
    for name in ("table.md", "table.tex", "metrics.json"):
        assert (project / "report/tiny" / name).stat().st_size > 0
    assert "dart-4" in (project / "report/index.html").read_text()
    assert "dart-4" in run(project, "dvc", "metrics", "show")


def test_the_sweep_does_not_repeat_what_the_table_has_trained(project):
    train, sweep = (
        json.loads((project / f"results/tiny/{s}/runs.json").read_text())["runs"] for s in ("train", "sweep")
    )
    shared = {run["fingerprint"] for run in train} & {run["fingerprint"] for run in sweep}
    assert len(shared) == 1  # dart with 4 tokens, seed 0
    assert len(list((project / "runs/tiny").glob("*/done.json"))) == 5


def test_a_second_time_changes_no_byte(project):
    before = {path: path.read_bytes() for path in (project / "report").rglob("*") if path.is_file()}
    assert "Data and pipelines are up to date" in run(project, "dvc", "repro")
    assert before == {path: path.read_bytes() for path in (project / "report").rglob("*") if path.is_file()}


def test_an_edit_reruns_what_depends_on_it(project):
    path = project / "suites/tiny.yaml"
    path.write_text(SUITE.replace("gallery_samples: 2", "gallery_samples: 3"))
    try:
        status = json.loads(run(project, "dvc", "status", "--json"))
        assert list(status) == ["evaluate@tiny"]
        path.write_text(SUITE.replace("rounds: 2", "rounds: 3"))
        assert list(json.loads(run(project, "dvc", "status", "--json"))) == ["benchmark@tiny"]
    finally:
        path.write_text(SUITE)
