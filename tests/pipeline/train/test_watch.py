"""A rank that is stopped or hangs is named in time, its training ends, and the next attempt finishes it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import get_context
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Suite, Trial
from pipeline.sweep.plan import plan_experiments
from pipeline.sweep.silence import ending_silent
from pipeline.train.attempt import train_job
from pipeline.train.run import ALIVE, DONE, FAILED, Job, write_failure
from pipeline.train.watch import (
    BADLY,
    GRACE_FRAC,
    LOOKS,
    NOTICED_FRAC,
    SLOWEST,
    Pulse,
    Watcher,
    _born,
    describe,
    read_sign,
)

CONTEXT = get_context("forkserver")  # imports once; autograd's threads do not survive a fork from here
CONTEXT.set_forkserver_preload(["pipeline.train.loop", "pipeline.data.loader", "torch.optim.adamw"])
SILENCE_S = 4.0
AT_STEP = 5


@pytest.fixture(scope="module")
def trial(tiny_suite: Suite) -> Trial:
    return next(trial for trial in plan_experiments(tiny_suite) if trial.name == "uniform-4")


class Silent(nn.Module):
    """The model, until it stops its own process at a certain step, or sleeps there."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how, self.left = model, how, AT_STEP

    def forward(self, images: Tensor) -> Any:
        self.left -= 1
        if self.left == 0 and self.how == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.left == 0 and self.how == "hangs":
            time.sleep(1000)
        return self.inner(images)


def run(rank: int, world_size: int, meeting: Path, job: str, how: str) -> None:
    """One rank; the last of them falls silent."""
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)

    def wrap(model: nn.Module) -> nn.Module:
        parallel = DistributedDataParallel(model) if world_size > 1 else model
        return Silent(parallel, how) if rank == world_size - 1 else parallel

    train_job(
        Job.from_json(job), rank=rank, world_size=world_size, device="cpu", report=lambda metrics: None, wrap=wrap
    )


def job_of(trial: Trial, run_dir: Path, shards: Path, num_workers: int = 1) -> Job:
    run_dir.mkdir(exist_ok=True)
    return Job(trial, run_dir, shards, 10, num_workers, 1, 0.0, 0, 0, {}, silence_s=SILENCE_S)


def start(job: Job, how: str, meeting: Path) -> list[Any]:
    ranks = range(job.num_workers)
    arguments = [(rank, job.num_workers, meeting, job.to_json(), how) for rank in ranks]
    processes = [CONTEXT.Process(target=run, args=these) for these in arguments]
    for process in processes:
        process.start()
    return processes


