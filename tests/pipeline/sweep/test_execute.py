"""The body of `train` and `sweep`: one copy at a time, on the right data, and results whole or not at all."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import ExperimentConfig, Params, Suite
from pipeline.data.drops import Drop, Drops
from pipeline.data.index import load_manifest
from pipeline.errors import UserError
from pipeline.files import write_json_atomic
from pipeline.mask_rules import MasksConfig
from pipeline.model import build_model
from pipeline.sweep.checks import check_disk, check_trials
from pipeline.sweep.execute import RESULT_FILES, Paths, dry_run, only_copy, plan_runs, publish
from pipeline.sweep.plan import plan_experiments, plan_sweep
from pipeline.train.run import DONE, Run
from stages.evaluate import load_entries


@pytest.fixture
def paths(tiny_shards: Path, tmp_path: Path) -> Paths:
    return Paths(tiny_shards, tmp_path / "runs", tmp_path / "results/train", ())


@pytest.fixture
def runs(tiny_suite: Suite, paths: Paths) -> list[Run]:
    return plan_runs("train", tiny_suite, plan_experiments(tiny_suite), load_manifest(paths.shards), paths)


def finish(run: Run) -> None:
    run.prepare()
    for name in RESULT_FILES:
        (run.dir / name).write_text(run.fingerprint)
    write_json_atomic(run.dir / DONE, {"status": "done", "metrics": {"val_top1": 0.5}})


def test_equal_trials_of_both_stages_share_one_run(tiny_suite: Suite, runs: list[Run], paths: Paths) -> None:
    swept = plan_runs("sweep", tiny_suite, plan_sweep(tiny_suite), load_manifest(paths.shards), paths)
    shared = {run.dir for run in runs} & {run.dir for run in swept}
    assert len({run.dir for run in runs}) == len(runs)
    assert len(shared) == 2  # uniform and dart at 4 tokens, seed 0


def test_results_are_in_plan_order_with_weights_and_journals(tiny_suite: Suite, runs: list[Run], paths: Paths) -> None:
    for run in reversed(runs):
        finish(run)
    publish("train", tiny_suite, runs, paths.results)
    table = json.loads((paths.results / "runs.json").read_text())
    assert (table["suite"], table["stage"]) == ("tiny", "train")
    assert [run["fingerprint"] for run in table["runs"]] == [run.fingerprint for run in runs]
    assert all(run["status"] == "done" for run in table["runs"])
    for run in runs:
        assert {f.name for f in (paths.results / run.fingerprint).iterdir()} == set(RESULT_FILES)


def test_what_is_left_out_is_part_of_a_run_and_of_the_record(tiny_suite: Suite, runs: list[Run], paths: Paths) -> None:
    drops = Drops((Drop("train", "train-000000.tar", "train-000003", 3, "is cut off"),), ("it is cut",))
    trials, manifest = plan_experiments(tiny_suite), load_manifest(paths.shards)
    poorer = plan_runs("train", tiny_suite, trials, manifest, paths, drops)
    assert not {run.fingerprint for run in poorer} & {run.fingerprint for run in runs}
    assert {json.dumps(run.dropped) for run in poorer} == {'{"train": [3], "val": []}'}
    for run in poorer:
        finish(run)
    publish("train", tiny_suite, poorer, paths.results, drops)
    assert json.loads((paths.results / "runs.json").read_text())["dropped"] == drops.to_json()


def test_a_run_that_diverged_is_published_without_weights(tiny_suite: Suite, runs: list[Run], paths: Paths) -> None:
    finish(runs[0])
    (runs[0].dir / "model.safetensors").unlink()
    write_json_atomic(runs[0].dir / DONE, {"status": "diverged at step 7 of 90", "metrics": {}})
    publish("train", tiny_suite, runs[:1], paths.results)
    assert [file.name for file in (paths.results / runs[0].fingerprint).iterdir()] == ["journal.jsonl"]
    assert load_entries(paths.results) == []  # nothing to evaluate


def test_results_that_cannot_be_completed_leave_the_old_ones(tiny_suite: Suite, runs: list[Run], paths: Paths) -> None:
    for run in runs:
        finish(run)
    publish("train", tiny_suite, runs[:1], paths.results)
    (runs[-1].dir / RESULT_FILES[0]).unlink()
    with pytest.raises(FileNotFoundError):
        publish("train", tiny_suite, runs, paths.results)
    assert len(json.loads((paths.results / "runs.json").read_text())["runs"]) == 1


def test_a_second_copy_waits_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        only_copy(tmp_path),
        pytest.raises(UserError, match=r"process \d+ is training this suite; wait"),
        only_copy(tmp_path, wait_s=0.1),
    ):
        pass
    assert "waiting for process" in capsys.readouterr().out
    with only_copy(tmp_path, wait_s=0):
        pass


def test_a_run_knows_the_folder_of_the_run_it_starts_from(tiny_suite: Suite, paths: Paths) -> None:
    experiments = {"long": ExperimentConfig(init_from="dart-4", train={"epochs": 1}), **tiny_suite.experiments}
    suite = tiny_suite.model_copy(update={"experiments": experiments})
    runs = plan_runs("train", suite, plan_experiments(suite), load_manifest(paths.shards), paths)
    by_label = {run.label: run for run in runs}
    for seed in (0, 1):
        assert by_label[f"long seed {seed}"].init_dir == by_label[f"dart-4 seed {seed}"].dir
    assert by_label["dart-4 seed 0"].init_dir is None


def test_a_plan_without_data_is_shown_all_the_same(
    tiny_suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = Paths(tmp_path / "shards", tmp_path / "runs", tmp_path / "results", ())
    dry_run("train", tiny_suite, plan_experiments(tiny_suite), Params(suites=["tiny"]), nowhere)
    out = capsys.readouterr().out
    assert "10 classes, 400 samples expected" in out
    assert "nothing was started" in out
    assert [line.split()[0] for line in out.splitlines()[2:-1]] == ["uniform-4"] * 2 + ["dart-4"] * 2 + [
        "dart-4-2workers"
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_built_is_said_before_anything_starts(tiny_suite: Suite) -> None:
    trials = plan_experiments(tiny_suite)
    check_trials(trials, 10)
    dart = next(trial for trial in trials if trial.name == "dart-4")
    scored = {"scorer": "timm/resnet81", "pretrained_scorer": False, "frozen_scorer": False, "score_input": 32}
    wrong = dart.model_copy(update={"tokenizer": dart.tokenizer.model_copy(update=scored)})
    with pytest.raises(UserError, match=r"the plan: 1 problem\n  dart-4: .*did you mean 'timm/resnet18'"):
        check_trials([*trials, wrong, wrong], 10)


def test_the_disk_needs_room_for_the_models_that_are_trained(tiny_suite: Suite, tmp_path: Path) -> None:
    """3 checkpoints of thrice the weights, of four times with the average, beside what every run leaves in the end."""
    weights = shutil.disk_usage(tmp_path).free // 12  # of which 10 fit, and 13 do not
    trial = plan_experiments(tiny_suite)[0]
    check_disk(tmp_path, [trial], [weights])
    with pytest.raises(UserError, match=rf"4 runs need about {(13 * weights + 4 * 2**20) / 1e6:.0f} MB; make room"):
        check_disk(tmp_path, [trial] * 4, [weights] * 4)
    averaged = trial.model_copy(update={"train": trial.train.model_copy(update={"model_ema_decay": 0.9})})
    with pytest.raises(UserError, match=rf"1 runs need about {(13 * weights + 2**20) / 1e6:.0f} MB"):
        check_disk(tmp_path, [averaged], [weights])
    (size,) = check_trials([trial], 10)
    assert size == sum(tensor.nbytes for tensor in build_model(trial, 10).state_dict().values())


def test_shards_of_another_size_are_refused(tiny_suite: Suite, paths: Paths) -> None:
    manifest = load_manifest(paths.shards)
    trial = plan_experiments(tiny_suite)[0]
    wrong = trial.model_copy(update={"model": trial.model.model_copy(update={"img_size": 64, "in_chans": 3})})
    with pytest.raises(UserError) as error:
        plan_runs("train", tiny_suite, [wrong, wrong], manifest, paths)
    assert "model.in_chans = 3: the images have 1 channels; use 1" in str(error.value)
    assert "model.img_size = 64: the images have 32 x 32 pixels" in str(error.value)


def test_images_of_different_sizes_need_a_recipe_that_cuts_them(tiny_suite: Suite, paths: Paths) -> None:
    manifest = replace(load_manifest(paths.shards), image_size=None)
    trial = plan_experiments(tiny_suite)[0]
    with pytest.raises(UserError, match=r"train\.augment = 'none': the images differ in size; write it as a mapping"):
        plan_runs("train", tiny_suite, [trial], manifest, paths)
    by_pixel = replace(manifest, task="segmentation")
    with pytest.raises(UserError, match=r"train\.masks = None: the images differ in size; write it as a mapping"):
        plan_runs("train", tiny_suite, [trial], by_pixel, paths)
    masks = MasksConfig(
        short_side=32, ratio=[1.0, 1.0], cat_max_frac=1.0, hflip=0.0, photometric=False, mean=[0.5] * 3, std=[0.5] * 3
    )
    cut = trial.model_copy(update={"train": trial.train.model_copy(update={"masks": masks})})
    assert len(plan_runs("train", tiny_suite, [cut], by_pixel, paths)) == 1
