"""What was tried and what was lost, as rows of one table."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

KEPT = 5  # losses shown in full


@dataclass
class Row:
    """One kind of fault.

    ended: What people read where the work does not go on by itself, once each.
    lost: What was not there afterwards and should have been, or was there and should not; empty where all is well.
    """

    fault: str
    tried: int = 0
    went_on: int = 0
    ended: dict[str, None] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def goes_on(self, lost: Iterable[str], where: str = "") -> None:
        """An attempt after which the same work went on to its end."""
        self.tried += 1
        self.went_on += 1
        self.note(lost, where)

    def ends(self, sentence: str, lost: Iterable[str] = (), where: str = "") -> None:
        """An attempt that ended with a sentence."""
        self.tried += 1
        self.ended[sentence] = None
        self.note(lost, where)

    def note(self, lost: Iterable[str], where: str = "") -> None:
        self.lost += [f"{where}: {what}" if where else what for what in lost]

    def show(self) -> str:
        """Some lines for people."""
        outcome = "went on" if self.went_on == self.tried else f"{self.went_on} went on"
        lost = "nothing" if not self.lost else f"{len(self.lost)} THINGS"
        lines = [f"{self.fault:<70} {self.tried:>5}   {outcome:<12} {lost:<10} {self.seconds:>6.1f} s"]
        lines += [f"    ended with: {sentence.splitlines()[0]}" for sentence in self.ended]
        lines += [f"    LOST {what}" for what in self.lost[:KEPT]]
        return "\n".join(lines)


HEAD = f"{'fault':<70} {'tried':>5}   {'outcome':<12} {'lost':<10}"


class Table:
    """Prints a row when it is complete, with the time it took."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.last = time.monotonic()
        print(HEAD, flush=True)

    def add(self, *rows: Row) -> None:
        now = time.monotonic()
        for row in rows:
            row.seconds = (now - self.last) / len(rows)
            self.rows.append(row)
            print(row.show(), flush=True)
        self.last = now

    def conclude(self) -> int:
        """The last line; the exit code: 1 if anything was lost."""
        tried, lost = (sum(values) for values in zip(*((row.tried, len(row.lost)) for row in self.rows), strict=True))
        print(f"{tried} faults tried, {'nothing' if not lost else f'{lost} things'} lost", flush=True)
        sys.stdout.flush()
        return 1 if lost else 0
