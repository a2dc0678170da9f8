"""Where a token is and how large: position embeddings for regions of any place and size.

# B batch, T frames, N tokens, D embedding, G_h G_w table
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.partition import overlap


class GeometricPosEmbed(nn.Module):
    """An MLP of each region's centre and log size, in sines and cosines.

    Knows nothing of grids, so it carries over to any image size, token budget and partition.

    Args:
        dim: D.
        num_frequencies: Octaves of the sine and cosine features of each of the four coordinates.
    """

    num_coordinates = 4

    def __init__(self, dim: int, num_frequencies: int = 4) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        num_features = self.num_coordinates * (1 + 2 * num_frequencies)
        self.mlp = nn.Sequential(nn.Linear(num_features, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, regions: Tensor, img_size: tuple[int, int]) -> Tensor:
        """Regions (B, N, 4) in pixels -> (B, N, D), differentiable in the regions."""
        return self.embed(region_coordinates(regions, img_size))

    def embed(self, coords: Tensor) -> Tensor:
        """Coordinates (B, N, K) in about [-1, 1] -> (B, N, D)."""
        octaves = math.pi * 2.0 ** torch.arange(self.num_frequencies, device=coords.device, dtype=coords.dtype)
        angles = (coords[..., None] * octaves).flatten(-2)
        features = torch.cat([coords, angles.sin(), angles.cos()], -1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class ClipPosEmbed(GeometricPosEmbed):
    """As `GeometricPosEmbed`, for regions of a clip: place in the frame, log size, and time."""

    num_coordinates = 5

    def forward(self, regions: Tensor, img_size: tuple[int, int], num_frames: int = 1) -> Tensor:
        """Regions (B, N, 4) in pixels of the T frames below each other, of that size in all -> (B, N, D)."""
        return self.embed(clip_coordinates(regions, img_size, num_frames))


def region_coordinates(regions: Tensor, img_size: tuple[int, int]) -> Tensor:
    """(B, N, 4) x0, y0, x1, y1 in pixels -> centre x, centre y in [-1, 1], log2 of width and height (scaled).

    The logarithms are of fractions of the image, shifted and scaled so that 1/64 to 1 of a side maps to [-1, 1].
    """
    low, high = torch.stack(_fractions(regions, img_size), -1).unbind(-2)  # (B, N, 2), x and y
    side = (high - low).clamp(min=1 / 4096)
    return torch.cat([low + high - 1, side.log2() / 3 + 1], -1)


def clip_coordinates(regions: Tensor, img_size: tuple[int, int], num_frames: int) -> Tensor:
    """As `region_coordinates` in a frame, and the time in [-1, 1]: (B, N, 4) -> (B, N, 5).

    A region that spans frames is where it is on average; its height is that of all its parts together.
    """
    parts = frame_parts(regions, img_size, num_frames)  # (B, N, T, 2), fractions of a frame
    share = parts.diff(dim=-1)[..., 0]
    share = share / share.sum(-1, keepdim=True).clamp(min=1e-12)
    middle = (share * parts.mean(-1)).sum(-1)
    times = torch.arange(num_frames, device=share.device, dtype=share.dtype) + 0.5
    time = (share * times).sum(-1) / num_frames  # not `@`: under autocast that would be bfloat16
    x, _, width, height = region_coordinates(regions, (img_size[0] // num_frames, img_size[1])).unbind(-1)
    return torch.stack([x, 2 * middle - 1, width, height, 2 * time - 1], -1)


def frame_parts(regions: Tensor, img_size: tuple[int, int], num_frames: int) -> Tensor:
    """From where to where every region lies in every frame, in fractions of it: (B, N, 4) -> (B, N, T, 2)."""
    y = regions[..., None, 1::2] * num_frames / img_size[0]
    return (y - torch.arange(num_frames, device=y.device, dtype=y.dtype)[:, None]).clamp(0, 1)


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


def carry_clip_tables(
    table: Tensor, time_table: Tensor, regions: Tensor, img_size: tuple[int, int], num_frames: int
) -> Tensor:
    """The means over each region of a table of places, the same in all frames, and of a table of times, summed.

    Args:
        table: (1, G * G, D), row by row.
        time_table: (1, K, D); of another number of frames it is interpolated linearly.
        regions: (B, N, 4) in pixels of the T frames below each other.
        img_size: T H, W.
        num_frames: T.

    Returns:
        (B, N, D), differentiable in the tables and in the regions.
    """
    side = math.isqrt(table.shape[1])
    parts = frame_parts(regions, img_size, num_frames)
    rows = overlap(parts * side, side)[..., 0, :].sum(-2)[..., None]  # of all frames (B, N, G, 1)
    cols = overlap(_fractions(regions, img_size)[0] * side, side)  # (B, N, 1, G)
    shares = (rows * cols).flatten(-2), parts.diff(dim=-1)[..., 0]
    space, time = (s / s.sum(-1, keepdim=True).clamp(min=1e-12) for s in shares)
    return space.to(table.dtype) @ table + time.to(time_table.dtype) @ resample_times(time_table, num_frames)


def resample_times(table: Tensor, num_frames: int) -> Tensor:
    """A table over time (1, T, D) for another number of frames, linear between its entries."""
    return table if table.shape[1] == num_frames else F.interpolate(table.mT, num_frames, mode="linear").mT


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
    return map_by_shares(tokens, region_shares(regions, img_size, grid_size), grid_size)


def map_by_shares(tokens: Tensor, shares: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """As `map_features`, of how much of every cell lies in every token: shares (B or 1, N, G_h * G_w)."""
    shares = shares.mT  # (B, G_h * G_w, N)
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
