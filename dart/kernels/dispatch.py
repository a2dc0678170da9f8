"""Which of its two rooms an operation is computed in: Triton for CUDA tensors, plain PyTorch for everything else."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Room = Literal["triton", "reference"]

# Found, not imported: Triton exists for Linux only, and only a CUDA tensor asks for it.
_HAS_TRITON = find_spec("triton") is not None
_room: Room | None = None


def use_triton(*tensors: Tensor) -> bool:
    """Whether to take the Triton room for these tensors.

    A graph that is exported (torch.export, ONNX) keeps to plain operators, which every runtime has. float64 is for
    checks: Triton's kernels compute in float32.
    """
    if is_exporting():
        return False
    if _room is not None:
        return _room == "triton"
    return _HAS_TRITON and all(t.is_cuda and t.dtype != torch.float64 for t in tensors)


def is_exporting() -> bool:
    """Whether the graph is being written down for another runtime (torch.export, ONNX)."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


@contextmanager
def _forced(room: Room) -> Iterator[None]:
    """Every operation in one room, whatever the device (exports excepted); for tests and benchmarks."""
    global _room
    before, _room = _room, room
    try:
        yield
    finally:
        _room = before
