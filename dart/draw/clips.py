"""What a tokenizer does to a clip, as figures: film strips of its frames, its regions, its density, and what it sees.

# B batch, C channels (1 or 3 are shown, else their mean), T frames, H W frame pixels, N tokens, P patch side
Takes tensors or arrays alike, in the coordinates of `dart.video`: regions are pixels of the tall image of all frames.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart.draw.figures import (
    DART_COLOR,
    MAX_ASPECT,
    Array,
    Caption,
    as_array,
    caption_style,
    show_density,
    show_image,
    show_regions,
    unit_range,
)

FRAME_IN = 1.15  # inches, the width of a frame
MAX_FRAMES = 8  # of a clip are shown, evenly spread
ZOOM = 4  # canvas pixels per pixel of a frame, so that small regions keep their patches' detail
# What a strip can show, and its label: the frames, the density over them, the regions, the tokens put back in place.
STRIPS = {"frames": "frames", "density": "density", "regions": "token regions", "seen": "what the\nmodel sees"}
UNIFORM_STRIPS = {"regions": "uniform grid", "seen": "what\nuniform sees"}
DART_STRIPS = {"density": "learned\nimportance", "regions": "DART's\nregions", "seen": "what\nDART sees"}


class Block(NamedTuple):
    """The strips of one clip, below each other, and a line under them.

    clip: (C, T, H, W), any value range; density: (T * G_h, G_w), which blocks without that strip do not need;
    regions: (N, 4) px of the tall image; patches: (N, C, P, P) in the clip's range of values.
    strips: Labels by the names of `STRIPS`, in the order drawn.
    """

    clip: Any
    density: Any
    regions: Any
    patches: Any
    caption: Caption | str = ""
    strips: Mapping[str, str] = STRIPS
    color: str = DART_COLOR


def draw_clips(clips: Any, tokenization: Any, captions: Sequence[Caption | str]) -> Figure:
    """Four strips a clip: its frames, the density over them, the regions, and the tokens put back in their places.

    Args:
        clips: (B, C, T, H, W), any value range; a clip that leaves [0, 1] is shown from its smallest value to its
            largest.
        tokenization: Anything with `density` (B, T * G_h, G_w), `regions` (B or 1, N, 4) and `patches`
            (B, N, C, P, P), such as `VideoTokenizer.inspect(clips)`.
        captions: One per clip, set under its strips.
    """
    found = [as_array(x) for x in (tokenization.density, tokenization.regions, tokenization.patches)]
    found[1] = np.broadcast_to(found[1], (len(clips), *found[1].shape[1:]))  # one partition may serve all
    return draw_blocks([Block(*parts) for parts in zip(clips, *found, captions, strict=True)])


def draw_blocks(blocks: Sequence[Block]) -> Figure:
    """Blocks of strips below each other; above every frame stands how many of the tokens lie in it."""
    frames_in = []
    for block in blocks:
        height, width = block.clip.shape[2:]
        frames_in.append(FRAME_IN * min(MAX_ASPECT, height / width))
    heights = [len(block.strips) * (side + 0.05) + 0.5 for block, side in zip(blocks, frames_in, strict=True)]
    columns = max(len(choose_frames(block.clip.shape[1])) for block in blocks)
    figure = Figure(figsize=(columns * FRAME_IN + 0.4, sum(heights)), layout="constrained", facecolor="white")
    places = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for place, block in zip(places, blocks, strict=True):
        show_strips(place.subplots(len(block.strips), columns, squeeze=False), block)
        caption = Caption(block.caption) if isinstance(block.caption, str) else block.caption
        sign, color = caption_style(caption)
        place.supxlabel(sign + caption.text, color=color, fontsize=9)
    return figure


def show_strips(axes: NDArray[Any], block: Block) -> None:
    """One clip into axes (strips, at least as many as frames are shown); those left over stay empty."""
    clip, regions, patches = map(as_array, (block.clip, block.regions, block.patches))
    num_frames, height, width = clip.shape[1:]
    seen = paste(patches, regions, (num_frames * height, width)).reshape(len(clip), num_frames, -1, width * ZOOM)
    clip, seen = unit_range(clip, clip), unit_range(seen, clip)  # one range for all frames
    density = as_array(block.density if "density" in block.strips else np.ones((num_frames, 1)))
    maps = density.reshape(num_frames, -1, density.shape[-1])
    boxes, counts = split_regions(regions, num_frames, height)
    draw: dict[str, Callable[[Axes, int], None]] = {
        "frames": lambda ax, t: show_image(ax, clip[:, t]),
        "density": lambda ax, t: show_density(ax, clip[:, t], maps[t], (float(maps.min()), float(maps.max()))),
        "regions": lambda ax, t: show_regions(ax, clip[:, t], boxes[t], block.color),
        "seen": lambda ax, t: show_image(ax, seen[:, t]),
    }
    shown = choose_frames(num_frames)
    for row, (name, label) in zip(axes, block.strips.items(), strict=True):
        row[0].set_ylabel(label, fontsize=8)
        for ax, t in zip(row, shown, strict=False):
            draw[name](ax, t)
    for ax, t in zip(axes[0], shown, strict=False):
        ax.set_title(f"{counts[t]} token{'s'[: counts[t] != 1]}", fontsize=8, pad=3)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax in axes[:, len(shown) :].flat:
        ax.set_axis_off()


def choose_frames(num_frames: int) -> list[int]:
    """Which frames are shown: all, or `MAX_FRAMES` of them from the first to the last."""
    if num_frames <= MAX_FRAMES:
        return list(range(num_frames))
    return [round(i * (num_frames - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)]


def split_regions(regions: Array, num_frames: int, height: int) -> tuple[list[Array], list[int]]:
    """What of the regions (N, 4) lies in every frame, in its pixels, and how many have their middle there."""
    middle = np.clip((regions[:, 1] + regions[:, 3]) // (2 * height), 0, num_frames - 1)
    parts = []
    for t in range(num_frames):
        inside = regions[(regions[:, 1] < (t + 1) * height) & (regions[:, 3] > t * height)].copy()
        inside[:, 1::2] = np.clip(inside[:, 1::2] - t * height, 0, height)
        parts.append(inside)
    return parts, [int((middle == t).sum()) for t in range(num_frames)]


def paste(patches: Array, regions: Array, img_size: tuple[int, int], zoom: int = ZOOM) -> Array:
    """Every token's patch (N, C, P, P) in the place of its region (N, 4): (C, zoom * H, zoom * W), nearest pixels."""
    height, width = (zoom * side for side in img_size)
    canvas = np.zeros((patches.shape[1], height, width), dtype=np.float32)
    side = patches.shape[-1]
    for patch, (x0, y0, x1, y1) in zip(patches, regions * zoom, strict=True):
        columns, rows = _inside(x0, x1), _inside(y0, y1)
        x = np.clip((columns + 0.5 - x0) / max(x1 - x0, 1e-6) * side, 0, side - 1).astype(int)
        y = np.clip((rows + 0.5 - y0) / max(y1 - y0, 1e-6) * side, 0, side - 1).astype(int)
        canvas[:, rows[:, None], columns] = patch[:, y[:, None], x]
    return canvas


def _inside(low: float, high: float) -> NDArray[np.int64]:
    """The canvas pixels whose centres lie between two places."""
    return np.arange(int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5)))
