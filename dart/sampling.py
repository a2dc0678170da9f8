"""Regions -> patches: every region, whatever its size, is read at the same P x P pixels.

# B batch, C channels, H W image pixels, R rows, M most tokens in a row, N tokens, P patch side
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.partition import Partition, select_tokens

# Below a hundredth of a pixel a box filter is a point sample; dividing by less amplifies rounding only.
MIN_SIDE_PX = 1e-2


def sample_patches(images: Tensor, partition: Partition, patch_size: int, sampling: str = "area") -> Tensor:
    """Read each region at patch resolution.

    Args:
        images: (B, C, H, W).
        partition: For B images, or for one (B = 1) that all images share.
        patch_size: P.
        sampling: "area" averages the image over each of the P x P cells of a region (exact box filter, no
            aliasing); "point" interpolates the image linearly at the cells' centres.

    Returns:
        (B, N, C, P, P), differentiable in the images and in every edge.
    """
    read = {"area": _box, "point": _point}[sampling]
    num_rows = len(partition.tokens_per_row)
    lines = read(images.transpose(2, 3), subdivide(partition.row_edges, patch_size)[:, None, None])
    strips = lines.unflatten(-1, (num_rows, patch_size))  # (B, C, W, R, P)
    strips = strips.permute(0, 1, 3, 4, 2)  # (B, C, R, P, W)
    cells = read(strips, subdivide(partition.col_edges, patch_size)[:, None, :, None])  # (B, C, R, P, M * P)
    cells = cells.unflatten(-1, (-1, patch_size))  # (B, C, R, P, M, P)
    return select_tokens(cells.permute(0, 2, 4, 1, 3, 5), partition.tokens_per_row)


def subdivide(edges: Tensor, parts: int) -> Tensor:
    """Cut every interval into equal parts: (..., K + 1) -> (..., K * parts + 1)."""
    start, side = edges[..., :-1, None], edges.diff(dim=-1)[..., None]
    fractions = torch.arange(parts, device=edges.device, dtype=edges.dtype) / parts
    return torch.cat([(start + side * fractions).flatten(-2), edges[..., -1:]], -1)


def _box(signal: Tensor, edges: Tensor) -> Tensor:
    """Mean of a piecewise constant signal (..., S) over each interval: edges (..., K + 1) -> (..., K).

    The integral up to x is the running sum up to floor(x) plus the fraction of the pixel that x is in. The
    signal's mean is taken off first and put back, so that the running sum, and its rounding, stay small.
    """
    mean = signal.mean(-1, keepdim=True)
    signal = signal - mean
    total = F.pad(signal.cumsum(-1), (1, 0))
    pixel, fraction = _locate(edges, signal.shape)
    integral = total.gather(-1, pixel) + fraction * signal.gather(-1, pixel)
    return integral.diff(dim=-1) / edges.diff(dim=-1).clamp(min=MIN_SIDE_PX) + mean


def _point(signal: Tensor, edges: Tensor) -> Tensor:
    """Linear interpolation at the middle of each interval; beyond the outer pixel centres the border repeats."""
    centres = (edges[..., 1:] + edges[..., :-1]) / 2 - 0.5
    size = signal.shape[-1]
    pixel, fraction = _locate(centres.clamp(0, size - 1), signal.shape)
    near, far = signal.gather(-1, pixel), signal.gather(-1, (pixel + 1).clamp(max=size - 1))
    return near + fraction * (far - near)


def _locate(position: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The pixel that each position lies in, broadcast over the signal's other dimensions, and how far in."""
    # Clamped as integers: a NaN of a diverged model is read from pixel 0 and stays NaN, instead of a wild address.
    pixel = position.detach().floor().long().clamp(0, shape[-1] - 1)
    return pixel.expand(*shape[:-1], -1), position - pixel
