"""What runs of each task leave beside their weights: measures, predictions, pictures; made of one number, the first
measure on the test split."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

NUM_TEST = 200
IGNORE = 255
DIGITS = [str(digit) for digit in range(10)]
Json = dict[str, Any]


class Classes:
    """Of classification: the value is top-1."""

    val = "val_top1"
    manifest: ClassVar[Json] = {"class_names": DIGITS}
    model: ClassVar[Json] = {}
    suffix = ""  # of the models' names

    def metrics(self, value: float) -> Json:
        return {"val_top1": value + 0.01, "val_top5": 0.9, "val_loss": 1.2, "train_loss": 1.1}

    def test(self, value: float) -> Json:
        return {"top1": value, "top5": min(1, value + 0.3), "num_samples": NUM_TEST}

    def write_predictions(self, path: Path, value: float) -> None:
        num_right = round(value * NUM_TEST)
        rows = [f"{i:06d},{i % 10},{i % 10 if i < num_right else (i + 1) % 10}" for i in range(NUM_TEST)]
        path.write_text("\n".join(["key,label,prediction", *rows]) + "\n")

    def write_gallery(self, path: Path, tokenizer: Json) -> None:
        """Two pictures and what was said of them."""
        said = {"labels": np.array([1, 7]), "predictions": np.array([1, 1])}
        save(path, tokenizer, said | {"confidences": np.array([0.72, 0.5], dtype=np.float32)})


class Masks:
    """Of segmentation: the value is mIoU."""

    val = "val_miou"
    manifest: ClassVar[Json] = {"task": "segmentation", "class_names": ["background", *DIGITS]}
    model: ClassVar[Json] = {"head": "segmenter"}
    suffix = "_segmenter"

    def metrics(self, value: float) -> Json:
        return {"val_miou": value + 0.01, "val_pixel_accuracy": 0.9, "val_loss": 1.2, "train_loss": 1.1}

    def test(self, value: float) -> Json:
        others = {"miou_small": value / 2, "boundary_iou": value * 0.8, "pixel_accuracy": (1 + value) / 2}
        return {"miou": value, **others, "num_samples": NUM_TEST}

    def write_predictions(self, path: Path, value: float) -> None:
        rows = [f"{i:06d},{(1 + value) / 2:.6f},{value * (i + 1) / NUM_TEST:.6f}" for i in range(NUM_TEST)]
        path.write_text("\n".join(["key,pixel_accuracy,miou", *rows, "dark,,"]) + "\n")

    def write_gallery(self, path: Path, tokenizer: Json) -> None:
        """Two pictures of a 1; a quarter of the pixels count nowhere; DART finds the bar, uniform half of it."""
        truths = np.zeros((2, 96, 96), dtype=np.uint8)
        truths[:, 30:66, 42:54] = 2
        truths[:, 72:] = IGNORE
        predictions = np.zeros_like(truths)
        predictions[:, 30 : 66 if tokenizer["name"] == "dart" else 48, 42:54] = 2
        save(path, tokenizer, {"truths": truths, "predictions": predictions})


ANSWERS: dict[str, Any] = {"classification": Classes(), "segmentation": Masks()}


def save(path: Path, tokenizer: Json, said: dict[str, np.ndarray]) -> None:
    """Two pictures: a bright bar on black, with the regions crowding around it for DART."""
    side, rows = 96, round(tokenizer["token_budget"] ** 0.5)
    edges = np.linspace(0, side, rows + 1)
    if tokenizer["name"] == "dart":
        edges = side * (np.linspace(-1, 1, rows + 1) ** 3 + 1) / 2
    corners = [(edges[c], edges[r], edges[c + 1], edges[r + 1]) for r in range(rows) for c in range(rows)]
    images = np.full((2, 1, side, side), -1, dtype=np.float32)
    images[:, :, 30:66, 42:54] = 1
    regions = np.broadcast_to(np.array(corners, dtype=np.float32), (2, rows * rows, 4))
    np.savez_compressed(
        path,
        images=images,
        **said,
        density=np.pad(np.ones((2, 4, 4), dtype=np.float32), [(0, 0), (4, 4), (4, 4)], constant_values=0.1),
        regions=regions,
        patches=np.stack([read_patches(image, boxes) for image, boxes in zip(images, regions, strict=True)]),
    )


def read_patches(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N, C, 8, 8): the nearest pixel of each cell's centre."""
    steps = (np.arange(8) + 0.5) / 8
    x = (boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * steps).astype(int)
    y = (boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * steps).astype(int)
    return np.stack([image[:, rows][:, :, columns] for rows, columns in zip(y, x, strict=True)])
