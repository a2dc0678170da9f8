"""Where the work runs and where it is recorded: the sections `placement` and `tracking` of params.yaml.

Machine choices: they may default.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema import Strict, inconsistent


class Placement(Strict):
    """Where the work runs. Not science: no result depends on it beyond rounding.

    With `min_workers`, a training goes on with fewer than `num_workers` of them while nodes are missing, and takes new
    nodes in at its next restart. The global batch stays: it must split equally over every number in between.

    A worker that has more than `device_batch_size` samples of a global batch takes them in pieces and adds the
    gradients up. That is the same mean, up to rounding; not where a model looks at its batch as a whole (batch norm,
    paper mode), or draws at random for each of its samples (drop_path: the same in distribution).
    """

    num_workers: int = Field(default=1, ge=1)
    min_workers: Annotated[int, Field(ge=1)] | None = None  # None: as many as num_workers, always
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    loader_workers: int = Field(default=0, ge=0)
    max_failures: int = Field(default=2, ge=0)
    ray_address: str | None = None
    device_batch_size: Annotated[int, Field(ge=1)] | None = None  # samples at once on a worker; None: all it has
    data_parallel: Literal["ddp", "fsdp"] = "ddp"  # fsdp: weights, gradients and moments are spread over the workers
    silence_s: Annotated[float, Field(gt=0)] | None = 60.0  # a worker not heard of is named, and tried again by then
    ledger: bool = False  # write down which samples each step read; python -m pipeline.data.ledger checks it

    @model_validator(mode="after")
    def _fewest_are_not_more_than_all(self) -> "Placement":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            rule = f"more than num_workers ({self.num_workers})"
            raise inconsistent("min_workers", self.min_workers, rule, f"at most {self.num_workers}, or null")
        return self


class Tracking(Strict):
    uri: str = "sqlite:///mlflow.db"
