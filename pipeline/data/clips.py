"""Which frames of a clip, and which square of them, a model reads.

Sparse: the clip is cut into as many equal segments as the model reads frames, one frame of each (Wang et al. 2016,
arXiv 1608.00859). Dense: consecutive frames, `frame_stride` apart. A clip with fewer frames than are asked for is not
refused: its frames are repeated evenly, and stages say how many there are of such.

What is random depends on (seed, epoch, index, repeat) alone, as in `pipeline.data.transforms`; tests draw nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.data.index import load_manifest, load_split_index
from pipeline.data.transforms import GREY, Transform, normalise
from pipeline.recipe import AugmentConfig

Sampling = Literal["sparse", "dense"]
ReadFrames = Callable[[Sequence[int]], np.ndarray]  # indices (n,) -> (n, H, W, C) uint8
FRAMES = 1  # tells these draws from those of the augmentation


class ClipSampling(NamedTuple):
    """How a clip's frames are chosen."""

    num_frames: int  # T, that the model reads
    sampling: Sampling
    frame_stride: int | None  # of dense sampling


class Views(NamedTuple):
    """How often a test looks at a clip: at `num_segments` times, at each in `num_crops` places."""

    num_segments: int = 1
    num_crops: int = 1

    @property
    def num_views(self) -> int:
        """V: the model's passes per clip."""
        return self.num_segments * self.num_crops


def clip_sampling(science: Mapping[str, Any]) -> ClipSampling | None:
    """From what `Trial.science` returns, or the record of it; None where the model reads images."""
    num_frames = science["model"].get("num_frames")
    return None if num_frames is None else ClipSampling(num_frames, **science["train"]["clips"])


def short_clips(directory: Path, split: str, clip: ClipSampling) -> str | None:
    """How many clips of a split have fewer frames than `clip` reads, and which has the fewest; None where none has.

    Raises:
        ShardError: as `load_split_index`.
    """
    dense, fewest = clip.sampling == "dense", load_manifest(directory).num_frames
    asked = _span(clip) if dense else clip.num_frames
    if fewest is None or fewest[0] >= asked:  # of all splits: as a rule no index need be read
        return None
    index = load_split_index(directory, split)
    assert index.num_frames is not None
    few, shortest = int((index.num_frames < asked).sum()), int(index.num_frames.argmin())
    if few == 0:
        return None
    of = f"{few} of {len(index.keys)} clips have fewer than {asked} frames"
    what = "spread over what there is" if dense else "repeated"
    return f"{split}: {of}, {index.keys[shortest]} {index.num_frames[shortest]}: they are {what}"


def random_frames(available: int, clip: ClipSampling, rng: np.random.Generator) -> np.ndarray:
    """For training: a random frame of each segment, or a random start. (T,) int64 below `available`, never falling."""
    if _fits(available, clip):
        return _stretch(clip, int(rng.integers(available - _span(clip) + 1)))
    return _spread(available, clip.num_frames, rng.random(clip.num_frames))


def fixed_frames(available: int, clip: ClipSampling, segment: int = 0, num_segments: int = 1) -> np.ndarray:
    """For tests: the `segment`-th of `num_segments` choices. (T,) int64 below `available`, never falling.

    Sparse: in every one of the T segments the frame at (segment + 1) / (num_segments + 1) of its length, the middle
    if there is one choice, as VideoMamba does. Dense: starts spread from the first possible to the last, the middle
    one if there is one choice.
    """
    if _fits(available, clip):
        place = segment / (num_segments - 1) if num_segments > 1 else 0.5
        return _stretch(clip, int(place * (available - _span(clip))))
    return _spread(available, clip.num_frames, (segment + 1) / (num_segments + 1))


def _fits(available: int, clip: ClipSampling) -> bool:
    """Dense sampling of a clip that is long enough; a shorter one is spread over its length."""
    return clip.sampling == "dense" and available >= _span(clip)


def _span(clip: ClipSampling) -> int:
    return (clip.num_frames - 1) * (clip.frame_stride or 1) + 1


def _stretch(clip: ClipSampling, start: int) -> np.ndarray:
    return start + np.arange(clip.num_frames) * (clip.frame_stride or 1)


