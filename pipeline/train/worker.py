"""What runs on each worker of a Ray Train run: find out who we are, then the same loop as everywhere."""

from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import nn

from pipeline.train.attempt import train_job
from pipeline.train.run import Job


def train_worker(config: dict[str, Any]) -> None:
    """The entry point that TorchTrainer calls on every worker; `config["job"]` is a Job as JSON."""
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # sharded models ask torch for it
    train_job(
        Job.from_json(config["job"]),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=str(device),
        report=ray.train.report,
        wrap=_data_parallel,
    )


def _data_parallel(model: nn.Module) -> nn.Module:
    return ray.train.torch.prepare_model(model)
