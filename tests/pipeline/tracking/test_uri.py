"""What is no ledger is said in a sentence, within seconds."""

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.tracking.links import run_links
from pipeline.tracking.mirror import mirror, open_ledger
from pipeline.tracking.uri import check_uri, page_root

from .records import SUITE, free_port


class Deaf(BaseHTTPRequestHandler):
    """A web server that is not MLflow."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def other_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Deaf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def refusal(uri: str) -> str:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_uri(uri)
    assert time.monotonic() - start < 8
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_uris_have_their_sentence(tmp_path: Path, other_server: str) -> None:
    (tmp_path / "notes.txt").write_text("not a database" * 100)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE cooking (recipe TEXT)")
    assert "not a database" in refusal(f"sqlite:///{tmp_path}/notes.txt")
    assert "but not one of MLflow" in refusal(f"sqlite:///{tmp_path}/other.db")
    assert "no such folder" in refusal(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    assert "is a folder" in refusal(f"sqlite:///{tmp_path}")
    assert "something else than MLflow" in refusal(other_server)
    assert "no answer" in refusal(f"http://127.0.0.1:{free_port()}")
    assert "plain folders" in refusal("./mlruns")
    assert "plain folders" in refusal(f"file://{tmp_path}")


def test_a_locked_database_has_its_sentence(uri: str) -> None:
    open_ledger(uri, SUITE)
    holder = sqlite3.connect(uri.removeprefix("sqlite:///"))
    holder.execute("BEGIN IMMEDIATE")
    assert "locked" in refusal(uri)
    with pytest.raises(UserError, match="locked"), mirror(uri, SUITE, "train", []):
        pass
    holder.rollback()
    holder.close()
    check_uri(uri)


def test_a_silent_port_is_given_up_in_seconds() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert "no answer" in refusal(f"http://127.0.0.1:{mute.getsockname()[1]}")


def test_a_database_has_no_pages_and_a_server_that_is_gone_costs_one_line(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_links(uri, [SUITE]) == {}
    assert capsys.readouterr().err == ""
    gone = f"http://somebody:secret@127.0.0.1:{free_port()}"
    assert run_links(gone, [SUITE]) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: no links to MLflow on the page (tracking.uri = '{page_root(gone)}': no answer")
    assert "secret" not in line


def test_links_do_not_tell_the_password() -> None:
    assert page_root("https://somebody:secret@lab.example:5000/mlflow/") == "https://lab.example:5000/mlflow"
    assert page_root("sqlite:////tmp/mlflow.db") is None
