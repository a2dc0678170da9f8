"""The token that opens a Ray cluster to its users: in a file that nobody else may read."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from pipeline.errors import UserError, problem


def token_path() -> Path:
    """Where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def protect_token(make: bool) -> None:
    """Close the token's file and folder to everybody else: Ray writes them open to all users of the machine.

    Args:
        make: Write a new one where there is none. A cluster has its own, which must be copied from its head.

    Raises:
        UserError: there is none, or it belongs to somebody else and all may read it.
    """
    path = token_path()
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    if not path.is_file() or not path.stat().st_size:
        if not make:
            remedy = "copy the head's there, or make one with `ray get-auth-token --generate`"
            raise UserError(problem("Ray's token", str(path), "no such file, or an empty one", remedy))
        _write_token(path)
    _close(path, 0o600)
    if path.parent.name == ".ray":  # of Ray's own folder; any other may have other tenants
        _close(path.parent, 0o700)


def _write_token(path: Path) -> None:
    """Whole, or not there; that of another process stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")  # for us alone
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    if path.is_file() and not path.stat().st_size:  # of a process that was killed
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileExistsError):  # another process was faster
        os.link(temporary, path)
    os.unlink(temporary)


def _close(path: Path, mode: int) -> None:
    found = path.stat().st_mode & 0o777
    if found & ~mode == 0:
        return
    try:
        path.chmod(found & mode)
    except OSError:
        rule = f"other users may read it (mode {found:o})"
        raise UserError(problem("Ray's token", str(path), rule, f"chmod {mode:o}")) from None
