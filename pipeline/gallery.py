"""A few test samples of a run with what its model made of them: which ones, the file, the picture. No torch."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

FIELDS = ("images", "labels", "predictions", "confidences", "density", "regions", "patches")


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
    """Write the arrays of `FIELDS`, the first axis of each being the B samples, and the names of the labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(
            file, class_names=np.array(class_names), allow_pickle=False, **{f: arrays[f] for f in FIELDS}
        )


def draw_gallery(gallery: Path, picture: Path) -> None:
    """A gallery file -> a PNG: each image or clip (B, C, T, H, W), the density, the regions, and what the model sees.

    Of clips, density and regions are those of the tall image, as in `dart.video`.
    """
    from dart.draw.clips import draw_clips
    from dart.draw.figures import Caption, draw_tokens

    with np.load(gallery, allow_pickle=False) as file:
        arrays = dict(file)
    names = arrays["class_names"]
    captions = [
        Caption(f"{names[said]} ({100 * sure:.0f} %), true: {names[label]}", bool(said == label))
        for said, sure, label in zip(arrays["predictions"], arrays["confidences"], arrays["labels"], strict=True)
    ]
    draw = draw_clips if arrays["images"].ndim == 5 else draw_tokens
    figure = draw(arrays["images"], SimpleNamespace(**arrays), captions)
    figure.savefig(picture, dpi=110, metadata={"Software": None})
