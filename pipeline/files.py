"""Writing so that a reader, or the next run after a crash, finds the old version or the new, never a half."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write beside `path` under a temporary name, flush to disk, then rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of UTF-8 text."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON with the keys in their given order; NaN is refused, it is not JSON."""
    write_text_atomic(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def replace_dir(temporary: Path, final: Path) -> None:
    """Put the finished directory `temporary` in the place of `final`, which may exist.

    Both must lie on one file system. A crash in between leaves no `final` at all, never a mixture.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def building_dir(final: Path, resume_as: str | None = None) -> Iterator[Path]:
    """A directory beside `final` that takes its place when the block ends well.

    Args:
        resume_as: Name of the work. If given, what a failed or killed block has finished is kept and found
            again by the next block of that name; if not, each block starts empty and leaves nothing if it fails.

    Raises:
        UserError: if the disk is full.
    """
    temporary = final.with_name(f".{final.name}.{resume_as or 'tmp'}")
    if resume_as is None:
        shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        replace_dir(temporary, final)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{final.parent}: no space left on the disk; free some and run the same again") from error
        raise
    finally:
        if temporary.exists() and (resume_as is None or not any(temporary.iterdir())):
            shutil.rmtree(temporary)
