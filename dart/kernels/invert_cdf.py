"""Mass -> positions: where the running sum of a histogram reaches given levels.

# G cells, K levels
"""

import torch
from torch import Tensor

from dart.kernels.dispatch import use_triton


def invert_cdf(mass: Tensor, levels: Tensor) -> Tensor:
    """Where the running sum of `mass` reaches each level, linearly interpolated inside a cell (paper, eq. 4).

    Args:
        mass: (..., G) non-negative, any positive sum.
        levels: (..., K) fractions of the sum, in [0, 1]; leading dimensions must broadcast to those of `mass`.

    Returns:
        (..., K) positions in cells, in [0, G], increasing with the level. The cell that a level falls in is a
        constant for differentiation; the position inside it is differentiable in every mass up to that cell.
    """
    if use_triton(mass, levels):
        from dart.kernels.invert_cdf_triton import invert_cdf_triton

        return invert_cdf_triton(mass, levels)
    return invert_cdf_reference(mass, levels)


def invert_cdf_reference(mass: Tensor, levels: Tensor) -> Tensor:
    """The plain PyTorch twin; it counts the cells before each level, which every exporter can do."""
    after = mass.cumsum(-1)
    goal = (levels * after[..., -1:]).expand(*mass.shape[:-1], levels.shape[-1])
    cell = (after.detach()[..., None, :] < goal.detach()[..., None]).sum(-1).clamp(max=mass.shape[-1] - 1)
    inside = mass.gather(-1, cell)
    before = after.gather(-1, cell) - inside
    # A level may fall on an empty cell only by rounding: that stays finite.
    part = (goal - before) / torch.where(inside > 0, inside, 1)
    # Rounding may put a level a little beside its cell; the value is moved back, the gradient is kept.
    return cell + part + (part.clamp(0, 1) - part).detach()
