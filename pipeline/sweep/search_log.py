"""What a search has seen and decided, in its order: an append-only file of JSON lines, like a run's journal.

A search is a function of this order, so that a stage that was killed rebuilds it by reading the file, and goes on.
"""

from pathlib import Path
from typing import Any

from pipeline.journal import JOURNAL_NAME, Journal, read_journal

JUDGED, ASKED, TOLD = "judged", "asked", "told"


class SearchLog(Journal):
    """The log of one search, in a folder of its own.

    Args:
        folder: Made if it is not there; a line torn by a crash is cut off.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / JOURNAL_NAME

    def judged(self, fingerprint: str, epoch: int, value: float, record: dict[str, Any] | None) -> None:
        """A training had this value after `epoch` epochs; it was stopped then where there is a record of that."""
        self._append(JUDGED, fingerprint=fingerprint, epoch=epoch, value=value, record=record)

    def asked(self, number: int, values: dict[str, Any]) -> None:
        """The search chose these values for its point of this number."""
        self._append(ASKED, number=number, values=values)

    def told(self, number: int, value: float | None) -> None:
        """What became of the point; None: a training without a value, such as one that has diverged."""
        self._append(TOLD, number=number, value=value)

    def events(self) -> list[dict[str, Any]]:
        """All of it, oldest first."""
        return read_journal(self.path)


def asked_points(folder: Path) -> list[dict[str, Any]]:
    """The values of every point that a search has chosen so far; reads only."""
    return [event["values"] for event in read_journal(folder / JOURNAL_NAME) if event["kind"] == ASKED]
