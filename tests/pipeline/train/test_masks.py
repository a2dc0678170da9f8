"""Classes of pixels from the suite to the picture: trained, resumed, evaluated, saved for drawing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from sklearn.metrics import jaccard_score

from pipeline.budgets import evaluate_budgets, record_budgets
from pipeline.config import EvaluateConfig, Suite, load_suite, load_yaml
from pipeline.data.loader import eval_dataset
from pipeline.data.masks import IGNORE
from pipeline.journal import curves, read_journal
from pipeline.mask_rules import TestMasksConfig
from pipeline.part import Part
from pipeline.placement import Placement
from pipeline.segmentation.evaluate import (
    Segmentations,
    _middle,
    _middle_classes,
    merge,
    predict,
    score,
    write_csv,
    write_gallery,
)
from pipeline.segmentation.tally import Tally, count, measure
from pipeline.train.loop import WEIGHTS, fit
from pipeline.weights import load_model
from tests.pipeline.train.small_suites import DiesAtStep, Killed, make_shards, record_of, trial_of

ROOT = Path(__file__).resolve().parents[3]
NUM_TEST = 11
NAMES = ("background", "digit")
WHOLE = TestMasksConfig(small_frac=0.05, windows="whole", stride=None)
SLIDE = TestMasksConfig(small_frac=0.05, windows="slide", stride=13)
CROPS = {"short_side": 32, "ratio": [0.8, 1.5], "cat_max_frac": 0.99, "hflip": 0.5, "photometric": False,
         "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
stored_size = pytest.mark.parametrize("run", ["dart", "uniform"], indirect=True)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """suites/digits-segmentation.yaml made small: 48 canvases of 40 px, of which `crops` reads squares of 24."""
    raw = load_yaml(ROOT / "suites/digits-segmentation.yaml")
    raw["dataset"] |= {"img_size": 40, "train_samples": 48, "val_samples": 7, "test_samples": NUM_TEST}
    raw["dataset"] |= {"label": "object", "num_digits": 1}
    raw["model"] |= {"img_size": 40, "variant": "nano"}
    raw["tokenizer"] |= {"token_budget": 9}
    raw["train"] |= {"epochs": 1, "global_batch_size": 8}
    crops = {"model": {"img_size": 24}, "train": {"masks": CROPS}}
    raw["experiments"] = {"dart": {}, "uniform": {"tokenizer": {"name": "uniform"}}, "crops": crops}
    raw["evaluate"]["masks"] = {"small_frac": 0.05, "windows": "slide", "stride": 13}
    raw["sweep"] = None
    path = tmp_path_factory.mktemp("suites") / "masks.yaml"
    YAML().dump(raw, path)
    return load_suite("masks", path)


@pytest.fixture(scope="module")
def shards(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(suite, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=["dart", "uniform", "crops"])
def run(request, suite: Suite, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A finished training: its record and its weights. `crops` reads images in another size than they are stored in."""
    torch.set_num_threads(1)
    trial, folder = trial_of(suite, request.param), tmp_path_factory.mktemp("run")
    result = fit(trial, shards, folder, num_classes=2, log_every_steps=1)
    assert np.isfinite(list(result.metrics.values())).all()
    return record_of(trial), folder / WEIGHTS


def test_a_resumed_training_on_pixels_is_the_uninterrupted_one(run, suite: Suite, shards: Path, tmp_path: Path) -> None:
    entry, weights = run
    trial = trial_of(suite, entry["name"])
    with pytest.raises(Killed):
        fit(trial, shards, tmp_path, num_classes=2, wrap=lambda m: DiesAtStep(m, 4), log_every_steps=1,
            checkpoint_every_s=0)  # fmt: skip
    fit(trial, shards, tmp_path, num_classes=2, wrap=lambda m: DiesAtStep(m, 2), log_every_steps=1)
    assert (tmp_path / WEIGHTS).read_bytes() == weights.read_bytes()
    ours, theirs = (curves(read_journal(folder / "journal.jsonl")) for folder in (tmp_path, weights.parent))
    assert ours["val_miou"] == theirs["val_miou"]
    assert ours["val_loss"] == theirs["val_loss"]


@pytest.mark.parametrize("masks", [WHOLE, SLIDE], ids=["whole", "slide"])
def test_every_pixel_of_the_stored_images_counts_once_whatever_the_workers(run, shards: Path, masks) -> None:
    entry, weights = run
    parts = {n: [predict(Part(entry, weights, shards, 2, r, n, masks=masks)) for r in range(n)] for n in (1, 3, 30)}
    found = {n: merge(some, NUM_TEST) for n, some in parts.items()}
    for other in (found[3], found[30]):
        assert all(torch.equal(a, b) for a, b in zip(found[1].tally, other.tally, strict=True))
        np.testing.assert_array_equal(found[1].mious, other.mious)
    assert found[1].tally.confusion.sum() == NUM_TEST * 40 * 40


