"""Clips from the suite to the picture: trained, resumed, evaluated over several views, saved for drawing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.benchmark import benchmark
from pipeline.classification import merge, predict, write_gallery
from pipeline.config import Suite, load_suite, load_yaml
from pipeline.data.clips import Views, clip_sampling
from pipeline.data.index import load_manifest
from pipeline.data.loader import eval_loader
from pipeline.errors import UserError
from pipeline.part import Part
from pipeline.train.loop import WEIGHTS, fit
from pipeline.weights import load_model
from tests.pipeline.train.small_suites import DiesAtStep, Killed, make_shards, record_of, trial_of

ROOT = Path(__file__).resolve().parents[3]
NUM_TEST = 11


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """suites/digits-video.yaml made small: 48 clips of 9 frames, of which the model reads 4."""
    raw = load_yaml(ROOT / "suites/digits-video.yaml")
    raw["dataset"] |= {"img_size": 24, "num_frames": 9, "num_clutter": 1, "label": "motion"}
    raw["dataset"] |= {"train_samples": 48, "val_samples": 7, "test_samples": NUM_TEST}
    raw["model"] |= {"img_size": 16, "patch_size": 8, "num_frames": 4}
    raw["tokenizer"] |= {"token_budget": 8}
    raw["train"] |= {"epochs": 1, "global_batch_size": 8}
    raw["experiments"] = {"dart": {}, "uniform": {"tokenizer": {"name": "uniform"}}}
    raw["evaluate"]["clips"] = {"num_segments": 2, "num_crops": 3}
    raw["sweep"] = None
    path = tmp_path_factory.mktemp("suites") / "clips.yaml"
    YAML().dump(raw, path)
    return load_suite("clips", path)


@pytest.fixture(scope="module")
def shards(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(suite, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=["dart", "uniform"])
def run(request, suite: Suite, shards: Path, tmp_path_factory: pytest.TempPathFactory):
    """A finished training: its record and its weights."""
    torch.set_num_threads(1)
    trial, folder = trial_of(suite, request.param), tmp_path_factory.mktemp("run")
    result = fit(trial, shards, folder, num_classes=4, log_every_steps=1)
    assert np.isfinite(list(result.metrics.values())).all()
    return record_of(trial), folder / WEIGHTS


def test_a_resumed_training_on_clips_is_the_uninterrupted_one(run, suite: Suite, shards: Path, tmp_path: Path) -> None:
    entry, weights = run
    trial = trial_of(suite, entry["name"])
    with pytest.raises(Killed):
        fit(trial, shards, tmp_path, num_classes=4, wrap=lambda m: DiesAtStep(m, 4), log_every_steps=1,
            checkpoint_every_s=0)  # fmt: skip
    fit(trial, shards, tmp_path, num_classes=4, wrap=lambda m: DiesAtStep(m, 2))
    assert (tmp_path / WEIGHTS).read_bytes() == weights.read_bytes()


def test_a_prediction_is_the_mean_over_all_views_whatever_the_workers(run, shards: Path) -> None:
    entry, weights = run
    views = Views(2, 3)
    whole = merge([predict(Part(entry, weights, shards, NUM_TEST, 0, 1, views))], NUM_TEST)
    parts = [predict(Part(entry, weights, shards, 2, rank, 3, views)) for rank in range(3)]
    split = merge(parts, NUM_TEST)
    assert split.classes.tolist() == whole.classes.tolist()
    np.testing.assert_allclose(split.confidences, whole.confidences, rtol=1e-5)

    model = load_model(entry, weights, 4)
    loader = eval_loader(shards, "test", NUM_TEST, img_size=16, clips=clip_sampling(entry["science"]), views=views)
    clips, labels, _ = next(iter(loader))
    assert clips.shape == (NUM_TEST, 6, 1, 4, 16, 16)
    with torch.no_grad():
        by_hand = model(clips.flatten(0, 1)).softmax(-1).view(NUM_TEST, 6, 4).mean(1)
    np.testing.assert_allclose(whole.confidences, by_hand.max(1).values, rtol=1e-5)
    assert whole.labels.tolist() == labels.tolist()


def test_the_gallery_has_the_clips_and_what_the_model_makes_of_them(run, shards: Path, tmp_path: Path) -> None:
    entry, weights = run
    predictions = predict(Part(entry, weights, shards, 4, 0, 1, Views()))
    write_gallery(tmp_path / "g.npz", entry, weights, shards, predictions, 3)
    with np.load(tmp_path / "g.npz", allow_pickle=False) as saved:
        assert saved["images"].shape == (3, 1, 4, 16, 16)
        assert saved["regions"].shape == (3, 8, 4)
        assert saved["regions"][..., 3].max() == 4 * 16  # the frames stacked to one tall picture
        assert saved["patches"].shape == (3, 8, 1, 8, 8)
        assert saved["density"].shape[0] == 3


def test_the_benchmark_feeds_clips(suite: Suite) -> None:
    trial = trial_of(suite, "dart")
    few = trial.model_copy(update={"model": trial.model.model_copy(update={"num_frames": 2})})
    result = benchmark([trial, few], 4, batch_size=2, rounds=1)
    assert [model["model"]["num_frames"] for model in result["models"]] == [4, 2]
    assert all(model["macs"] > 0 for model in result["models"])


def test_a_model_of_images_refuses_the_shards_of_clips(suite: Suite, shards: Path, tmp_path: Path) -> None:
    trial = trial_of(suite, "dart")
    images = trial.model_copy(update={"model": trial.model.model_copy(update={"num_frames": None})})
    with pytest.raises(UserError, match=r"model.num_frames = None: the shards have clips"):
        fit(images, shards, tmp_path, num_classes=load_manifest(shards).num_classes)
