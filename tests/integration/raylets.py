"""A real Ray cluster on this machine: one raylet per node, started as on a host of its own, ended by process id."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

START_S = 120.0  # of a raylet, on a machine whose cores others use as well


class Cluster:
    """A head, and nodes that come and go. Every process of it is a descendant of a `ray start --block`."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.port, self.dashboard = free_ports(2)
        self.nodes: list[subprocess.Popen] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_head(self, cpus: int) -> subprocess.Popen:
        where = [f"--port={self.port}", f"--dashboard-port={self.dashboard}", f"--temp-dir={self.folder}"]
        return self._start("--head", "--include-dashboard=true", *where, f"--num-cpus={cpus}")

    def add_node(self, cpus: int, without: Path | None = None) -> subprocess.Popen:
        """Another node; `without` is a folder in whose place it sees an empty one, as if it were not shared."""
        mount = f'mount -t tmpfs none {without} && exec "$@"'
        own = ("unshare", "--mount", "sh", "-c", mount, "sh") if without else ()
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}", own=own)

    def _start(self, *options: str, own: tuple[str, ...] = ()) -> subprocess.Popen:
        ours = ["--node-ip-address=127.0.0.1", f"--object-store-memory={100 * 2**20}", "--block"]
        command = [*own, str(Path(sys.executable).with_name("ray")), "start", *options, *ours]
        log = (self.folder / f"start-{len(self.nodes)}.txt").open("w")
        process = subprocess.Popen(command, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.nodes.append(process)
        log.close()
        self._wait_for_start(process, Path(log.name))
        return process

    def _wait_for_start(self, process: subprocess.Popen, log: Path) -> None:
        end = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"no raylet within {START_S} s: {log.read_text()}"
            time.sleep(0.2)

    def kill(self, node: subprocess.Popen) -> None:
        """kill -9 of a node with everything on it, as when its power fails."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait()
        self.nodes.remove(node)


@contextlib.contextmanager
def cluster(*cpus: int) -> Iterator[Cluster]:
    """A cluster whose head and nodes have these numbers of CPUs, with a token of its own; nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets: short
        os.chmod(folder, 0o700)
        token = Path(folder, "token")
        token.write_text("0" * 64)
        token.chmod(0o600)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env = {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        found = Cluster(Path(folder), env)
        try:
            head, *others = cpus
            found.start_head(head)
            for number in others:
                found.add_node(number)
            yield found
        finally:
            for node in reversed(found.nodes[:]):
                found.kill(node)
            shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in sockets]
