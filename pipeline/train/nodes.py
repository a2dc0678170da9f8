"""Before a cluster is worked on: does every node see the same files, and run the same code? Nothing is held for it."""

import contextlib
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ConfigError, problem
from pipeline.provenance import code_sha256, hash_file, versions

ANSWER_S = 10.0  # of a node; the first task there starts a process, which takes a second or two
NEED_BYTES = 10**9  # free on a node's own disk, for Ray's logs and what it spills
LOCK = "requirements.lock"


class Node(NamedTuple):
    """A node as the cluster knows it, and as it finds itself.

    gpus: that Ray counts there.
    found: `look_around` there; text: why that failed; None: it did not answer.
    """

    id: str
    address: str
    gpus: float
    found: dict[str, Any] | str | None = None

    @property
    def name(self) -> str:
        return f"node {self.address} ({self.id[:6]})"


def alive_nodes() -> list[dict[str, float]]:
    """Ray's resources by name, of every node of the connected cluster that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_nodes(folder: Path, files: Sequence[Path] = (), answer_s: float = ANSWER_S) -> None:
    """Compare every node of the connected cluster with this process; takes no CPU or GPU from the cluster.

    Args:
        folder: Must be shared: what a node writes there, every other one must read.
        files: Must be on every node as they are here.

    Raises:
        ConfigError: what is wrong on which node, all of it at once.
    """
    import ray

    nodes = [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    with _meeting_place(folder) as place:
        seen = _on_every(nodes, look_around, (place, [path.resolve() for path in files]), answer_s)
        nodes = [node._replace(found=seen.get(node.id)) for node in nodes]
        told = [node for node in nodes if isinstance(node.found, dict) and node.found["storage"] is None]
        unread = _on_every(told, find_unread, (place, [node.id for node in told]), answer_s)
    here = here_and_now(files)
    problems = [line for node in nodes for line in compare(node, here, folder)]
    problems += [line for node in told for line in _unread(node, told, unread.get(node.id), folder)]
    if problems:
        raise ConfigError(f"Ray cluster of {len(nodes)} nodes", problems)


def _on_every(nodes: Sequence[Node], work: Any, args: tuple, answer_s: float) -> dict[str, Any]:
    """`work(id, *args)` on every node, side by side; by node what it answered in time, or its error as text."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def there(node: Node) -> Any:
        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    task = ray.remote(num_cpus=0, max_retries=0)(work)
    asked = {task.options(scheduling_strategy=there(node)).remote(node.id, *args): node.id for node in nodes}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=answer_s) if asked else ([], [])
    for ref in late:
        ray.cancel(ref, force=True)
    answers = {}
    for ref in ready:
        try:
            answers[asked[ref]] = ray.get(ref)
        except ray.exceptions.RayError as error:
            answers[asked[ref]] = str(error).strip().splitlines()[-1]
    return answers


def look_around(node: str, place: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Runs on a node: leave a file named `node` in the folder `place`, and say what is here."""
    storage = None
    try:
        (place / node).write_text(node)
    except OSError as error:
        storage = error.strerror
    return {**here_and_now(files), "storage": storage, "gpus": count_gpus()}


def find_unread(node: str, place: Path, others: Sequence[str]) -> list[str]:
    """Runs on a node: those of `others` whose file in `place` does not say what they wrote."""
    return [other for other in others if not _says(place / other, other)]


def here_and_now(files: Sequence[Path]) -> dict[str, Any]:
    """What must be the same everywhere, and the free bytes of this machine's own disk."""
    return {
        "versions": versions(),
        "code": code_sha256(),
        "files": {str(path.resolve()): hash_file(path) if path.is_file() else "none" for path in files},
        "free_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
    }


def count_gpus() -> int | None:
    """The GPUs that this machine's driver shows; None where nobody can say."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0


def compare(node: Node, here: dict[str, Any], folder: Path, need_bytes: int = NEED_BYTES) -> list[str]:
    """What is wrong with one node, as lines of the house's error form; `here` is `here_and_now` of the driver."""
    if not isinstance(node.found, dict):
        return [_useless(node, node.found)]
    there, name = node.found, node.name
    problems = []
    if there["storage"]:
        problems.append(_not_shared(node, folder, f"cannot be written there ({there['storage']})"))
    for path, sha256 in here["files"].items():
        if there["files"][path] != sha256:
            rule = "not there" if there["files"][path] == "none" else "another file than here"
            problems.append(problem(f"{name}: storage", path, rule, "mount the same folder at the same path"))
    if there["code"] != here["code"]:
        rule = f"here it is {here['code'][:12]}"
        problems.append(problem(f"{name}: code", there["code"][:12], rule, "take its installed copy away"))
    for package, version in here["versions"].items():
        other = there["versions"].get(package, "none")
        if other != version:
            problems.append(problem(f"{name}: {package}", other, f"here it is {version}", f"install {LOCK} there"))
    if there["free_bytes"] < need_bytes:
        free, rule = f"{there['free_bytes'] / 1e9:.1f} GB", f"less than {need_bytes / 1e9:.1f} GB on its own disk"
        problems.append(problem(f"{name}: free disk space", free, rule, "free some"))
    if there["gpus"] is not None and there["gpus"] < node.gpus:
        rule = f"Ray counts {node.gpus:g} there"
        problems.append(problem(f"{name}: GPUs that work", there["gpus"], rule, "see nvidia-smi, start the node again"))
    return problems


def _unread(node: Node, told: Sequence[Node], unread: list[str] | str | None, folder: Path) -> list[str]:
    """The line for a node that does not see what others wrote."""
    if not isinstance(unread, list):
        return [_useless(node, unread)]
    names = ", ".join(other.name for other in told if other.id in unread)
    return [_not_shared(node, folder, f"what was written on {names} cannot be read there")] if names else []


def _useless(node: Node, error: str | None) -> str:
    return problem(node.name, error or "no answer", "it does not run tasks", "see its logs, or take it out")


def _not_shared(node: Node, folder: Path, rule: str) -> str:
    return problem(f"{node.name}: storage", str(folder.resolve()), rule, "mount the same folder at the same path")


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


@contextlib.contextmanager
def _meeting_place(folder: Path) -> Iterator[Path]:
    """A folder of this check alone, in which every node writes a file."""
    place = folder.resolve() / f".preflight-{secrets.token_hex(4)}"
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
