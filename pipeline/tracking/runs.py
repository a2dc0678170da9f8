"""What the files say about a run, in the form the ledger wants it. No MLflow here."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.dotted import flatten
from pipeline.errors import UserError, problem
from pipeline.journal import JOURNAL_NAME, read_tail
from pipeline.measures import ALL_MEASURES
from pipeline.search_rules import STOPPED

STAGES = ("train", "sweep")


@dataclass
class RunFiles:
    """One run of a suite's stage, followed through its journal.

    `entry` is spec.json, with done.json merged into it once the run has ended with a record; or what the stage's
    result says of it.

    Args:
        stage: Empty where spec.json is to tell it, at the first poll.
    """

    suite: str
    stage: str
    fingerprint: str
    folder: Path
    entry: dict[str, Any] = field(default_factory=dict)
    extra_metrics: dict[str, float] = field(default_factory=dict)  # found after the run, such as test scores
    gallery: Path | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    offset: int = 0

    @property
    def key(self) -> str:
        """What MLflow knows the run by."""
        return f"{self.suite}/{self.stage}/{self.fingerprint}"

    @property
    def status(self) -> str:
        """How it has ended, in the record's words; empty while there is no record."""
        return str(self.entry.get("status", ""))

    @property
    def ended(self) -> bool:
        """Whether it has ended with a record: well, stopped, or lost where the recipe says that this is a result."""
        return bool(self.status)

    @property
    def stopped(self) -> bool:
        """Whether a search has ended it early."""
        return self.status.startswith(STOPPED)

    @property
    def title(self) -> str:
        return f"{self.entry['name']} seed {self.entry['seed']}"

    @property
    def began_ms(self) -> int | None:
        """Unix time of the journal's first line, which stays what it is for as long as the journal is this one."""
        return int(self.records[0]["time"] * 1000) if self.records else None

    @property
    def start_ms(self) -> int | None:
        """Unix time of the first record, None before there is one."""
        return min((int(record["time"] * 1000) for record in self.records), default=None)

    @property
    def end_ms(self) -> int | None:
        """Unix time of the last record."""
        return max((int(record["time"] * 1000) for record in self.records), default=None)

    def state(self) -> str:
        """A hash of all that the ledger is to show of this run."""
        gallery = self.gallery.read_bytes() if self.gallery else b""
        shown = f"{self.offset} {json.dumps([self.entry, self.extra_metrics], sort_keys=True)}"
        return hashlib.sha256(shown.encode() + gallery).hexdigest()[:16]

    def poll(self) -> bool:
        """Read what the files have that was not seen yet; True if there was something.

        Raises:
            UserError: a file is damaged.
            OSError: one cannot be read now. Nothing of it all counts as seen then: the next poll finds it again.
        """
        entry = self._read_entry()  # before the journal: where there is a done.json, it is whole
        tail = read_tail(self.folder / JOURNAL_NAME, self.offset)
        news = bool(tail.records) or entry != self.entry
        self.entry, self.offset = entry, tail.offset
        self.stage = self.stage or str(entry.get("stage", ""))
        self.records += tail.records
        return news

    def points(self) -> dict[tuple[str, int], tuple[float, int]]:
        """{(metric, step): (value, unix ms)}, the last of repeated steps; final metrics at the last step."""
        found: dict[tuple[str, int], tuple[float, int]] = {}
        for record in self.records:
            if record["kind"] == "metrics":
                for name, value in record["values"].items():
                    found[name, record["step"]] = (value, int(record["time"] * 1000))
        last, end = int(self.entry.get("num_steps", 0)), self.end_ms or 0
        for name, value in {**self._final_metrics(), **self.extra_metrics}.items():
            found.setdefault((name, last), (float(value), end))
        return found

    def artifacts(self) -> list[Path]:
        """Files named in the journal that exist, each once."""
        named = dict.fromkeys(r["path"] for r in self.records if r["kind"] == "artifact")
        return [self.folder / path for path in named if (self.folder / path).is_file()]

    def _final_metrics(self) -> dict[str, float]:
        costs = {name: self.entry[name] for name in ("wall_s", "num_samples") if name in self.entry}
        return {**costs, **self.entry.get("metrics", {})}

    def _read_entry(self) -> dict[str, Any]:
        if self.ended:
            return self.entry
        return {**self.entry, **_read_json(self.folder / "spec.json"), **_read_json(self.folder / "done.json")}


def find_runs(suite: str, runs_dir: Path, results_dir: Path) -> Iterator[RunFiles]:
    """Every recorded run of a suite: the stages' results, then machine state that is in no result.

    Args:
        runs_dir: The folder that holds SUITE/FINGERPRINT/.
        results_dir: The folder that holds SUITE/{train,sweep}/runs.json and SUITE/evaluate/.

    Raises:
        UserError: a result is damaged. Of a run's own files `poll` says it.
    """
    evaluated = _read_json(results_dir / suite / "evaluate" / "metrics.json").get("runs", [])
    scores = {scored["fingerprint"]: scored for scored in evaluated}
    seen: set[str] = set()
    for stage in STAGES:
        entries = _read_json(results_dir / suite / stage / "runs.json").get("runs", [])
        # Trials that come to the same training share a run; the first one names it.
        for fingerprint, entry in {e["fingerprint"]: e for e in reversed(entries)}.items():
            seen.add(fingerprint)
            folder = _journal_folder(fingerprint, runs_dir / suite, results_dir / suite / stage)
            run = RunFiles(suite, stage, fingerprint, folder, {"status": "done", **entry})
            run.extra_metrics = score_metrics(scores.get(fingerprint, {}))
            gallery = results_dir / suite / "evaluate" / "gallery" / f"{fingerprint}.npz"
            run.gallery = gallery if gallery.is_file() else None
            yield run
    for spec in sorted((runs_dir / suite).glob("*/spec.json")):
        if spec.parent.name not in seen:
            yield RunFiles(suite, "", spec.parent.name, spec.parent)


def score_metrics(scores: Mapping[str, Any]) -> dict[str, float]:
    """evaluate's scores of one run under the names they have in the ledger; a score may be unknown (None).

    At other token budgets they are test_top1_at_16, or test_top1_at_36_spread_batch where budgets follow the image.
    """
    known = {measure.name: scores.get(measure.name) for measure in ALL_MEASURES}
    for asked in (*scores.get("budgets", ()), *scores.get("adaptive", ())):
        way = "".join(f"_{asked[key]}" for key in ("signal", "held") if key in asked)
        known |= {f"{m.name}_at_{asked['token_budget']}{way}": asked.get(m.name) for m in ALL_MEASURES}
    return {f"test_{name}": float(value) for name, value in known.items() if value is not None}


def provenance_tags(provenance: Mapping[str, Any]) -> dict[str, str]:
    """`provenance.collect()` as tags; MLflow shows the commit as the run's version."""
    tags = {f"dart.{key}": str(value) for key, value in flatten(provenance).items()}
    commit = provenance.get("commit")
    return {**tags, "mlflow.source.git.commit": str(commit)} if commit else tags


def _journal_folder(fingerprint: str, *folders: Path) -> Path:
    """The first of the folders that has the run's journal: the machine's own has more than the result."""
    found = (folder / fingerprint for folder in folders if (folder / fingerprint / JOURNAL_NAME).is_file())
    return next(found, folders[-1] / fingerprint)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        shown = path.read_bytes()[:40].decode(errors="replace")
        remedy = "delete the folder that it is in, and repeat the stage"
        raise UserError(problem(str(path), shown, "not JSON", remedy)) from None
