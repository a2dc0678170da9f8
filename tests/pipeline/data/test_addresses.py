"""What may be downloaded from where."""

import pytest

from pipeline.data.addresses import SHARDS, CheckedSession, check_url
from pipeline.errors import UserError

INSIDE = (
    "127.0.0.1", "localhost", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
    "[::1]", "[fe80::1]", "[fc00::1]", "[::ffff:10.0.0.1]", "[2002:0a00:0001::1]", "224.0.0.1", "2130706433", "127.1",
    "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::808:808]", "[::8.8.8.8]", "[::ffff:8.8.8.8]", "[::ffff:0:10.0.0.1]",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nobody_is_trusted(monkeypatch):
    monkeypatch.delenv("DART_TRUSTED_HOSTS", raising=False)


@pytest.mark.parametrize("host", INSIDE)
def test_hosts_inside_are_refused(host):
    with pytest.raises(UserError, match="its host is not a public one"):
        check_url(f"https://{host}:8443/file")


@pytest.mark.parametrize("host", ["93.184.216.34", "[2606:2800:220:1:248:1893:25c8:1946]", "[64:ff9b::5db8:d822]"])
def test_public_addresses_pass(host):
    check_url(f"https://{host}/file")


@pytest.mark.parametrize(
    "url", ["http://93.184.216.34/x", "ftp://93.184.216.34/x", "file:///etc/passwd", "x", "s3://b/x"]
)
def test_downloads_are_https_only(url):
    with pytest.raises(UserError, match="not an address that data is read from; use one of https://"):
        check_url(url)


def test_shards_may_be_in_stores_and_on_disks():
    for url in ("s3://bucket/x", "gs://bucket/x", "file:///mnt/x"):
        check_url(url, SHARDS)


def test_a_trusted_host_is_the_users_own_business(monkeypatch):
    monkeypatch.setenv("DART_TRUSTED_HOSTS", "files.lab, 10.0.0.7")
    check_url("http://10.0.0.7:8000/x")
    check_url("https://Files.Lab/x")
    with pytest.raises(UserError, match="not a public one"):
        check_url("https://10.0.0.8/x")


def test_passwords_are_refused_and_not_repeated():
    with pytest.raises(UserError, match="has a name or password in it") as error:
        check_url("https://me:secret@93.184.216.34/x?token=abc")
    assert "secret" not in str(error.value)
    assert "abc" not in str(error.value)


def test_every_hop_of_a_session_is_checked(server, monkeypatch):
    monkeypatch.setenv("DART_TRUSTED_HOSTS", "127.0.0.1")
    server.files["x"] = b"data"
    server.redirects["here"] = f"{server.url}/x"
    server.redirects["inside"] = "https://169.254.169.254/secrets"
    with CheckedSession() as session:
        assert session.get(f"{server.url}/here").content == b"data"
        with pytest.raises(UserError, match=r"not a public one \(169\.254\.169\.254\)"):
            session.get(f"{server.url}/inside")
