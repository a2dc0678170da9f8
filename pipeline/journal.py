"""The record of one run: an append-only file of JSON lines that survives a killed process.

Training writes it, everything else (MLflow, tables, figures) is made from it. A resumed run appends to the
same file, so steps may repeat: the last value of each (step, name) counts.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError, problem
from pipeline.files import append_bytes, explaining_disk

JOURNAL_NAME = "journal.jsonl"


class Tail(NamedTuple):
    """What a reader found behind its position, and the position (bytes) to go on from."""

    records: list[dict[str, Any]]
    offset: int


class Journal:
    """The writer's end; one process per run folder (rank 0).

    A line torn by a crash is cut off when the journal is opened again.
    """

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._path = run_dir / JOURNAL_NAME
        _cut_torn_line(self._path)

    def metrics(self, step: int, **values: float) -> None:
        """Values after `step` optimizer steps."""
        self._append("metrics", step=int(step), values={name: float(value) for name, value in values.items()})

    def event(self, text: str) -> None:
        """Something a reader of the run should know, such as a resume."""
        self._append("event", text=text)

    def artifact(self, relative_path: str) -> None:
        """A finished file of the run folder that the ledger should keep too."""
        self._append("artifact", path=str(relative_path))

    def _append(self, kind: str, **content: Any) -> None:
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **content}) + "\n"
        with explaining_disk(self._path.parent):
            append_bytes(self._path, line.encode())


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All complete records, oldest first; an unfinished last line is ignored, a missing file is empty.

    Raises:
        UserError: a line before the last is not JSON (the file was edited or the disk lost bytes).
    """
    return read_tail(path, 0).records


def read_tail(path: Path, offset: int) -> Tail:
    """The complete records from byte `offset` on, for a reader that follows a growing journal."""
    if not path.is_file():
        return Tail([], offset)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return Tail([_parse(path, line) for line in data[:end].splitlines()], offset + end)


def curves(records: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """{metric name: {step: value}}, steps ascending, the last value of a repeated step."""
    points: dict[str, dict[int, float]] = {}
    for record in records:
        if record["kind"] == "metrics":
            for name, value in record["values"].items():
                points.setdefault(name, {})[record["step"]] = value
    return {name: dict(sorted(steps.items())) for name, steps in points.items()}


def _parse(path: Path, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        record["kind"]
    except (ValueError, KeyError, TypeError):
        shown = line[:40].decode(errors="replace")
        remedy = "delete the run folder to train it anew"
        raise UserError(problem(str(path), shown, "not a journal line", remedy)) from None
    return dict(record)


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes() if path.is_file() else b""
    kept = data.rfind(b"\n") + 1
    if kept < len(data):
        os.truncate(path, kept)
