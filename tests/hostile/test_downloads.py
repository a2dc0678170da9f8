"""Servers and suites that were made to harm."""

import hashlib
import io
from pathlib import Path

import pytest

from pipeline.config import load_yaml
from pipeline.data.download import RemoteFile, fetch_files
from pipeline.data.video import BadClip, check_clip
from pipeline.errors import UserError

DATA = b"data" * 1000
BLOB = RemoteFile("blob", len(DATA), hashlib.sha256(DATA).hexdigest())


def test_a_download_is_encrypted_and_comes_from_outside(server, tmp_path, monkeypatch):
    monkeypatch.delenv("DART_TRUSTED_HOSTS", raising=False)
    server.files["blob"] = DATA
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(UserError, match="not an address that data is read from; use one of https://"):
            fetch_files(url, (BLOB,), tmp_path)
    with pytest.raises(UserError, match="its host is not a public one"):
        fetch_files("https://169.254.169.254/latest", (BLOB,), tmp_path)
    assert server.ranges == []
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_inside_is_not_followed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DART_TRUSTED_HOSTS", "127.0.0.1")
    server.redirects["blob"] = "https://169.254.169.254/secret"
    with pytest.raises(UserError, match=r"169\.254\.169\.254/secret.*its host is not a public one"):
        fetch_files(server.url, (BLOB,), tmp_path)
    assert not (tmp_path / "blob").exists()


def test_an_answer_is_never_longer_than_the_published_file(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DART_TRUSTED_HOSTS", "127.0.0.1")
    server.files["blob"] = DATA * 1000
    with pytest.raises(UserError, match="has 4000000 bytes, the published file 4000"):
        fetch_files(server.url, (BLOB,), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= len(DATA)


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", "ffconcat version 1.0\nfile /etc/passwd\n", "v=0\nc=IN IP4 1\n"],
)
def test_a_playlist_is_no_clip(text):
    with pytest.raises(BadClip):
        check_clip(io.BytesIO(text.encode()))


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch owned']", "a: !!python/name:os.system"])
def test_yaml_makes_no_objects(text, tmp_path):
    (tmp_path / "suite.yaml").write_text(f"dataset: {text}\n" if text.startswith("!!") else f"{text}\n")
    with pytest.raises(UserError):
        load_yaml(tmp_path / "suite.yaml")
    assert not Path("owned").exists()
