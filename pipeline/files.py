"""Writing so that a reader, or the next run after a crash, finds the old version or the new, never a half."""

import contextlib
import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, our share of it, the largest file that is allowed
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write beside `path` under a temporary name, flush to disk, then rename over it.

    Raises:
        UserError: if the disk is full, or not to be written on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explaining_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of UTF-8 text."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON with the keys in their given order; NaN is refused, it is not JSON."""
    write_text_atomic(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def append_bytes(path: Path, data: bytes) -> None:
    """Append in one write: a reader sees all of it or nothing, a kill tears only the end.

    Raises:
        OSError: there is no room for all of it; nothing is left of it then.
    """
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if file.write(data) < len(data):  # what a disk does that is almost full
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def replace_dir(temporary: Path, final: Path, swap: bool = True) -> None:
    """Put the finished directory `temporary` in the place of `final`, which may exist.

    Both must lie on one file system. They change places in one step where the system can do that; elsewhere a crash in
    between leaves no `final` at all, never a mixture.

    Args:
        swap: False where a crash must never leave the old content under the name `temporary`.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        if swap and exchange(temporary, final):
            shutil.rmtree(temporary, ignore_errors=True)
            return
        os.replace(final, old)
    os.replace(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Have two paths change places in one step; False, and nothing is done, where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and (
        rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
    )


@contextlib.contextmanager
def building_dir(final: Path, resume_as: str | None = None) -> Iterator[Path]:
    """A directory beside `final` that takes its place when the block ends well.

    Args:
        resume_as: Name of the work. If given, what a failed or killed block has finished is kept and found
            again by the next block of that name; if not, each block starts empty and leaves nothing if it fails.

    Raises:
        UserError: if the disk is full, or not to be written on.
    """
    temporary = final.with_name(f".{final.name}.{resume_as or 'tmp'}")
    if resume_as is None:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explaining_disk(final.parent):
            temporary.mkdir(parents=True, exist_ok=True)
            yield temporary
            for half in temporary.rglob(".*.tmp"):  # of a write that was killed, in an earlier try
                half.unlink()
            replace_dir(temporary, final, swap=resume_as is None)
    finally:
        if temporary.exists() and (resume_as is None or not any(temporary.iterdir())):
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def explaining_disk(folder: Path) -> Iterator[None]:
    """Raise a UserError for what a full disk, or a file that may not be opened or written, does to the block."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"{folder}: no space left on the disk; free some and run the same again") from error
        if error.errno in FORBIDDEN:
            where, why = error.filename or folder, os.strerror(error.errno or 0).lower()
            # What is read in the block, the user's own files say, lies elsewhere.
            what = "written" if Path(os.fsdecode(where)).is_relative_to(folder) else "opened"
            raise UserError(f"{where}: cannot be {what} ({why}); see whose it is, and run the same again") from error
        raise
