"""python -m tests.chaos: the faults that a laboratory meets, on a tiny suite; says what was lost (nothing)."""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.project import Project
    from tests.chaos.report import Row

SHORT_KILLS, KILLS = 8, 60
SLOW = {"report": 20}  # so many boundaries of work that takes seconds


def main() -> int:
    """The command line; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    kills = f"random kills of one training (default {KILLS}, short {SHORT_KILLS})"
    parser.add_argument("--kills", type=int, help=kills)
    parser.add_argument("--short", action="store_true", help="each kind of fault once or twice, without Ray: a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills (default 0)")
    args = parser.parse_args()
    num_kills = args.kills or (SHORT_KILLS if args.short else KILLS)

    from tests.chaos.project import alone, make_project, save_often
    from tests.chaos.report import Table

    alone()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        Path(folder).chmod(0o755)  # nobody must find the way to what it may not write
        project = make_project(Path(folder))
        save_often(every_steps=2)
        table = Table()
        for fault in faults(project, args.short, num_kills, random.Random(args.seed)):
            table.add(fault())
        return table.conclude()


def faults(project: "Project", short: bool, num_kills: int, rng: random.Random) -> "Iterator[Callable[[], Row]]":
    """Everything that is tried, in order; each returns its row of the table."""
    from tests.chaos import faults, folders, ledger, training, works

    every, case = not short, training.Case.prepare(project)
    yield partial(training.killed_at_boundaries, case, 16 if short else None)
    yield partial(training.killed_at_random, project, num_kills, rng)
    yield partial(training.killed_while_it_rewinds, project, max(3, num_kills // 4), rng)
    yield partial(training.interrupted, case, (0.15,) if short else (0.02, 0.1, 0.2, 0.3, 0.4))
    yield partial(faults.damaged_checkpoints, case, every)
    yield partial(faults.torn_journal, case)
    yield partial(faults.full_disk, case, every)
    yield partial(faults.read_only_folder, case)
    yield partial(faults.truncated_shard, case)
    for name, work in works.publishings(project, case.finished()).items():
        yield partial(folders.killed_while_publishing, work, (2 if name in SLOW else 3) if short else SLOW.get(name))
    ledger.load_mlflow()
    yield partial(ledger.killed_at_commits, project, 2 if short else None)
    if not short:
        from tests.chaos.deaths import UnderFire

        yield from UnderFire(project, project.root / "fire").rows()


if __name__ == "__main__":
    sys.exit(main())
