"""Is the tracking URI usable? Answered in seconds, before work starts, without importing mlflow."""

import http.client
import re
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import UserError, problem

WHERE = "tracking.uri"
ANSWER_S = 3  # how long a server or a locked database may take
_SQLITE = "sqlite:///"
_LOCAL = f"{_SQLITE}mlflow.db is the local default"


def resolve_uri(uri: str, root: Path | None = None) -> str:
    """The URI with a relative SQLite path made absolute against `root` (default: the working directory)."""
    if not uri.startswith(_SQLITE):
        return uri
    return _SQLITE + str((root or Path.cwd()).resolve() / uri.removeprefix(_SQLITE))


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite URI, None for any other."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def page_root(uri: str) -> str | None:
    """Where a tracking server shows its pages, without a name and password; None for anything else."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def check_uri(uri: str) -> None:
    """Take a quick look whether runs can be recorded at `uri`; nothing is written.

    Raises:
        UserError: one line that says what is wrong and what to do.
    """
    path = sqlite_path(uri)
    if path is not None:
        _check_sqlite(uri, path)
    elif re.match(r"https?://", uri):
        _check_server(uri)
    elif re.match(r"file:|/|\.", uri) or ":" not in uri:
        raise _refusal(uri, "MLflow keeps no more runs in plain folders", _LOCAL)


def check_there(uri: str) -> None:
    """Raise UserError where there is no ledger at a usable `uri` yet: asking MLflow would make one."""
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise _refusal(uri, "no such file", "run: python -m pipeline.tracking replay")


def refused(uri: str, error: BaseException) -> UserError:
    """MLflow's own refusal in one line."""
    remedy = "mend that, or name another"
    if sqlite_path(uri) is not None:
        remedy += "; deleted, it is made anew from the journals"
    return _refusal(uri, f"MLflow cannot record there ({brief(error)})", remedy)


def brief(error: BaseException) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:160]


def _check_sqlite(uri: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise _refusal(uri, f"no such folder: {path.parent}", "make it, or mend the path")
    if path.is_dir():
        raise _refusal(uri, "is a folder", _LOCAL)
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        with closing(sqlite3.connect(path, timeout=ANSWER_S)) as database:
            database.execute("BEGIN IMMEDIATE")  # the lock that every write needs
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            database.rollback()
    except sqlite3.Error as error:
        remedy = "end the process that holds it" if "locked" in str(error) else f"name another file; {_LOCAL}"
        raise _refusal(uri, str(error), remedy) from None
    if tables and not {"experiments", "alembic_version"} <= tables:
        raise _refusal(uri, "a database, but not one of MLflow", f"name another file; {_LOCAL}")


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/version", timeout=ANSWER_S) as answer:
            version = answer.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # a server behind a login: mlflow knows the credentials, we do not
            return
        raise _not_mlflow(uri) from None
    except ValueError:
        raise _refusal(uri, "not a URL", _LOCAL) from None
    except OSError as error:
        cause = getattr(error, "reason", None) or error
        raise _refusal(uri, f"no answer ({cause})", f"start the MLflow server, or {_LOCAL}") from None
    except http.client.HTTPException:  # something answered, but not in HTTP
        raise _not_mlflow(uri) from None
    if not re.match(r"\d+\.\d+", version):
        raise _not_mlflow(uri)


def _not_mlflow(uri: str) -> UserError:
    return _refusal(uri, "something else than MLflow answers there", "mend the host or the port")


def _refusal(uri: str, rule: str, remedy: str) -> UserError:
    return UserError(problem(WHERE, uri, rule, remedy))
