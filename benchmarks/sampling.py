"""Regions read at patch resolution, and projected: one look-up against the paper's two steps."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from benchmarks.compare import Comparison, Contestant, forward, forward_backward
from dart.kernels import embed_regions, sample_regions
from dart.paper.geometry import equal_mass_edges, row_heights, strip_density
from dart.paper.sampling import sample_two_step
from dart.partition import flow_regions, plan_rows

BATCH, SIDE, PATCH, GRID, WIDTH = 8, 448, 16, 14, 384
LABEL = "dart.kernels, one look-up (point)"
FUSED = "dart.kernels.embed_regions (point)"


def comparisons() -> Iterator[Comparison]:
    images = torch.rand(BATCH, 3, SIDE, SIDE)
    density = torch.rand(BATCH, GRID, GRID) + 0.2
    density = density / density.sum((1, 2), keepdim=True)
    kinds = (("forward", forward), ("forward + backward", forward_backward))
    for num_patches in (196, 392):
        for kind, run in kinds:
            contestants = {label: run(f) for label, f in readers(density, num_patches, kind != "forward").items()}
            title = f"{num_patches} regions read at {PATCH} x {PATCH} px, {kind}"
            yield Comparison(title, images, contestants, {LABEL: 2.5}, memory={LABEL: 0.5})
    for kind, run in kinds:
        contestants = {label: run(f) for label, f in embedders(density, 196, kind != "forward").items()}
        title = f"196 regions read at {PATCH} x {PATCH} px and projected to {WIDTH} numbers, {kind}"
        yield Comparison(title, images, contestants, memory={})


def readers(density: Tensor, num_patches: int, learning: bool) -> dict[str, Contestant]:
    """The ways to read the regions of one density; learning: their edges want a gradient."""
    regions, heights, edges = partitions(density, num_patches, learning)
    contestants: dict[str, Contestant] = {
        "the paper's two steps (point)": lambda x: sample_two_step(x, heights, edges, PATCH),
        LABEL: lambda x: sample_regions(x, regions, PATCH, "point"),
        "dart.kernels, area": lambda x: sample_regions(x, regions, PATCH, "area"),
    }
    if not learning:  # its boxes get no gradient
        boxes = list(regions)
        contestants["torchvision roi_align (4 points a cell)"] = lambda x: roi_align(x, boxes, PATCH, sampling_ratio=2)
    return contestants


def embedders(density: Tensor, num_patches: int, learning: bool) -> dict[str, Contestant]:
    """The ways from an image to projected regions; learning: edges and projection want a gradient."""
    regions, heights, edges = partitions(density, num_patches, learning)
    weight = torch.randn(WIDTH, 3, PATCH, PATCH).requires_grad_(learning)
    bias = torch.randn(WIDTH).requires_grad_(learning)
    return {
        "the paper's two steps (point), F.linear": lambda x: F.linear(
            sample_two_step(x, heights, edges, PATCH).flatten(2), weight.flatten(1), bias
        ),
        FUSED: lambda x: embed_regions(x, regions, weight, bias, "point"),
    }


def partitions(density: Tensor, num_patches: int, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One density cut our way, regions (B, N, 4); and the paper's, heights (B, R) and edges (B, N + 1). In pixels."""
    num_rows = plan_rows(num_patches)
    regions = flow_regions(density, num_patches, num_rows, (SIDE, SIDE))
    heights = row_heights(density.sum(-1), num_rows)
    edges = equal_mass_edges(strip_density(density, heights), num_patches) * (SIDE / GRID)
    regions, heights, edges = (t.detach().requires_grad_(learning) for t in (regions, heights * (SIDE / 224), edges))
    return regions, heights, edges
