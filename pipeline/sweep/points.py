"""The points that a search chooses, as runs: which must be trained, and what becomes of them. Ray Tune trains them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.index import MANIFEST_FILE, Manifest
from pipeline.placement import Placement
from pipeline.sweep.capacity import Shortage, check_batches, check_capacity, min_workers, num_workers
from pipeline.sweep.cost import relative_cost
from pipeline.sweep.jobs import build_job
from pipeline.sweep.progress import Progress
from pipeline.sweep.suggesting import Asking, Suggestions
from pipeline.sweep.tune import Room, Steering, raise_failures, tune_jobs
from pipeline.train.nodes import alive_nodes, check_nodes
from pipeline.train.run import Job, Run
from pipeline.train.session import ray_session


class Points:
    """The points of a search and their runs.

    Args:
        run_at: The run at a point's values.
        metric: What a point is judged by, the larger the better.
        fresh: Throw away what an earlier process has trained.
    """

    def __init__(
        self, suggestions: Suggestions, run_at: Callable[[dict[str, Any]], Run], metric: str, fresh: bool = False
    ) -> None:
        self._suggestions, self._metric, self._fresh = suggestions, metric, fresh
        self._run_at = run_at
        self._earlier = sorted(suggestions.open)  # chosen by a process that did not live to see their results
        self._runs = {number: run_at(values) for number, values in enumerate(suggestions.values)}
        self._waiting: dict[str, list[int]] = {}  # fingerprint -> points whose result is its training's
        self._next: tuple[int, Run] | None = None

    @property
    def runs(self) -> list[Run]:
        """All of them, each once, in the order in which they were chosen."""
        return list({run.fingerprint: run for run in self._runs.values()}.values())

    @property
    def num_told(self) -> int:
        """Points that have a result."""
        return len(self._suggestions.values) - len(self._suggestions.open)

    def peek(self) -> Run | None:
        """The next run that must be trained, without starting it."""
        self._next = self._next or self._find()
        return self._next[1] if self._next else None

    def start(self) -> tuple[int, Run] | None:
        """The next point that must be trained, and its run; None where there is no more."""
        found, self._next = self._next or self._find(), None
        return found

    def end(self, number: int) -> None:
        """The training of a point is over."""
        run = self._runs[number]
        done = run.done()
        for waiting in self._waiting.pop(run.fingerprint):
            if done is None:
                self._suggestions.give_up(waiting)
            else:
                self._suggestions.tell(waiting, self._value(done))

    def _find(self) -> tuple[int, Run] | None:
        while (number := self._number()) is not None:
            run = self._runs.setdefault(number, self._run_at(self._suggestions.values[number]))
            if run.fingerprint in self._waiting:
                self._waiting[run.fingerprint].append(number)
                continue
            run.prepare(self._fresh and self._is_first(number))
            done = run.done()
            if done is None:
                self._waiting[run.fingerprint] = [number]
                return number, run
            self._suggestions.tell(number, self._value(done))
        return None

    def _number(self) -> int | None:
        return self._earlier.pop(0) if self._earlier else self._suggestions.ask()

    def _is_first(self, number: int) -> bool:
        """Whether no earlier point has come to the same run."""
        mine = self._runs[number].fingerprint
        return all(run.fingerprint != mine for other, run in self._runs.items() if other < number)

    def _value(self, done: Mapping[str, Any]) -> float | None:
        return done["metrics"].get(self._metric) if done["status"] == "done" else None


def train_points(
    points: Points,
    edges: Sequence[Run],
    data_dir: Path,
    manifest: Manifest,
    placement: Placement,
    provenance: Mapping[str, Any],
    scratch: Path,
    *,
    limit: int,
    follow: Callable[[Path], None],
) -> None:
    """Train the points on one Ray runtime, as many side by side as there is room for.

    Args:
        edges: Runs at the edges of the space, by which is judged before anything starts whether all can be trained.
        scratch: A folder for Ray Tune's own state, deleted before and after.
        limit: Points of the whole search.
        follow: Is told the folder of every run that is started.

    Raises:
        UserError: before anything starts, if the cluster is too small; at the end, naming the runs that failed.
    """
    first = points.peek()
    if first is None:
        return
    check_batches(edges, placement)
    started: list[Run] = []
    many = num_workers(first, placement) > 1
    with ray_session(placement, dashboard=many):
        if placement.ray_address is not None:
            check_nodes(scratch.parent, [data_dir / MANIFEST_FILE])
        gpus, slots = check_capacity(edges, placement, alive_nodes())
        progress = Progress({}, {}, points.num_told, num_more=limit - points.num_told)
        jobs: list[Job] = []

        def start() -> tuple[int, dict[str, Any]] | None:
            if (found := points.start()) is None:
                return None
            number, run = found
            started.append(run)
            jobs.append(build_job(run, data_dir, manifest.num_classes, placement, gpus, provenance))
            progress.add(run, relative_cost(run.trial, manifest.split("train").num_samples))
            follow(run.dir)
            return number, {"index": len(jobs) - 1, "job": jobs[-1].to_json()}

        steering = Steering(searcher=Asking(start, points.end), num_samples=limit)
        shortage = Shortage(min_workers(first, placement), placement, gpus)
        room = Room(slots // num_workers(first, placement), many, placement, gpus)
        tune_jobs(jobs, room, scratch, progress, shortage, steering)
    raise_failures(list({run.fingerprint: run for run in started}.values()))
