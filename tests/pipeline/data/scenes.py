"""A small folder as ADEChallengeData2016 has it: scenes of different sizes, and a class for every pixel."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t11\t7\twall\n2 \t0.1\t6\t6\tbuilding, edifice\n8\t0.02\t1\t1\tbed \n"
PARTS = {"training": "train", "validation": "val"}


def image_path(root: Path, part: str, number: int) -> Path:
    """Of the published name: `part` is training or validation."""
    return root / f"images/{part}/ADE_{PARTS[part]}_{number:08d}.jpg"


def mask_path(root: Path, part: str, number: int) -> Path:
    """Of the published name."""
    return root / f"annotations/{part}/{image_path(root, part, number).stem}.png"


def save(path: Path, pixels: np.ndarray) -> None:
    """In the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_scenes(root: Path, num_train: int = 8, num_val: int = 4) -> None:
    """Noise of 30 to 40 px on a side, of the first four classes, the last one and the one that does not count."""
    rng = np.random.default_rng(0)
    for part, count in (("training", num_train), ("validation", num_val)):
        for number in range(count):
            size = (30 + number, 40) if number % 2 else (40, 30 + number)
            save(image_path(root, part, number), rng.integers(0, 256, (*size, 3), np.uint8))
            mask = rng.integers(0, 5, size).astype(np.uint8)
            mask[0, 0], mask[-1, -1] = 150, 0
            save(mask_path(root, part, number), mask)
    (root / "objectInfo150.txt").write_text(NAMES)
