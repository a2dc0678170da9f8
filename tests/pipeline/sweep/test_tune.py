"""A stage runs what is not done, on what the cluster has, and keeps what is finished."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import Suite, Trial, check_trial
from pipeline.errors import UserError
from pipeline.files import write_json_atomic
from pipeline.placement import Placement
from pipeline.recipe import AugmentConfig
from pipeline.sweep.capacity import Shortage, check_batches, check_capacity, count_slots, min_workers, resolve_gpus
from pipeline.sweep.plan import plan_experiments
from pipeline.sweep.progress import Progress
from pipeline.sweep.tune import raise_failures, run_on_cluster, run_trials
from pipeline.train.run import DONE, Run

LAPTOP = [{"CPU": 2.0}]
GPU_NODES = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}]


def make_runs(suite: Suite, folder: Path) -> list[Run]:
    return [make_run(trial, folder) for trial in plan_experiments(suite)]


def make_run(trial: Trial, folder: Path) -> Run:
    key = f"{trial.name}-{trial.seed}"
    return Run("tiny", "train", trial, key, "cluttered-digits", "0" * 64, folder / key)


def options(tmp_path: Path, runs: list[Run]) -> dict:
    costs = {run.fingerprint: float(len(run.trial.name)) for run in runs}
    return {"num_classes": 10, "provenance": {}, "scratch": tmp_path / ".tune", "costs": costs}


def test_a_finished_run_is_not_repeated(tiny_suite: Suite, tiny_shards: Path, tmp_path: Path) -> None:
    runs = make_runs(tiny_suite, tmp_path)
    for run in runs:
        run.prepare()
        write_json_atomic(run.dir / DONE, {"status": "done"})
    nowhere = Placement(ray_address="127.0.0.1:1")  # would fail, if it were needed
    run_trials(runs, tiny_shards, placement=nowhere, **options(tmp_path, runs))


@pytest.mark.slow
def test_two_workers_agree_with_one_and_failures_stay_alone(
    ray: None, tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    """One Ray runtime runs a trial in its own process, the same on two Ray Train workers, and one that diverges."""
    plan = {run.label: run for run in make_runs(tiny_suite, tmp_path)}
    one, two = plan["dart-4 seed 0"], plan["dart-4-2workers seed 0"]
    train = one.trial.train.model_copy(update={"lr": 1e30})
    wild = make_run(one.trial.model_copy(update={"name": "wild", "train": train}), tmp_path)
    pending = {run.fingerprint: run for run in (one, two, wild)}
    for run in pending.values():
        run.prepare()
    lines: list[str] = []
    known = options(tmp_path, list(pending.values()))
    run_on_cluster(pending, tiny_shards, placement=Placement(), num_done=0, echo=lines.append, **known)

    done_one, done_two = one.done(), two.done()
    assert done_one is not None
    assert done_two is not None
    assert (done_one["world_size"], done_two["world_size"]) == (1, 2)
    assert done_one["metrics"] == pytest.approx(done_two["metrics"], abs=1e-3)
    assert len(lines) == 4  # one per epoch of the two that live
    assert any(line.startswith("[2/3] dart-4-2workers seed 0  epoch 2/2  val top-1 0.") for line in lines)
    with pytest.raises(UserError, match="1 of 3 trials failed, the others are kept\n  wild seed 0: gradient norm"):
        raise_failures(list(pending.values()))


@pytest.mark.slow
def test_a_run_starts_after_the_one_whose_weights_it_needs(
    ray: None, tiny_suite: Suite, tiny_shards: Path, tmp_path: Path
) -> None:
    parent = make_run(next(t for t in plan_experiments(tiny_suite) if t.name == "dart-4"), tmp_path)
    still = parent.trial.train.model_copy(update={"lr": 1e-30, "epochs": 1})
    trial = parent.trial.model_copy(update={"name": "child", "train": still, "init_from": parent.trial})
    child = replace(make_run(trial, tmp_path), init_dir=parent.dir)
    pending = {run.fingerprint: run for run in (child, parent)}
    for run in pending.values():
        run.prepare()
    known = options(tmp_path, list(pending.values()))
    run_on_cluster(pending, tiny_shards, placement=Placement(), num_done=0, echo=print, **known)
    raise_failures(list(pending.values()))
    ours, theirs = (load_file(run.dir / "model.safetensors") for run in (child, parent))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_slots_are_counted_node_by_node() -> None:
    assert count_slots(LAPTOP, cpus=1, gpus=0) == 2
    assert count_slots(GPU_NODES, cpus=4, gpus=1) == 8
    assert count_slots(GPU_NODES, cpus=6, gpus=1) == 4
    assert count_slots(GPU_NODES, cpus=1, gpus=0.5) == 16


def test_automatic_gpus_are_one_where_there_are_any() -> None:
    assert resolve_gpus(Placement(), LAPTOP) == 0
    assert resolve_gpus(Placement(), GPU_NODES) == 1
    assert resolve_gpus(Placement(gpus_per_worker=2.0), LAPTOP) == 2


def test_more_than_the_cluster_has_is_refused(tiny_suite: Suite, tmp_path: Path) -> None:
    single, *_, pinned = make_runs(tiny_suite, tmp_path)
    with pytest.raises(UserError, match=r"placement\.num_workers = 4: the cluster has room for 2 workers.*at most 2"):
        check_capacity([single], Placement(num_workers=4), LAPTOP)
    with pytest.raises(UserError, match=r"experiments\.dart-4-2workers\.num_workers = 2: .*room for 1"):
        check_capacity([pinned], Placement(cpus_per_worker=2), LAPTOP)
    with pytest.raises(UserError, match=r"room for 0 workers of 1 CPUs and 1 GPUs: 2 CPUs, 0 GPUs on 1 nodes"):
        check_capacity([single], Placement(gpus_per_worker=1.0), LAPTOP)
    check_capacity([single, pinned], Placement(), LAPTOP)


def test_bfloat16_needs_gpus(tiny_suite: Suite, tmp_path: Path) -> None:
    trial = plan_experiments(tiny_suite)[0]
    half = trial.model_copy(update={"train": trial.train.model_copy(update={"precision": "bf16"})})
    with pytest.raises(UserError, match=r"train\.precision = 'bf16': needs a GPU"):
        check_capacity([make_run(half, tmp_path)], Placement(), LAPTOP)
    check_capacity([make_run(half, tmp_path)], Placement(), GPU_NODES)


def test_a_batch_that_does_not_divide_is_refused(tiny_suite: Suite, tmp_path: Path) -> None:
    runs = make_runs(tiny_suite, tmp_path)
    with pytest.raises(UserError, match=r"train\.global_batch_size = 20: .*world_size \(3\); try 21"):
        check_batches(runs, Placement(num_workers=3))
    check_batches(runs, Placement(num_workers=4))


def test_an_elastic_run_needs_its_fewest_workers_and_a_batch_for_every_number(
    tiny_suite: Suite, tmp_path: Path
) -> None:
    single, *_, pinned = make_runs(tiny_suite, tmp_path)
    elastic = Placement(num_workers=5, min_workers=2)
    assert (min_workers(single, elastic), min_workers(pinned, elastic)) == (2, 2)
    assert min_workers(single, Placement(num_workers=5)) == 5
    check_capacity([single, pinned], elastic, LAPTOP)
    with pytest.raises(UserError, match=r"placement\.min_workers = 2: the cluster has room for 1 workers"):
        check_capacity([single], elastic, [{"CPU": 1.0}])
    rule = r"global_batch_size = 20: not a multiple of every world_size from 2 to 5, that is of 60"
    with pytest.raises(UserError, match=rule + r"; try 60, or .*num_workers \(2, 4, 5 would do\)") as error:
        check_batches([single, pinned], elastic)
    assert "1 problem\n" in str(error.value)  # of every run one, and the pinned run has its own number
    check_batches([single], Placement(num_workers=5, min_workers=4))


def test_a_cluster_that_stays_too_small_ends_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shortage = Shortage(2, Placement(), gpus=0.0, patience_s=30)
    for seconds, nodes in ((0, LAPTOP), (1000, [{"CPU": 1.0}]), (29, []), (0, LAPTOP), (500, []), (29, [])):
        now[0] += seconds
        shortage.look(nodes)  # short, but never for long
    now[0] += 2
    with pytest.raises(
        UserError, match=r"workers = 2: nodes were lost, the cluster has room for 0 workers .*bring the"
    ):
        shortage.look([])


def test_pairs_that_the_workers_would_part_are_refused_before_anything_starts(
    tiny_suite: Suite, tmp_path: Path
) -> None:
    trial = plan_experiments(tiny_suite)[0]
    mixing = trial.train.model_copy(update={"augment": AugmentConfig.model_construct(mixup=0.8, cutmix=0.0)})
    mixed = trial.model_copy(update={"train": mixing})
    sentence = r"global_batch_size = 20: mixup and cutmix mix pairs: not a multiple of 2 x world_size \(4\); try 16"
    with pytest.raises(UserError, match=sentence):
        check_batches([make_run(mixed, tmp_path)], Placement(num_workers=4))
    check_batches([make_run(mixed, tmp_path)], Placement(num_workers=5))
    (line,) = check_trial(mixed.model_copy(update={"num_workers": 4}), "experiments.x.")
    assert re.fullmatch(r"experiments\.x\.train\." + sentence, line)
    assert not check_trial(mixed.model_copy(update={"num_workers": 5}), "")


def test_progress_tells_the_time_left_of_the_whole_stage(tiny_suite: Suite, tmp_path: Path) -> None:
    runs = {run.fingerprint: run for run in make_runs(tiny_suite, tmp_path)[:2]}
    now, lines = [100.0], []
    costs = dict.fromkeys(runs, 1.0)
    progress = Progress(runs, costs, num_done=3, echo=lines.append, clock=lambda: now[0])
    progress.start()
    now[0] += 10
    first, second = runs
    progress.epoch(first, {"epoch": 1, "val_top1": 0.5, "train_s": 10.0})
    for key, epoch in ((first, 2), (second, 1), (second, 2)):
        progress.epoch(key, {"epoch": epoch, "val_top1": 0.741, "train_s": 62.4})
    assert lines[0] == "[3/5] uniform-4 seed 0  epoch 1/2  val top-1 0.500  10 s   about 30 s left"
    assert lines[-1] == "[5/5] uniform-4 seed 1  epoch 2/2  val top-1 0.741  62 s"


def test_progress_tells_the_measure_of_the_task(tiny_suite: Suite, tmp_path: Path) -> None:
    runs = {run.fingerprint: run for run in make_runs(tiny_suite, tmp_path)[:1]}
    lines: list[str] = []
    progress = Progress(runs, dict.fromkeys(runs, 1.0), echo=lines.append)
    for metrics in ({"val_miou": 0.4321, "val_pixel_accuracy": 0.9}, {"val_loss": 1.0}):
        progress.epoch(next(iter(runs)), {"epoch": 1, "train_s": 10.0, **metrics})
    assert lines == [
        "[0/1] uniform-4 seed 0  epoch 1/2  val mIoU 0.432  10 s",
        "[0/1] uniform-4 seed 0  epoch 1/2  10 s",
    ]
