"""What the page and `explain` both say of where runs come from: the machine, and what to type to make them again."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.records import Run


def commands(runs: Sequence[Run]) -> list[str]:
    """Lines for a shell that make the results of these runs again, from data to report.

    Args:
        runs: Of one stage of one suite; those of different commits have a line for each.
    """
    stage, suite = runs[0].stage, runs[0].suite
    return [
        *_checkouts(runs),
        f"# params.yaml, where the suite is not active: suites: [{suite}]",
        f"dvc repro {stage}@{suite}   # DART_FRESH=1 dvc repro -f ... trains what is done already again",
        f"dvc repro evaluate@{suite} benchmark@{suite} report",
    ]


def _checkouts(runs: Sequence[Run]) -> list[str]:
    """Which code it was, and whether a commit has all of it."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.commit, []).append(str(run.seed))
    lines = []
    for commit, of in seeds.items():
        notes = [f"seed {', '.join(of)}"] if len(seeds) > 1 else []
        notes += ["the working tree had changes that no commit has"] if commit.endswith("+") else []
        command = "# the commit is not recorded" if commit == "unknown" else f"git checkout {commit.removesuffix('+')}"
        lines.append(command + ("   # " + "; ".join(notes) if notes else ""))
    return lines


def machine(hardware: Mapping[str, Any]) -> str:
    """The hardware of a provenance in a few words; empty where it is not recorded."""
    if "cpu" not in hardware:
        return ""
    gpus = ", ".join(hardware.get("gpus") or ["no GPU"])
    return f"{hardware['cpu']}, {hardware.get('cores')} cores, {hardware.get('memory_gb')} GB, {gpus}"
