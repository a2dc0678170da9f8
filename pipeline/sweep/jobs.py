"""A run -> what a process of the cluster needs to carry it out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.placement import Placement
from pipeline.sweep.capacity import min_workers, num_workers
from pipeline.train.run import Job, Run


def build_job(
    run: Run, data_dir: Path, num_classes: int, placement: Placement, gpus: float, provenance: Mapping[str, Any]
) -> Job:
    """The job of a run, on workers with `gpus` GPUs each."""
    return Job(
        trial=run.trial,
        run_dir=run.dir.resolve(),
        data_dir=data_dir.resolve(),
        num_classes=num_classes,
        num_workers=num_workers(run, placement),
        cpus_per_worker=placement.cpus_per_worker,
        gpus_per_worker=gpus,
        loader_workers=placement.loader_workers,
        max_failures=placement.max_failures,
        provenance=dict(provenance),
        init_dir=run.init_dir.resolve() if run.init_dir else None,
        min_workers=min_workers(run, placement),
        dropped=run.dropped,
        device_batch_size=placement.device_batch_size,
        data_parallel=placement.data_parallel,
        silence_s=placement.silence_s,
        ledger=placement.ledger,
    )