def _spread(available: int, num_frames: int, place: np.ndarray | float) -> np.ndarray:
    """One frame of each of `num_frames` equal segments, at `place` in [0, 1) of it; repeats frames if there are few."""
    frames = ((np.arange(num_frames) + place) * available / num_frames).astype(np.int64)
    return np.minimum(frames, available - 1)  # rounding may reach the end


def resize(frames: np.ndarray, short_px: int, interpolation: str) -> np.ndarray:
    """(T, H, W, C) uint8 -> the shorter side `short_px`, the proportions kept."""
    height, width = frames.shape[1:3]
    if min(height, width) == short_px:
        return frames
    scale = short_px / min(height, width)
    size = max(short_px, round(width * scale)), max(short_px, round(height * scale))
    method = Image.Resampling[interpolation.upper()]
    grey = frames.shape[3] == 1
    resized = [np.asarray(Image.fromarray(f[..., 0] if grey else f).resize(size, method)) for f in frames]
    return np.stack(resized)[..., None] if grey else np.stack(resized)


def crop(frames: np.ndarray, side_px: int, place: int = 0, num_places: int = 1) -> np.ndarray:
    """The `place`-th of `num_places` squares of (T, H, W, C): from one end of the longer side to the other."""
    height, width = frames.shape[1:3]
    along = place / (num_places - 1) if num_places > 1 else 0.5
    top = int((along if height > width else 0.5) * (height - side_px))
    left = int((along if width >= height else 0.5) * (width - side_px))
    return frames[:, top : top + side_px, left : left + side_px]


@dataclass(frozen=True)
class ClipTransform:
    """From a stored clip to what a model reads.

    Args:
        transform: The suite's augmentation, for training; it draws the same for all frames.
        clip: How frames are chosen.
        img_size: Side in pixels of what the model reads.
        views: None: one view, drawn in training and the middle one in tests. Else all of a test's views.
    """

    transform: Transform
    clip: ClipSampling
    img_size: int
    views: Views | None = None

    def __call__(self, read: ReadFrames, available: int, index: int, repeat: int = 0) -> torch.Tensor:
        """Clip `index` of the split, of `available` frames -> (C, T, H, W) float32, with `views` (V, C, T, H, W)."""
        if self.transform.training:
            return self._training_view(read, available, index, repeat)
        views = self._test_views(read, available, self.views or Views())
        return views if self.views else views[0]

    def _training_view(self, read: ReadFrames, available: int, index: int, repeat: int) -> torch.Tensor:
        rng = np.random.default_rng([self.transform.seed, self.transform.epoch, index, repeat, FRAMES])
        frames = read(random_frames(available, self.clip, rng).tolist())
        if not isinstance(self.transform.augment, AugmentConfig):  # which crops for itself
            frames = crop(resize(frames, self.img_size, "bilinear"), self.img_size)
        return self.transform(frames, index, repeat)

    def _test_views(self, read: ReadFrames, available: int, views: Views) -> torch.Tensor:
        chosen = [fixed_frames(available, self.clip, s, views.num_segments) for s in range(views.num_segments)]
        wanted, place = np.unique(np.concatenate(chosen), return_inverse=True)  # every frame is decoded once
        recipe = self.transform.augment
        crop_pct, method, mean, std = 1.0, "bilinear", GREY, GREY
        if isinstance(recipe, AugmentConfig):
            crop_pct, method, mean, std = recipe.crop_pct, recipe.interpolation, recipe.mean, recipe.std
        frames = resize(read(wanted.tolist()), round(self.img_size / crop_pct), method)
        segments = [frames[rows] for rows in place.reshape(views.num_segments, -1)]
        squares = [crop(s, self.img_size, c, views.num_crops) for s in segments for c in range(views.num_crops)]
        return torch.stack([normalise_clip(square, mean, std) for square in squares])


def normalise_clip(frames: np.ndarray, mean: Sequence[float] = GREY, std: Sequence[float] = GREY) -> torch.Tensor:
    """(T, H, W, C) uint8 -> (C, T, H, W) float32, see `normalise`."""
    num_frames, height, width, channels = frames.shape
    tall = normalise(frames.reshape(num_frames * height, width, channels), mean, std)
    return tall.reshape(channels, num_frames, height, width)
