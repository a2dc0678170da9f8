"""What a suite says of clips: each contradiction with its data set is one line, said once."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config import load_suite, load_yaml
from pipeline.errors import ConfigError
from pipeline.sweep.plan import plan_experiments

ROOT = Path(__file__).parents[2]


def write(folder: Path, suite: str, changes: dict[str, Any]) -> Path:
    """A suite of the repository with keys `section/key` changed, or with None taken out."""
    raw = load_yaml(ROOT / f"suites/{suite}.yaml")
    for key, value in changes.items():
        section, leaf = key.split("/")
        raw[section].pop(leaf, None)
        if value is not None:
            raw[section][leaf] = value
    YAML().dump(raw, folder / "suite.yaml")
    return folder / "suite.yaml"


def problems(folder: Path, suite: str, changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_suite("suite", write(folder, suite, changes))
    return error.value.problems


CLIPS = {"sampling": "sparse", "frame_stride": None}
VIEWS = {"num_segments": 1, "num_crops": 1}


@pytest.mark.parametrize(
    ("suite", "changes", "line"),
    [
        (
            "digits-video",
            {"model/num_frames": None},
            "model.num_frames: missing, the samples of moving-digits are clips; say how many frames the model reads",
        ),
        (
            "digits-video",
            {"train/clips": None},
            "train.clips: missing, the samples of moving-digits are clips; say which: "
            "{sampling: sparse, frame_stride: null}",
        ),
        (
            "digits-video",
            {"evaluate/clips": None},
            "evaluate.clips: missing, the samples of moving-digits are clips; say how: {num_segments: 1, num_crops: 1}",
        ),
        (
            "digits-video",
            {"model/backbone": "vit"},
            "model.backbone = 'vit': reads images, not clips; known: videomamba",
        ),
        (
            "digits-video",
            {"train/augment": "flip_crop"},
            "train.augment = 'flip_crop': a mirrored clip of moving-digits has another label; use none",
        ),
        (
            "digits-video",
            {"train/clips": {"sampling": "dense", "frame_stride": None}},
            "train.clips.frame_stride = None: dense sampling needs one; for example 4",
        ),
        (
            "digits-video",
            {"train/clips": {"sampling": "sparse", "frame_stride": 2}},
            "train.clips.frame_stride = 2: sparse sampling has none; write null",
        ),
        ("digits-video", {"model/num_frames": 0}, "model.num_frames = 0: input should be greater than or equal to 1"),
        ("digits", {"model/num_frames": 8}, "model.num_frames = 8: the samples of cluttered-digits are images; "),
        ("digits", {"train/clips": CLIPS}, "the samples of cluttered-digits are images; leave it out"),
        ("digits", {"evaluate/clips": VIEWS}, "the samples of cluttered-digits are images; leave it out"),
    ],
)
def test_every_contradiction_is_one_line(tmp_path, suite, changes, line):
    found = problems(tmp_path, suite, changes)
    assert len(found) == 1
    assert line in found[0]


def test_all_of_them_are_told_at_once(tmp_path):
    found = problems(tmp_path, "digits-video", {"model/num_frames": None, "train/clips": None, "evaluate/clips": None})
    assert [line.split(":")[0] for line in found] == ["model.num_frames", "train.clips", "evaluate.clips"]


def test_an_image_backbone_takes_no_frames_and_a_video_backbone_takes_images(tmp_path):
    changes = {"model/backbone": "videomamba", "model/variant": "nano"}
    raw = load_yaml(write(tmp_path, "digits", changes))
    raw["sweep"] = None
    raw["experiments"] = {"dart-36": {}}
    YAML().dump(raw, tmp_path / "suite.yaml")
    trial = plan_experiments(load_suite("suite", tmp_path / "suite.yaml"))[0]
    assert trial.model.num_frames is None
    assert "num_frames" not in trial.architecture()["model"]
    assert "clips" not in trial.science()["train"]


def test_more_tokens_than_the_pixels_of_the_clip_are_refused(tmp_path):
    found = problems(tmp_path, "digits-video", {"experiments/odd": {"tokenizer": {"token_budget": 18433}}})
    expected = (
        "tokenizer.token_budget = 18433: more tokens than the 8 x 48 x 48 = 18432 pixels of a clip; at most 18432"
    )
    assert found == [f"experiments.odd.{expected}"]


def test_which_frames_are_read_is_science_and_how_often_a_test_looks_is_not(tmp_path):
    def sciences(changes: dict[str, Any]) -> list[Any]:
        return [t.science() for t in plan_experiments(load_suite("suite", write(tmp_path, "digits-video", changes)))]

    before = sciences({})
    assert sciences({"evaluate/clips": {"num_segments": 4, "num_crops": 3}}) == before
    assert sciences({"train/clips": {"sampling": "dense", "frame_stride": 1}}) != before
    assert sciences({"model/num_frames": 4}) != before
    assert before[0]["model"]["num_frames"] == 8
    assert before[0]["train"]["clips"] == CLIPS
