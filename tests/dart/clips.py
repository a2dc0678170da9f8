"""Densities of clips, and the frames of their regions."""

import torch
from torch import Tensor

F64 = torch.float64


def density_of(num_frames: int, grid: tuple[int, int], seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    """Two densities of clips (2, T * G_h, G_w), far from uniform in space and in time."""
    values = torch.rand(2, num_frames * grid[0], grid[1], dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return (values**3 + 1e-2) / (values**3 + 1e-2).sum((1, 2), keepdim=True)


def frame_of(regions: Tensor, height: int) -> Tensor:
    """The frame that every region lies in, (B, N); fails if one lies in two."""
    first, last = (regions[..., 1] / height).floor(), (regions[..., 3] / height).ceil() - 1
    assert torch.equal(first, last)
    return first.long()