def wait_for(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stops", "hangs"])
def test_a_silent_rank_is_named_and_the_next_attempt_finishes(
    trial: Trial, tiny_shards: Path, tmp_path: Path, how: str
) -> None:
    job = job_of(trial, tmp_path / "run", tiny_shards, num_workers=2)
    processes = start(job, how, tmp_path / "meeting-1")
    pid = processes[1].pid
    assert wait_for(processes) == [1, -signal.SIGKILL]
    said = json.loads((job.run_dir / FAILED).read_text())
    who = f"rank 1 of 2 (node {socket.gethostname()}, process {pid}): silent for {SILENCE_S * NOTICED_FRAC:.0f} s"
    assert said["error"].startswith(who)
    assert "final" not in said
    assert wait_for(start(job, "is well", tmp_path / "meeting-2")) == [0, 0]
    assert (job.run_dir / DONE).is_file()
    assert not (job.run_dir / FAILED).exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stops", "hangs"])
def test_a_training_of_one_process_is_looked_after_by_its_stage(
    trial: Trial, tiny_shards: Path, tmp_path: Path, how: str
) -> None:
    job, said = job_of(trial, tmp_path / "run", tiny_shards), []
    with ending_silent([job], said.append):
        assert wait_for(start(job, how, tmp_path)) == [-signal.SIGKILL]
    assert len(said) == 1
    assert said[0].startswith("uniform-4 seed 0: rank 0 of 1 (node ")
    assert json.loads((job.run_dir / FAILED).read_text())["error"] in said[0]


@pytest.mark.slow
def test_who_is_well_is_left_alone(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    job, said = job_of(trial, tmp_path / "run", tiny_shards), []
    with ending_silent([job], said.append):
        assert wait_for(start(job, "is well", tmp_path)) == [0]
        time.sleep(1.5 * SILENCE_S)
    assert said == []
    assert not (job.run_dir / ALIVE).exists()


def test_why_attempts_of_many_failed_is_told_once_each(trial: Trial, tmp_path: Path) -> None:
    job, said = job_of(trial, tmp_path / "run", tmp_path, num_workers=2), []
    with ending_silent([job], said.append):
        for cause in ("a cosmic ray", "a comet"):
            write_failure(job.run_dir, cause)
            time.sleep(4 * SILENCE_S / LOOKS)
    told = "uniform-4 seed 0: the attempt failed "
    assert said == [f"{told}(a cosmic ray)", f"{told}(a comet)"]


def test_the_last_worker_of_an_elastic_run_is_looked_after_too(trial: Trial, tmp_path: Path) -> None:
    job, said = job_of(trial, tmp_path / "run", tmp_path, num_workers=2), []
    (job.run_dir / ALIVE).mkdir(parents=True)
    alone = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pulse = Pulse(job.run_dir, 0, 1, SILENCE_S)
    with ending_silent([job], said.append):
        time.sleep(2 * SILENCE_S / LOOKS)
        pulse.sign = pulse.sign._replace(pid=alone.pid, born=_born(alone.pid))
        pulse._write()
        assert alone.wait(20) == -signal.SIGKILL
    assert "rank 0 of 1" in said[0]
    assert said[0].endswith("; it is killed")


class Clock:
    """Time for a watcher, and signs for it to find."""

    def __init__(self, folder: Path, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        (folder / ALIVE).mkdir()
        self.watcher = Watcher(folder, range(world_size), 60.0)
        self.pulses = [Pulse(folder, rank, world_size, 60.0) for rank in range(world_size)]

    def pass_s(self, seconds: int, stopped: tuple[int, ...] = ()) -> list[int]:
        """Who is silent after so many seconds, in which all but the stopped ranks have ticked."""
        found: list[int] = []
        for _ in range(seconds):
            self.now += 1
            for pulse in self.pulses:
                if pulse.sign.rank not in stopped:
                    pulse.sign = pulse.sign._replace(ticks=pulse.sign.ticks + 1)
                    pulse._write()
            found = [sign.rank for sign in self.watcher.look()]
        return found

    def beat(self, *places: float, patient: bool = False) -> None:
        for pulse, place in zip(self.pulses, places, strict=True):
            pulse.beat(place, patient)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tmp_path, 3, monkeypatch)


def test_a_stopped_rank_is_found_within_the_time(clock: Clock) -> None:
    clock.beat(4.5, 4.5, 4.5)
    assert clock.pass_s(10) == []
    assert clock.pass_s(45, stopped=(2,)) == []
    assert clock.pass_s(14, stopped=(2,)) == [2]


def test_a_rank_that_hangs_is_the_one_that_is_behind(clock: Clock) -> None:
    clock.beat(4.75, 4.5, 4.75)
    assert clock.pass_s(45) == []
    assert clock.pass_s(14) == [1]


def test_what_may_take_long_may_take_long(clock: Clock) -> None:
    clock.beat(0.0, 0.0, 0.0, patient=True)
    assert clock.pass_s(1000) == []


def test_a_step_may_take_as_long_as_steps_take_here(clock: Clock) -> None:
    clock.beat(1.0, 1.0, 1.0)
    clock.pass_s(40)
    clock.beat(2.75, 2.5, 2.75)
    assert clock.pass_s(int(SLOWEST * 40) - 1) == []
    assert clock.pass_s(5) == [1]


def test_the_first_step_is_given_its_time_and_the_next_ones_as_much(clock: Clock) -> None:
    """It compiles, or each takes minutes here; the gradients' half of it is no exception."""
    clock.pulses = clock.pulses[:1]
    clock.watcher = Watcher(clock.watcher.folder.parent, range(1), 60.0)
    for place, patient in ((0.5, True), (0.75, True), (1.0, False)):
        clock.beat(place, patient=patient)
        assert clock.pass_s(100) == []
    assert clock.pass_s(2) == [0]  # but no longer than that


def test_where_all_wait_for_all_it_is_all_of_them_in_the_end(clock: Clock) -> None:
    clock.beat(4.5, 4.5, 4.5)
    assert clock.pass_s(int(SLOWEST * 60 * NOTICED_FRAC) - 2) == []
    assert clock.pass_s(5) == [0, 1, 2]


def test_a_rank_that_failed_is_waited_for_in_vain(clock: Clock) -> None:
    clock.beat(4.5, 4.5, 4.5)
    clock.pass_s(3)
    clock.pulses[1].sign = clock.pulses[1].sign._replace(ended=BADLY)
    clock.pulses[1]._write()
    assert clock.pass_s(int(60 * GRACE_FRAC) - 1, stopped=(1,)) == []
    assert clock.pass_s(3, stopped=(1,)) == [1]


def test_signs_of_an_earlier_attempt_are_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ALIVE).mkdir()
    old = Pulse(tmp_path, 1, 2, 60.0)
    old.sign = old.sign._replace(ended=BADLY)
    old._write()
    (tmp_path / "new").mkdir()
    (tmp_path / ALIVE).rename(tmp_path / "kept")
    clock = Clock(tmp_path, 2, monkeypatch)
    (tmp_path / "kept" / old.path.name).rename(old.path)
    clock.watcher = Watcher(tmp_path, range(2), 60.0)
    clock.beat(0.0, 0.0, patient=True)
    assert clock.pass_s(200, stopped=(1,)) == []


def test_a_half_written_sign_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.json"
    assert read_sign(path) is None
    path.write_text('{"rank": 0, "no')
    assert read_sign(path) is None


def test_the_sentence_names_all_who_are_silent(tmp_path: Path) -> None:
    signs = [Pulse(tmp_path, rank, 3, 60.0).sign._replace(place=7.5, node=f"n{rank}", pid=rank) for rank in (0, 2)]
    assert describe(signs, 3, 60.0) == (
        "rank 0 of 3 (node n0, process 0), rank 2 of 3 (node n2, process 2): silent for 48 s at step 7, "
        "stopped or hanging"
    )
