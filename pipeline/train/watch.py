"""Silent ranks: every process of a training shows that it lives and how far it is, and others look.

One process that is stopped, or hangs, keeps all others waiting for ever, without an error anywhere. So each of them
writes a small file into `run_dir/alive/` every few seconds, from a thread. What the thread counts tells whether the
process runs at all; what the loop counts, whether it gets on. Files are compared with what they were, by the watcher's
own clock: clocks of nodes differ.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from pipeline.train.run import ALIVE

WELL, BADLY = "well", "badly"  # how a rank ends
LOOKS = 20  # of a watcher, in the time that a rank may be silent
NOTICED_FRAC = 0.8  # of that time after which a rank counts as silent: it is to be named within the whole of it
GRACE_FRAC = 0.15  # of that time, from a rank's failure until the others end themselves
SLOWEST = 5.0  # a step may take as many times as long as the slowest before


# Is told how far this process is, and whether what comes now may take as long as it likes. How far: optimizer steps,
# and part of the next one: when its samples have been read, and when only the exchange of gradients is missing.
Beat = Callable[[float, bool], None]
READ, COMPUTED = 0.5, 0.75


def beat_unheard(place: float, patient: bool) -> None:
    """Nobody listens."""


class Sign(NamedTuple):
    """What a rank last wrote.

    born: When its process began; a process id may come again.
    ticks: Of its thread.
    beats: Of its loop.
    place: How far the loop is, see `Beat`.
    patient: What the loop is doing may take as long as it likes.
    slowest_s: The longest time between two beats that were not patient.
    world_size: How many ranks there are.
    ended: "" while it runs; WELL, or BADLY where others would wait for it in vain.
    """

    rank: int
    node: str
    pid: int
    born: float
    ticks: int
    beats: int
    place: float
    patient: bool
    slowest_s: float
    world_size: int
    ended: str


class Pulse:
    """The signs of life of one rank, in a block: a thread writes them, the loop's `beat` says how far it is."""

    def __init__(self, run_dir: Path, rank: int, world_size: int, silence_s: float) -> None:
        self.path, pid = sign_path(run_dir / ALIVE, rank), os.getpid()
        self.sign = Sign(rank, socket.gethostname(), pid, _born(pid), 0, 0, 0.0, True, 0.0, world_size, "")
        self.every_s = silence_s / LOOKS
        self.beat_at = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="signs of life")

    def beat(self, place: float, patient: bool) -> None:
        """The loop is at `place`."""
        now = time.monotonic()
        took_s = now - self.beat_at
        if self.sign.patient:  # the first step: the next ones may take as long as that, not `SLOWEST` times as long
            took_s = took_s / SLOWEST if self.sign.place % 1 else 0.0
        slowest_s = max(self.sign.slowest_s, took_s)
        self.beat_at = now
        beats = self.sign.beats + 1
        self.sign = self.sign._replace(beats=beats, place=place, patient=patient, slowest_s=slowest_s)

    def start(self) -> None:
        """Begin; the first sign is there when this returns."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(exist_ok=True)
        self._write()
        self.thread.start()

    def end(self, how: str) -> None:
        """The last sign: `how` is WELL or BADLY."""
        self.over.set()
        self.thread.join()
        self.sign = self.sign._replace(ended=how)
        self._write()

    def _run(self) -> None:
        while not self.over.wait(self.every_s):
            self.sign = self.sign._replace(ticks=self.sign.ticks + 1)
            self._write()

    def _write(self) -> None:
        """A file that cannot be written is no reason to end: whoever looks then misses us, and says so."""
        with contextlib.suppress(OSError):
            self.path.write_text(json.dumps(self.sign._asdict()))


class Seen(NamedTuple):
    """The newest sign of a rank, and when its thread and its loop last moved, by the watcher's clock."""

    sign: Sign
    ticked_at: float
    beat_at: float


