"""The gradients of a global batch, in as many pieces as the memory of a device asks for."""

from contextlib import AbstractContextManager, nullcontext
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.train.objective import Objective
from pipeline.train.ranks import sum_over_ranks
from pipeline.train.setup import Setup
from pipeline.train.watch import COMPUTED, READ


def backward(
    setup: Setup, objective: Objective, net: nn.Module, images: Tensor, labels: Tensor, step: int, patient: bool = False
) -> Tensor:
    """Add the gradients of the mean loss over the global batch to the parameters.

    Args:
        patient: It may take as long as it likes; see `pipeline.train.watch.Beat`.

    Returns:
        A number of this rank, detached float64; its mean over the ranks is the loss.
    """
    images, labels = objective.prepare(images, labels, step)
    at_once = setup.device_batch_size
    if at_once is not None and len(images) > at_once:
        return accumulate(setup, objective, net, images, labels, step, patient)
    loss = objective.loss(net, images, labels)
    setup.beat(step + COMPUTED, patient)
    loss.backward()
    return loss.detach().double()


def accumulate(
    setup: Setup, objective: Objective, net: nn.Module, images: Tensor, labels: Tensor, step: int, patient: bool = False
) -> Tensor:
    """As `backward`, of at most `device_batch_size` samples at a time; gradients are exchanged with the last of them.

    How much counts in a piece may be known only after the model has seen it. So sums are added up, and divided at
    the end by what all ranks have counted.
    """
    num_pieces = ceil(len(images) / (setup.device_batch_size or 1))  # of nearly equal size: equal on every rank
    pieces = list(zip(images.tensor_split(num_pieces), labels.tensor_split(num_pieces), strict=True))
    total = torch.zeros((), dtype=torch.float64, device=setup.device)
    count = torch.zeros((), dtype=torch.float64, device=setup.device)
    for i, piece in enumerate(pieces):
        with _alone(net, i + 1 < num_pieces):
            loss, counted = objective.sum_loss(net, *piece)
            setup.beat(step + COMPUTED if i + 1 == num_pieces else step + READ, patient)
            loss.backward()
        total += loss.detach()
        count += counted
    scale = setup.world_size / sum_over_ranks(count, setup.world_size).clamp(min=1)
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale.to(parameter.grad.dtype))
    return total * scale


def clip(model: nn.Module, most: float) -> Tensor:
    """Scale the gradients down to a norm of `most`, and return the norm that they had: the same on every rank."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), most)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _alone(net: nn.Module, alone: bool) -> AbstractContextManager[Any]:
    """Whether this rank's gradients stay its own in the block."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(not alone)
        return nullcontext()
    return net.no_sync() if alone and isinstance(net, DistributedDataParallel) else nullcontext()
