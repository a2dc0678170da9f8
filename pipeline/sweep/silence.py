"""What a stage sees of its trainings beside their results: why attempts failed, and processes that are silent.

Processes of one training look after each other: `pipeline.train.guard`. After one alone the stage looks.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from pipeline.train.run import Job, read_failure, write_failure
from pipeline.train.watch import LOOKS, Sign, Watcher, describe, kill_here

log = logging.getLogger(__name__)

REST_S = 5.0  # where there is nobody to look after yet
KILL_S = 20.0  # for a node to do what it is asked to


@contextlib.contextmanager
def ending_silent(
    jobs: Sequence[Job], echo: Callable[[str], None], ended: Container[str] = frozenset()
) -> Iterator[None]:
    """Name and kill, while the block runs, every process alone that is silent for longer than its job says.

    Whoever started it sees it die, and tries it again or not. Of many processes, failed attempts are told.

    Args:
        jobs: May become more meanwhile.
        ended: Names of the run folders whose processes were ended on purpose; may become more, too.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(jobs, echo, ended, over), daemon=True, name="watch over the trials")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _look(jobs: Sequence[Job], echo: Callable[[str], None], ended: Container[str], over: threading.Event) -> None:
    watchers: dict[Path, Watcher] = {}
    told: dict[Path, str] = {}
    while not over.is_set():
        watched = [job for job in jobs if job.silence_s is not None]
        for job in watched:
            if job.run_dir not in watchers:
                watchers[job.run_dir] = Watcher(job.run_dir, range(1), job.silence_s or 0.0)
        if over.wait(min((job.silence_s or 0.0 for job in watched), default=REST_S) / LOOKS):
            return
        for job in watched:
            label = f"{job.trial.name} seed {job.trial.seed}"
            if job.num_workers > 1:
                _tell_failure(job, label, told, echo)
            # Of many workers one may be left, where the run goes on with so few.
            silent = [sign for sign in watchers[job.run_dir].look() if sign.world_size == 1 and not sign.ended]
            if silent and job.run_dir.name not in ended:
                sentence = describe(silent, 1, job.silence_s or 0.0)
                write_failure(job.run_dir, sentence)
                echo(f"{label}: {sentence}; " + ("it is killed" if _kill(silent[0]) else "it could not be killed"))
                watchers[job.run_dir] = Watcher(job.run_dir, range(1), job.silence_s or 0.0)


def _tell_failure(job: Job, label: str, told: dict[Path, str], echo: Callable[[str], None]) -> None:
    """Of an attempt that Ray Train starts again without a word, once."""
    failure = read_failure(job.run_dir).get("error", "")
    if failure and failure != told.get(job.run_dir):
        echo(f"{label}: the attempt failed ({failure})")
    told[job.run_dir] = failure


def _kill(sign: Sign) -> bool:
    """On the node where the process is; a node that does not answer is Ray's to find."""
    if sign.node == socket.gethostname():
        return kill_here(sign)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        for node in ray.nodes():
            if node["Alive"] and node["NodeManagerHostname"] == sign.node:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ray.remote(num_cpus=0)(kill_here).options(scheduling_strategy=there)
                return bool(ray.get(task.remote(sign), timeout=KILL_S))
    except ray.exceptions.RayError as error:
        log.warning("process %d of node %s could not be killed: %s", sign.pid, sign.node, error)
    return False
