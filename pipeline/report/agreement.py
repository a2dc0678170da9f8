"""Do one worker and several workers agree? The same science must give the same result on any number of them."""

import json
from dataclasses import dataclass

from pipeline.measures import Task
from pipeline.report.records import Records, Run

# Workers add the same gradients in another order, and that rounding grows with every step. So the start is judged
# tightly, with room for float32: a wrong slice, order or gradient scale is far above this within a hundred steps.
EARLY_STEPS = 100
EARLY_LOSS_TOLERANCE = 1e-3
# Of the task's first measure: two standard errors of an accuracy on 2,000 samples. Rounding alone can carry a long
# training in float32 further than that; the sentence then says DISAGREE, and the start tells which of the two it was.
FINAL_TOLERANCE = 0.02


@dataclass(frozen=True)
class Agreement:
    """Two runs of the same science on different numbers of workers, and how far apart they went."""

    run: Run
    twin: Run
    loss_diffs: dict[int, float]  # {step: absolute difference} where both journals have a training loss
    final_diff: float | None  # of the task's first measure, on the test split
    num_predictions: int  # test samples that both answered
    num_changed: int  # of these, answered differently
    task: Task

    @property
    def early(self) -> list[float]:
        """The differences of the loss that are judged."""
        return [diff for step, diff in self.loss_diffs.items() if step <= EARLY_STEPS]

    @property
    def obstacle(self) -> str:
        """Why there is no verdict; empty when there is one."""
        broken = [f"{run.name}: {run.problem}" for run in (self.run, self.twin) if run.problem]
        if not broken and not self.early:
            return f"no training loss that both recorded up to step {EARLY_STEPS}"
        return "; ".join(broken) or (f"no test {self.task.said}" if self.final_diff is None else "")

    @property
    def agrees(self) -> bool:
        """Whether both stay within the tolerances; NaN does not."""
        early = all(diff <= EARLY_LOSS_TOLERANCE for diff in self.early)
        return early and self.final_diff is not None and abs(self.final_diff) <= FINAL_TOLERANCE


def agreements(records: Records) -> list[Agreement]:
    """Every run against the first one of the same science: only the pinned number of workers differs."""
    first: dict[str, Run] = {}
    pairs: list[Agreement] = []
    for run in (*records.runs, *records.checks):
        science = {key: value for key, value in run.science.items() if key != "num_workers"}
        twin = first.setdefault(json.dumps(science, sort_keys=True), run)
        if twin.fingerprint != run.fingerprint:
            pairs.append(_compare(records, run, twin))
    return pairs


def sentence(pair: Agreement) -> str:
    """The verdict, and the numbers that it rests on."""
    run, twin = pair.run, pair.twin
    worlds = " and ".join(str(r.world_size or "unknown") for r in (run, twin))
    head = f"{run.name} and {twin.name}, seed {run.seed}, {worlds} workers"
    if pair.obstacle:
        return f"not comparable: {head} ({pair.obstacle})."
    return (
        f"{'agree' if pair.agrees else 'DISAGREE'}: {head}: training losses differ by at most {max(pair.early):.1e} "
        f"up to step {EARLY_STEPS} (tolerance {EARLY_LOSS_TOLERANCE:g}) and by {max(pair.loss_diffs.values()):.1e} "
        f"over all {len(pair.loss_diffs)} records, test {pair.task.said} by {100 * (pair.final_diff or 0):+.2f} points "
        f"(tolerance {100 * FINAL_TOLERANCE:g}); "
        f"{pair.num_changed} of {pair.num_predictions} {pair.task.answers} differ."
    )


def _compare(records: Records, run: Run, twin: Run) -> Agreement:
    loss, twin_loss = (r.curves.get("train_loss", {}) for r in (run, twin))
    said, twin_said = records.predictions(run), records.predictions(twin)
    keys = said.keys() & twin_said.keys()
    final, twin_final = ((r.test or {}).get(records.task.first.name) for r in (run, twin))
    return Agreement(
        run=run,
        twin=twin,
        loss_diffs={step: abs(loss[step] - twin_loss[step]) for step in loss if step in twin_loss},
        final_diff=final - twin_final if final is not None and twin_final is not None else None,
        num_predictions=len(keys),
        num_changed=sum(said[key] != twin_said[key] for key in keys),
        task=records.task,
    )
