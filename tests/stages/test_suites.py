"""Every suite loads, plans and can be built; the large ones train and test on a small stand-in for their data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from pipeline.config import Params, Suite, load_suite, load_yaml
from pipeline.data.clips import Views
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import load_manifest
from pipeline.data.shards import write_shards
from pipeline.evaluate import task_of
from pipeline.part import Part
from pipeline.sweep.checks import check_trials
from pipeline.sweep.execute import Paths, dry_run, plan_runs
from pipeline.sweep.plan import plan_experiments, plan_sweep
from pipeline.sweep.tune import num_starts
from pipeline.train.loop import WEIGHTS, fit
from tests.pipeline.data.clip_files import ramp, write_clip
from tests.pipeline.data.scenes import write_scenes

ROOT = Path(__file__).resolve().parents[2]
SUITES = sorted(path.stem for path in (ROOT / "suites").glob("*.yaml"))
# Experiments of every kind that a suite has.
KINDS = {
    "imagenet1k": (
        *("deit-ti-196", "dart-deit-ti-196", "dart-deit-ti-196-paper", "dart-deit-ti-196-squeezenet"),
        *("vim-ti-196", "vim-ti-784", "dart-vim-ti-196", "dart-vim-ti-392", "dart-videomamba-ti-196"),
    ),
    "kinetics400": ("videomamba-ti-3136", "dart-videomamba-ti-1568"),
    "ssv2": ("videomamba-ti-3136", "dart-videomamba-ti-1568"),
    "ade20k": ("swin-t-1024", "dart-swin-t-576"),
}
# Of those, the ones that are tested: the grid, DART, the authors' mode and Vim.
TESTED = {
    *("deit-ti-196", "dart-deit-ti-196", "dart-deit-ti-196-paper", "dart-vim-ti-196"),
    *("videomamba-ti-3136", "dart-videomamba-ti-1568"),
    *("swin-t-1024", "dart-swin-t-576"),
}


def load(name: str) -> Suite:
    return load_suite(name, ROOT / "suites" / f"{name}.yaml")


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_plans_a_trial_of_its_own_for_every_row_and_seed(name: str) -> None:
    suite = load(name)
    trials = plan_experiments(suite)
    assert {trial.name for trial in trials} == set(suite.experiments)
    assert len({json.dumps(trial.science()) for trial in trials}) == len(trials)
    assert suite.dataset.planned() is not None  # it can be planned before there is data


@pytest.mark.parametrize("name", SUITES)
def test_a_dry_run_shows_costs_and_writes_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    suite = load(name)
    paths = Paths(tmp_path / "shards", tmp_path / "runs", tmp_path / "results", ())
    dry_run("train", suite, plan_experiments(suite)[:1], Params(suites=[name]), paths)
    header, row, total = capsys.readouterr().out.splitlines()[1:]
    assert header.split()[:5] == ["trial", "seed", "model", "tokens", "GFLOPs"]
    assert float(row.split()[4]) > 0
    assert "nothing was started" in total
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_every_model_of_a_suite_can_be_built(name: str) -> None:
    suite = load(name)
    planned = suite.dataset.planned()
    check_trials([*plan_experiments(suite), *plan_sweep(suite)], planned.num_classes)


def write_pictures(root: Path) -> None:
    """As ImageNet is published: 2 classes of colour slopes, 8 in train and 2 in val each."""
    for part, count in (("train", 8), ("val", 2)):
        for i in range(count):
            for label in range(2):
                pixels = ramp(1, 40, 50, seed=3 * i + 40 * label + 100 * (part == "val"))[0]
                path = root / part / f"n{label:08d}" / f"{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, "jpeg")


def write_kinetics(root: Path) -> None:
    """Folders of classes: 8 clips in train, 2 in val."""
    for part, count in (("train", 8), ("val", 2)):
        for i in range(count):
            write_clip(
                root / part / ("archery", "zumba")[i % 2] / f"{part}{i}.mp4", ramp(6, 32, 40, seed=i + len(part))
            )


def write_ssv2(root: Path) -> None:
    """Numbered clips and three label files: 8 clips in train, 2 in validation."""
    names = ["Approaching something", "Lifting something"]
    tables: dict[str, Any] = {"labels": {name: str(i) for i, name in enumerate(names)}, "train": [], "validation": []}
    for i in range(10):
        template = names[i % 2].replace("something", "[something]")
        tables["train" if i < 8 else "validation"].append({"id": str(i), "template": template})
        write_clip(root / "videos" / f"{i}.webm", ramp(6, 32, 40, seed=i))
    for name, table in tables.items():
        (root / f"something-something-v2-{name}.json").write_text(json.dumps(table))


PICTURES = {
    "dataset": {"val_frac": 0.25},
    "model": {"img_size": 64},
    "tokenizer": {"token_budget": 16},
    "sweep": {"grid": {"tokenizer.token_budget": [16]}},
}
CLIPS = {
    "dataset": {"val_samples": 2},
    "model": {"img_size": 32, "variant": "nano", "num_frames": 4},
    "tokenizer": {"token_budget": 16},
    "sweep": {"grid": {"tokenizer.token_budget": [16]}},
}
SCENES = {
    "dataset": {"val_samples": 2},
    "model": {"img_size": 64, "pretrained": False},
    "tokenizer": {"token_budget": 16},
    "evaluate": {"masks": {"small_frac": 0.0033, "windows": "slide", "stride": 43}},
}
MAKERS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "imagenet1k": (write_pictures, PICTURES),
    "kinetics400": (write_kinetics, CLIPS),
    "ssv2": (write_ssv2, CLIPS),
    "ade20k": (write_scenes, SCENES),
}


def write_stand_in(name: str, root: Path) -> Suite:
    """The suite with small pictures or clips, models, budgets and batches; everything else as it is written."""
    make, changes = MAKERS[name]
    make(root / "copy")
    raw = load_yaml(ROOT / "suites" / f"{name}.yaml")
    for section, values in changes.items():
        raw[section] |= values
    raw["dataset"].pop("expect", None)
    raw["dataset"]["path"] = str(root / "copy")
    raw["shards"]["samples_per_shard"] = 5
    raw["seeds"] = [0]
    raw["tokenizer"] |= {"pretrained_scorer": False, "score_input": 32}  # no download
    raw["train"] |= {"epochs": 1, "global_batch_size": 4, "precision": "fp32"}
    if "masks" in raw["train"]:
        raw["train"]["masks"]["short_side"] = 64
    raw["experiments"] = {key: shrink(raw["experiments"][key]) for key in KINDS[name]}
    YAML().dump(raw, root / "suite.yaml")
    return load_suite(name, root / "suite.yaml")


def shrink(experiment: dict[str, Any]) -> dict[str, Any]:
    """A row of the table in small: fewer tokens, still more of them where it asks for many."""
    model, tokenizer = (dict(experiment.get(section, {})) for section in ("model", "tokenizer"))
    if model.get("img_size") == 224:
        model["img_size"] = 32
    if model.get("backbone") in ("vim", "videomamba"):
        model["variant"] = "nano"
    if "token_budget" in tokenizer:
        tokenizer["token_budget"] = {1568: 8, 576: 4}.get(tokenizer["token_budget"], 36)
    if tokenizer.get("mode") == "paper":  # it knows no other size
        model["img_size"] = tokenizer["score_input"] = 224
    train = {key: value for key, value in experiment.get("train", {}).items() if key != "epochs"}
    return {**experiment, "model": model, "tokenizer": tokenizer, "train": train}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_large_suite_trains_and_tests_on_a_stand_in(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    suite = write_stand_in(name, tmp_path)
    shards = tmp_path / "shards"
    fetch_dataset(suite.dataset, tmp_path / "raw")
    write_shards(suite.dataset, tmp_path / "raw", shards, suite.shards.samples_per_shard)
    manifest = load_manifest(shards)
    trials = plan_experiments(suite)
    check_trials(trials, manifest.num_classes)
    runs = plan_runs("train", suite, trials, manifest, Paths(shards, tmp_path / "runs", tmp_path / "results", ()))
    for run in sorted(runs, key=lambda run: num_starts(run.trial)):
        run.prepare()
        result = fit(run.trial, shards, run.dir, num_classes=manifest.num_classes, init_dir=run.init_dir)
        assert result.num_steps >= 1
        assert all(np.isfinite(value) for value in result.metrics.values()), run.label
        assert (run.dir / WEIGHTS).is_file()
    clips = suite.evaluate.clips
    views = Views(**clips.model_dump()) if clips else None
    test, task, masks = manifest.split("test"), task_of(shards), suite.evaluate.masks
    for run in runs:
        if run.trial.name in TESTED:
            parts = [
                task.predict(Part(run.spec(), run.dir / WEIGHTS, shards, 3, rank, 2, views, masks=masks))
                for rank in range(2)
            ]
            found = task.merge(parts, test.num_samples)  # every sample exactly once
            if masks is None:
                assert tuple(np.bincount(found.labels)) == test.class_counts
                assert np.isfinite(found.confidences).all()
            else:  # and every pixel that counts
                assert tuple(found.tally.confusion.sum(1).tolist()) == test.class_counts
