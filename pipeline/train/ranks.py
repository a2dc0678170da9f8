"""What the processes of one training tell each other beside gradients."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def share_buffers(model: nn.Module, world_size: int) -> None:
    """Give every rank the buffers of rank 0, whose model is kept: statistics of batch norms follow each rank's data."""
    if world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def sum_over_ranks(values: Tensor, world_size: int) -> Tensor:
    """The sum of the tensor over the ranks, in place."""
    if world_size > 1:
        dist.all_reduce(values)
    return values


def all_say(said: int, world_size: int, device: torch.device) -> list[int]:
    """What every rank says, in their order, on every rank."""
    if world_size == 1:
        return [said]
    mine = torch.tensor([said], dtype=torch.int64, device=device)
    told = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(told, mine)
    return [int(value) for value in told]


def first_says(said: int, world_size: int, device: torch.device) -> int:
    """What rank 0 says, on every rank: clocks differ, and what is seen of a folder may."""
    if world_size == 1:
        return said
    told = torch.tensor(said, dtype=torch.int64, device=device)
    dist.broadcast(told, src=0)
    return int(told)
