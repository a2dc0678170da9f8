"""Evaluation is exact: every sample once, the same answer for any number of workers and any batch."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.classification import Predictions, merge, predict, score, write_gallery
from pipeline.config import TrainConfig, Trial
from pipeline.data.catalog import DATASETS
from pipeline.data.drops import find_drops
from pipeline.data.options import DigitsOptions
from pipeline.data.shards import write_shards
from pipeline.errors import ConfigError, UserError
from pipeline.evaluate import evaluate_runs, settings_record, write_evaluation
from pipeline.gallery import choose_samples, draw_gallery
from pipeline.model import build_model
from pipeline.model_rules import ModelConfig, TokenizerConfig
from pipeline.part import Part
from pipeline.placement import Placement
from pipeline.spread import run_on_ray
from pipeline.weights import load_model
from tests.pipeline.data.batches import load_members

NUM_TEST = 23  # a prime: no batch and no number of workers divides it


def tiny_trial(tokenizer: str = "dart", variant: str = "nano") -> Trial:
    return Trial(
        name=f"{tokenizer}-9",
        seed=0,
        model=ModelConfig(backbone="vit", variant=variant, img_size=32, patch_size=4, in_chans=1),
        tokenizer=TokenizerConfig(
            name=tokenizer, mode="invariant", token_budget=9, num_rows=None, partition="flow", row_weight="mass",
            scorer="conv", score_floor=0.3, score_blur=2,
            sampling="area", pos_embed="geometry",
        ),
        train=TrainConfig(
            epochs=1, global_batch_size=4, lr=1e-3, min_lr=0.0, betas=[0.9, 0.98], weight_decay=0.05,
            scorer_lr_scale=1.0, warmup_frac=0.1, clip_grad=1.0, label_smoothing=0.0, drop_path=0.0,
            model_ema_decay=None, augment="none", precision="fp32",
        ),
    )  # fmt: skip


def finished_run(folder: Path, trial: Trial, fingerprint: str) -> tuple[dict[str, Any], Path]:
    """A record of runs.json and weights, as training would leave them."""
    torch.manual_seed(len(fingerprint))
    model = build_model(trial, 10)
    for parameter in model.parameters():  # an untrained scorer is flat: make it say something
        torch.nn.init.normal_(parameter, std=0.3)
    weights = folder / fingerprint / "model.safetensors"
    weights.parent.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    identity = {"name": trial.name, "seed": 0, "fingerprint": fingerprint, "model_name": trial.model_name}
    return {**identity, "science": trial.science()}, weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    counts = {"train_samples": 4, "val_samples": 4, "test_samples": NUM_TEST}
    options = DigitsOptions(name="cluttered-digits", img_size=32, num_clutter=1, seed=0, **counts)
    (folder / "raw").mkdir()
    DATASETS["cluttered-digits"].fetch(options, folder / "raw")
    write_shards(options, folder / "raw", folder / "shards", 10)
    return folder / "shards"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return finished_run(tmp_path_factory.mktemp("results"), tiny_trial(), "f1")


def evaluated(run: tuple[dict[str, Any], Path], shards: Path, batch_size: int, world_size: int) -> Predictions:
    parts = [predict(Part(*run, shards, batch_size, rank, world_size)) for rank in range(world_size)]
    return merge(parts, NUM_TEST)


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_answer_depends_on_neither_workers_nor_batches(
    run: tuple[dict[str, Any], Path], shards: Path, batch_size: int, world_size: int
) -> None:
    expected = evaluated(run, shards, NUM_TEST, 1)
    found = evaluated(run, shards, batch_size, world_size)
    assert found.indices.tolist() == list(range(NUM_TEST))
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found.confidences, expected.confidences, rtol=1e-5)


def part(indices: list[int]) -> Predictions:
    zeros = np.zeros(len(indices), np.int64)
    return Predictions(
        np.array(indices, np.int64), zeros, np.zeros((len(indices), 5), np.int64), zeros.astype(np.float32)
    )


@pytest.mark.parametrize(
    "parts", [[[0, 1], [3]], [[0, 1], [1, 2, 3]], [[0, 1, 2], []], [[0, 1, 2, 3], [4]], [[0, 0, 2, 3], []]]
)
def test_merge_refuses_a_missing_a_double_and_a_foreign_sample(parts: list[list[int]]) -> None:
    with pytest.raises(RuntimeError, match="not exact"):
        merge([part(indices) for indices in parts], 4)


def test_merge_puts_the_samples_in_order() -> None:
    assert merge([part([2, 0]), part([]), part([3, 1])], 4).indices.tolist() == [0, 1, 2, 3]
    assert merge([part([3, 0]), part([2])], 4, dropped=(1,)).indices.tolist() == [0, 2, 3]
    with pytest.raises(RuntimeError, match=r"\[1\] were not seen exactly once"):
        merge([part([3, 0]), part([1, 2])], 4, dropped=(1,))


@pytest.mark.parametrize("batch_size", [4, 100])
def test_damaged_samples_are_left_out_of_every_answer_and_counted(
    run: tuple[dict[str, Any], Path], shards: Path, tmp_path: Path, batch_size: int
) -> None:
    damaged, (entry, weights) = tmp_path / "shards", run
    shutil.copytree(shards, damaged)
    path = damaged / "test-000001.tar"  # samples 10 to 19
    offset, _ = dict(load_members(damaged)[path.name])["test-000012"]["png"]
    data = bytearray(path.read_bytes())
    data[offset + 60] ^= 1
    path.write_bytes(data)
    drops = find_drops(damaged, 0.05, ["test"])
    found = evaluate_runs([entry], {"f1": weights}, damaged, batch_size, Placement(), drops=drops)
    whole = evaluated(run, shards, NUM_TEST, 1)
    kept = [i for i in range(NUM_TEST) if i != 12]
    assert found["f1"].indices.tolist() == kept
    assert found["f1"].classes.tolist() == whole.classes[kept].tolist()
    write_evaluation(tmp_path / "evaluate", "tiny", [entry], found, damaged, drops=drops)
    metrics = json.loads((tmp_path / "evaluate/metrics.json").read_text())
    assert metrics["dropped"]["drops"] == [["test", "test-000001.tar", "test-000012", 12, "has other bytes"]]
    assert metrics["runs"][0]["num_samples"] == NUM_TEST - 1
    rows = list(csv.DictReader((tmp_path / "evaluate/predictions/f1.csv").open()))
    assert [row["key"] for row in rows] == [f"test-{i:06d}" for i in kept]
    write_gallery(tmp_path / "f1.npz", entry, weights, damaged, found["f1"], 20)  # of those that can be read
    with pytest.raises(UserError, match=r"test-000001\.tar: shard has been altered"):
        evaluate_runs([entry], {"f1": weights}, damaged, batch_size, Placement())


def test_scores_by_hand() -> None:
    classes = np.array([[3, 1], [1, 3], [0, 2], [3, 0]])
    labels = np.array([3, 3, 3, 0])
    scores = score(Predictions(np.arange(4), labels, classes, np.ones(4, np.float32)))
    assert scores == {"top1": 0.25, "top5": 0.75, "num_samples": 4}


def test_top5_is_clipped_to_the_classes(shards: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path, tiny_trial("uniform"), "f1")
    assert evaluated(run, shards, 10, 1).classes.shape == (NUM_TEST, 5)


def test_a_suite_of_runs(shards: Path, tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / "r", tiny_trial(name), name) for name in ("dart", "uniform")]
    entries = [entry for entry, _ in runs]
    weights = {entry["fingerprint"]: path for entry, path in runs}
    seen: list[tuple[int, int]] = []
    found = evaluate_runs(entries, weights, shards, 8, Placement(), lambda done, all_: seen.append((done, all_)))
    assert seen[-1][0] == seen[-1][1]
    for run in runs:
        assert found[run[0]["fingerprint"]].classes.tolist() == evaluated(run, shards, 8, 1).classes.tolist()

    how = settings_record(8, None, [])
    write_evaluation(tmp_path / "out", "tiny", entries, found, shards, how=how)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["evaluation"] == how
    assert (how["batch_size"], how["precision"]) == (8, "fp32")
    assert {"commit", "code_sha256", "lock_sha256", "versions", "hardware"} <= how.keys()
    with (tmp_path / "out" / "predictions" / "dart.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["key"] for row in rows}) == NUM_TEST
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert metrics["runs"][0]["top1"] == right / NUM_TEST
    assert list(rows[0]) == ["key", "label", "prediction", "confidence", "top2", "top3", "top4", "top5"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_tasks_on_ray_say_what_this_process_says(run: tuple[dict[str, Any], Path], shards: Path) -> None:
    def plan(slots: int) -> list[Part]:
        return [Part(*run, shards, 8, rank, slots) for rank in range(slots)]

    there = run_on_ray(predict, plan, Placement(), lambda done, total: None)
    assert len(there) == 2
    assert (
        merge([found for _, found in there], NUM_TEST).classes.tolist() == evaluated(run, shards, 8, 1).classes.tolist()
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_user_error_of_a_task_comes_back_as_one(run: tuple[dict[str, Any], Path], shards: Path) -> None:
    part = Part(run[0], shards / "gone.safetensors", shards, 8, 0, 1)
    with pytest.raises(UserError, match="no such file"):
        run_on_ray(predict, lambda slots: [part], Placement(), lambda done, total: None)


def test_a_checkpoint_of_another_model_is_named_with_the_model(tmp_path: Path) -> None:
    entry, _ = finished_run(tmp_path / "a", tiny_trial(variant="nano"), "small")
    _, other = finished_run(tmp_path / "b", tiny_trial(variant="micro"), "large")
    with pytest.raises(UserError, match=r"checkpoint of .* not of dart_vit_nano.*has shape"):
        load_model(entry, other, 10)


def test_all_bad_weights_are_told_at_once(tmp_path: Path, shards: Path) -> None:
    entries, weights = [], {}
    for name in ("gone", "torn", "good"):
        entry, path = finished_run(tmp_path, tiny_trial(), name)
        entries.append(entry)
        weights[name] = path
    weights["gone"].unlink()
    weights["torn"].write_bytes(b"not safetensors")
    with pytest.raises(ConfigError) as caught:
        evaluate_runs(entries, weights, shards, 8, Placement())
    assert len(caught.value.problems) == 2
    assert "no such file" in caught.value.problems[0]
    assert "not a checkpoint" in caught.value.problems[1]


def test_the_gallery_shows_the_same_samples_for_every_run(shards: Path, tmp_path: Path) -> None:
    files = []
    for name in ("dart", "uniform"):
        run = finished_run(tmp_path, tiny_trial(name), name)
        files.append(tmp_path / f"{name}.npz")
        write_gallery(files[-1], *run, shards, evaluated(run, shards, 8, 1), 6)
    dart, uniform = (np.load(file, allow_pickle=False) for file in files)
    assert dart["images"].shape == (6, 1, 32, 32)
    assert dart["regions"].shape == (6, 9, 4)
    np.testing.assert_array_equal(dart["images"], uniform["images"])
    assert len(set(dart["labels"].tolist())) == 6
    draw_gallery(files[0], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_chosen_samples_are_the_first_of_spread_classes() -> None:
    labels = np.array([9, 0, 1, 0, 5, 2, 5])
    assert choose_samples(labels, 10, 2) == [1, 4]
    assert choose_samples(labels, 10, 10)[:3] == [1, 2, 5]
    assert choose_samples(labels, 2, 100) == [*choose_samples(labels, 2, 7)]
    assert sorted(choose_samples(labels, 10, 100)) == list(range(7))
    assert choose_samples(labels, 10, 0) == []
