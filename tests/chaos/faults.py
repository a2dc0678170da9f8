"""What happens to a training besides kills: damaged files, a full or read-only disk, Ctrl-C."""

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.journal import JOURNAL_NAME
from pipeline.train.run import Run
from tests.chaos.attempts import attempt, cut_in_half, fill_disk, free_disk
from tests.chaos.project import Outcome, copy_run, events, forget, newest_checkpoint, train
from tests.chaos.report import Row
from tests.chaos.training import Case, go_on

NOBODY = 65534
Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Damage] = {"cut": partial(cut_in_half, num_bytes_before=0), "flipped": flip, "missing": os.unlink}


def checkpoints(run: Run) -> list[Path]:
    """Published ones, oldest first."""
    return sorted(run.dir.glob("checkpoint/step-*"))


def damaged_checkpoints(case: Case, every: bool) -> Row:
    """Damage every file of the newest checkpoint, then of all of them: the one before is gone on from, or none."""
    row = Row("a checkpoint's file is cut, flipped or missing")
    killed = case.killed
    names = sorted(path.name for path in checkpoints(killed)[-1].iterdir())
    ways = list(DAMAGES)
    pairs = [(name, way) for name in names for way in ways] if every else [*zip(names, ways * 2, strict=False)]
    for name, way in pairs:
        run = copy_run(killed, f"damaged-{way}-{name}")
        DAMAGES[way](checkpoints(run)[-1] / name)
        before = int(checkpoints(run)[-2].name.split("-")[1])
        row.goes_on(passed_over(case, run, f"resumed at step {before}"), f"{name} {way}")
    run = copy_run(killed, "damaged-all")
    for folder in checkpoints(run):
        flip(folder / "model.safetensors")
    row.goes_on(passed_over(case, run, "was passed over"), "all checkpoints flipped")
    return row


def passed_over(case: Case, run: Run, note: str) -> list[str]:
    """Go on from a run whose newest checkpoint is damaged; the journal must hold `note`."""
    rest = attempt(partial(train, case.project.job(run)), run.dir)
    if rest.error:
        return [f"it did not go on: {rest.error}"]
    lost = Outcome.of(run.dir).lost(case.reference)
    if not any(note in text for text in events(run.dir)):
        lost.append(f"the journal does not say: {note}")
    forget(run)
    return lost


def torn_journal(case: Case) -> Row:
    """The last line of the journal is cut at several places."""
    row = Row("the last line of a journal is torn")
    killed = case.killed
    data = (killed.dir / JOURNAL_NAME).read_bytes()
    last = len(data) - data[:-1].rfind(b"\n") - 1
    for cut in (1, last // 2, last - 1):
        run = copy_run(killed, f"torn-{cut}")
        os.truncate(run.dir / JOURNAL_NAME, len(data) - cut)
        row.goes_on(go_on(case.project, run, case.reference), f"{cut} bytes cut off")
        forget(run)
    return row


def full_disk(case: Case, every: bool) -> Row:
    """Every file that a training opens finds the disk full, in a run of its own; then there is room again."""
    row = Row("the disk is full when a file is written")
    project, reference, changes, _ = case
    opens = [i for i, change in enumerate(changes) if change.kind == "open" and not change.path.endswith(".lock")]
    for i in opens if every else [*opens[:4], opens[-2], opens[-1]]:
        run = project.run(f"full-{i}", project.trial())
        failed = attempt(partial(train, project.job(run)), run.dir, at=i, fault=fill_disk)
        free_disk(run.dir)
        where = f"full before change {i} ({changes[i]})"
        if "log.txt" in changes[i].path and not failed.error:
            row.goes_on(Outcome.of(run.dir).lost(reference), where)  # a log is not worth a training
            continue
        lost = [] if failed.sentence and "space" in failed.error else [f"no sentence: {failed.error or 'no error'}"]
        row.ends(general(failed.error, project.root), lost + go_on(case.project, run, case.reference), where)
        forget(run)
    return row


def general(sentence: str, root: Path) -> str:
    """A sentence without the names of this one attempt, so that equal ones are shown once."""
    short = sentence.splitlines()[0].replace(str(root), "...") if sentence else ""
    return re.sub(r"/\.step-\d+\.tmp|full-\d+", lambda found: "RUN" if found[0][0] == "f" else "", short)


def read_only_folder(case: Case) -> Row:
    """The run's folder may not be written; whoever runs this as root becomes nobody for the attempt."""
    row, project = Row("the run's folder is read-only"), case.project
    run = project.run("read-only", project.trial())
    run.dir.chmod(0o555)
    try:
        failed = attempt(partial(as_nobody, partial(train, project.job(run))), run.dir)
    finally:
        run.dir.chmod(0o755)
    lost = [] if failed.sentence and failed.error else [f"no sentence: {failed.error or 'no error'}"]
    row.ends(general(failed.error, project.root), lost + go_on(case.project, run, case.reference))
    forget(run)
    return row


def as_nobody(work: Callable[[], object]) -> None:
    """Root may write everywhere."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    work()


def truncated_shard(case: Case) -> Row:
    """A training that goes on finds a shard cut, and goes on once the shard is whole again."""
    row = Row("a shard is cut while nobody trains")
    project, killed = case.project, case.killed
    run, shard = copy_run(killed, "cut-shard"), next(project.shards.glob("train-*.tar"))
    kept = project.root / "kept.tar"
    shutil.copy2(shard, kept)
    os.truncate(shard, shard.stat().st_size // 2)
    failed = attempt(partial(train, project.job(run)), run.dir)
    shutil.move(kept, shard)
    lost = [] if failed.sentence and shard.name in failed.error else [f"no sentence: {failed.error or 'no error'}"]
    if newest_checkpoint(run.dir) != newest_checkpoint(killed.dir):
        lost.append("the checkpoint is gone")
    row.ends(general(failed.error, project.root), lost + go_on(case.project, run, case.reference))
    forget(run)
    return row
