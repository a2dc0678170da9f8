"""Configuration: what is written is what runs, and every mistake is named, all at once, with its remedy."""

import math
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.config import load_params, load_suite
from pipeline.errors import ConfigError, UserError
from pipeline.sweep.plan import plan_experiments, plan_sweep

ROOT = Path(__file__).parents[2]
DIGITS = YAML(typ="safe").load((ROOT / "suites/digits.yaml").read_text())
MAPPING = {
    "scale": [0.08, 1.0], "hflip": 0.5, "interpolation": "bicubic", "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.0, "reprob": 0.25, "aug_repeats": 3, "mixup": 0.8, "cutmix": 1.0, "crop_pct": 0.875,
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip
PAPER = {
    "name": "dart", "mode": "paper", "token_budget": 196, "num_rows": None, "scorer": "mobilenetv3_small_v1",
    "pretrained_scorer": False, "score_input": 224,
}  # fmt: skip
SCORED = {
    **DIGITS["tokenizer"], "scorer": "timm/resnet18", "pretrained_scorer": False, "frozen_scorer": False,
    "score_input": 224,
}  # fmt: skip


def write_suite(folder: Path, changes: dict) -> Path:
    """suites/digits.yaml with dotted keys changed; None as a value deletes the key."""
    suite = YAML(typ="safe").load((ROOT / "suites/digits.yaml").read_text())
    for dotted, value in changes.items():
        *parents, leaf = dotted.split("/")
        section = suite
        for parent in parents:
            section = section[parent]
        if value is None:
            del section[leaf]
        else:
            section[leaf] = value
    path = folder / "digits.yaml"
    YAML().dump(suite, path)
    return path


def problems(folder: Path, changes: dict) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_suite("digits", write_suite(folder, changes))
    return error.value.problems


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"dataset/name": "cluttered-digit"},
            "dataset.name = 'cluttered-digit': unknown; did you mean 'cluttered-digits'?",
        ),
        ({"tokenizer/scorer": "cnov"}, "tokenizer.scorer = 'cnov': unknown; did you mean 'conv'?"),
        ({"model/variant": "mikro"}, "model.variant = 'mikro': unknown; did you mean 'micro'?"),
        ({"model/backbone": "vitt"}, "model.backbone = 'vitt': unknown; did you mean 'vit'?"),
        ({"train/learning_rate": 0.1}, "train.learning_rate = 'learning_rate': unknown; "),
        ({"train/lr": None}, "train.lr: missing; science has no hidden defaults, write it down"),
        ({"train/lr": "fast"}, "train.lr = 'fast': "),
        ({"train/lr": -1}, "train.lr = -1: "),
        ({"tokenizer/token_budget": 0}, "tokenizer.token_budget = 0: "),
        ({"sweep/grid/tokenizer.token_budget": [36, -4]}, "sweep.grid: tokenizer.token_budget = -4: "),
        (
            {"sweep/grid/tokenizer.token_budget": [36, 9217]},
            "tokenizer.token_budget = 9217: more tokens than the 96 x 96 = 9216 pixels of an image; at most 9216",
        ),
        (
            {"sweep/grid": {"tokenizer.budget": [3]}},
            "sweep.grid = 'tokenizer.budget': unknown; did you mean 'tokenizer.",
        ),
        ({"tokenizer/num_rows": 37}, "tokenizer.num_rows = 37: more rows than token_budget (36)"),
        (
            {"experiments/odd": {"num_workers": 5}},
            "experiments.odd.train.global_batch_size = {batch}: not a multiple of world_size (5); try ",
        ),
        (
            {"experiments/twin": {"agrees_with": "dart-35"}},
            "experiments.twin.agrees_with = 'dart-35': unknown; did you mean",
        ),
        (
            {"experiments/twin": {"agrees_with": "one-worker", "seeds": [5]}},
            "experiments.twin.agrees_with = 'one-worker': has no run of seed 5; give both the same seeds",
        ),
        ({"train/augment": "flip-crop"}, "train.augment = 'flip-crop': "),
        (
            {"train/augment": {**MAPPING, "reprop": 0.25}},
            "train.augment.reprop = 'reprop': unknown; did you mean 'reprob'?",
        ),
        ({"train/augment": {"hflip": 0.5}}, "train.augment.reprob: missing; science has no hidden defaults"),
        ({"train/augment": {**MAPPING, "hflip": 2.0}}, "train.augment.hflip = 2.0: "),
        ({"train/augment": {**MAPPING, "scale": [0.9, 0.1]}}, "train.augment.scale = [0.9, 0.1]: must be two shares"),
        (
            {"train/augment": {**MAPPING, "color_jitter": 0.4}},
            "train.augment.color_jitter = 0.4: not applied beside auto_augment; write 0.0",
        ),
        (
            {"train/augment": {**MAPPING, "auto_augment": "strong"}},
            "auto_augment = 'strong': not a policy that timm knows",
        ),
        (
            {"train/augment": MAPPING, "train/global_batch_size": 25},
            "train.global_batch_size = 25: odd, but mixup and cutmix mix pairs; try 26",
        ),
        ({"train/min_lr": 1.0}, "train.min_lr = 1.0: above lr (0.002)"),
        ({"train/model_ema_decay": 1.0}, "train.model_ema_decay = 1.0: "),
        ({"tokenizer/scorer": "mobilenetv3_smal"}, "unknown; did you mean 'mobilenetv3_small'? known: "),
        ({"tokenizer/scorer": "timm/resnet18"}, "tokenizer.pretrained_scorer: missing; science has no hidden defaults"),
        ({"tokenizer/scorer": "timm/resnet18"}, "tokenizer.score_input: missing; science has no hidden defaults"),
        (
            {"tokenizer/score_input": 224},
            "tokenizer.score_input = 224: the scorer 'conv' has no such choice; null, or leave it out",
        ),
        (
            {"tokenizer/scorer": "random", "tokenizer/score_input": 224},
            "tokenizer.score_input = 224: the scorer 'random' has no such choice; null, or leave it out",
        ),
        ({"tokenizer/scorer": "gradients"}, "tokenizer.scorer = 'gradients': unknown; did you mean 'gradient'?"),
        ({"tokenizer/name": "quadtrees"}, "tokenizer.name = 'quadtrees': unknown; did you mean 'quadtree'?"),
        (
            {"experiments/tree": {"tokenizer": {"name": "quadtree"}, "model": {"backbone": "vim", "variant": "nano"}}},
            "experiments.tree.tokenizer.name = 'quadtree': not of backbone vim; known: dart, uniform",
        ),
        (
            {"experiments/odd": {"tokenizer": {"name": "deformable", "mode": "paper"}}},
            "experiments.odd.tokenizer.mode = 'paper': only of dart, not of deformable; use invariant",
        ),
        (
            {"model/reducer": {"name": "tomee", "keep": 0.5}},
            "model.reducer.name = 'tomee': unknown; did you mean 'tome'?",
        ),
        ({"model/reducer": {"name": "tome", "keep": 0.0}}, "model.reducer.keep = 0.0: "),
        ({"model/reducer": {"name": "tome"}}, "model.reducer.keep: missing; science has no hidden defaults"),
        ({"model/reducer": {"name": "evit", "keep": 0.5}}, "model.reducer.fuse: missing; science has no hidden"),
        (
            {"model/reducer": {"name": "ats", "keep": 0.5, "fuse": True}},
            "model.reducer.fuse = True: ats has no such choice; null, or leave it out",
        ),
        (
            {"model/reducer": {"name": "tome", "keep": 0.1}},
            "model.reducer.keep = 0.1: tome merges at most half of the tokens in each of 3 blocks",
        ),
        (
            {"model/backbone": "vim", "model/variant": "nano", "model/reducer": {"name": "tome", "keep": 0.5}},
            "model.reducer = 'tome': only of classifiers with backbone vit or deit; null, or leave it out",
        ),
        ({"tokenizer/mode": "papier"}, "tokenizer.mode = 'papier': unknown; did you mean 'paper'?"),
        ({"tokenizer/mode": "paper"}, "tokenizer.sampling = 'area': paper mode has no such choice"),
        ({"tokenizer/mode": "paper"}, "tokenizer.scorer = 'conv': not of mode paper; known: mobilenetv3_small_v1, "),
        (
            {"tokenizer": PAPER, "experiments": {"grid": {"tokenizer": {"name": "uniform"}}}},
            "mode = 'paper': only of dart",
        ),
        ({"tokenizer": {**PAPER, "score_input": 96}}, "score_input = 96: must be full or 224 in paper mode"),
        (
            {"tokenizer": {**SCORED, "score_input": 100}},
            "score_input = 100: must be a multiple of 32 pixels; try 224, or full",
        ),
    ],
)
def test_every_mistake_has_its_sentence(tmp_path, changes, sentence):
    sentence = sentence.replace("{batch}", str(DIGITS["train"]["global_batch_size"]))
    assert any(sentence in line for line in problems(tmp_path, changes)), problems(tmp_path, changes)


