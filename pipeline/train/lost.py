"""A cluster that is gone: noticed in half a minute and said in one sentence, where Ray would wait or abort the process.

Ray alone lets a driver without a control store (GCS) hang for a minute and then ends it in the middle of a line; with a
store but without nodes it waits for ever.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from pipeline.errors import UserError

LOST_S = 30.0  # longer than a busy head takes to answer, shorter than Ray's own minute
LOOK_S = 2.0
ANSWER_S = 5.0
END_S = 15.0  # for the stage to clean up; Ray's own clean-up waits for what is gone
HURRY_S = 4.0  # for the same, before Ray ends the process


class Watch(threading.Thread):
    """Looks whether the cluster lives; when it does not, interrupts the main thread, and ends the process if need be.

    Args:
        name: What the user calls the cluster.
        address: HOST:PORT of its control store.
        alive: Whether any node is, as the control store knows; only asked while that answers.
        raylet: Whether this process's own lives; some seconds after it has died, Ray ends the process.
    """

    def __init__(
        self, name: str, address: str, alive: Callable[[], bool], lost_s: float = LOST_S, look_s: float = LOOK_S,
        raylet: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True, name=f"watch over {name}")
        self.address, self.alive, self.lost_s, self.look_s = address, alive, lost_s, look_s
        self.raylet, self.rule = raylet, f"{name} is lost"
        self.over = threading.Event()
        self.sentence: str | None = None  # why the cluster is lost

    def run(self) -> None:
        seen_at = time.monotonic()
        while not self.over.wait(self.look_s):
            if not self.raylet():
                if self.over.wait(self.look_s):  # Ctrl-C ends it as well, and then the block is over by now
                    return None
                return self.end("its raylet has died", HURRY_S)
            wrong = self.look()
            if wrong is None:
                seen_at = time.monotonic()
            elif time.monotonic() - seen_at > self.lost_s:
                return self.end(f"{wrong} for {self.lost_s:.0f} s", END_S)

    def look(self) -> str | None:
        """What is wrong now, if anything is."""
        if not listening(self.address):
            return "its head has not answered"
        return None if self.alive() else "no node of it has been alive"

    def end(self, wrong: str, within_s: float) -> None:
        """Interrupt the main thread; if it hangs in Ray, say the sentence for it and end the process."""
        self.sentence = f"{self.rule}: {wrong}; what is finished is kept, the same command goes on from here"
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGINT)  # as Ctrl-C: wakes it from what it waits for
        if not self.over.wait(within_s):
            print(f"error: {self.sentence}", file=sys.stderr, flush=True)
            os._exit(1)


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """The watch over the block: whatever a lost cluster breaks there becomes its sentence.

    Raises:
        UserError: the cluster was lost.
    """
    watch.start()
    try:
        yield
    except BaseException:
        if watch.sentence is not None:
            raise UserError(watch.sentence) from None
        raise
    finally:
        watch.over.set()


def own_raylet() -> Callable[[], bool]:
    """Whether the raylet that this process has started lives, to be asked later; yes where it has started none."""
    found = [child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"]
    return lambda: all(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in found)


def listening(address: str) -> bool:
    """Whether something takes connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True
