"""Reading samples in exact order against stock WebDataset and against a bare loop, on the same shards of JPEG."""

import io
import random
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.compare import Comparison
from pipeline.data.augment import build_augmentation
from pipeline.data.dataset import ShardDataset, Stored
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import load_manifest, load_split_index
from pipeline.data.ledger import Ledger
from pipeline.data.loader import train_loader
from pipeline.data.options import ImageFolderOptions, StoreOptions
from pipeline.data.order import epoch_order
from pipeline.data.shards import write_shards
from pipeline.data.transforms import Transform
from pipeline.recipe import AugmentConfig

NUM, SIZE, SIDE, BATCH = 1280, (375, 500), 224, 64  # about ImageNet's pictures: 110 kB each
RECIPE = AugmentConfig(
    scale=[0.08, 1.0], hflip=0.5, interpolation="bicubic", auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.0,
    reprob=0.25, aug_repeats=1, mixup=0.0, cutmix=0.0, crop_pct=0.875, mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
)  # fmt: skip
ORDER: dict[str, Any] = {
    "global_batch_size": BATCH,
    "seed": 0,
    "epoch": 0,
    "augment": RECIPE,
    "img_size": SIDE,
    "verify": "samples",
}
READING_TARGET, DECODED_TARGET, EXACT_TARGET, RESUME_TARGET = 5.0, 0.95, 0.97, 0.95


def comparisons() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder))
        num = load_manifest(shards).split("train").num_samples
        yield raw_reading(shards, num)
        yield decoded(shards, num)
        yield exactness(shards, num, Path(folder) / "run")
        yield resuming(shards, num)


def make_shards(folder: Path) -> Path:
    """Pictures with about as many bytes per pixel as photographs, in shards of 200."""
    rng = np.random.default_rng(0)
    for number in range(NUM):
        coarse = rng.integers(0, 256, (SIZE[0] // 4, SIZE[1] // 4, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
        path = folder / "pictures" / f"class{number % 4}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
    options = ImageFolderOptions(
        name="image-folder", path=str(folder / "pictures"),
        store=StoreOptions(shorter_side=512, format="jpg", quality=90), val_frac=0.01, test_frac=0.01, seed=0,
    )  # fmt: skip
    fetch_dataset(options, folder / "raw")
    write_shards(options, folder / "raw", folder / "shards", samples_per_shard=200)
    return folder / "shards"


def raw_reading(shards: Path, num: int) -> Comparison:
    """Bytes of image and label, nothing decoded."""
    files = [str(shards / shard.file) for shard in load_manifest(shards).split("train").shards]
    dataset, index = ShardDataset(shards, "train", Transform(), verify="samples"), load_split_index(shards, "train")
    assert index.label_spans is not None

    def stock(indices: Tensor) -> int:
        return sum(
            len(sample["jpg"]) + len(sample["cls"]) for sample in webdataset.WebDataset(files, shardshuffle=False)
        )

    def ours(indices: Tensor, read: Any = dataset.read) -> int:
        total = 0
        for i in indices.tolist():
            stored = read(i)
            total += len(stored.part(index.image_spans, i)) + len(stored.part(index.label_spans, i))
        return total

    order = torch.from_numpy(np.random.default_rng(0).permutation(num))
    assert stock(order) == ours(order)
    contestants = {
        "stock WebDataset, one shard after the other": stock,
        "exact order over all shards, CRC of every byte": ours,
        "exact order over all shards": partial(ours, read=Unchecked(shards, "train", Transform(), "samples").read),
    }
    targets = dict.fromkeys(list(contestants)[1:2], READING_TARGET)
    return Comparison("raw reading, one process", order, contestants, targets)


def decoded(shards: Path, num: int) -> Comparison:
    """JPEG -> an augmented batch, DeiT's recipe; the bare loop has the bytes in memory, and the same draws."""
    dataset, index = ShardDataset(shards, "train", Transform(), "samples"), load_split_index(shards, "train")
    chosen = epoch_order(num, 0, 0)[:BATCH].tolist()
    kept = [dataset.read(i).part(index.image_spans, i) for i in chosen]
    seeds = [[int(word) for word in np.random.SeedSequence([0, 0, i, 0]).generate_state(3)] for i in chosen]
    recipe, loader = build_augmentation(RECIPE, SIDE), train_loader(shards, **ORDER)

    def bare(indices: Tensor) -> Tensor:
        images = []
        for data, (first, second, third) in zip(kept, seeds, strict=True):
            random.seed(first)
            np.random.seed(second)
            torch.default_generator.manual_seed(third)
            images.append(recipe(Image.open(io.BytesIO(data)).convert("RGB")))
        return torch.stack(images)

    def ours(indices: Tensor) -> Tensor:
        return next(iter(loader))[0]

    assert torch.equal(bare(torch.arange(0)), ours(torch.arange(0)))
    contestants = {"a bare loop over bytes in memory, the same draws": bare, "train_loader": ours}
    title = f"decode and augment to {SIDE} px, one process"
    return Comparison(title, torch.arange(BATCH), contestants, {"train_loader": DECODED_TARGET})


def exactness(shards: Path, num: int, run_dir: Path) -> Comparison:
    """What permutation, CRC and ledger cost, everything else being equal."""
    ledger = Ledger(run_dir, 0)
    checked = train_loader(shards, **ORDER)
    dataset = Unchecked(shards, "train", Transform(RECIPE, img_size=SIDE), "samples")
    unchecked: Any = DataLoader(dataset, batch_sampler=[epoch_order(num, 0, 0)[:BATCH].tolist()])

    def exact(indices: Tensor) -> None:
        _, _, found = next(iter(checked))
        ledger.append(0, found.tolist())

    def without(indices: Tensor) -> None:
        next(iter(unchecked))

    contestants = {"the same samples, unchecked": without, "exact order, CRC and ledger": exact}
    targets = {"exact order, CRC and ledger": EXACT_TARGET}
    return Comparison("what exactness costs, decoded and augmented", torch.arange(BATCH), contestants, targets)


def resuming(shards: Path, num: int) -> Comparison:
    """From nothing to the first few samples: decoding takes little of it."""
    size = 8
    late = num // size * 9 // 10
    files = [str(shards / shard.file) for shard in load_manifest(shards).split("train").shards]
    options = {**ORDER, "augment": "none", "global_batch_size": size}

    def first(indices: Tensor, start_batch: int = 0) -> Any:
        return next(iter(train_loader(shards, start_batch=start_batch, **options)))

    def stock(indices: Tensor) -> Any:
        samples = islice(webdataset.WebDataset(files, shardshuffle=False), late * size, (late + 1) * size)
        return [np.asarray(Image.open(io.BytesIO(sample["jpg"]))) for sample in samples]

    contestants = {
        "the first batch of an epoch": first,
        "the first batch at 90 % of it": partial(first, start_batch=late),
        "stock WebDataset, skipping to 90 %": stock,
    }
    targets = {"the first batch at 90 % of it": RESUME_TARGET}
    return Comparison("to the first batch", torch.arange(size), contestants, targets)


class Unchecked(ShardDataset):
    """Nobody looks whether the bytes are those that were written."""

    def read(self, index: int) -> Stored:
        start, length = self._index.extents[index].tolist()
        return Stored(self._source.read(self._shards[self._index.shards[index]], start, length), start)
