"""Regions -> patches: every region, whatever its size, is read at the same P x P pixels with one look-up.

# B batch, C channels, H W image pixels, N tokens, P patch side
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels.dispatch import is_exporting, use_triton

# Below a hundredth of a pixel a box filter is a point sample; dividing by less amplifies rounding only.
MIN_CELL_PX = 1e-2


def sample_regions(images: Tensor, regions: Tensor, patch_size: int, sampling: str = "area") -> Tensor:
    """Read each region at patch resolution.

    Args:
        images: (B, C, H, W).
        regions: (B, N, 4) x0, y0, x1, y1 in pixels, or (1, N, 4) that all images share. A side below
            `MIN_CELL_PX` a cell is read as if it were that long.
        patch_size: P.
        sampling: "area" averages the image over each of the P x P cells of a region (exact box filter, no
            aliasing); "point" interpolates the image linearly at the cells' centres, the border repeated.

    Returns:
        (B, N, C, P, P) in the images' dtype, differentiable in the images and in every region.
    """
    if use_triton(images, regions):
        from dart.kernels.sample_regions_triton import sample_regions_triton

        return sample_regions_triton(images, regions, patch_size, sampling)
    return sample_regions_reference(images, regions, patch_size, sampling)


def sample_regions_reference(images: Tensor, regions: Tensor, patch_size: int, sampling: str) -> Tensor:
    """The plain PyTorch twin: torch's bilinear look-up, in the image or in its integral."""
    if sampling not in ("area", "point"):
        raise ValueError(f"sampling = {sampling!r}: unknown; known: 'area', 'point'")
    batch, channels = images.shape[:2]  # `len` would make the batch a constant of an exported graph
    if regions.shape[0] < batch:  # shared: the batch becomes channels, every address and weight is found once
        images = images.flatten(0, 1)[None]
    read = _box if sampling == "area" else _point
    x0, y0, x1, y1 = regions.unbind(-1)
    patches = read(images, *_widen(x0, x1, patch_size), *_widen(y0, y1, patch_size), patch_size)  # (1 | B, ., N, P, P)
    return patches.view(batch, channels, *patches.shape[-3:]).transpose(1, 2).to(images.dtype)


def _widen(low: Tensor, high: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Start and cell side of each interval, the side at least MIN_CELL_PX, the middle kept."""
    side = ((high - low) / patch_size).clamp(min=MIN_CELL_PX)
    return (low + high - side * patch_size) / 2, side


def _box(images: Tensor, x0: Tensor, dx: Tensor, y0: Tensor, dy: Tensor, patch_size: int) -> Tensor:
    """Means over the cells, from the integral of the image at their (P + 1)^2 corners.

    The integral of an image that is constant inside each pixel is bilinear there, so the look-up is exact. It is
    kept in float64, where the device has it: its corners differ by a millionth of its size.
    """
    wide = torch.float32 if images.device.type == "mps" else torch.float64
    integral = _integrate(images, wide)
    steps = torch.arange(patch_size + 1, device=x0.device, dtype=wide)
    x, y = (start[..., None].to(wide) + side[..., None] * steps for start, side in ((x0, dx), (y0, dy)))
    corners = _look_up(integral, x, y, align_corners=True)  # (B, C, N, P + 1, P + 1)
    return corners.diff(dim=-1).diff(dim=-2).to(x0.dtype) / (dx * dy)[:, None, :, None, None]


def _integrate(images: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of all pixels above and left of every corner of pixels: (B, C, H, W) -> (B, C, H + 1, W + 1)."""
    if images.device.type != "cpu" or images.requires_grad or torch.compiler.is_compiling() or is_exporting():
        return F.pad(images, (1, 0, 1, 0)).cumsum(-1, dtype=dtype).cumsum(-2)
    # The same bits in a fifth of the time: torch's running sum across lines takes one number after the other.
    integral = images.new_zeros(*images.shape[:2], images.shape[2] + 1, images.shape[3] + 1, dtype=dtype)
    torch.cumsum(images, -1, dtype=dtype, out=integral[..., 1:, 1:])
    for above, line in pairwise(integral.unbind(-2)):
        line.add_(above)
    return integral


def _point(images: Tensor, x0: Tensor, dx: Tensor, y0: Tensor, dy: Tensor, patch_size: int) -> Tensor:
    """The image at the cells' centres."""
    steps = torch.arange(patch_size, device=x0.device, dtype=x0.dtype) + 0.5
    x, y = (start[..., None] + side[..., None] * steps for start, side in ((x0, dx), (y0, dy)))
    return _look_up(images.to(x0.dtype), x, y, align_corners=False)


def _look_up(images: Tensor, x: Tensor, y: Tensor, align_corners: bool) -> Tensor:
    """Bilinear at every (x, y): x, y (B, N, K) -> (B, C, N, K, K). `align_corners`: sample 0 sits at 0, not at 0.5."""
    height, width = (side - align_corners for side in images.shape[-2:])
    size = (*x.shape, x.shape[-1])
    grid = torch.stack(
        [(x * (2 / width) - 1)[..., None, :].expand(size), (y * (2 / height) - 1)[..., None].expand(size)], -1
    )
    found = F.grid_sample(images, grid.flatten(1, 2), "bilinear", "border", align_corners)
    return found.unflatten(2, x.shape[1:])
