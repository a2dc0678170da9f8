"""A new database for MLflow, whole or not there."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore


def make_database(path: Path | None) -> None:
    """Give a new SQLite database its name when it is whole: MLflow makes it in many steps, and is stuck with a half.

    Args:
        path: None, or a file that is there, is left alone.
    """
    if path is None or (path.exists() and path.stat().st_size):
        return
    with _alone_in(path.parent):
        if path.exists() and path.stat().st_size:  # another process was faster
            return
        for leftover in path.parent.glob(f"{path.name}.*tmp*"):  # of a killed process
            leftover.unlink(missing_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        SqlAlchemyStore(f"sqlite:///{temporary}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        temporary.replace(path)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that are in such a block; a lock on the folder leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
