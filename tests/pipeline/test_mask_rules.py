"""What a suite says of masks and heads: each contradiction with its data set or its model is one line, said once."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config import Trial, load_suite, load_yaml
from pipeline.errors import ConfigError
from pipeline.sweep.plan import plan_experiments

ROOT = Path(__file__).parents[2]
DATASET = {
    "name": "digits-segmentation", "img_size": 96, "num_digits": 5, "digit_px": [12, 40], "num_clutter": 4,
    "label": "object", "train_samples": 100, "val_samples": 10, "test_samples": 10, "seed": 0,
}  # fmt: skip
MASKS = {
    "short_side": 96, "ratio": [0.5, 2.0], "cat_max_frac": 0.75, "hflip": 0.0, "photometric": True,
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
}  # fmt: skip
WHOLE = {"small_frac": 0.01, "windows": "whole", "stride": None}
SLIDE = {"small_frac": 0.01, "windows": "slide", "stride": 64}
TOKENS = {"model/head": "segmenter", "evaluate/masks": WHOLE}
WARP = {
    "model/backbone": "swin", "model/variant": "tiny", "model/head": "upernet", "model/pretrained": False,
    "tokenizer/partition": None, "tokenizer/row_weight": None, "tokenizer/pos_embed": None, "evaluate/masks": WHOLE,
}  # fmt: skip


def write(folder: Path, changes: dict[str, Any], **sections: Any) -> Path:
    """suites/digits.yaml for pixels, `sections` replaced, and keys `section/key` changed, or with None taken out."""
    raw = load_yaml(ROOT / "suites/digits.yaml")
    raw |= {"dataset": dict(DATASET), "experiments": {"dart-36": {}, "dart-64": {"tokenizer": {"token_budget": 64}}}}
    raw |= {"sweep": None, **sections}
    for key, value in changes.items():
        section, leaf = key.split("/")
        raw[section].pop(leaf, None)
        if value is not None:
            raw[section][leaf] = value
    YAML().dump(raw, folder / "suite.yaml")
    return folder / "suite.yaml"


def plan(folder: Path, changes: dict[str, Any], **sections: Any) -> list[Trial]:
    return plan_experiments(load_suite("suite", write(folder, changes, **sections)))


def problems(folder: Path, changes: dict[str, Any], **sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_suite("suite", write(folder, changes, **sections))
    return error.value.problems


@pytest.mark.parametrize(
    ("base", "changes", "line"),
    [
        (
            TOKENS,
            {"model/head": None},
            "model.head: missing, the samples of digits-segmentation have a class for every pixel; "
            "say which: segmenter",
        ),
        (
            TOKENS,
            {"evaluate/masks": None},
            "evaluate.masks: missing, the samples of digits-segmentation have a class for every pixel; "
            "say how: {small_frac: 0.01, windows: whole, stride: null}",
        ),
        (TOKENS, {"model/head": "segmentor"}, "model.head = 'segmentor': unknown; did you mean 'segmenter'? "),
        (TOKENS, {"model/head": "upernet", "model/pretrained": True, "tokenizer/partition": None,
                  "tokenizer/row_weight": None, "tokenizer/pos_embed": None},
         "model.head = 'upernet': not of backbone vit; known: segmenter"),
        (TOKENS, {"model/backbone": "vim", "model/variant": "nano"},
         "model.backbone = 'vim': has no head that gives every pixel a class; "),
        (
            TOKENS,
            {"train/augment": "flip_crop"},
            "train.augment = 'flip_crop': moves pixels and not their classes; use none, and train.masks",
        ),
        (TOKENS, {"model/pretrained": True}, "model.pretrained = True: only of the head 'upernet'; leave it out"),
        (TOKENS, {"model/num_frames": 4}, "model.num_frames = 4: the samples of digits-segmentation are images; "),
        (
            TOKENS,
            {"tokenizer/partition": None},
            "tokenizer.partition: missing; science has no hidden defaults, write it down",
        ),
        (TOKENS, {"train/masks": {**MASKS, "ratio": [2.0, 0.5]}},
         "train.masks.ratio = [2.0, 0.5]: must be two factors, the smaller first; try [0.5, 2.0]"),
        (TOKENS, {"train/masks": {**MASKS, "hflop": 0.5}}, "train.masks.hflop = 'hflop': unknown; did you mean "),
        (TOKENS, {"train/masks": {**MASKS, "cat_max_frac": 0.0}}, "train.masks.cat_max_frac = 0.0: "),
        (
            TOKENS,
            {"train/masks": {k: v for k, v in MASKS.items() if k != "mean"}},
            "train.masks.mean: missing; science has no hidden defaults",
        ),
        (TOKENS, {"evaluate/masks": {**SLIDE, "stride": None}}, "masks.stride = None: sliding windows need one"),
        (TOKENS, {"evaluate/masks": {**WHOLE, "stride": 8}}, "masks.stride = 8: one look at the whole has none"),
        (
            TOKENS,
            {"evaluate/masks": {**SLIDE, "stride": 97}},
            "evaluate.masks.stride = 97: larger than model.img_size (96), pixels between the windows would have no "
            "class; at most 96",
        ),
        (TOKENS, {"evaluate/masks": {**WHOLE, "small_frac": 1.0}}, "evaluate.masks.small_frac = 1.0: "),
        (TOKENS, {"dataset/digit_px": [40, 12]},
         "dataset.digit_px = [40, 12]: must be the smallest and the largest side"),
        (WARP, {"model/head": "segmenter", "model/pretrained": None, "tokenizer/partition": "flow",
                "tokenizer/row_weight": "mass", "tokenizer/pos_embed": "geometry"},
         "model.head = 'segmenter': not of backbone swin; known: upernet"),
        (WARP, {"model/pretrained": None}, "model.pretrained: missing; science has no hidden defaults"),
        (
            WARP,
            {"tokenizer/pos_embed": "geometry"},
            "tokenizer.pos_embed = 'geometry': the head 'upernet' has no such choice; null, or leave it out",
        ),
        (
            WARP,
            {"train/masks": MASKS},
            "evaluate.masks.windows = 'whole': the head 'upernet' reads squares of model.img_size (96), and images "
            "keep their proportions; use slide",
        ),
    ],
)  # fmt: skip
def test_every_contradiction_is_one_line(tmp_path, base, changes, line):
    found = problems(tmp_path, {**base, **changes})
    assert len(found) == 1, found
    assert line in found[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model/head": "segmenter"},
            "model.head = 'segmenter': the samples of cluttered-digits have one label each; ",
        ),
        ({"train/masks": MASKS}, "the samples of cluttered-digits have one label each; leave it out"),
        ({"evaluate/masks": WHOLE}, "the samples of cluttered-digits have one label each; leave it out"),
        ({"model/pretrained": False}, "model.pretrained = False: only of the head 'upernet'; leave it out"),
        (
            {"model/backbone": "swin", "model/variant": "tiny"},
            "model.backbone = 'swin': has no head for labels, and the samples of cluttered-digits have one label",
        ),
        (
            {"tokenizer/row_weight": None},
            "tokenizer.row_weight: missing; science has no hidden defaults, write it down",
        ),
    ],
)
def test_labels_have_none_of_it(tmp_path, changes, line):
    found = problems(tmp_path, changes, dataset=load_yaml(ROOT / "suites/digits.yaml")["dataset"])
    assert len(found) == 1, found
    assert line in found[0]


def test_all_of_them_are_told_at_once(tmp_path):
    found = problems(tmp_path, {"train/augment": "flip_crop"})
    assert [line.split(":")[0].split(" =")[0] for line in found] == ["model.head", "evaluate.masks", "train.augment"]


def test_budgets_must_make_a_grid_of_the_warps_cells(tmp_path):
    rows = {**WARP, "tokenizer/num_rows": 7}
    assert problems(tmp_path, rows) == [
        "experiments.dart-36.tokenizer.token_budget = 36: not a grid of num_rows (7) rows; try 35",
        "experiments.dart-64.tokenizer.token_budget = 64: not a grid of num_rows (7) rows; try 63",
    ]
    paper = {
        "name": "dart", "mode": "paper", "token_budget": 36, "num_rows": None, "scorer": "mobilenetv3_small_v1",
        "pretrained_scorer": False, "score_input": 224,
    }  # fmt: skip
    head = {key: value for key, value in WARP.items() if not key.startswith("tokenizer")}
    expected = (
        "experiments.dart-64.tokenizer.token_budget = 64: in paper mode the warp has one cell for every 16 x 16 "
        "pixels; use 36"
    )
    assert problems(tmp_path, head, tokenizer=paper) == [expected]
    assert problems(tmp_path, TOKENS, tokenizer=paper, experiments={"dart": {}}) == [
        "experiments.dart.tokenizer.mode = 'paper': tokens that lie in two rows cannot be painted; use invariant, or "
        "model.head: upernet"
    ]


@pytest.mark.parametrize(("base", "name"), [(TOKENS, "dart_vit_micro_segmenter"), (WARP, "dart_swin_tiny_upernet")])
def test_a_suite_of_pixels_names_its_model_and_records_its_head(tmp_path, base, name):
    trial, *_ = plan(tmp_path, base)
    assert trial.model_name == name
    assert trial.architecture()["model"]["head"] == base["model/head"]
    assert [key in trial.architecture()["tokenizer"] for key in ("partition", "row_weight", "pos_embed")] == [
        base is TOKENS
    ] * 3
    assert "masks" not in trial.science()["train"]


def test_one_suite_may_have_both_heads(tmp_path):
    warped = {
        "model": {"backbone": "swin", "variant": "tiny", "head": "upernet", "pretrained": False},
        "tokenizer": {"partition": None, "row_weight": None, "pos_embed": None},
    }
    trials = plan(tmp_path, TOKENS, experiments={"tokens": {}, "warped": warped}, seeds=[0])
    assert [trial.model_name for trial in trials] == ["dart_vit_micro_segmenter", "dart_swin_tiny_upernet"]


def test_how_images_are_cut_is_science_and_how_a_test_looks_is_not(tmp_path):
    def sciences(changes: dict[str, Any]) -> list[Any]:
        return [trial.science() for trial in plan(tmp_path, {**TOKENS, **changes})]

    before = sciences({})
    assert sciences({"evaluate/masks": {**SLIDE, "small_frac": 0.02}}) == before
    cut = sciences({"train/masks": MASKS})
    assert cut != before
    assert cut[0]["train"]["masks"] == MASKS
    assert sciences({"train/masks": {**MASKS, "photometric": False}}) != cut


def test_other_suites_keep_the_form_of_their_record():
    for name in ("digits", "digits-video", "imagenet1k"):
        for trial in plan_experiments(load_suite(name, ROOT / f"suites/{name}.yaml")):
            assert {"head", "pretrained"}.isdisjoint(trial.architecture()["model"])
            assert "masks" not in trial.science()["train"]
            assert trial.model_name == f"{trial.tokenizer.name}_{trial.model.backbone}_{trial.model.variant}"


def test_weights_are_not_handed_on_from_one_head_to_another(tmp_path):
    warped = {
        "model": {"backbone": "swin", "variant": "tiny", "head": "upernet", "pretrained": False},
        "tokenizer": {"partition": None, "row_weight": None, "pos_embed": None},
        "init_from": "tokens",
    }
    found = problems(tmp_path, TOKENS, experiments={"tokens": {}, "warped": warped})
    assert "experiments.warped.model.head = 'upernet': tokens, where it starts from, has 'segmenter'" in found
