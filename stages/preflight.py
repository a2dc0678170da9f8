"""Before everything: what would make the active suites fail later and can be found in a second, or in ten on a
cluster: its nodes are asked before a GPU is held. No network, unless the tracking URI or the Ray address name a
server."""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.cli import run_stage

NEED_GB = 3  # data, runs, results and DVC's copy of them, for a suite of the size of `digits`
# A Unix socket's path has at most 107 bytes, and Ray puts some 65 behind the temporary folder.
MAX_TEMP_PATH = 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.preflight", description=" ".join(__doc__.split()))
    parser.parse_args()

    from pipeline.config import load_params, load_suite
    from pipeline.errors import UserError
    from pipeline.report.claims import suite_claims
    from pipeline.tracking.uri import check_uri, resolve_uri

    params = load_params()
    checks: list[Callable[[], object]] = [
        *(lambda name=name: check_source(name, load_suite(name).dataset) for name in params.suites),
        *(lambda name=name: suite_claims(name) for name in params.suites),
        lambda: check_uri(resolve_uri(params.tracking.uri)),
        check_disk,
        check_temp_path,
        lambda: check_cluster(params.placement),
    ]
    found: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    if found:
        raise UserError("\n".join(found))


def check_source(suite: str, dataset: Any) -> None:
    """Raise UserError where a data set is to be read from a folder that is not there, and is not in shards yet."""
    from pipeline.errors import UserError, problem

    path = getattr(dataset, "path", None)
    if path is None or (Path("data") / suite / "shards/manifest.json").is_file():
        return
    if not Path(path).expanduser().is_dir():
        remedy = f"set dataset.path in suites/{suite}.yaml to your copy of the data"
        raise UserError(problem(f"suites/{suite}.yaml: dataset.path", path, "no such directory", remedy))


def check_disk(folder: Path = Path(), need_gb: float = NEED_GB) -> None:
    """Raise UserError where less than `need_gb` (1e9 bytes) are free."""
    from pipeline.errors import UserError, problem

    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < need_gb:
        rule = f"less than the {need_gb} GB that data, runs and results need"
        raise UserError(problem("free disk space", f"{free_gb:.1f} GB", rule, "free some, or move the repository"))


def check_temp_path(folder: Path | None = None) -> None:
    """Raise UserError where Ray's sockets would get too long a path."""
    from pipeline.errors import UserError, problem

    path = str(folder or tempfile.gettempdir())
    if len(path.encode()) > MAX_TEMP_PATH:
        rule = f"longer than the {MAX_TEMP_PATH} bytes that leave room for Ray's sockets"
        raise UserError(problem("TMPDIR", path, rule, "set TMPDIR to a shorter path"))


def check_cluster(placement: Any, folder: Path = Path()) -> None:
    """Raise UserError where the nodes of the cluster, if there is one, have other files or code than this machine."""
    if placement.ray_address is None:
        return
    from pipeline.train.nodes import check_nodes
    from pipeline.train.session import ray_session

    with ray_session(placement):
        check_nodes(folder)


if __name__ == "__main__":
    run_stage(main)
