"""The files of runs: which MLflow has."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient

from pipeline.tracking.runs import RunFiles

PICTURE = "what-the-model-sees.png"


class Artifacts:
    """What MLflow has under the same name and of the same size is not sent again.

    Args:
        draw: Makes the picture of a gallery file (.npz -> .png).
    """

    def __init__(self, client: MlflowClient, draw: Callable[[Path, Path], None] | None) -> None:
        self._client, self._draw = client, draw
        self._stored: dict[str, set[tuple[str, int]]] = {}  # by run id: (artifact, bytes)

    def forget(self, run_id: str) -> None:
        """Read the run's list back before anything more is sent."""
        self._stored.pop(run_id, None)

    def send(self, run_id: str, run: RunFiles) -> None:
        """Send what is missing."""
        paths = run.artifacts()
        if paths and run_id not in self._stored:
            self._stored[run_id] = {(f.path, f.file_size) for f in self._client.list_artifacts(run_id)}
        for path in paths:
            stored = path.name, path.stat().st_size
            if stored not in self._stored[run_id]:
                self._client.log_artifact(run_id, str(path))
                self._stored[run_id].add(stored)
        if run.gallery is not None and self._draw is not None:
            with tempfile.TemporaryDirectory() as folder:
                self._draw(run.gallery, Path(folder) / PICTURE)
                self._client.log_artifact(run_id, str(Path(folder) / PICTURE))
