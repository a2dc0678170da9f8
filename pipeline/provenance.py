"""Who made this result: commit, hashes of params, data, code and lock, versions, hardware; and a run's identity."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pipeline.config import Trial

ROOT = Path(__file__).resolve().parents[1]
# The sources that weights depend on. How runs are placed, recorded and shown is not among them.
TRAINING = (
    *("batches", "checkpoint", "divergence", "fitting", "gradients", "loop", "mixing", "objective", "optim"),
    *("ranks", "setup", "sharding", "start", "state"),
)
DATA = (
    *("augment", "clips", "dataset", "decoding", "index", "loader", "masks", "order", "pictures"),
    *("transforms", "video"),
)
CODE = (
    *("dart/**/*.py", "pipeline/model.py", "pipeline/segmentation/tally.py", "pipeline/segmentation/windows.py"),
    *(f"pipeline/train/{name}.py" for name in TRAINING),
    *(f"pipeline/data/{name}.py" for name in DATA),
)
# Below dart/, but no weight depends on them.
APART = (
    *("dart/adaptive.py", "dart/cost.py", "dart/deploy.py"),
    *("dart/draw/*.py", "dart/official.py", "dart/weights.py"),
)
# dvc.lock is written by every run; params.yaml says which suites are active, and where they run.
NO_CODE = (":(exclude)dvc.lock", ":(exclude)params.yaml")
PACKAGES = (
    *("torch", "torchvision", "timm", "triton", "numpy", "ray", "mlflow", "dvc", "webdataset", "safetensors"),
    *("pillow", "av"),  # which make pixels of files, and files of pixels
)


def fingerprint(trial: Trial, manifest_sha256: str, code_sha256: str) -> str:
    """The identity of a run, 16 hex digits: same science, data and code give the same run, wherever it runs."""
    identity = {"science": trial.science(), "data": manifest_sha256, "code": code_sha256}
    return hash_json(identity)[:16]


def code_sha256(root: Path = ROOT) -> str:
    """One hash over the names and contents of `code_files`, as 64 hex digits."""
    return hash_json({path.relative_to(root).as_posix(): hash_file(path) for path in code_files(root)})


def code_files(root: Path = ROOT) -> list[Path]:
    """The sources that weights depend on, sorted."""
    found, apart = ({path for pattern in patterns for path in root.glob(pattern)} for patterns in (CODE, APART))
    return sorted(found - apart)


def collect(params: Iterable[Path] = (), root: Path = ROOT) -> dict[str, Any]:
    """The record kept with every run.

    Args:
        params: The params files that the stage read, hashed together in this order.
        root: The repository; a copy without git has commit null.
    """
    lock = root / "requirements.lock"
    return {
        "commit": _git(root, "rev-parse", "HEAD") or None,
        "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *NO_CODE)),
        "params_sha256": hash_json([hash_file(path) for path in params]),
        "lock_sha256": hash_file(lock) if lock.is_file() else None,
        "code_sha256": code_sha256(root),
        "versions": versions(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Python and the installed packages that results may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """This machine: processor, usable cores, memory; GPUs only in a process that uses torch already."""
    torch = sys.modules.get("torch")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    memory_gb = round(psutil.virtual_memory().total / 2**30, 1)
    return {"cpu": _cpu_name(), "cores": usable_cores(), "memory_gb": memory_gb, "gpus": gpus}


def usable_cores() -> int:
    """Cores this process may run on: the affinity mask, cut by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, int(limit) // int(period))
    return max(1, cores)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(obj: Any) -> str:
    """sha256 of canonical JSON: keys sorted, no spaces, so equal values have equal hashes; 64 hex digits."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(root: Path, *args: str) -> str:
    """git's answer, or nothing where there is no git, no repository or no commit."""
    try:
        result = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
