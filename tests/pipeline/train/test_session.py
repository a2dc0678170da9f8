"""A Ray address that nobody answers is refused at once; a cluster that dies is noticed; what is ours is closed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.placement import Placement
from pipeline.train.auth import protect_token
from pipeline.train.lost import Watch, watching
from pipeline.train.session import NOT_SHIPPED, _remove_detached, check_address, ray_session

ROOT = Path(__file__).resolve().parents[3]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_nobody_at_the_address_is_one_sentence() -> None:
    said = r"placement\.ray_address = '127\.0\.0\.1:1': no Ray runtime there .*; start"
    with pytest.raises(UserError, match=said), ray_session(Placement(ray_address="127.0.0.1:1")):
        pass


def test_ray_imported_before_it_was_told_of_tokens_is_one_sentence() -> None:
    code = "import ray; from pipeline.train.session import set_environment as s; s()"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "RAY_AUTH_MODE = None: Ray was imported before this was set" in done.stderr.splitlines()[-1]


def test_what_listens_or_is_not_an_address_is_left_to_ray(server: socket.socket) -> None:
    port = server.getsockname()[1]
    check_address(f"127.0.0.1:{port}")
    check_address(f"ray://127.0.0.1:{port}")
    check_address("local")
    check_address("auto")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Something that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what it runs in the background deaf to interrupts, and pytest inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("dies", ["head", "nodes"])
def test_a_lost_cluster_ends_what_waits_for_it_in_one_sentence(server: socket.socket, dies: str) -> None:
    alive = [True]
    watch = Watch("the cluster", f"127.0.0.1:{server.getsockname()[1]}", lambda: alive[0], lost_s=0.5, look_s=0.05)
    cause = {"head": "its head has not answered", "nodes": "no node of it has been alive"}[dies]
    started = time.monotonic()

    def work() -> None:
        time.sleep(0.7)  # longer than the patience, while all is well
        if dies == "head":
            server.close()
        alive[0] = dies == "head"
        time.sleep(30)

    with pytest.raises(UserError, match=f"the cluster is lost: {cause} for"), watching(watch):
        work()
    assert time.monotonic() - started < 20


def test_what_fails_on_a_cluster_that_lives_keeps_its_own_words(server: socket.socket) -> None:
    watch = Watch("the cluster", f"127.0.0.1:{server.getsockname()[1]}", lambda: True, lost_s=0.5, look_s=0.05)
    with pytest.raises(ZeroDivisionError), watching(watch):
        print(1 / 0)
    watch.join(timeout=10)
    assert not watch.is_alive()


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / ".ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return path


def test_a_new_token_is_made_for_its_owner_alone_and_kept(token: Path) -> None:
    protect_token(make=True)
    secret = token.read_text()
    assert (len(secret), mode(token), mode(token.parent)) == (64, 0o600, 0o700)
    protect_token(make=True)
    assert token.read_text() == secret


def test_a_token_that_others_may_read_is_closed(token: Path) -> None:
    token.parent.mkdir(mode=0o755)
    token.write_text("secret")
    token.chmod(0o644)
    protect_token(make=False)
    assert (token.read_text(), mode(token), mode(token.parent)) == ("secret", 0o600, 0o700)


def test_an_empty_token_of_a_killed_process_is_made_anew(token: Path) -> None:
    token.parent.mkdir(mode=0o700)
    token.touch(0o600)
    protect_token(make=True)
    assert (len(token.read_text()), mode(token)) == (64, 0o600)
    assert list(token.parent.iterdir()) == [token]


def test_a_cluster_without_its_token_is_one_sentence(token: Path) -> None:
    with pytest.raises(UserError, match=r"Ray's token = '.*auth_token': no such file, or an empty one; copy"):
        protect_token(make=False)
    assert not token.exists()


def test_a_private_runtimes_session_and_token_are_closed_to_others(ray: None) -> None:
    import ray as cluster
    from ray._private.worker import global_worker

    from pipeline.train.auth import token_path

    cluster.get(
        cluster.remote(lambda: os.getpid()).remote()
    )  # a worker that starts opens the session's folder to everybody
    session = Path(global_worker.node.get_session_dir_path())
    assert any(mode(folder) & 0o077 == 0 for folder in session.parents)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert mode(token_path()) & 0o077 == 0


def test_only_what_this_job_has_started_is_removed(ray: None) -> None:
    import ray as cluster

    class Stays:
        def here(self) -> str:
            return "here"

    mine = cluster.remote(num_cpus=0)(Stays).options(name="mine", lifetime="detached").remote()
    assert cluster.get(mine.here.remote()) == "here"
    address = cluster.get_runtime_context().gcs_address
    code = f"""
import ray
ray.init("{address}", namespace="theirs", log_to_driver=False)
class Stays:
    def here(self): return "here"
actor = ray.remote(num_cpus=0)(Stays).options(name="theirs", lifetime="detached").remote()
ray.get(actor.here.remote())
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    deadline = time.monotonic() + 30
    while len([job for job in cluster._private.state.jobs() if not job["IsDead"]]) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    _remove_detached()
    names = {actor["name"] for actor in cluster.util.list_named_actors(all_namespaces=True)}
    assert "theirs" in names
    assert "mine" not in names
    cluster.kill(cluster.get_actor("theirs", namespace="theirs"))


def test_all_of_the_code_is_shipped_to_a_cluster_and_no_data() -> None:
    from ray._private.runtime_env.packaging import _get_excludes

    left_out = _get_excludes(ROOT, NOT_SHIPPED)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needed = [name for name in tracked if name.split("/")[0] in ("dart", "pipeline", "stages", "suites")]
    assert [name for name in needed if left_out(ROOT / name)] == []
    assert left_out(ROOT / "data")
    assert left_out(ROOT / "runs")
