"""Fully sharded data parallel: weights, gradients and moments are spread over the ranks, each has its part of them."""

from typing import Any, cast

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None = None) -> None:
    """Leave every rank its part of the parameters, of the optimizer's tensors, and of the average; in place.

    The layers of the backbone are gathered one by one while they are computed. Every rank must come with the same
    values. Buffers stay whole, and follow each rank's own data.
    """
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for network in [model] if ema is None else [model, ema.module]:
        for layer in _layers(network):
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        for i, name in enumerate(group["names"]):
            old, new = group["params"][i], parameters[name]
            group["params"][i] = new
            if old in optimizer.state:
                optimizer.state[new] = {key: _like(new, value) for key, value in optimizer.state.pop(old).items()}


def _layers(network: nn.Module) -> list[nn.Module]:
    """What is gathered at once, inner ones first: the members of lists, and of what timm calls blocks, or layers.

    Not the blocks of a model with a reducer, which takes them apart: nothing would gather what is inside one.
    """
    if getattr(network, "reducer", None) is not None:
        return []
    groups = [
        part
        for name, part in network.named_modules()
        if isinstance(part, nn.ModuleList)
        or (isinstance(part, nn.Sequential) and name.rpartition(".")[2] in ("blocks", "layers"))
    ]
    members = {id(layer): layer for group in reversed(groups) for layer in group.children()}
    return [layer for layer in members.values() if any(True for _ in layer.parameters())]


def _like(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """A moment, in parts as its parameter is; a count of steps as it is."""
    if value.dim() == 0:
        return value
    spread = cast(DTensor, parameter)
    return cast(Any, distribute_tensor)(value, spread.device_mesh, spread.placements)
