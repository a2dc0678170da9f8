"""Rows and token edges -> patches: the paper's two linear steps, as one exact gather and as they are written.

# B batch, C channels, H W image pixels, R rows, N tokens, P patch side, K columns asked for
Coordinates are pixel INDICES here (pixel 0 sits at 0, as in the paper), not pixels with centres at +0.5: sample m of
P starts at the region's edge and the far edge is never sampled. Rows have heights in input pixels that sum to H; tokens
have edges on the strip of all rows, in pixels from 0 to R W. Right of a row's last pixel lies the next row's first
one, and right of the last row lies 0: samples in between mix the two, and so it is in the paper.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.tokenizer import one_of


def sample_tokens(images: Tensor, heights: Tensor, edges: Tensor, patch_size: int, along: str = "linear") -> Tensor:
    """Read every token at P x P points (section 3.3).

    Equal to `sample_two_step` without ever making the strip: each sample gathers its own four pixels.

    Args:
        images: (B, C, H, W).
        heights: (B, R) px.
        edges: (B, N + 1) px on the strip.
        patch_size: P.
        along: "linear", or "nearest" along the strip (half to even); down the rows it is always linear.

    Returns:
        (B, N, C, P, P), differentiable in the images, the heights and, when linear, the edges.
    """
    place = token_columns(edges, patch_size).flatten(1)  # (B, N P)
    if one_of("along", along, ("linear", "nearest")) == "nearest":
        columns = read_columns(images, heights, place.round().long(), patch_size)
    else:
        pixel = place.detach().floor()
        part = (place - pixel)[:, None, None]
        left, right = (read_columns(images, heights, pixel.long() + step, patch_size) for step in (0, 1))
        columns = left + part * (right - left)
    return columns.unflatten(-1, (-1, patch_size)).permute(0, 3, 1, 2, 4)


def token_columns(edges: Tensor, patch_size: int) -> Tensor:
    """Where the columns of every patch lie on the strip: (B, N + 1) -> (B, N, P)."""
    return edges[:, :-1, None] + edges.diff(dim=-1)[..., None] * fractions(edges, patch_size)


def row_lines(heights: Tensor, patch_size: int, height: int) -> Tensor:
    """Where the P lines of every row lie in the image: (B, R) -> (B, R, P), at most H - 1."""
    top = heights.cumsum(-1) - heights
    lines = top[..., None] + heights[..., None] * fractions(heights, patch_size)
    return lines.clamp(0, height - 1)


def read_columns(images: Tensor, heights: Tensor, columns: Tensor, patch_size: int) -> Tensor:
    """Whole pixels of the strip, all P lines of each: columns (B, K) -> (B, C, P, K), 0 outside the strip."""
    height, width = images.shape[-2:]
    num_rows = heights.shape[-1]
    inside = (columns >= 0) & (columns < num_rows * width)
    columns = columns.clamp(0, num_rows * width - 1)
    row = (columns // width)[:, None].expand(-1, patch_size, -1)
    line = row_lines(heights, patch_size, height).transpose(1, 2).gather(-1, row)  # (B, P, K)
    # Clamped as integers: a NaN of a diverged model stays NaN, instead of a wild address.
    above = line.detach().floor().long().clamp(0, height - 1)
    below = (above + 1).clamp(max=height - 1)
    part = (line - above)[:, None]
    upper, lower = (_gather_pixels(images, y * width + (columns % width)[:, None]) for y in (above, below))
    return (upper + part * (lower - upper)) * inside[:, None, None]


def sample_two_step(images: Tensor, heights: Tensor, edges: Tensor, patch_size: int) -> Tensor:
    """The paper's two steps as they are written: the image resampled to the strip, the strip to patches.

    Same arguments and result as `sample_tokens` (linear); slower, and holds all R P W pixels of the strip. Kept as
    its reference and as the yardstick of `make bench`.
    """
    height, width = images.shape[-2:]
    y = row_lines(heights, patch_size, height).flatten(1) * (2 / (height - 1)) - 1
    x = torch.linspace(-1, 1, width, device=y.device, dtype=y.dtype)
    grid = torch.stack(torch.broadcast_tensors(x, y[..., None]), -1)  # (B, R P, W, 2)
    lines = F.grid_sample(images, grid, "bilinear", "border", align_corners=True)
    strip = lines.unflatten(2, (-1, patch_size)).transpose(2, 3).flatten(1, 2).flatten(2)  # (B, C P, R W)
    x = token_columns(edges, patch_size).flatten(1) * (2 / (strip.shape[-1] - 1)) - 1
    grid = torch.stack([x, torch.zeros_like(x)], -1)[:, None]  # (B, 1, N P, 2)
    patches = F.grid_sample(strip[:, :, None], grid, "bilinear", "zeros", align_corners=True)
    return patches.view(images.shape[0], -1, patch_size, edges.shape[-1] - 1, patch_size).permute(0, 3, 1, 2, 4)


def fractions(like: Tensor, patch_size: int) -> Tensor:
    """0, 1/P ... (P - 1)/P in the precision of `like`."""
    return torch.arange(patch_size, device=like.device, dtype=like.dtype) / patch_size


def _gather_pixels(images: Tensor, index: Tensor) -> Tensor:
    """(B, C, H, W) at flat indices (B, P, K) -> (B, C, P, K)."""
    flat = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(-1, flat).unflatten(-1, index.shape[1:])
