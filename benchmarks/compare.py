"""The comparisons: contestants that do the same work, the first one being the yardstick."""

from collections.abc import Callable

import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

import dart.models  # registers with timm
from dart.partition import flow_partition, plan_rows
from dart.sampling import sample_patches
from dart.tokenizer import DartTokenizer
from pipeline.benchmark import measure_speeds

Contestants = dict[str, Callable[[Tensor], object]]


def run(name: str, rounds: int) -> None:
    """Measure one comparison and print its table."""
    title, images, contestants = {"sampling": sampling, "tokenizer": tokenizer, "models": models}[name]()
    speeds = measure_speeds(list(contestants.values()), [images] * len(contestants), rounds)
    yardstick = speeds[0].median
    print(f"\n{title}: {len(images)} images of {images.shape[-2]} x {images.shape[-1]} px, forward")
    print(f"  {'':40} {'images/s':>10} {'25-75 %':>17} {'ratio':>7}")
    for label, speed in zip(contestants, speeds, strict=True):
        spread = f"{speed.q25:.0f}-{speed.q75:.0f}"
        print(f"  {label:40} {speed.median:10.0f} {spread:>17} {speed.median / yardstick:6.2f}x")


def sampling() -> tuple[str, Tensor, Contestants]:
    """196 regions of 448 px images read at 16 x 16, with the operators that people use for it."""
    images = torch.rand(4, 3, 448, 448)
    density = torch.rand(4, 14, 14) + 0.2
    partition = flow_partition(density, plan_rows(196), (448, 448))
    regions = partition.regions()
    boxes = list(regions)
    grid = _centres(regions, 16)
    return (
        "196 regions read at 16 x 16 px",
        images,
        {
            "torch grid_sample (points)": lambda x: F.grid_sample(x, grid, align_corners=False),
            "torchvision roi_align (4 points a cell)": lambda x: roi_align(x, boxes, 16, sampling_ratio=2),
            "dart.sampling, point": lambda x: sample_patches(x, partition, 16, "point"),
            "dart.sampling, area": lambda x: sample_patches(x, partition, 16, "area"),
        },
    )


def tokenizer() -> tuple[str, Tensor, Contestants]:
    """Images to 196 tokens of width 384: what DART adds to a plain patch embedding."""
    images = torch.rand(4, 3, 448, 448)
    scorer = timm.create_model("dart_vit_small", num_classes=0).patch_embed.scorer
    return (
        "196 tokens of width 384",
        images,
        {
            "timm PatchEmbed, 32 px patches": PatchEmbed(448, 32, 3, 384).eval(),
            "uniform regions": DartTokenizer(448, 16, 3, 384, None, token_budget=196).eval(),
            "DART": DartTokenizer(448, 16, 3, 384, scorer, token_budget=196).eval(),
        },
    )


def models() -> tuple[str, Tensor, Contestants]:
    """The models of the default suite."""
    chosen = [("uniform_vit_micro", 36), ("dart_vit_micro", 36), ("uniform_vit_micro", 64), ("dart_vit_micro", 64)]
    contestants: Contestants = {
        f"{name}, {budget} tokens": dart.models.build(name, token_budget=budget, in_chans=1, num_classes=10).eval()
        for name, budget in chosen
    }
    return "models of the digits suite", torch.rand(50, 1, 96, 96), contestants


def _centres(regions: Tensor, patch: int) -> Tensor:
    """(B, N, 4) -> (B, N * P, P, 2), the cells' centres in grid_sample's coordinates, for square 448 px images."""
    offsets = (torch.arange(patch) + 0.5) / patch
    x = regions[..., :1] + (regions[..., 2:3] - regions[..., :1]) * offsets
    y = regions[..., 1:2] + (regions[..., 3:] - regions[..., 1:2]) * offsets
    x, y = x[:, :, None, :].expand(-1, -1, patch, -1), y[:, :, :, None].expand(-1, -1, -1, patch)
    return (torch.stack([x, y], -1) / 224 - 1).flatten(1, 2)