def test_all_problems_at_once(tmp_path):
    changes = {
        "train/lr": None,
        "tokenizer/token_budget": 0,
        "dataset/name": "mnist",
        "model/variant": "mikro",
        "seeds": [],
    }
    assert len(problems(tmp_path, changes)) == len(changes)


def test_no_such_suite_and_broken_yaml(tmp_path):
    with pytest.raises(UserError, match="no such file; see suites/"):
        load_suite("nothing", tmp_path / "nothing.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1, 2")
    with pytest.raises(UserError, match="not valid YAML"):
        load_suite("broken", tmp_path / "broken.yaml")


def test_unknown_active_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "params.yaml").write_text("suites: [digit]\n")
    with pytest.raises(ConfigError, match=re.escape("suites[0] = 'digit': unknown; did you mean 'digits'?")):
        load_params(tmp_path / "params.yaml")


def test_the_environment_overrides_the_machine_not_the_science(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    params = load_params()
    assert params.placement.ray_address == "127.0.0.1:6399"
    assert params.tracking.uri == "http://127.0.0.1:5000"


def test_the_default_plan():
    suite = load_suite("digits", ROOT / "suites/digits.yaml")
    names = [(trial.name, trial.seed) for trial in plan_experiments(suite)]
    for name in ("uniform-36", "uniform-64", "dart-36"):
        assert [(name, seed) for seed in (0, 1, 2)] == [pair for pair in names if pair[0] == name]
    sweep = plan_sweep(suite)
    assert len(sweep) == len(suite.sweep.seeds) * math.prod(len(values) for values in suite.sweep.grid.values())
    assert len({(t.name, t.seed) for t in sweep}) == len(sweep)


def test_a_trial_is_the_same_science_in_the_table_and_in_the_sweep(tmp_path):
    suite = load_suite("digits", write_suite(tmp_path, {"sweep/grid/tokenizer.token_budget": [9, 36]}))
    experiments = {t.name: t.science() for t in plan_experiments(suite) if t.seed == 0}
    sweep = {t.name: t.science() for t in plan_sweep(suite)}
    assert experiments["dart-36"] == sweep["dart-36-micro"]
    assert experiments["uniform-36"] == sweep["uniform-36-micro"]


def test_options_that_a_model_does_not_read_are_no_part_of_its_identity(tmp_path):
    changed = load_suite("digits", write_suite(tmp_path, {"tokenizer/score_floor": 0.9, "train/scorer_lr_scale": 7.0}))
    same = load_suite("digits", ROOT / "suites/digits.yaml")
    before, after = ({t.name: t.science() for t in plan_experiments(s)} for s in (same, changed))
    assert before["uniform-36"] == after["uniform-36"]
    assert before["dart-36"] != after["dart-36"]


def test_a_mapping_inside_a_section_is_changed_key_by_key(tmp_path):
    changes = {"train/augment": MAPPING, "experiments/calm": {"train": {"augment": {"reprob": 0.0}}}}
    suite = load_suite("digits", write_suite(tmp_path, changes))
    calm = next(trial for trial in plan_experiments(suite) if trial.name == "calm")
    assert calm.train.augment.model_dump() == {**MAPPING, "reprob": 0.0}


def test_a_reducer_is_part_of_the_record_with_what_it_reads_and_of_no_other(tmp_path):
    reducers = {"none": {}, "tome": {"keep": 0.5}, "evit": {"keep": 0.5, "fuse": False}}
    experiments = {name: {"model": {"reducer": {"name": name, **options}}} for name, options in reducers.items()}
    experiments["none"] = {"model": {"reducer": None}}
    suite = load_suite("digits", write_suite(tmp_path, {"experiments": {"dart-36": {}, **experiments}}))
    models = {trial.name: trial.architecture()["model"] for trial in plan_experiments(suite)}
    assert models["none"] == models["dart-36"] == DIGITS["model"]
    assert models["tome"] == {**DIGITS["model"], "reducer": {"name": "tome", "keep": 0.5}}
    assert models["evit"]["reducer"] == {"name": "evit", "keep": 0.5, "fuse": False}


def test_keys_without_a_meaning_are_no_part_of_the_record(tmp_path):
    for tokenizer in (DIGITS["tokenizer"], PAPER, SCORED, {**SCORED, "score_input": "full"}):
        changes = {"tokenizer": tokenizer, "experiments": {"dart": {}}, "sweep/grid": {"train.lr": [0.1]}}
        suite = load_suite("digits", write_suite(tmp_path, changes))
        (trial, *_) = plan_experiments(suite)
        assert trial.architecture()["tokenizer"] == tokenizer
