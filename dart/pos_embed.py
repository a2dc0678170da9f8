"""Where a token is and how large: position embeddings for regions of any place and size.

# B batch, N tokens, D embedding, G_h G_w table
"""

import math

import torch
from torch import Tensor, nn

from dart.partition import overlap


class GeometricPosEmbed(nn.Module):
    """An MLP of each region's centre and log size, in sines and cosines.

    Knows nothing of grids, so it carries over to any image size, token budget and partition.

    Args:
        dim: D.
        num_frequencies: Octaves of the sine and cosine features of each of the four coordinates.
    """

    def __init__(self, dim: int, num_frequencies: int = 4) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(nn.Linear(4 * (1 + 2 * num_frequencies), dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, regions: Tensor, img_size: tuple[int, int]) -> Tensor:
        """Regions (B, N, 4) in pixels -> (B, N, D), differentiable in the regions."""
        coords = region_coordinates(regions, img_size)
        octaves = math.pi * 2.0 ** torch.arange(self.num_frequencies, device=coords.device, dtype=coords.dtype)
        angles = (coords[..., None] * octaves).flatten(-2)
        features = torch.cat([coords, angles.sin(), angles.cos()], -1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


def region_coordinates(regions: Tensor, img_size: tuple[int, int]) -> Tensor:
    """(B, N, 4) x0, y0, x1, y1 in pixels -> centre x, centre y in [-1, 1], log2 of width and height (scaled).

    The logarithms are of fractions of the image, shifted and scaled so that 1/64 to 1 of a side maps to [-1, 1].
    """
    low, high = torch.stack(_fractions(regions, img_size), -1).unbind(-2)  # (B, N, 2), x and y
    side = (high - low).clamp(min=1 / 4096)
    return torch.cat([low + high - 1, side.log2() / 3 + 1], -1)


def carry_table(table: Tensor, regions: Tensor, img_size: tuple[int, int], grid_size: tuple[int, int]) -> Tensor:
    """The mean over each region of a table learned on a grid (paper, section 3.3).

    With the uniform partition of that same grid it is the table itself, timm's `pos_embed`.

    Args:
        table: (1, G_h * G_w, D), row by row.
        regions: (B, N, 4) in pixels.
        img_size: H, W.
        grid_size: G_h, G_w.

    Returns:
        (B, N, D), differentiable in the table and in the regions.
    """
    shares = region_shares(regions, img_size, grid_size)
    return (shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)).to(table.dtype) @ table


def map_features(tokens: Tensor, regions: Tensor, img_size: tuple[int, int], grid_size: tuple[int, int]) -> Tensor:
    """Irregular tokens as a regular map: each cell is the mean of the tokens on it, weighted by shared area.

    Args:
        tokens: (B, N, D).
        regions: (B or 1, N, 4) in pixels, tiling the image.
        img_size: H, W.
        grid_size: G_h, G_w of the map.

    Returns:
        (B, D, G_h, G_w). Tokens on the uniform partition of that grid are only reshaped.
    """
    shares = region_shares(regions, img_size, grid_size).transpose(1, 2)  # (B, G_h * G_w, N)
    weights = shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
    return (weights.to(tokens.dtype) @ tokens).transpose(1, 2).unflatten(2, grid_size)


def region_shares(regions: Tensor, img_size: tuple[int, int], grid_size: tuple[int, int]) -> Tensor:
    """How much of every cell of a grid lies in every region: (B, N, 4) -> (B, N, G_h * G_w), in cells."""
    x, y = _fractions(regions, img_size)
    rows, cols = overlap(y * grid_size[0], grid_size[0]), overlap(x * grid_size[1], grid_size[1])  # (B, N, 1, G)
    return (rows.mT * cols).flatten(-2)


def _fractions(regions: Tensor, img_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """x0 and x1 (B, N, 2), y0 and y1 (B, N, 2), as fractions of the image's sides."""
    return regions[..., 0::2] / img_size[1], regions[..., 1::2] / img_size[0]
