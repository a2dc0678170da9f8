"""How good segmentations are, from counts of pixels that add up over images, workers and ranks in any order.

# K classes, H W pixels of the stored image
Pixels of class IGNORE count nowhere.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from pipeline.data.masks import IGNORE

BACKGROUND = "background"  # a class of this name is no object
BAND_FRAC = 0.02  # width of the band along contours, as a share of the image's diagonal (arXiv 2103.16562)
MARGIN_FRAC = 0.25  # how far around a small object is looked, as a share of its longer side
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
    num_classes, valid = len(class_names), truth != IGNORE
    predicted = predicted.where(valid, IGNORE)  # whatever is said there, it has no contour
    return Tally(
        confusion(truth, predicted, num_classes),
        _overlap(truth, predicted, contour_band(truth) & valid, contour_band(predicted) & valid, num_classes),
        _around_small(truth, predicted, class_names, small_frac),
    )


def confusion(truth: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Pixels by true and predicted class: (H, W) each -> (K, K) int64."""
    valid = truth != IGNORE
    pairs = truth[valid].long() * num_classes + predicted[valid].long()
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def measure(tally: Tally) -> dict[str, float | None]:
    """Fractions: of a class that occurs neither in truth nor in predictions nothing is said.

    `miou` and `boundary_iou` (Cheng et al. 2021, arXiv 2103.16562) are means over the classes, `pixel_accuracy` the
    share of the pixels that are right, and `miou_small` the mean over the classes of the small objects, counted in
    their boxes; None where there are none.
    """
    hits = tally.confusion.diagonal()
    unions = tally.confusion.sum(0) + tally.confusion.sum(1) - hits
    return {
        "miou": _mean_ratio(hits, unions),
        "boundary_iou": _mean_ratio(*tally.band),
        "miou_small": _mean_ratio(*tally.small),
        "pixel_accuracy": float(hits.sum() / tally.confusion.sum()) if tally.confusion.any() else None,
    }


def contour_band(classes: torch.Tensor) -> torch.Tensor:
    """Pixels (H, W) of which another class, or the image's end, is at most the band's width away, in any direction.

    Pixels that do not count are no other class: nobody knows whether there is a contour.
    """
    width = max(1, round(BAND_FRAC * (classes.shape[0] ** 2 + classes.shape[1] ** 2) ** 0.5))
    values, ignored = classes.float()[None], (classes == IGNORE)[None]
    highest, lowest = (
        _pool(F.pad((sign * values).masked_fill(ignored, -1e3), (width,) * 4, value=1e3), width) for sign in (1, -1)
    )
    return (highest != classes) | (-lowest != classes)


def small_boxes(truth: np.ndarray, label: int, small_frac: float) -> list[tuple[slice, slice]]:
    """The boxes of small connected parts of a class, each with a margin around it."""
    parts, _ = ndimage.label(truth == label, CORNERS_TOUCH)
    areas = np.bincount(parts.ravel())[1:]
    found = []
    for box, area in zip(ndimage.find_objects(parts), areas, strict=True):
        if area < small_frac * truth.size:
            margin = max(1, round(MARGIN_FRAC * max(side.stop - side.start for side in box)))
            rows, cols = (slice(max(0, side.start - margin), side.stop + margin) for side in box)
            found.append((rows, cols))
    return found


def _around_small(
    truth: torch.Tensor, predicted: torch.Tensor, class_names: tuple[str, ...], small_frac: float
) -> torch.Tensor:
    counts = torch.zeros(2, len(class_names), dtype=torch.int64)
    for label in truth.unique().tolist():
        if label == IGNORE or class_names[label] == BACKGROUND:
            continue
        near = torch.zeros_like(truth, dtype=torch.bool)
        for rows, cols in small_boxes(truth.numpy(), label, small_frac):
            near[rows, cols] = True
        near &= truth != IGNORE
        here, said = (truth == label) & near, (predicted == label) & near
        counts[0, label], counts[1, label] = (here & said).sum(), (here | said).sum()
    return counts


def _overlap(
    truth: torch.Tensor, predicted: torch.Tensor, true_band: torch.Tensor, said_band: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """(2, K): by class, pixels in both bands, and in either."""
    both = (true_band & said_band & (truth == predicted)).nonzero(as_tuple=True)
    inside = truth[both].bincount(minlength=num_classes)
    either = truth[true_band].bincount(minlength=num_classes) + predicted[said_band].bincount(minlength=num_classes)
    return torch.stack([inside, either - inside])


def _pool(padded: torch.Tensor, width: int) -> torch.Tensor:
    """The greatest value at most `width` away, line by line and then column by column."""
    side = 2 * width + 1
    return F.max_pool2d(F.max_pool2d(padded, (1, side), 1), (side, 1), 1)[0]


def _mean_ratio(parts: torch.Tensor, wholes: torch.Tensor) -> float | None:
    """The mean of the ratios, as far as there is a whole."""
    known = wholes > 0
    return float((parts[known].double() / wholes[known]).mean()) if known.any() else None
