"""How good segmentations are, from counts of pixels that add up over images, workers and ranks in any order.

# K classes, H W pixels of the stored image
Pixels of class IGNORE count nowhere.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from pipeline.data.masks import IGNORE

BACKGROUND = "background"  # a class of this name is no object
BAND_FRAC = 0.02  # width of the band along contours, as a share of the image's diagonal (arXiv 2103.16562)
MARGIN_FRAC = 0.25  # how far around a small object is looked, as a share of its longer side
Box = tuple[slice, slice]
CORNERS_TOUCH = np.ones((3, 3), bool)  # pixels that meet at a corner are of one object


class Tally(NamedTuple):
    """Counts of pixels, int64."""

    confusion: torch.Tensor  # (K, K): true class by predicted class
    band: torch.Tensor  # (2, K): intersections and unions of the bands along the contours
    small: torch.Tensor  # (2, K): intersections and unions around small objects

    @classmethod
    def zero(cls, num_classes: int) -> "Tally":
        """Nothing counted yet."""
        pair = torch.zeros(2, num_classes, dtype=torch.int64)
        return cls(torch.zeros(num_classes, num_classes, dtype=torch.int64), pair, pair)

    def plus(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def count(truth: torch.Tensor, predicted: torch.Tensor, class_names: tuple[str, ...], small_frac: float) -> Tally:
    """The counts of one image.

    Args:
        truth: (H, W) uint8, classes or IGNORE.
        predicted: (H, W) uint8, classes.
        class_names: K of them.
        small_frac: A connected part of a class is a small object if it has fewer than this share of the image's pixels.
    """
    num_classes, true = len(class_names), truth.numpy()  # a call of NumPy's costs a tenth of one of torch's
    valid = true != IGNORE
    said = np.where(valid, predicted.numpy(), np.uint8(IGNORE))  # whatever is said there, it has no contour
    bands = contour_band(true) & valid, contour_band(said) & valid
    return Tally(
        confusion(truth, predicted, num_classes),
        torch.from_numpy(_overlap(true, said, *bands, num_classes)),
        torch.from_numpy(_around_small(true, said, class_names, small_frac)),
    )


def confusion(truth: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Pixels by true and predicted class: (H, W) each -> (K, K) int64."""
    pairs = (truth.long() * num_classes + predicted).masked_fill_(truth == IGNORE, num_classes**2)
    return pairs.flatten().bincount(minlength=num_classes**2 + 1)[:-1].view(num_classes, num_classes)


def measure(tally: Tally) -> dict[str, float | None]:
    """Fractions: of a class that occurs neither in truth nor in predictions nothing is said.

    `miou` and `boundary_iou` (Cheng et al. 2021, arXiv 2103.16562) are means over the classes, `pixel_accuracy` the
    share of the pixels that are right, and `miou_small` the mean over the classes of the small objects, counted in
    their boxes; None where there are none.
    """
    return {
        "miou": mean_iou(tally.confusion),
        "boundary_iou": _mean_ratio(*tally.band),
        "miou_small": _mean_ratio(*tally.small),
        "pixel_accuracy": pixel_accuracy(tally.confusion),
    }


def mean_iou(confusion: torch.Tensor) -> float | None:
    """As `measure` has it, of (K, K) pixels by true and predicted class."""
    hits = confusion.diagonal()
    return _mean_ratio(hits, confusion.sum(0) + confusion.sum(1) - hits)


def pixel_accuracy(confusion: torch.Tensor) -> float | None:
    """As `measure` has it, of (K, K) pixels by true and predicted class."""
    total = confusion.sum()
    return float(confusion.trace() / total) if total else None


def contour_band(classes: np.ndarray) -> np.ndarray:
    """Pixels (H, W) of which another class, or the image's end, is at most the band's width away, in any direction.

    Pixels that do not count are no other class: nobody knows whether there is a contour.
    """
    height, width = classes.shape
    reach = max(1, round(BAND_FRAC * (height**2 + width**2) ** 0.5))
    band = np.ones(classes.shape, bool)
    if min(height, width) > 2 * reach:
        inner = (slice(reach, -reach),) * 2
        lowest = _pool(np.minimum, classes, reach)  # IGNORE is above all classes
        highest = _pool(np.maximum, np.where(classes == IGNORE, np.uint8(0), classes), reach)
        band[inner] = lowest != highest
    return band


def small_boxes(truth: np.ndarray, label: int, place: Box, small_frac: float) -> list[Box]:
    """The boxes of small connected parts of a class, each with a margin around it; `place` is the box of the class."""
    parts, _ = ndimage.label(truth[place] == label, CORNERS_TOUCH)
    areas = np.bincount(parts.ravel())[1:]
    found = []
    for box, area in zip(ndimage.find_objects(parts), areas, strict=True):
        if area < small_frac * truth.size:
            margin = max(1, round(MARGIN_FRAC * max(side.stop - side.start for side in box)))
            starts = [whole.start + side.start - margin for whole, side in zip(place, box, strict=True)]
            stops = [whole.start + side.stop + margin for whole, side in zip(place, box, strict=True)]
            found.append((slice(max(0, starts[0]), stops[0]), slice(max(0, starts[1]), stops[1])))
    return found


def _around_small(true: np.ndarray, said: np.ndarray, class_names: tuple[str, ...], small_frac: float) -> np.ndarray:
    counts = np.zeros((2, len(class_names)), np.int64)
    places = ndimage.find_objects(true.astype(np.int32) + 1, len(class_names))  # it counts from one
    for label, place in enumerate(places):
        if place is None or class_names[label] == BACKGROUND:
            continue
        near = np.zeros(true.shape, bool)
        for box in small_boxes(true, label, place, small_frac):
            near[box] = True
        near &= true != IGNORE
        here, there = (true == label) & near, (said == label) & near
        counts[:, label] = np.count_nonzero(here & there), np.count_nonzero(here | there)
    return counts


def _overlap(
    true: np.ndarray, said: np.ndarray, true_band: np.ndarray, said_band: np.ndarray, num_classes: int
) -> np.ndarray:
    """(2, K) int64: by class, pixels in both bands, and in either."""
    marked = (true[true_band & said_band & (true == said)], true[true_band], said[said_band])
    inside, true_count, said_count = (np.bincount(classes, minlength=num_classes) for classes in marked)
    return np.stack([inside, true_count + said_count - inside])


def _pool(largest: np.ufunc, values: np.ndarray, reach: int) -> np.ndarray:
    """The greatest, or least, value at most `reach` away: (H, W) -> (H - 2 reach, W - 2 reach).

    Line by line and then column by column, windows being put together of two that are half as long.
    """
    for _ in range(2):
        length = 1
        while length < 2 * reach + 1:
            step = min(length, 2 * reach + 1 - length)
            values = largest(values[:-step], values[step:])
            length += step
        values = values.T
    return values


def _mean_ratio(parts: torch.Tensor, wholes: torch.Tensor) -> float | None:
    """The mean of the ratios, as far as there is a whole."""
    known = wholes > 0
    return float((parts[known].double() / wholes[known]).mean()) if known.any() else None