class Watcher:
    """Looks at the signs of some ranks; at those that change, for others may be of an earlier attempt."""

    def __init__(self, run_dir: Path, ranks: range, silence_s: float) -> None:
        self.folder, self.ranks, self.silence_s = run_dir / ALIVE, ranks, silence_s
        self.found = self._read()
        self.seen: dict[int, Seen] = {}
        self.looked_at = time.monotonic()

    def look(self) -> list[Sign]:
        """The ranks that the others wait for in vain; to be called `LOOKS` times in `silence_s`, more or less."""
        now = time.monotonic()
        if now - self.looked_at > self.silence_s / 2:  # we were stopped ourselves: nothing was seen in that time
            self.seen = {}
        self.looked_at = now
        for rank in [rank for rank in self.seen if not self._path(rank).is_file()]:
            del self.seen[rank]  # it has ended well: the signs of a finished run are removed
        for rank, sign in self._read().items():
            if sign != self.found.get(rank):
                self.seen[rank] = _newer(self.seen.get(rank), sign, now)
        limit_s = self.silence_s * NOTICED_FRAC
        running = [seen for seen in self.seen.values() if not seen.sign.ended]
        # What fails one of them may be about to fail all: they are given some time to say so themselves.
        grace_s = self.silence_s * GRACE_FRAC
        failed = [s.sign for s in self.seen.values() if s.sign.ended == BADLY and now - s.beat_at > grace_s]
        stopped = [seen.sign for seen in running if now - seen.ticked_at > limit_s]
        return failed or stopped or self._hanging(running, now, limit_s)

    def _read(self) -> dict[int, Sign]:
        signs = {rank: read_sign(self._path(rank)) for rank in self.ranks}
        return {rank: sign for rank, sign in signs.items() if sign is not None}

    def _path(self, rank: int) -> Path:
        return sign_path(self.folder, rank)

    def _hanging(self, running: list[Seen], now: float, limit_s: float) -> list[Sign]:
        """Those whose loop is behind and does not move, though the process runs.

        Where all are equally far, nobody can say who waits for whom: after `SLOWEST` times as long it is all of them.
        """
        if len(running) < len(self.ranks) or not running:
            return []
        last = min(seen.sign.place for seen in running)
        behind = [seen for seen in running if seen.sign.place == last]
        if len(behind) == len(running) > 1:
            limit_s *= SLOWEST
        moves = [
            seen
            for seen in behind
            if seen.sign.patient or now - seen.beat_at <= max(limit_s, SLOWEST * seen.sign.slowest_s)
        ]
        return [] if moves else [seen.sign for seen in behind]


def sign_path(folder: Path, rank: int) -> Path:
    """The file of a rank's signs."""
    return folder / f"rank-{rank:05d}.json"


def read_sign(path: Path) -> Sign | None:
    """A rank's newest sign; None where there is none, or it is being written."""
    try:
        return Sign(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def describe(silent: list[Sign], world_size: int, silence_s: float) -> str:
    """One sentence for what `Watcher.look` has found."""
    who = ", ".join(f"rank {sign.rank} of {world_size} (node {sign.node}, process {sign.pid})" for sign in silent)
    return f"{who}: silent for {silence_s * NOTICED_FRAC:.0f} s at step {int(silent[0].place)}, stopped or hanging"


def kill_here(sign: Sign) -> bool:
    """End a silent process if it is one of this node's: a stopped one does not end when it is asked to."""
    if sign.node != socket.gethostname() or sign.pid == os.getpid() or _born(sign.pid) != sign.born:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(sign.pid, signal.SIGKILL)
    return True


def _born(pid: int) -> float:
    """When a process of this node began, by a clock that nobody sets where there is one; 0: there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat")  # proc(5), field 22; the second is the name, in brackets
        return float(stat.read_text().rpartition(")")[2].split()[19]) if stat.is_file() else _unix_born(pid)
    except OSError:
        return 0.0


def _unix_born(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _newer(before: Seen | None, sign: Sign, now: float) -> Seen:
    if before is None or (before.sign.node, before.sign.pid) != (sign.node, sign.pid):
        return Seen(sign, now, now)
    ticked_at = before.ticked_at if sign.ticks == before.sign.ticks else now
    beat_at = before.beat_at if (sign.beats, sign.ended) == (before.sign.beats, before.sign.ended) else now
    return Seen(sign, ticked_at, beat_at)
