"""The clip of method.md: a dahlia that starts to move over a pavilion, cut by where and when something changes."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from dart.draw.clips import Block, draw_blocks
from dart.kernels import sample_regions
from dart.scorer import scores_to_density
from dart.video import clip_regions

SIDE, BLOOM, GRID = 192, 64, 12  # pixels of a frame, pixels of the flower, cells
LEFT = (10, 10, 14, 30, 66, 112)  # of the flower in every frame: it stands, then moves faster and faster
PER_FRAME = 36  # tokens, on average
STRIPS = {"frames": "frames", "density": "density", "regions": "token regions", "seen": "patches"}


def draw_clip(pavilion: Tensor, dahlia: Tensor) -> Figure:
    """Strips of a clip made of two photographs (3, S, S) from 0 to 1."""
    clip = compose(pavilion, dahlia)
    num_frames = clip.shape[2]
    density = scores_to_density(change_scores(clip), floor=0.3, blur=2).flatten(1, 2)
    regions = clip_regions(density, num_frames, PER_FRAME * num_frames, 6 * num_frames, (SIDE, SIDE))
    patches = sample_regions(clip.flatten(2, 3), regions, 8)
    return draw_blocks([Block(clip[0], density[0], regions[0], patches[0], strips=STRIPS)])


def compose(pavilion: Tensor, dahlia: Tensor) -> Tensor:
    """The flower, cut out round, over a background that stands still: (1, 3, T, SIDE, SIDE)."""
    still, bloom = (
        F.interpolate(image[None], size=(side, side), mode="bilinear", antialias=True)[0]
        for image, side in ((pavilion, SIDE), (dahlia, BLOOM))
    )
    x = torch.arange(BLOOM) + 0.5 - BLOOM / 2
    inside = (x**2 + x[:, None] ** 2).sqrt() < BLOOM / 2 - 1
    frames = []
    for left in LEFT:
        frame = still.clone()
        place = frame[:, 70 : 70 + BLOOM, left : left + BLOOM]
        place[:] = torch.where(inside, bloom, place)
        frames.append(frame)
    return torch.stack(frames, 1)[None]


def change_scores(clips: Tensor) -> Tensor:
    """A control that has learned nothing: the logarithm of how much a cell differs from the frames before and after.

    The smaller of both differences counts, as in `dart.video.VideoScorer`: (B, 3, T, H, W) -> (B, T, GRID, GRID).
    """
    step = clips.mean(1).diff(dim=1).abs()
    change = torch.cat([step[:, :1], step], 1).minimum(torch.cat([step, step[:, -1:]], 1))
    strength = F.adaptive_avg_pool2d(change, GRID)
    return (strength + 0.1 * strength.mean((1, 2, 3), keepdim=True)).log()
