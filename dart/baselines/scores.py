"""Control scores: DART's whole path from scores to tokens, with scores that nothing has learned.

If DART's advantage came from irregular regions alone, random scores would have it too; if any edge detector could find
the detail, gradient scores would. Without parameters; they cost no multiply-accumulates that our counter counts.

# B batch, C channels, H W image pixels, G_h G_w score grid
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.partition import geometry_dtype

# The learned scorers' grids: the light one's cell is 8 px, the paper's have 14 x 14 cells of any image.
MIN_CELL_PX = 8
MAX_SIDE_CELLS = 14
RANDOM_SIDE_CELLS = 4  # bumps of a quarter of the side: about as large as what is to be found in the default suite
RANDOM_STD = 4.0  # about as concentrated a density as that suite's models learn
PIXEL_STEPS = 1024  # per unit: images are rounded to that before they are hashed
MAX_PIXEL = 2**20
HASH_BITS = 31  # products of a hash and a multiplier stay inside int64
HASH_MULTIPLIERS = (0x2C1B3C6D, 0x297A2D39)


class ConstantScores(nn.Module):
    """The same score everywhere: the uniform grid, computed as DART computes regions."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> zeros (B, G_h, G_w)."""
        return images.new_zeros((images.shape[0], *score_grid(images)), dtype=geometry_dtype(images.dtype))


class RandomScores(nn.Module):
    """Smooth random bumps, a pure function of the image's own pixels.

    The pixels, rounded, are hashed in whole numbers; the hash seeds normally distributed scores on a coarse grid, which
    are interpolated. So the same picture is cut the same way in every batch, epoch, process and run; another picture,
    and a shifted or augmented copy of it, is cut another way; and where the bumps are says nothing about what is there.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, G_h, G_w), no gradient."""
        num_coarse = RANDOM_SIDE_CELLS**2
        cells = torch.arange(1, num_coarse + 1, device=images.device)
        uniform = scramble(hash_images(images)[:, None] ^ scramble(cells)) / 2**HASH_BITS  # (B, coarse), in [0, 1)
        normal = math.sqrt(2) * torch.special.erfinv((2 * uniform - 1).clamp(-1 + 1e-6, 1 - 1e-6))
        coarse = (RANDOM_STD * normal).view(-1, 1, RANDOM_SIDE_CELLS, RANDOM_SIDE_CELLS)
        scores = F.interpolate(coarse, size=score_grid(images), mode="bilinear").squeeze(1)
        return scores.to(geometry_dtype(images.dtype))


class GradientScores(nn.Module):
    """How strongly brightness changes: the density is the root of the gradient energy of each cell.

    Args:
        cell_px: Pixels on the side of a cell; None for the grid of the learned scorers (`score_grid`).
        log: Scores are logarithms, for the softmax of `dart.scorer.scores_to_density`; else positive, as paper mode
            has them.
    """

    def __init__(self, cell_px: int | None = None, log: bool = True) -> None:
        super().__init__()
        self.cell_px, self.log = cell_px, log

    def forward(self, images: Tensor, grid_size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, G_h, G_w), on the given grid if there is one; no gradient."""
        grid = grid_size or score_grid(images, self.cell_px)
        grey = images.detach().to(geometry_dtype(images.dtype)).mean(1, keepdim=True)
        right, down = F.pad(grey.diff(dim=-1), (0, 1)), F.pad(grey.diff(dim=-2), (0, 0, 0, 1))
        strength = F.adaptive_avg_pool2d(right**2 + down**2, grid).sqrt()[:, 0]
        # A constant image has no gradient anywhere: then all cells are equal.
        share = strength + 0.02 * strength.mean((1, 2), keepdim=True) + 1e-6
        return share.log() if self.log else share


CONTROLS: dict[str, type[nn.Module]] = {
    "constant": ConstantScores,
    "random": RandomScores,
    "gradient": GradientScores,
}


def score_grid(images: Tensor, cell_px: int | None = None) -> tuple[int, int]:
    """Rows and columns of scores: of `cell_px` pixels each, or as many as the learned scorers have."""
    height, width = images.shape[-2:]
    if cell_px is not None:
        return max(1, height // cell_px), max(1, width // cell_px)
    side = max(MIN_CELL_PX, math.sqrt(height * width) / MAX_SIDE_CELLS)
    return max(1, round(height / side)), max(1, round(width / side))


def hash_images(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,) int64 in [0, 2**31): of the rounded pixels and their places, whatever the device adds first.

    Sums of whole numbers do not depend on their order, and 2**20 pixels of these sizes do not overflow.
    """
    steps = (images.detach().to(geometry_dtype(images.dtype)) * PIXEL_STEPS).round().clamp(-MAX_PIXEL, MAX_PIXEL)
    pixels = steps.flatten(1).long()
    weights = scramble(torch.arange(1, pixels.shape[1] + 1, device=images.device)) % MAX_PIXEL
    return scramble((pixels * weights).sum(1) % 2**HASH_BITS)


def scramble(values: Tensor) -> Tensor:
    """Whole numbers in [0, 2**31) -> others that look independent of them: shifts and odd factors, modulo 2**31."""
    for multiplier in HASH_MULTIPLIERS:
        values = ((values ^ (values >> 15)) * multiplier) % 2**HASH_BITS
    return values ^ (values >> 16)
