"""One attempt at some work in a process of its own, which dies, or meets a fault, at a chosen moment.

A child is forked from this process, which has loaded everything once: an attempt costs what the work costs. In the
child an audit hook sees every change of a file before it happens. Writing itself is not seen, so a torn write is made:
the file that was opened last is cut in the middle of what the work has written to it.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Which argument of an audit event is the path that changes, and which the folder it is relative to.
COMMIT = "tests.chaos.commit"  # of a database, told by the work itself: sqlite writes unseen
CHANGES = {
    COMMIT: (0, None),
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.rename": (1, 3),
    "os.truncate": (0, None),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
}
FULL_DISK = Path("/dev/full")  # every write to it fails as on a full disk: by the kernel's own ENOSPC
Fault = Callable[[Path], None]


class Change(NamedTuple):
    """What is about to happen to a file or a folder below the watched one."""

    kind: str  # "open" for writing, or an audit event's name without "os."
    path: str  # relative to the watched folder

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


class Attempt(NamedTuple):
    """How an attempt ended.

    killed: by a signal that cannot be caught.
    error: Empty when it ended well; what a user reads where it is the user's to mend; else a traceback.
    sentence: Whether `error` is one that a user may see.
    changes: What it changed, or began to, oldest first.
    """

    killed: bool
    error: str
    sentence: bool
    changes: list[Change]
    seconds: float


class Watch:
    """The audit hook: sees the changes below `root`, and acts before the `at`-th of them, counted from 0."""

    def __init__(self, root: Path, told: int, at: int | None, fault: Fault, tear: bool, only: str) -> None:
        self.root, self.told, self.at, self.fault, self.tear = root.resolve(), told, at, fault, tear
        self.only = only
        self.count = 0
        self.opened: tuple[Path, int] | None = None  # the file opened last, and its bytes before
        self.busy = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy or (event != "open" and event not in CHANGES) or self.only not in ("", event):
            return
        self.busy = True  # what is done here is not watched
        try:
            path = changed_path(event, args)
            if path is not None and path.is_relative_to(self.root) and not idle(event, path):
                self.note(event, path)
        finally:
            self.busy = False

    def note(self, event: str, path: Path) -> None:
        change = Change(event.removeprefix("os."), str(path.relative_to(self.root)))
        os.write(self.told, f"{change.kind}\t{change.path}\n".encode())
        if self.count == self.at:
            if self.tear and self.opened:
                cut_in_half(*self.opened)
            self.fault(path)
        self.count += 1
        self.opened = (path, path.stat().st_size if path.is_file() else 0) if event == "open" else None


def changed_path(event: str, args: tuple[Any, ...]) -> Path | None:
    """The absolute path that an audit event is about to change, None where it changes none."""
    if event == "open":
        path, _, flags = args
        if isinstance(path, int) or not flags & WRITING:
            return None
        folder = -1
    else:
        position, base = CHANGES[event]
        path, folder = args[position], -1 if base is None else args[base]
    root = Path(os.readlink(f"/proc/self/fd/{folder}")) if folder is not None and folder >= 0 else Path.cwd()
    return root / os.fsdecode(path)


def idle(event: str, path: Path) -> bool:
    """Whether nothing will change: a folder that is there is made, or a file that is not is removed."""
    return path.is_dir() if event == "os.mkdir" else event == "os.remove" and not os.path.lexists(path)


def cut_in_half(path: Path, num_bytes_before: int) -> None:
    """What a kill in the middle of a write leaves; nothing where the file is closed and renamed already."""
    if path.is_file():
        num_bytes = path.stat().st_size
        os.truncate(path, (min(num_bytes_before, num_bytes) + num_bytes) // 2)


def die(path: Path) -> NoReturn:
    """kill -9, here and now."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def fill_disk(path: Path) -> None:
    """Let the next write to `path` find the disk full; what is there is put aside, see `free_disk`."""
    if path.is_file():
        path.rename(aside(path))
    if not path.exists():
        path.symlink_to(FULL_DISK)


def free_disk(root: Path) -> None:
    """Undo `fill_disk` everywhere below `root`."""
    for path in [path for path in root.rglob("*") if path.is_symlink() and path.readlink() == FULL_DISK]:
        path.unlink()
        if aside(path).is_file():
            aside(path).rename(path)


def aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.aside")


def attempt(
    work: Callable[[], object],
    watch: Path,
    *,
    at: int | None = None,
    fault: Fault = die,
    tear: bool = False,
    only: str = "",
    signal_after_s: float | None = None,
    send: signal.Signals = signal.SIGKILL,
    limit_s: float = 120.0,
) -> Attempt:
    """Do `work` in a forked process.

    Args:
        watch: The folder below which changes are seen.
        at: Before which change `fault` is called, counted from 0; None: before none.
        fault: Is given the path that is about to change, in the child.
        tear: Cut what was written to the file that was opened just before.
        only: See no other event than this one.
        signal_after_s: Send `send` so many seconds after the start.

    Raises:
        TimeoutError: nothing happened for `limit_s` seconds; the process is killed.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # it would be swallowed while forking
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        else:
            _child(work, Watch(watch, told.fileno(), at, fault, tear, only), said.fileno())
        if signal_after_s is not None:
            time.sleep(signal_after_s)
            os.kill(pid, send)
        status = _wait(pid, start + limit_s)
        changes = [Change(*line.split("\t", 1)) for line in _text(told).splitlines()]
        kind, _, error = _text(said).partition(":")
    if os.WIFSIGNALED(status):
        return Attempt(True, "", True, changes, time.monotonic() - start)
    if kind not in ("well", "sentence", "crash"):
        kind, error = "crash", f"the process ended with status {status} and said nothing"
    return Attempt(False, error, kind != "crash", changes, time.monotonic() - start)


def _child(work: Callable[[], object], watch: Watch, say: int) -> NoReturn:
    from pipeline.errors import UserError

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process inherits deafness to Ctrl-C
    sys.addaudithook(watch)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        work()
        said = "well:"
    except UserError as error:
        said = f"sentence:{error}"
    except KeyboardInterrupt:
        said = "sentence:interrupted"
    except BaseException:
        said = f"crash:{traceback.format_exc()}"
    os.write(say, said.encode()[:60000])
    os._exit(0)


def _wait(pid: int, end: float) -> int:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError("an attempt did not end")
        time.sleep(0.002)


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
