"""The ranks of a training look after each other."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.train.watch import BADLY, LOOKS, WELL, Beat, Pulse, Watcher, beat_unheard, describe, kill_here


class Guard(threading.Thread):
    """The watcher of a training's ranks in each of them: when one is silent, this process ends itself.

    Its main thread waits inside torch and cannot be woken. Whoever started the ranks then starts all of them again.

    Args:
        tell: Is given the sentence first.
    """

    def __init__(
        self, run_dir: Path, rank: int, world_size: int, silence_s: float, tell: Callable[[str], None]
    ) -> None:
        super().__init__(daemon=True, name="watch over the ranks")
        self.watcher = Watcher(run_dir, range(world_size), silence_s)
        self.rank, self.world_size, self.tell = rank, world_size, tell
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.watcher.silence_s / LOOKS):
            silent = self.watcher.look()
            others = len(silent) == self.world_size or self.rank not in [sign.rank for sign in silent]
            if silent and others and not self.over.is_set():
                if silent[0].ended != BADLY:
                    self.tell(describe(silent, self.world_size, self.watcher.silence_s))
                    for sign in silent:
                        kill_here(sign)
                os._exit(1)


@contextlib.contextmanager
def watched(
    run_dir: Path, rank: int, world_size: int, silence_s: float | None, tell: Callable[[str], None]
) -> Iterator[Beat]:
    """Show for the block that this rank lives, and look at the others; gives the loop its `beat`.

    Args:
        silence_s: None: nobody looks.
        tell: See `Guard`.
    """
    if silence_s is None:
        yield beat_unheard
        return
    pulse = Pulse(run_dir, rank, world_size, silence_s)
    guard = Guard(run_dir, rank, world_size, silence_s, tell)
    pulse.start()
    if world_size > 1:
        guard.start()
    how = BADLY
    try:
        yield pulse.beat
        how = WELL
    finally:
        guard.over.set()
        pulse.end(how)
