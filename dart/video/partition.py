"""Density -> regions of a clip: its frames get rows, by their mass, and every frame is cut as an image is.

# B batch, T frames, G_h G_w density grid of a frame, H W frame pixels, R rows, N tokens
A clip is one tall image, its frames below each other: pixels are those of T H x W, the density is (B, T * G_h, G_w).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.kernels import invert_cdf
from dart.partition import check_row_weight, cut_rows, flow_regions, overlap, plan_rows, token_places, uniform_regions


def plan_clip_rows(num_patches: int, num_rows: int | None, num_frames: int, aspect: float = 1.0) -> int:
    """The number of rows of a whole clip: as asked, or T times what makes uniform regions of a frame about square.

    The paper's floor(sqrt(num_patches / T) * T) for square frames, but for its rounding: equal frames get equal rows.
    """
    if num_rows is None:
        wanted = round((num_patches / num_frames * aspect) ** 0.5)
        return min(num_patches, num_frames * max(1, wanted))
    return plan_rows(num_patches, num_rows)


def clip_regions(
    density: Tensor,
    num_frames: int,
    num_patches: int,
    num_rows: int,
    frame_size: tuple[int, int],
    row_weight: str = "mass",
) -> Tensor:
    """Cut clips into rows and tokens, over space and time together; no token lies in two frames.

    Tokens go to frames in proportion to their mass, rows in proportion to its root, so that regions stay about square;
    both in whole numbers, at least one row a frame and one token a row. A frame is then cut as `flow_regions` cuts an
    image. With fewer rows than frames the rows are those of the tall image, and may span frames.

    Args:
        density: (B, T * G_h, G_w), positive.
        num_frames: T; one frame is cut exactly as an image.
        num_patches: N, of the whole clip.
        num_rows: R, of the whole clip, at most N.
        frame_size: H, W in pixels.
        row_weight: "mass": the tokens of one frame have equal masses, close to 1 / N. "density": the rows of one frame
            have equal masses, and all rows of the clip get tokens by their mean density; see `flow_regions`.

    Returns:
        (B, N, 4) pixels of the tall image, T H x W. Differentiable in the density; how many rows and tokens a frame
        gets are constants, so gradient moves edges inside frames. On the way are R * G_h * G_w numbers per clip, and
        N * R comparisons.
    """
    height, width = frame_size
    if num_frames == 1 or num_rows < num_frames:
        return flow_regions(density, num_patches, num_rows, (num_frames * height, width), row_weight)
    check_row_weight(row_weight)
    marginal = density.sum(-1).unflatten(1, (num_frames, -1))  # (B, T, G_h)
    grid_h = marginal.shape[-1]
    rows = _share_rows(marginal.sum(-1).detach(), num_patches, num_rows, row_weight == "mass")
    mass = marginal.gather(1, rows.frame[..., None].expand(-1, -1, grid_h))  # of every row's frame (B, R, G_h)
    tops = rows.frame * grid_h + invert_cdf(mass, rows.level[..., None])[..., 0]  # level 0 is exactly 0
    edges = F.pad(tops, (0, 1), value=num_frames * grid_h)  # (B, R + 1), cells of the tall image
    # A row's mass by column is found in its own frame: with all frames, memory would grow with their square.
    ends = torch.stack([edges[:, :-1], edges[:, 1:]], -1) - (rows.frame * grid_h)[..., None]
    frames = density.unflatten(1, (num_frames, grid_h))
    own = frames.gather(1, rows.frame[..., None, None].expand(-1, -1, *frames.shape[2:]))  # (B, R, G_h, G_w)
    strips = (overlap(ends, grid_h).mT * own).sum(2)
    return cut_rows(strips, edges, rows.ends if row_weight == "mass" else None, num_patches, frame_size, grid_h)


def uniform_clip_regions(
    num_patches: int,
    num_rows: int | None,
    num_frames: int,
    frame_size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """The partition of a constant density, in closed form, for all clips: (1, N, 4), pixels of the tall image.

    With T a divisor of R and of N, that of `uniform_regions` in every frame.
    """
    height, width = frame_size
    num_rows = plan_clip_rows(num_patches, num_rows, num_frames, height / width)
    if num_frames == 1 or num_rows < num_frames:
        return uniform_regions(num_patches, num_rows, (num_frames * height, width), device, dtype)
    rows = _share_rows(torch.ones(1, num_frames, device=device, dtype=dtype), num_patches, num_rows, True)
    edges = F.pad((rows.frame + rows.level) * height, (0, 1), value=num_frames * height)
    row, part = token_places(rows.ends, num_patches, dtype)
    y = torch.stack([edges[:, :-1], edges[:, 1:]], -1).gather(1, row[..., None].expand(-1, -1, 2))
    return torch.stack([part * width, y], -1).flatten(2)


class Rows(NamedTuple):
    """Whole numbers of a clip, for each of its R rows, (B, R) each.

    frame: The frame that it lies in.
    level: The fraction of that frame's mass above it.
    ends: Tokens up to it and in it.
    """

    frame: Tensor
    level: Tensor
    ends: Tensor


def _share_rows(mass: Tensor, num_patches: int, num_rows: int, by_mass: bool) -> Rows:
    """Rows and tokens of frames of some mass (B, T); `by_mass`: a row's mass is as its tokens, else rows are equal."""
    row_ends = _share(mass.sqrt(), num_rows, torch.ones_like(mass, dtype=torch.long).cumsum(-1))
    token_ends = _share(mass, num_patches, row_ends)
    frame, part = token_places(row_ends, num_rows, mass.dtype)
    first_row, first = (F.pad(ends, (1, 0)).gather(1, frame) for ends in (row_ends, token_ends))
    rows, tokens = row_ends.gather(1, frame) - first_row, token_ends.gather(1, frame) - first  # of the row's frame
    nth = torch.arange(num_rows, device=mass.device) - first_row
    above = nth * tokens // rows  # tokens of the same frame above the row
    level = above.to(mass.dtype) / tokens if by_mass else part[..., 0]
    return Rows(frame, level, first + (nth + 1) * tokens // rows)


def _share(weights: Tensor, total: int, least: Tensor) -> Tensor:
    """A whole number, shared out by weights (B, T): what goes to each frame and those before it (B, T).

    Args:
        least: (B, T) what must go at least to each frame and those before it; no frame gets less than its part.
    """
    share = weights.cumsum(-1) / weights.sum(-1, keepdim=True)
    # Halves are rounded up, also where rounding made a little less of them: equal frames must not differ by chance.
    half = 0.5 + max(1e-3, 1e-6 * total)
    spare = (share * total + half).long() - least
    frames = torch.arange(weights.shape[-1], device=weights.device)
    most = torch.where(frames[:, None] >= frames, spare[:, None], 0).amax(-1)  # so far; cummax, for every exporter
    return most.minimum(total - least[:, -1:]) + least
