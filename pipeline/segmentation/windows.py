"""A model's logits of whole pictures, whatever their size: in one look, or by windows that slide over them.

# B batch, C channels, h w pixels as the model reads them, H W pixels of the stored image, K classes, S window side
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Model = Callable[[Tensor], Tensor]  # (B, C, h, w) -> logits (B, K, h, w)


class Windows(NamedTuple):
    """Squares of `side` px that a model looks at, `stride` px apart; of a pixel seen twice, logits are averaged."""

    side: int
    stride: int


def look(
    model: Model, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], windows: Windows | None = None
) -> Iterator[Tensor]:
    """The logits of every pixel of the stored images, image by image.

    Args:
        images: (C, h, w) each, as the model reads them; looked at together if all have one size.
        sizes: H, W of each stored image, to which the logits are resized.
        windows: None for one look at the whole.

    Yields:
        (K, H, W) float32.
    """
    same = len({image.shape for image in images}) == 1
    batches = [torch.stack(list(images))] if same else [image[None] for image in images]
    every = (one for batch in batches for one in (model(batch) if windows is None else slide(model, batch, windows)))
    for logits, size in zip(every, sizes, strict=True):
        yield _resize(logits.float(), size)


def slide(model: Model, images: Tensor, windows: Windows) -> Tensor:
    """Mean logits (B, K, h, w) of all windows; a picture smaller than one is filled up with zeros, the mean colour."""
    height, width = images.shape[-2:]
    side = windows.side
    padded = F.pad(images, (0, max(0, side - width), 0, max(0, side - height)))
    total: Tensor | None = None
    seen = images.new_zeros(padded.shape[-2:])
    for rows, cols in _places(padded.shape[-2], padded.shape[-1], windows):
        logits = model(padded[..., rows, cols])
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], *padded.shape[-2:])
        total[..., rows, cols] += logits
        seen[rows, cols] += 1
    assert total is not None
    return (total / seen)[..., :height, :width]


def _places(height: int, width: int, windows: Windows) -> Iterator[tuple[slice, slice]]:
    """Windows from the top left corner on; the last of a line or column ends where the picture does."""
    for top in _starts(height, windows):
        for left in _starts(width, windows):
            yield slice(top, top + windows.side), slice(left, left + windows.side)


def _starts(extent: int, windows: Windows) -> list[int]:
    last = extent - windows.side
    return [*range(0, last, windows.stride), last]


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) -> (K, H, W)."""
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
