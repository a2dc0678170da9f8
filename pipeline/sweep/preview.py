"""What `--dry-run` prints: the plan with its budgets and costs. Builds models to count them, trains nothing."""

from collections.abc import Callable, Mapping, Sequence

from pipeline.benchmark import Cost, count_cost
from pipeline.config import Trial
from pipeline.placement import Placement
from pipeline.provenance import hash_json, usable_cores
from pipeline.sweep.capacity import num_workers
from pipeline.sweep.cost import Speed, estimate_worker_s
from pipeline.sweep.progress import words
from pipeline.train.run import Run

HEADER = ("trial", "seed", "model", "tokens", "GFLOPs", "params", "workers", "cost", "state")


def preview(
    runs: Sequence[Run],
    *,
    num_classes: int,
    num_samples: int,
    placement: Placement,
    speed: Speed,
    echo: Callable[[str], None] = print,
) -> None:
    """Print one line per trial and the estimated time of what is not done.

    Args:
        num_samples: Training samples of an epoch.
        speed: How fast training is believed to be.
    """
    seconds = {run.fingerprint: estimate_worker_s(run.trial, num_samples, speed) for run in runs}
    models = {hash_json(run.trial.architecture()): run.trial for run in runs}  # seeds and recipes share one
    costs = {key: count_cost(trial, num_classes) for key, trial in models.items()}
    rows = [HEADER, *(_row(run, costs, placement, seconds[run.fingerprint]) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    for row in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    pending = {run.fingerprint for run in runs if run.done() is None}
    cores = max(1, usable_cores() // placement.cpus_per_worker)
    total_s = sum(seconds[key] for key in pending) / cores
    echo(
        f"{len(runs)} trials, {len(pending)} trainings to do, about {words(total_s)} with {cores} workers at a time "
        f"({speed.source}); GFLOPs are 1e9 multiply-accumulates per sample; nothing was started"
    )


def _row(run: Run, costs: Mapping[str, Cost], placement: Placement, worker_s: float) -> tuple[str, ...]:
    trial = run.trial
    cost = costs[hash_json(trial.architecture())]
    workers = num_workers(run, placement)
    return (
        trial.name,
        str(trial.seed),
        trial.model_name,
        budgets_of(trial),
        f"{cost.macs / 1e9:.4g}",
        f"{cost.params:,}",
        str(workers),
        words(worker_s / workers),
        "to do" if run.done() is None else "done",
    )


def budgets_of(trial: Trial) -> str:
    """`36`, or `16 to 49` where steps are of several budgets."""
    usual, warmup = trial.train.token_budgets or [trial.tokenizer.token_budget], trial.token_warmup
    several = [*usual, *([warmup.token_budget] if warmup else [])]
    low, high = min(several), max(several)
    return str(low) if low == high else f"{low} to {high}"
