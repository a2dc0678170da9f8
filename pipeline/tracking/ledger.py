"""MLflow's side of the records.

`Ledger.sync` is idempotent: it reads what MLflow has of a run and sends what is missing or different. MLflow's own
history is the position, so a batch whose answer was lost is neither repeated nor forgotten. Open it by `open_ledger`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run, RunTag

from pipeline.dotted import flatten
from pipeline.tracking.artifacts import Artifacts
from pipeline.tracking.database import make_database
from pipeline.tracking.points import Points
from pipeline.tracking.refusals import RunRefused, of_one_run
from pipeline.tracking.runs import RunFiles, provenance_tags
from pipeline.tracking.uri import brief, check_there, check_uri, page_root, refused, resolve_uri, sqlite_path

KEY = "dart.key"
BEGAN = "dart.began"  # Unix ms of the journal's first record: another one is another training
STATUS = "dart.status"  # of a run that has ended otherwise than well
SYNCED = "dart.synced"  # which state of the files a finished run of the ledger shows
REPORT = "report/index.html"  # as the stage `report` calls it
NOTE = "mlflow.note.content"  # what MLflow shows as the experiment's description
_PAGE = 1000  # MLflow's answers at once
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # MLflow's words


class Ledger:
    """Runs of one suite in MLflow: an experiment per suite, a parent run per stage, a child per run.

    Args:
        uri: MLflow's tracking URI; a relative SQLite path is the working directory's.
        draw: Makes the picture of a gallery file (.npz -> .png).

    Raises:
        UserError: MLflow cannot record there.
    """

    def __init__(self, uri: str, suite: str, draw: Callable[[Path, Path], None] | None = None) -> None:
        self.uri = resolve_uri(uri)
        check_uri(self.uri)
        self.suite = suite
        self._run_ids: dict[str, str] = {}
        try:
            make_database(sqlite_path(self.uri))
            self._client = MlflowClient(self.uri)
            self._points, self._artifacts = Points(self._client), Artifacts(self._client, draw)
            self._experiment = self._find_experiment()
        except Exception as error:  # whatever the store is made of: SQLAlchemy, HTTP, alembic
            raise refused(uri, error) from error

    def open_stage(self, stage: str, tags: Mapping[str, str], start_ms: int | None = None) -> None:
        """Mark what an earlier, killed process left running, then find or create the stage's parent run.

        Args:
            start_ms: When the stage began, in Unix time, if that was not now.
        """
        for stale in self.running(stage).values():
            self._client.set_terminated(stale, KILLED)
        parent = self._parent(stage, start_ms)
        self._client.update_run(parent, status=RUNNING)
        self._log_tags(parent, tags)

    def close_stage(self, stage: str, status: str, end_ms: int | None = None) -> None:
        """End the parent run, and every child that is still open, with MLflow's word for how it went.

        Of a stage that has ended well, these are the trials that its search has stopped.
        """
        parent = self._parent(stage)
        for run_id in self.running(stage).values():
            if run_id != parent:
                self._client.set_terminated(run_id, KILLED if status == FINISHED else status)
        self._client.set_terminated(parent, status, end_ms)

    def running(self, stage: str) -> dict[str, str]:
        """{key: MLflow's id} of what MLflow shows as running, the stage's parent included."""
        filters = f"attributes.status = '{RUNNING}' AND tags.`dart.stage` = '{stage}'"
        found = self._client.search_runs([self._experiment], filters, max_results=_PAGE)
        return {run.data.tags.get(KEY, run.info.run_id): run.info.run_id for run in found}

    def sync(self, run: RunFiles, manifest: Path | None = None, tags: Mapping[str, str] | None = None) -> bool:
        """Send what MLflow lacks of a run; True if anything had to be sent.

        Args:
            manifest: The shards' manifest.json, logged as the run's data set.
            tags: Provenance, used until the run has its own.

        Raises:
            RunRefused: MLflow does not take this run; any other error may be an outage.
        """
        try:
            known = self._forget_another(run, self._find(run.key))
            if known is not None and known.data.tags.get(SYNCED) == run.state():
                self._run_ids[run.key] = known.info.run_id
                return False
            run_id = self._find_or_create(run.key, run.stage, run.title, run.start_ms, self._nesting(run))
            if known is None or not (known.data.params and known.inputs.dataset_inputs):
                self._send_identity(run_id, run, manifest, tags or {})
            if run.began_ms is not None and (known is None or BEGAN not in known.data.tags):
                self._client.set_tag(run_id, BEGAN, str(run.began_ms))
            self._points.send(run_id, run.points())
            self._artifacts.send(run_id, run)
            self._end_or_go_on(run_id, run)
        except Exception as error:  # whatever it was, it is unknown what arrived: read it back before the next attempt
            self._forget(run.key)
            if of_one_run(error):
                raise RunRefused(brief(error)) from error
            raise
        return True

    def _forget(self, key: str) -> None:
        run_id = self._run_ids.pop(key, "")
        self._points.forget(run_id)
        self._artifacts.forget(run_id)

    def _forget_another(self, run: RunFiles, known: Run | None) -> Run | None:
        """Put MLflow's run into its trash where it shows an earlier training, whose journal was thrown away."""
        began = None if known is None else known.data.tags.get(BEGAN)
        if known is None or began is None or run.began_ms is None or began == str(run.began_ms):
            return known
        self._client.delete_run(known.info.run_id)
        self._forget(run.key)
        return None

    def addresses(self) -> dict[str, str]:
        """{SUITE/STAGE/FINGERPRINT: the run's page on the MLflow server}; empty where there is no server."""
        root = page_root(self.uri)
        if root is None:
            return {}
        found, token = {}, None
        while token != "":
            runs = self._client.search_runs([self._experiment], f"tags.`{KEY}` LIKE '%'", page_token=token)
            for run in runs:
                found[run.data.tags[KEY]] = f"{root}/#/experiments/{self._experiment}/runs/{run.info.run_id}"
            token = runs.token or ""
        return found

    def _find_experiment(self) -> str:
        note = f"Tables and figures: `{REPORT}#{self.suite}` in the project's folder."
        found = self._client.get_experiment_by_name(self.suite)
        if found is None:
            database = sqlite_path(self.uri)
            # A server knows where its artifacts go; beside a local database they lie in mlartifacts/.
            location = (database.parent / "mlartifacts" / self.suite).as_uri() if database else None
            # The kind makes the UI open on runs and curves instead of its pages for language models.
            tags = {"mlflow.experimentKind": "custom_model_development", NOTE: note}
            return str(self._client.create_experiment(self.suite, artifact_location=location, tags=tags))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find(self, key: str) -> Run | None:
        if key in self._run_ids:
            return self._client.get_run(self._run_ids[key])
        found = self._client.search_runs([self._experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        return found[0] if found else None

    def _find_or_create(
        self,
        key: str,
        stage: str,
        name: str,
        start_ms: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        if key not in self._run_ids:
            base = {KEY: key, "dart.suite": self.suite, "dart.stage": stage, "mlflow.source.name": stage}
            found = self._find(key)
            found = found or self._client.create_run(self._experiment, start_ms, {**base, **(tags or {})}, name)
            self._run_ids[key] = found.info.run_id
        return self._run_ids[key]

    def _parent(self, stage: str, start_ms: int | None = None) -> str:
        return self._find_or_create(f"{self.suite}/{stage}", stage, f"{self.suite} {stage}", start_ms)

    def _nesting(self, run: RunFiles) -> dict[str, str]:
        name = str(run.entry["name"])
        row = f"{REPORT}#{self.suite}/{run.stage}/{quote(name)}"
        return {"mlflow.parentRunId": self._parent(run.stage), "dart.experiment": name, "dart.report": row}

    def _send_identity(self, run_id: str, run: RunFiles, manifest: Path | None, tags: Mapping[str, str]) -> None:
        params = {**flatten(run.entry["science"]), "model_name": run.entry["model_name"]}
        self._client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        self._log_tags(run_id, tags)
        self._client.log_inputs(run_id, [_dataset_input(run.entry["dataset"], manifest)])

    def _end_or_go_on(self, run_id: str, run: RunFiles) -> None:
        if run.ended:
            well = run.status == "done"
            told = {} if well else {STATUS: run.status}
            self._log_tags(run_id, {**provenance_tags(run.entry.get("provenance", {})), **told})
            word = FINISHED if well else KILLED if run.stopped else FAILED
            self._client.set_terminated(run_id, word, run.end_ms)
            self._client.set_tag(run_id, SYNCED, run.state())  # last: it says that all of the above is there
        elif self._client.get_run(run_id).info.status != RUNNING:
            self._client.update_run(run_id, status=RUNNING)

    def _log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def find_run_ids(uri: str, suite: str) -> dict[str, str]:
    """{SUITE/STAGE/FINGERPRINT: MLflow's id} of all runs of a suite that MLflow has; nothing is written.

    Raises:
        UserError: there is no ledger at `uri`, or it does not answer.
    """
    resolved = resolve_uri(uri)
    check_uri(resolved)
    check_there(resolved)
    try:
        client = MlflowClient(resolved)
        experiment = client.get_experiment_by_name(suite)
        if experiment is None:
            return {}
        page = client.search_runs([experiment.experiment_id], max_results=_PAGE)
        runs: list[Run] = list(page)
        while page.token:
            page = client.search_runs([experiment.experiment_id], max_results=_PAGE, page_token=page.token)
            runs += page
        return {run.data.tags[KEY]: run.info.run_id for run in runs if KEY in run.data.tags}
    except Exception as error:  # as in `Ledger`: whatever the store is made of
        raise refused(uri, error) from error


def _dataset_input(dataset: Mapping[str, Any], manifest: Path | None) -> DatasetInput:
    """The shards' manifest as MLflow's data set; its digest column holds 36 of the 64 digits."""
    sha256 = str(dataset["manifest_sha256"])
    content = json.loads(manifest.read_text()) if manifest is not None and manifest.is_file() else {}
    sizes = {name: split["num_samples"] for name, split in content.get("splits", {}).items()}
    source = {"uri": content.get("source", "manifest.json"), "manifest_sha256": sha256}
    entity = Dataset(dataset["name"], sha256[:36], "local", json.dumps(source), profile=json.dumps(sizes))
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])
