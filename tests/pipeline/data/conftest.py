"""A tiny data set in shards, and a web server that can misbehave."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipeline.data import source_remote
from pipeline.data.fetch import fetch_dataset
from pipeline.data.options import DigitsOptions
from pipeline.data.shards import write_shards

TINY = DigitsOptions(
    name="cluttered-digits",
    img_size=24,
    num_clutter=2,
    train_samples=23,
    val_samples=5,
    test_samples=11,
    seed=0,
)


@pytest.fixture(scope="session")
def tiny() -> DigitsOptions:
    return TINY


@pytest.fixture(scope="session")
def digits_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw_dir = tmp_path_factory.mktemp("digits") / "raw"
    fetch_dataset(TINY, raw_dir)
    return raw_dir


@pytest.fixture(scope="session")
def tiny_shards(digits_raw: Path) -> Path:
    """Read only: 23 train, 5 val and 11 test samples in shards of 4."""
    out_dir = digits_raw.parent / "shards"
    write_shards(TINY, digits_raw, out_dir, samples_per_shard=4)
    return out_dir


class FileServer:
    """Serves `files` on the loopback; knows Range unless told otherwise, and may misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []  # the Range header of every request
        self.knows_range = True
        self.hang_up_after: int | None = None  # bytes of the next answer only
        self.busy = 0  # so many of the next requests are answered with 503
        self.redirects: dict[str, str] = {}
        self.sends_all = False  # as the answer to every range, with the status of one
        self.tells_length = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def do_HEAD(self) -> None:
                outer.answer(self, head=True)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/folder"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, head: bool = False) -> None:
        if not head:
            self.ranges.append(request.headers.get("Range"))
        name = request.path.rsplit("/", 1)[-1]
        data = self.files.get(name)
        if self.busy:
            self.busy -= 1
            return request.send_error(503)
        if name in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[name])
            request.send_header("Content-Length", "0")
            return request.end_headers()
        if data is None:
            return request.send_error(404)
        asked = request.headers.get("Range") if self.knows_range else None
        first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), int(last or len(data)) + bool(last)
        if asked and start >= len(data):
            return request.send_error(416)
        request.send_response(206 if asked else 200)
        if self.sends_all:
            start, stop = 0, len(data)
        if self.tells_length:
            request.send_header("Content-Length", str(len(data[start:stop])))
        request.end_headers()
        if head:
            return None
        if self.hang_up_after is not None:
            stop, self.hang_up_after = min(stop, start + self.hang_up_after), None
        request.wfile.write(data[start:stop])
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = FileServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, a trusted server, and no waiting for a network that is none."""
    monkeypatch.setenv("DART_TRUSTED_HOSTS", "127.0.0.1")
    monkeypatch.setenv("DART_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source_remote, "WAITS_S", (0.0, 0.0))
    source_remote._SIZES.clear()  # servers come and go on the same port
    return tmp_path / "cache"
