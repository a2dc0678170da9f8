"""Where a token is and how large: position embeddings for regions of any place and size.

# B batch, N tokens, D embedding, G_h G_w table
"""

import math

import torch
from torch import Tensor, nn

from dart.partition import Partition, overlap, select_tokens


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

    def forward(self, partition: Partition, img_size: tuple[int, int]) -> Tensor:
        """(B, N, D), differentiable in the edges."""
        coords = region_coordinates(partition.regions(), img_size)
        octaves = math.pi * 2.0 ** torch.arange(self.num_frequencies, device=coords.device, dtype=coords.dtype)
        angles = (coords[..., None] * octaves).flatten(-2)
        return self.mlp(torch.cat([coords, angles.sin(), angles.cos()], -1))


def region_coordinates(regions: Tensor, img_size: tuple[int, int]) -> Tensor:
    """(B, N, 4) x0, y0, x1, y1 in pixels -> centre x, centre y in [-1, 1], log2 of width and height (scaled).

    The logarithms are of fractions of the image, shifted and scaled so that 1/64 to 1 of a side maps to [-1, 1].
    """
    height, width = img_size
    size = regions.new_tensor([width, height])
    low, high = regions[..., :2] / size, regions[..., 2:] / size
    side = (high - low).clamp(min=1 / 4096)
    return torch.cat([low + high - 1, side.log2() / 3 + 1], -1)


class TablePosEmbed(nn.Module):
    """A learned table on a grid, averaged over each region (paper, section 3.3).

    Args:
        dim: D.
        grid_size: G_h, G_w of the table; with a uniform partition of that grid it is timm's `pos_embed`.
    """

    def __init__(self, dim: int, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(*grid_size, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, partition: Partition, img_size: tuple[int, int]) -> Tensor:
        """(B, N, D): the mean of the table over each region, differentiable in the edges."""
        grid_h, grid_w, _ = self.table.shape
        rows = overlap(partition.row_edges * (grid_h / img_size[0]), grid_h)  # (B, R, G_h)
        cols = overlap(partition.col_edges * (grid_w / img_size[1]), grid_w)  # (B, R, M, G_w)
        rows, cols = (w / w.sum(-1, keepdim=True).clamp(min=1e-6) for w in (rows, cols))
        lines = torch.einsum("brh,hwd->brwd", rows, self.table)
        return select_tokens(cols @ lines, partition.tokens_per_row)


def build_pos_embed(name: str, dim: int, grid_side: int) -> nn.Module:
    """A position embedding by its name in `dart.registry.POS_EMBEDS`; a table has `grid_side` squared entries."""
    return GeometricPosEmbed(dim) if name == "geometry" else TablePosEmbed(dim, (grid_side, grid_side))
