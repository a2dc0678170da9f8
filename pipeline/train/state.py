"""The tensors of a training: taken from the model and its optimizer, and put back."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class State(NamedTuple):
    """Everything that learns.

    model: The state dict.
    optimizer: {'exp_avg/PARAMETER': tensor}; names, not positions, so the order of parameters may change.
    ema: The state dict of the averaged weights; empty where none are averaged.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]


def take(model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None = None) -> State:
    """The tensors as they are: the next step changes them."""
    averages = {} if ema is None else dict(ema.state_dict())
    return State(dict(model.state_dict()), optimizer_tensors(optimizer), averages)


def put(
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None = None,
    moments_on: torch.device | None = None,
) -> None:
    """The inverse of `take`: the values are copied, and everything lies with its parameter, where AdamW keeps it.

    Args:
        moments_on: Where the optimizer's tensors are put instead: on a device they may only fit in parts.
    """
    model.load_state_dict(state.model)
    parameters = dict(_named(optimizer))
    optimizer.state.clear()
    for full_name, value in state.optimizer.items():
        key, name = full_name.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(moments_on or parameter.device, copy=True)
    if ema is not None:
        ema.load_state_dict(state.ema)


def copied(state: State) -> State:
    """The same values in memory of their own."""
    return State(*({name: tensor.detach().clone() for name, tensor in part.items()} for part in state))


def whole(state: State, keep: bool = True) -> State:
    """The same, contiguous, and complete where the ranks have a part of each: all of them must call this.

    Args:
        keep: False on a rank that only gives its parts: what it gets is empty.
    """
    return State(*(whole_tensors(part, keep) for part in state))


def whole_tensors(tensors: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """One part of `whole`."""
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if isinstance(tensor, DTensor):
            entire = tensor.full_tensor()
            tensor = entire.cpu() if keep else entire  # one at a time: all together may not fit on the device
        if keep:
            found[name] = tensor.contiguous()
    return found


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`State.optimizer`."""
    return {
        f"{key}/{name}": value
        for name, parameter in _named(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _named(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)
