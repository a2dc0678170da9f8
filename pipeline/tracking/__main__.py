"""python -m pipeline.tracking replay [SUITE ...] | ui [--host H] [--port P] [--allow NAME ...]"""

import argparse
import os
import socket
import sys
from pathlib import Path

from pipeline.cli import run_stage
from pipeline.errors import UserError, problem

EVERYWHERE = ("0.0.0.0", "::")
LOOPBACK = ("localhost", "127.0.0.1")
SERVER_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # nobody's model runs code here
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description="MLflow beside the journals")
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser("replay", help="send MLflow what it lacks of the recorded runs")
    again.add_argument("suites", nargs="*", metavar="SUITE", help="default: the active suites of params.yaml")
    ui = commands.add_parser("ui", help="serve the MLflow pages; Ctrl-C ends it")
    ui.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    ui.add_argument("--port", type=int, default=5000)
    allow = "a name by which browsers and runs may ask for it; needed where HOST is not this machine alone"
    ui.add_argument("--allow", action="append", default=[], metavar="NAME", help=allow)
    args = parser.parse_args()
    if args.command == "replay":
        run_stage(lambda: replay_suites(args.suites))
    else:
        run_stage(lambda: serve(args.host, args.port, args.allow))


def replay_suites(suites: list[str], root: Path = Path()) -> None:
    """Rebuild the ledger of the suites from runs/ and results/.

    Raises:
        UserError: what could not be sent, after everything else is.
    """
    from pipeline.config import load_params
    from pipeline.gallery import draw_gallery
    from pipeline.tracking.replay import replay

    params, problems = load_params(root / "params.yaml"), []
    for suite in suites or params.suites:
        folders = root / "runs", root / "results"
        if not any((folder / suite).is_dir() for folder in folders):
            raise UserError(problem("suite", suite, "no recorded runs in runs/ or results/", "run `make repro`"))
        manifest = root / "data" / suite / "shards" / "manifest.json"
        try:
            num_sent = replay(params.tracking.uri, suite, *folders, manifest=manifest, draw=draw_gallery)
            print(f"{suite}: {num_sent} runs sent to {params.tracking.uri}")
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))


def serve(host: str, port: int, allow: list[str]) -> None:
    """Become the MLflow server on the local database; a tracking server by URI is only named.

    Args:
        allow: Names of this machine that are answered to, beside `host`.

    Raises:
        UserError: the port is taken, the database is not usable, or everybody could ask under any name.
    """
    from pipeline.config import load_params
    from pipeline.tracking.uri import check_uri, resolve_uri, sqlite_path

    params = load_params()
    uri = resolve_uri(params.tracking.uri)
    database = sqlite_path(uri)
    if database is None:
        print(f"the runs are on the MLflow server at {uri}")
        return
    doors = door_options(host, port, allow)
    _check_port(host, port)
    check_uri(uri)
    if not database.exists():
        replay_suites([suite for suite in params.suites if Path("results", suite).is_dir()])
    print(f"MLflow on http://{host}:{port} (ready in some ten seconds; Ctrl-C ends it)", flush=True)
    os.environ.update(SERVER_ENVIRONMENT)
    where = ["--backend-store-uri", uri, "--artifacts-destination", str(database.parent / "mlartifacts")]
    server = [sys.executable, "-m", "mlflow", "server", *where, *doors, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, server)


def door_options(host: str, port: int, allow: list[str]) -> list[str]:
    """MLflow's options that say who is answered: requests for these names, pages from these origins, no others.

    Raises:
        UserError: it would listen to every network, without a name to be asked for.
    """
    if host in EVERYWHERE and not allow:
        remedy = "name this machine as others do: --allow NAME"
        raise UserError(problem("--host", host, "listens to every network", remedy))
    names = list(dict.fromkeys([*allow, *([] if host in EVERYWHERE else [host]), *LOOPBACK]))
    hosts = [f"{name}:{port}" for name in (f"[{name}]" if ":" in name else name for name in names)]
    origins = [f"{scheme}://{name}" for name in hosts for scheme in ("http", "https")]
    return ["--host", host, "--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(origins)]


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = f"try `make ui PORT={port + 1}`"
            raise UserError(problem("port", port, f"cannot listen on {host} ({error.strerror})", remedy)) from None


if __name__ == "__main__":
    main()
