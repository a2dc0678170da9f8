"""Regions read at patch resolution: one look-up against the paper's two steps."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from benchmarks.compare import Comparison, Contestant, forward, forward_backward
from dart.kernels import sample_regions
from dart.paper.geometry import equal_mass_edges, row_heights, strip_density
from dart.paper.sampling import sample_two_step
from dart.partition import flow_regions, plan_rows

BATCH, SIDE, PATCH, GRID = 8, 448, 16, 14
LABEL = "dart.kernels, one look-up (point)"


def comparisons() -> Iterator[Comparison]:
    images = torch.rand(BATCH, 3, SIDE, SIDE)
    density = torch.rand(BATCH, GRID, GRID) + 0.2
    density = density / density.sum((1, 2), keepdim=True)
    for num_patches in (196, 392):
        for kind, run in (("forward", forward), ("forward + backward", forward_backward)):
            contestants = {label: run(f) for label, f in readers(density, num_patches, kind != "forward").items()}
            title = f"{num_patches} regions read at {PATCH} x {PATCH} px, {kind}"
            yield Comparison(title, images, contestants, {LABEL: 2.5}, memory=True)


def readers(density: Tensor, num_patches: int, learning: bool) -> dict[str, Contestant]:
    """The ways to read the regions of one density; learning: their edges want a gradient."""
    num_rows = plan_rows(num_patches)
    regions = flow_regions(density, num_patches, num_rows, (SIDE, SIDE)).requires_grad_(learning)
    heights = row_heights(density.sum(-1), num_rows)
    edges = equal_mass_edges(strip_density(density, heights), num_patches) * (SIDE / GRID)
    heights_px = (heights * (SIDE / 224)).requires_grad_(learning)
    edges = edges.detach().requires_grad_(learning)
    boxes = list(regions.detach())
    return {
        "the paper's two steps (point)": lambda x: sample_two_step(x, heights_px, edges, PATCH),
        LABEL: lambda x: sample_regions(x, regions, PATCH, "point"),
        "dart.kernels, area": lambda x: sample_regions(x, regions, PATCH, "area"),
        "torchvision roi_align (4 points a cell)": lambda x: (
            roi_align(x, boxes, PATCH, sampling_ratio=2)
            if not learning
            else F.avg_pool2d(sample_regions(x, regions, 2 * PATCH, "point").flatten(0, 1), 2)
        ),
    }
