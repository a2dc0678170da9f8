"""A run's folder has one user at a time, and its files say how it ended."""

import json
import logging
import os
import resource
import warnings
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Suite, Trial
from pipeline.errors import UserError
from pipeline.sweep.plan import plan_experiments
from pipeline.train.attempt import Failing, train_job
from pipeline.train.run import DONE, FAILED, Job, Run, holding, logging_to, write_failure


@pytest.fixture
def trial(tiny_suite: Suite) -> Trial:
    return next(trial for trial in plan_experiments(tiny_suite) if trial.name == "uniform-4")


def job_of(trial: Trial, run_dir: Path, shards: Path) -> Job:
    run_dir.mkdir(exist_ok=True)
    return Job(trial, run_dir, shards, 10, 1, 1, 0.0, 0, 0, {"commit": None})


def train(job: Job, **options: Any) -> None:
    train_job(job, rank=0, world_size=1, device="cpu", wrap=lambda model: model, **{"report": print, **options})


def test_a_job_survives_the_journey_as_json(trial: Trial, tmp_path: Path) -> None:
    job = job_of(trial, tmp_path, tmp_path / "shards")
    assert Job.from_json(job.to_json()) == job


def test_a_finished_run_says_so_and_keeps_no_checkpoint(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    run = Run("tiny", "train", trial, "f" * 16, "cluttered-digits", "0" * 64, tmp_path)
    assert run.done() is None
    train(job_of(trial, tmp_path, tiny_shards))
    done = run.done()
    assert done is not None
    assert {"status", "metrics", "num_steps", "num_samples", "world_size", "wall_s", "provenance"} == done.keys()
    assert done["num_samples"] == 800
    assert done["provenance"]["hardware"]["cores"] >= 1
    assert {path.name for path in tmp_path.iterdir()} == {DONE, "model.safetensors", "journal.jsonl", "log.txt"}


def test_what_the_user_caused_is_written_down_and_not_raised(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    half = trial.model_copy(update={"train": trial.train.model_copy(update={"precision": "bf16"})})
    train(job_of(half, tmp_path, tiny_shards))
    assert "needs a GPU" in json.loads((tmp_path / FAILED).read_text())["error"]
    assert not (tmp_path / DONE).exists()


def test_a_crash_is_written_down_and_raised(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    def crash(metrics: dict) -> None:
        raise RuntimeError("a cosmic ray")

    with pytest.raises(RuntimeError, match="a cosmic ray"):
        train(job_of(trial, tmp_path, tiny_shards), report=crash)
    assert json.loads((tmp_path / FAILED).read_text()) == {"error": "RuntimeError: a cosmic ray"}
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_full_disk_is_one_sentence_that_is_not_tried_again(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    def fill(metrics: dict) -> None:
        raise OSError(28, "No space left on device")

    train(job_of(trial, tmp_path, tiny_shards), report=fill)
    failure = json.loads((tmp_path / FAILED).read_text())
    assert failure["final"]
    assert failure["error"].endswith("no space left on the disk; free some and run the same again")


def test_where_no_reason_was_left_it_is_found_by_writing(trial: Trial, tmp_path: Path) -> None:
    """The largest file that is allowed stands for a quota, of which the free bytes of the disk say nothing."""
    run = Run("tiny", "train", trial, "f" * 16, "cluttered-digits", "0" * 64, tmp_path)
    assert run.failure() == "ended without a result (killed?)"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        failure = run.failure()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failure == f"{tmp_path}: no space left on the disk; free some and run the same again"
    assert not list(tmp_path.iterdir())


def test_a_success_after_a_failure_leaves_no_word_of_it(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    write_failure(tmp_path, "an earlier attempt")
    train(job_of(trial, tmp_path, tiny_shards))
    assert not (tmp_path / FAILED).exists()


def test_ranks_leave_the_first_cause_on_top(tmp_path: Path) -> None:
    write_failure(tmp_path, "of an attempt before")
    os.utime(tmp_path / FAILED, (0, 0))
    first, second = Failing(tmp_path), Failing(tmp_path)
    with pytest.raises(UserError), first:
        raise UserError("shard 3 is damaged")
    with pytest.raises(RuntimeError), second:
        raise RuntimeError("connection closed by peer")
    assert json.loads((tmp_path / FAILED).read_text()) == {"error": "shard 3 is damaged", "final": True}


def test_what_one_rank_knows_to_be_in_vain_no_rank_tries_again(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    write_failure(tmp_path, "shard 3 is damaged", final=True)
    for rank in range(2):
        train_job(job_of(trial, tmp_path, tiny_shards), rank=rank, world_size=2, device="cpu", report=print, wrap=id)
    assert {path.name for path in tmp_path.iterdir()} == {FAILED}


def test_a_group_that_is_started_again_after_its_end_does_nothing(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / DONE).write_text("{}")
    train(job_of(trial, tmp_path, tmp_path / "no shards"))
    assert {path.name for path in tmp_path.iterdir()} == {DONE}


def test_a_folder_has_one_user_at_a_time(tmp_path: Path) -> None:
    with holding(tmp_path), pytest.raises(UserError, match="another process"), holding(tmp_path, wait_s=0):
        pass
    with holding(tmp_path, wait_s=0):
        pass


def test_the_log_has_our_lines_and_everybodys_warnings(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log.txt"):
        logging.getLogger("pipeline.train").info("ours")
        logging.getLogger("other").info("chatter")
        warnings.warn("beware", stacklevel=1)
    logging.getLogger("pipeline.train").info("too late")
    text = (tmp_path / "log.txt").read_text()
    assert "ours" in text
    assert "beware" in text
    assert "chatter" not in text
    assert "too late" not in text
