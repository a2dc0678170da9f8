"""A few test samples of a run with what its model made of them: which ones, the file, the picture. No torch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

# What a model is asked -> the arrays of its gallery, the first axis of each being the B samples; they tell which it is.
SEEN = ("density", "regions", "patches")
FIELDS = {
    "classification": ("images", "labels", "predictions", "confidences", *SEEN),
    "segmentation": ("images", "truths", "predictions", *SEEN),
}


def choose_samples(labels: np.ndarray, num_classes: int, num_chosen: int) -> list[int]:
    """Indices of the samples to show: the first ones of classes spread over all classes.

    The choice is arithmetic, so every run of a data set shows the same samples.

    Args:
        labels: (n,) int, by index in the split.
    """
    order = [i * num_classes // num_chosen % num_classes for i in range(num_chosen)]
    chosen: list[int] = []
    for wanted in order:
        of_class = [int(i) for i in np.flatnonzero(labels == wanted) if i not in chosen]
        rest = [i for i in range(len(labels)) if i not in chosen]  # a class may be absent from the split
        chosen += (of_class or rest)[:1]
    return chosen


def save_gallery(path: Path, class_names: tuple[str, ...], **arrays: np.ndarray) -> None:
    """Write the arrays that `FIELDS` names for classification, and the names of the labels.

    Labels, predictions and confidences are (B,), the others as in `draw_gallery`.
    """
    _save(path, class_names, {name: arrays[name] for name in FIELDS["classification"]})


def save_segmentation_gallery(
    path: Path,
    class_names: tuple[str, ...],
    images: np.ndarray,
    truths: np.ndarray,
    predictions: np.ndarray,
    density: np.ndarray,
    regions: np.ndarray,
    patches: np.ndarray,
) -> None:
    """As `save_gallery`, of images whose every pixel has a class.

    Args:
        truths: (B, H, W) uint8; 255 does not count.
        predictions: (B, H, W) uint8.
    """
    arrays = {"images": images, "truths": truths, "predictions": predictions}
    _save(path, class_names, {**arrays, "density": density, "regions": regions, "patches": patches})


def _save(path: Path, class_names: tuple[str, ...], arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, class_names=np.array(class_names), allow_pickle=False, **arrays)


def draw_gallery(gallery: Path, picture: Path) -> None:
    """A gallery file -> a PNG: each image or clip (B, C, T, H, W), the density, the regions, and what the model sees.

    Of clips, density and regions are those of the tall image, as in `dart.video`. Where pixels have classes, the true
    and the predicted ones take the place of what the model sees.
    """
    with np.load(gallery, allow_pickle=False) as file:
        arrays = dict(file)
    task = next(task for task, fields in FIELDS.items() if arrays.keys() >= set(fields))
    figure = {"classification": _draw_answers, "segmentation": _draw_segments}[task](arrays)
    figure.savefig(picture, dpi=110, metadata={"Software": None})


def _draw_answers(arrays: dict[str, np.ndarray]) -> Any:
    """A caption for each sample: what the model said, and how sure it was."""
    from dart.draw.clips import draw_clips
    from dart.draw.figures import Caption, draw_tokens

    names = arrays["class_names"]
    captions = [
        Caption(f"{names[said]} ({100 * sure:.0f} %), true: {names[label]}", bool(said == label))
        for said, sure, label in zip(arrays["predictions"], arrays["confidences"], arrays["labels"], strict=True)
    ]
    draw = draw_clips if arrays["images"].ndim == 5 else draw_tokens
    return draw(arrays["images"], SimpleNamespace(**arrays), captions)


def _draw_segments(arrays: dict[str, np.ndarray]) -> Any:
    """True and predicted classes, and the mIoU of each image."""
    from dart.draw.segments import draw_segments

    images, predictions, truths = (arrays[name] for name in ("images", "predictions", "truths"))
    names = [str(name) for name in arrays["class_names"]]
    return draw_segments(images, predictions, truths, arrays["regions"], names, arrays["density"])
