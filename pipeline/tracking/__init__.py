"""The ledger people browse: MLflow, fed from the journals, which stay the record.

`mirror` follows the runs of a stage while they train; `python -m pipeline.tracking replay` rebuilds all of it
from the files; `python -m pipeline.tracking ui` shows it. Only `ledger.py` and what it is made of
(`artifacts.py`, `database.py`, `points.py`, `refusals.py`) import mlflow.
"""

from pipeline.tracking.mirror import mirror

__all__ = ["mirror"]