def test_one_set_of_weights_is_trained_over_budgets_and_asked_at_each(
    suite: Suite, shards: Path, tmp_path: Path
) -> None:
    trial = trial_of(suite, "dart")
    trial = trial.model_copy(update={"train": trial.train.model_copy(update={"token_budgets": [4, 9]})})
    fit(trial, shards, tmp_path, num_classes=2)
    entry, weights = record_of(trial), {"f1": tmp_path / WEIGHTS}
    config = EvaluateConfig(batch_size=2, gallery_samples=0, masks=WHOLE, token_budgets=[9, 4])
    answers = evaluate_budgets([entry], weights, shards, config, Placement())
    at_nine, at_four = record_budgets(answers, [entry], shards)["f1"]["budgets"]
    plain = merge([predict(Part(entry, weights["f1"], shards, 2, 0, 1, masks=WHOLE))], NUM_TEST)
    assert {name: at_nine[name] for name in score(plain)} == score(plain)
    assert at_four["macs"] < at_nine["macs"]
    assert not torch.equal(answers.fixed["f1"][4].tally.confusion, plain.tally.confusion)


@stored_size
def test_what_was_validated_is_what_the_kept_model_says_of_the_val_split(run, suite: Suite, shards: Path) -> None:
    entry, weights = run
    logged = curves(read_journal(weights.parent / "journal.jsonl"))
    model, dataset = load_model(entry, weights, 2), eval_dataset(shards, "val", img_size=40)
    images, truths = (torch.stack([dataset[i][part] for i in range(len(dataset))]) for part in (0, 1))
    with torch.no_grad():
        logits = model(images)
    said = logits.argmax(1)
    pairs = truths.flatten().numpy(), said.flatten().numpy()
    assert list(logged["val_miou"].values()) == [pytest.approx(jaccard_score(*pairs, average="macro"))]
    assert list(logged["val_pixel_accuracy"].values()) == [pytest.approx(float((said == truths).double().mean()))]
    loss = torch.nn.functional.cross_entropy(logits, truths.long())
    assert list(logged["val_loss"].values()) == [pytest.approx(float(loss), rel=1e-5)]


@stored_size
def test_the_scores_are_those_of_the_models_classes(run, shards: Path) -> None:
    entry, weights = run
    found = merge([predict(Part(entry, weights, shards, 4, 0, 1, masks=WHOLE))], NUM_TEST)
    model, dataset = load_model(entry, weights, 2), eval_dataset(shards, "test", img_size=40)
    tally = Tally.zero(2)
    for i in range(NUM_TEST):
        image, truth, _ = dataset[i]
        with torch.no_grad():
            said = model(image[None]).argmax(1)[0].to(torch.uint8)
        one = count(truth, said, NAMES, WHOLE.small_frac)
        assert found.mious[i] == measure(one)["miou"]
        tally = tally.plus(one)
    assert score(found) == {**measure(tally), "num_samples": NUM_TEST}


def test_a_missing_sample_is_refused() -> None:
    zeros = np.zeros(2)
    part = Segmentations(np.array([0, 2]), zeros, zeros, Tally.zero(2))
    with pytest.raises(RuntimeError, match="not exact"):
        merge([part], 3)


def test_predictions_are_written_by_sample_and_unknown_is_empty(tmp_path: Path) -> None:
    found = Segmentations(np.array([0, 1]), np.array([0.5, np.nan]), np.array([0.25, np.nan]), Tally.zero(2))
    write_csv(tmp_path / "p.csv", ["a", "b"], found)
    assert (tmp_path / "p.csv").read_text() == "key,pixel_accuracy,miou\na,0.500000,0.250000\nb,,\n"


def test_the_gallery_has_truth_prediction_and_regions(run, shards: Path, tmp_path: Path) -> None:
    entry, weights = run
    found = predict(Part(entry, weights, shards, 4, 0, 1, masks=SLIDE))
    write_gallery(tmp_path / "g.npz", entry, weights, shards, found, 3)
    side = entry["science"]["model"]["img_size"]
    with np.load(tmp_path / "g.npz", allow_pickle=False) as saved:
        assert saved["images"].shape == (3, 1, side, side)
        assert saved["truths"].shape == saved["predictions"].shape == (3, side, side)
        assert saved["regions"].shape == (3, 9, 4)
        assert set(np.unique(saved["truths"])) <= {0, 1, 255}


def test_the_square_in_the_middle_is_the_same_of_image_and_truth() -> None:
    ramp = torch.arange(8 * 12, dtype=torch.uint8).view(8, 12)
    for side in (4, 10, 20):
        image = _middle(ramp[None].float(), side, 0)[0]
        truth = _middle_classes(ramp, ramp[None], side)
        known = truth != IGNORE
        assert truth.shape == (side, side)
        assert torch.equal(truth[known].float(), image[known])
        assert not image[~known].any()
        assert known.sum() == min(side, 8) * min(side, 12)
    shrunk = _middle_classes(ramp.repeat_interleave(3, 0).repeat_interleave(3, 1), ramp[None], 8)
    assert torch.equal(shrunk, ramp[:, 2:10])
