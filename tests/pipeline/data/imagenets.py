"""Tiny stand-ins for ImageNet-1k in the three forms in which people have it, of the same pictures."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from pipeline.data.imagenet_layouts import TRAIN_TAR, VAL_TAR

WNIDS = ("n01440764", "n01443537", "n02012849", "n03126707")
WORDS = ("tench, Tinca tinca", "goldfish", "crane", "crane")
Pictures = dict[str, tuple[str, bytes]]  # train/WNID/NAME or val/WNID/NAME -> (wnid, bytes)


def make_pictures(num_train: int = 5, num_val: int = 2) -> Pictures:
    """Of every class; grey ones, ones in CMYK and ones that are PNG among them, as in the original."""
    rng = np.random.default_rng(0)
    pictures: Pictures = {}
    val = 0
    for i in range(num_val):
        for wnid in WNIDS:
            val += 1
            pictures[f"val/{wnid}/ILSVRC2012_val_{val:08d}.JPEG"] = wnid, picture(rng, i)
    for wnid in WNIDS:
        for i in range(num_train):
            pictures[f"train/{wnid}/{wnid}_{10 * i + 3}.JPEG"] = wnid, picture(rng, i)
    return pictures


def picture(rng: np.random.Generator, kind: int) -> bytes:
    height, width = rng.integers(20, 40, 2)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    buffer = io.BytesIO()
    mode, suffix = {1: ("L", "jpeg"), 2: ("CMYK", "jpeg"), 3: ("RGB", "png")}.get(kind, ("RGB", "jpeg"))
    image.convert(mode).save(buffer, suffix)
    return buffer.getvalue()


def write_folders(root: Path, pictures: Pictures) -> Path:
    for name, (_, data) in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return buffer.getvalue()


def write_archives(root: Path, pictures: Pictures) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    classes = {}
    for wnid in reversed(WNIDS):  # the official order is not the sorted one either
        own = {name: data for name, (w, data) in pictures.items() if w == wnid and name.startswith("train/")}
        classes[f"{wnid}.tar"] = tar_of({name.split("/")[-1]: own[name] for name in reversed(own)})
    (root / TRAIN_TAR).write_bytes(tar_of(classes))
    vals = {name.split("/")[-1]: (wnid, data) for name, (wnid, data) in pictures.items() if name.startswith("val/")}
    (root / VAL_TAR).write_bytes(tar_of({name: vals[name][1] for name in sorted(vals)}))
    write_devkit(root, [vals[name][0] for name in sorted(vals)])
    return root


def write_devkit(root: Path, truth: list[str]) -> None:
    """Numbers of classes are not those of the sorted ids; one row stands for a class with others below it."""
    numbers = {wnid: 7 - i for i, wnid in enumerate(WNIDS)}
    rows = [(numbers[wnid], wnid, words, 0) for wnid, words in zip(WNIDS, WORDS, strict=True)]
    rows.append((99, "n00001740", "entity", 4))
    table = np.array(
        rows, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    )  # fmt: skip
    meta = io.BytesIO()
    savemat(meta, {"synsets": table.reshape(-1, 1)})
    folder = "ILSVRC2012_devkit_t12/data"
    lines = "".join(f"{numbers[wnid]}\n" for wnid in truth).encode()
    members = {f"{folder}/meta.mat": meta.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": lines}
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_of(members, "w:gz"))


def write_parquet(root: Path, pictures: Pictures, seed: int = 0) -> Path:
    """Shuffled, as published, several files of several row groups."""
    (root / "data").mkdir(parents=True)
    order = np.random.default_rng(seed).permutation(len(pictures))
    names = [list(pictures)[i] for i in order]
    for part, prefix in (("train", "train"), ("val", "validation")):
        own = [name for name in names if name.startswith(f"{part}/")]
        for number, chunk in enumerate((own[: len(own) // 2], own[len(own) // 2 :])):
            paths = [f"{name.split('/')[-1].removesuffix('.JPEG')}_{pictures[name][0]}.JPEG" for name in chunk]
            images = [{"bytes": pictures[n][1], "path": path} for n, path in zip(chunk, paths, strict=True)]
            labels = [WNIDS.index(pictures[name][0]) for name in chunk]
            table = pa.table({"image": images, "label": labels})
            pq.write_table(table, root / "data" / f"{prefix}-{number:05d}-of-00002.parquet", row_group_size=3)
    return root
