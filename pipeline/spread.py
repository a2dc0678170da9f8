"""Independent parts of a stage's work, side by side on one Ray runtime, or one after another in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError, problem
from pipeline.placement import Placement
from pipeline.provenance import usable_cores

LOOK_S = 5.0  # between two looks at the nodes, while no part gets ready
Part = TypeVar("Part")
Result = TypeVar("Result")


def spread(
    work: Callable[[Part, str], Result],
    plan: Callable[[int], Sequence[Part]],
    placement: Placement,
    progress: Callable[[int, int], None] = lambda done, total: None,
    little: bool = False,
    gpus: float | None = None,
) -> list[tuple[Part, Result]]:
    """`work(part, device)` of all parts, in the order of the plan.

    Without a cluster, one core or little work start no Ray.

    Args:
        plan: Makes the parts, given the number of workers that fit at once.
        little: The work takes no longer than the start of a Ray runtime.
        progress: Is told the number of finished parts, and of all.
        gpus: That each part holds; default as `placement.gpus_per_worker`. 0 for work that reads and writes files:
            the GPUs stay free for others.

    Raises:
        UserError: what `work` raised first, or no worker of this size fits anywhere.
    """
    if placement.ray_address is None and (little or usable_cores() // placement.cpus_per_worker <= 1):
        return run_here(work, plan(1), progress, gpus)
    from pipeline.train.nodes import check_nodes
    from pipeline.train.session import ray_session

    with ray_session(placement):
        if placement.ray_address is not None:
            check_nodes(Path())
        return run_on_ray(work, plan, placement, progress, gpus)


def run_here(
    work: Callable[[Part, str], Result],
    parts: Sequence[Part],
    progress: Callable[[int, int], None],
    gpus: float | None = None,
) -> list[tuple[Part, Result]]:
    """The parts one after another in this process."""
    device = "cpu"
    if gpus != 0:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    done = []
    for part in parts:
        done.append((part, work(part, device)))
        progress(len(done), len(parts))
    return done


def run_on_ray(
    work: Callable[[Part, str], Result],
    plan: Callable[[int], Sequence[Part]],
    placement: Placement,
    progress: Callable[[int, int], None],
    gpus: float | None = None,
) -> list[tuple[Part, Result]]:
    """The parts as tasks of the Ray runtime that this process is connected to."""
    import ray

    from pipeline.sweep.capacity import Shortage, count_slots, resolve_gpus
    from pipeline.train.nodes import alive_nodes

    nodes, cpus = alive_nodes(), placement.cpus_per_worker
    gpus = resolve_gpus(placement, nodes) if gpus is None else gpus
    shortage = Shortage(1, placement, gpus)
    slots = count_slots(nodes, cpus, gpus)
    if not slots:
        size = f"a worker of {cpus} CPUs and {gpus:g} GPUs fits on no node"
        raise UserError(problem("placement.cpus_per_worker", cpus, size, "lower *_per_worker"))
    parts = plan(slots)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=placement.max_failures)(_work_there)
    pending = {task.remote(work, part, cpus, gpus): i for i, part in enumerate(parts)}
    results: dict[int, Any] = {}
    try:
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK_S)
            if not ready:
                shortage.look(alive_nodes())
                continue
            results[pending.pop(ready[0])] = ray.get(ready[0])
            progress(len(results), len(parts))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        rule = f"a worker was ended more often than that ({str(error).strip().splitlines()[0]})"
        remedy = "give it more memory, or raise it"
        raise UserError(problem("placement.max_failures", placement.max_failures, rule, remedy)) from error
    return [(part, results[i]) for i, part in enumerate(parts)]


def _work_there(work: Callable[[Part, str], Result], part: Part, cpus: int, gpus: float) -> Result:
    import torch

    torch.set_num_threads(cpus)
    return work(part, "cuda" if gpus else "cpu")
