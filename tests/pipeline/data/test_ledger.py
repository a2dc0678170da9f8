"""The ledger: what any ranks wrote, killed and resumed as they may be, is checked against the arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.index import load_manifest
from pipeline.data.ledger import Ledger, RankLedger, check_ledger
from pipeline.data.loader import train_loader
from pipeline.data.order import GlobalBatches, epoch_order, keep
from pipeline.errors import UserError

SEED, SIZE, EPOCHS, NUM = 3, 6, 2, 23
MIXING = {
    "scale": [0.5, 1.0], "hflip": 0.5, "interpolation": "bilinear", "auto_augment": None, "color_jitter": 0.0,
    "reprob": 0.0, "aug_repeats": 1, "mixup": 0.8, "cutmix": 0.0, "crop_pct": 1.0, "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}  # fmt: skip


def write_spec(run_dir: Path, shards: Path, augment="none", dropped=(), size=SIZE) -> Path:
    run_dir.mkdir(exist_ok=True)
    spec = {
        "seed": SEED,
        "science": {"train": {"epochs": EPOCHS, "global_batch_size": size, "augment": augment}},
        "dataset": {"name": "cluttered-digits", "manifest_sha256": load_manifest(shards).sha256},
        **({"dropped": {"train": list(dropped)}} if dropped else {}),
    }
    (run_dir / "spec.json").write_text(json.dumps(spec))
    return run_dir


def read_steps(run_dir, start, stop, world_size=1, dropped=(), size=SIZE, repeats=1, paired=False, ranks=None):
    """What `world_size` ranks (or some of them) write of the global batches from `start` to `stop`."""
    kept = NUM - len(dropped)
    for rank in range(world_size) if ranks is None else ranks:
        ledger = Ledger(run_dir, rank)
        for epoch in range(EPOCHS):
            batches = GlobalBatches(kept, size, SEED, epoch, rank, world_size, 0, repeats, paired)
            for batch, draws in enumerate(keep(batches, NUM, dropped)):
                step = epoch * batches.num_batches + batch
                if start <= step < stop:
                    ledger.append(step, [draw % NUM for draw in draws])


@pytest.fixture
def run_dir(tiny_shards, tmp_path) -> Path:
    return write_spec(tmp_path / "run", tiny_shards)


def test_the_loader_reads_what_the_ledger_says(tiny_shards, run_dir):
    for rank in range(2):
        ledger = Ledger(run_dir, rank)
        for epoch in range(EPOCHS):
            loader = train_loader(
                tiny_shards,
                global_batch_size=SIZE,
                seed=SEED,
                epoch=epoch,
                rank=rank,
                world_size=2,
                loader_workers=rank,
            )
            for batch, (_, _, indices) in enumerate(loader):
                ledger.append(epoch * 3 + batch, indices.tolist())
    told = check_ledger(run_dir, tiny_shards)
    assert told == (
        f"{run_dir}: 6 of 6 global batches of 6, each as seed 3 says; no sample came twice in an epoch, "
        "none was missed but the 5 that do not fill a batch"
    )


@given(attempts=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.sampled_from([1, 2, 3, 6])), max_size=5))
def test_any_kills_and_resizes_end_in_the_same_order(tiny_shards, tmp_path_factory, attempts):
    run_dir = write_spec(tmp_path_factory.mktemp("run") / "r", tiny_shards)
    reached = 0
    for back, forth, world_size in attempts:  # resumed some steps before where it was killed
        start = max(0, reached - back)
        reached = min(6, start + forth)
        read_steps(run_dir, start, reached, world_size)
    read_steps(run_dir, reached, 6)
    assert "6 of 6 global batches" in check_ledger(run_dir, tiny_shards)


SIZES = st.sampled_from([1, 2, 3, 6])


@given(before=SIZES, reached=st.integers(1, 6), world_size=SIZES, start=st.integers(0, 5), forth=st.integers(0, 5),
       ranks=st.sets(st.integers(0, 5), min_size=1))  # fmt: skip
def test_a_kill_between_two_ranks_records_is_no_difference(
    tiny_shards, tmp_path_factory, before, reached, world_size, start, forth, ranks
):
    run_dir = write_spec(tmp_path_factory.mktemp("run") / "r", tiny_shards)
    read_steps(run_dir, 0, reached, before)
    start = min(start, reached)
    killed = min(start + forth, 5)
    read_steps(run_dir, start, killed, world_size)
    first = {0} if killed == start else set()  # until it has written, it stands where it stood before the resume
    read_steps(run_dir, killed, killed + 1, world_size, ranks=[r for r in range(world_size) if r in ranks | first])
    told = check_ledger(run_dir, tiny_shards)
    assert any(f"{num} of 6 global batches" in told for num in (killed, killed + 1))


def test_a_record_that_one_rank_lacks_before_the_last_step_is_named(tiny_shards, run_dir):
    Ledger(run_dir, 0)  # has read nothing yet
    read_steps(run_dir, 0, 2, 2, ranks=[1])
    assert "0 of 6 global batches" in check_ledger(run_dir, tiny_shards)
    read_steps(run_dir, 0, 4, 2, ranks=[0])
    with pytest.raises(UserError, match=r"global batch 2 .*: the ledger lacks it, or some rank's share"):
        check_ledger(run_dir, tiny_shards)
    read_steps(run_dir, 2, 3, 2, ranks=[1])
    assert "3 of 6 global batches" in check_ledger(run_dir, tiny_shards)


@pytest.mark.parametrize(("world_size", "repeats", "paired"), [(1, 3, False), (2, 3, True), (3, 1, True), (1, 1, True)])
def test_repeats_and_pairs_that_no_rank_parts(tiny_shards, tmp_path, world_size, repeats, paired):
    augment = {**MIXING, "aug_repeats": repeats, "mixup": 0.8 if paired else 0.0}
    run_dir = write_spec(tmp_path / "run", tiny_shards, augment, size=12)
    read_steps(run_dir, 0, 99, world_size, size=12, repeats=repeats, paired=paired)
    told = check_ledger(run_dir, tiny_shards)
    assert told.startswith(f"{run_dir}: 2 of 2 global batches of 12, each as seed 3 says; no sample came ")


def test_dropped_samples_never_come(tiny_shards, tmp_path):
    dropped = (0, 7, 22)
    run_dir = write_spec(tmp_path / "run", tiny_shards, dropped=dropped)
    read_steps(run_dir, 0, 99, 3, dropped)
    assert check_ledger(run_dir, tiny_shards).endswith(
        "none was missed but the 2 that do not fill a batch, the 3 damaged ones never"
    )
    write_spec(run_dir, tiny_shards)
    with pytest.raises(UserError, match="global batch 0"):
        check_ledger(run_dir, tiny_shards)


def test_an_unfinished_run_is_right_so_far_and_a_finished_one_must_be_whole(tiny_shards, run_dir):
    read_steps(run_dir, 0, 4)
    assert "4 of 6 global batches" in check_ledger(run_dir, tiny_shards)
    (run_dir / "done.json").write_text(json.dumps({"num_steps": 6}))
    with pytest.raises(UserError, match=r"global batch 4 \(epoch 1\): the ledger lacks it"):
        check_ledger(run_dir, tiny_shards)


def test_a_sample_that_is_another_is_named_and_the_command_fails(tiny_shards, run_dir):
    read_steps(run_dir, 0, 6)
    batch = epoch_order(NUM, SEED, 1)[:SIZE].tolist()
    Ledger(run_dir, 0).append(3, [*batch[:4], batch[5], batch[4]])
    command = [sys.executable, "-m", "pipeline.data.ledger", "check", str(run_dir), "--shards", str(tiny_shards)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    sentence = f"global batch 3 (epoch 1): sample {batch[5]} at place 4, the arithmetic says {batch[4]}"
    assert done.stderr == f"error: {run_dir}: {sentence}\n"


def test_a_rank_that_is_missing_is_named(tiny_shards, run_dir):
    read_steps(run_dir, 0, 6, world_size=3)
    (run_dir / "ledger/rank-00002.bin").unlink()
    with pytest.raises(UserError, match=r"global batch 0 .*: the ledger lacks it, or some rank's share"):
        check_ledger(run_dir, tiny_shards)
    (run_dir / "ledger/rank-00000.bin").unlink()
    with pytest.raises(UserError, match="not those of ranks 0, 1"):
        check_ledger(run_dir, tiny_shards)


def test_other_shards_and_no_ledger_are_one_sentence(tiny_shards, run_dir, tmp_path):
    with pytest.raises(UserError, match=r"no such folder; train with placement\.ledger: true"):
        check_ledger(run_dir, tiny_shards)
    spec = json.loads((run_dir / "spec.json").read_text())
    spec["dataset"]["manifest_sha256"] = "0" * 64
    (run_dir / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="not the shards that the run"):
        check_ledger(run_dir, tiny_shards)
    with pytest.raises(UserError, match=r"spec\.json: no such file"):
        check_ledger(tmp_path, tiny_shards)


@given(cut=st.integers(0, 3 * (16 + 4 * 6)))
def test_a_ledger_cut_at_any_byte_keeps_its_whole_records(tmp_path_factory, cut):
    run_dir = tmp_path_factory.mktemp("cut")
    ledger = Ledger(run_dir, 0)
    for step in range(3):
        ledger.append(step, range(step, step + 6))
    ledger.path.write_bytes(ledger.path.read_bytes()[:cut])
    whole = cut // 40
    Ledger(run_dir, 0).append(9, [1, 2])
    reader = RankLedger(ledger.path)
    assert list(reader.places) == [*range(whole), 9]
    assert all(reader.indices(step).tolist() == list(range(step, step + 6)) for step in range(whole))
    assert reader.indices(9).tolist() == [1, 2]


def test_the_keys_of_an_epoch_in_order(tiny_shards):
    command = [sys.executable, "-m", "pipeline.data.ledger", "write", "--shards", str(tiny_shards)]
    done = subprocess.run([*command, "--seed", "3", "--epoch", "1"], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [f"train-{i:06d}" for i in epoch_order(NUM, 3, 1)]
