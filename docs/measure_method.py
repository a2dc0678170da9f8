"""The measurements of method.md: what paper mode and invariant mode do with the same photographs.

# B batch, N tokens, R rows; weights are random, or scores are the gradient control: geometry, not what is learned
"""

from typing import Any

import timm
import torch
from torch import Tensor, nn

import dart.models  # noqa: F401 (registers the models with timm)
from dart.baselines.scores import GradientScores
from dart.kernels import sample_regions
from dart.paper.geometry import (
    average_rows,
    equal_mass_edges,
    overlap,
    row_heights,
    scores_to_density,
    strip_density,
    token_regions,
)
from dart.paper.sampling import sample_tokens
from dart.partition import flow_regions, partition_image, uniform_regions
from dart.pos_embed import region_shares
from dart.scorer import scores_to_density as invariant_density

SIDE, GRID, TOKENS = 448, 14, 196


def measure(images: Tensor) -> str:
    """What the page says was measured here, as a Markdown table."""
    density = torch.cat([density_of(image) for image in images])
    invariant = flow_regions(density, TOKENS, GRID, (SIDE, SIDE))
    paper_masses = torch.cat([paper_partition(d[None])[1] for d in density]) * TOKENS
    masses = masses_of(invariant, density) * TOKENS
    edges = paper_geometry(density)[1]
    both = paper_tokenizer(), invariant_tokenizer()
    rows = {
        "a photograph's row and token edges move when two others join the batch, by at most": (
            *(f"{moved(tokenizer, images):.1f} px" for tokenizer in both),),
        "the same, when seven plain grey images join": (
            *(f"{moved(tokenizer, with_grey(images[0])):.1f} px" for tokenizer in both),),
        "mass of a token times N (gradient control)": (
            f"{paper_masses.min():.2f} to {paper_masses.max():.2f}", f"{masses.min():.3f} to {masses.max():.3f}"),
        "tokens that lie in two rows": (f"{100 * straddling(edges):.1f} %", "none"),
        "mean of a 1-px checkerboard of +1 and -1 (truth: 0), read by 196 uniform regions of 32 px": checkerboard(),
        "mirroring the image does not mirror the patches: relative difference (uniform regions)": mirrored(images),
        "lowest sample of an image that is 1 everywhere (392 tokens, mass on the right)": ones(),
        "geometry computed in bfloat16: edges are wrong by up to": (
            f"{half_precision_paper(density):.0f} px of the strip", "never computed so"),
    }  # fmt: skip
    lines = [f"| {name} | {paper} | {ours} |" for name, (paper, ours) in rows.items()]
    return "\n".join(["| measured here | paper mode | invariant mode |", "|---|--:|--:|", *lines])


def paper_geometry(density: Tensor, num_patches: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Row heights in nominal pixels (B, R) and token edges in cells of the strip (B, N + 1)."""
    heights = row_heights(density.sum(-1), round(num_patches**0.5))
    return heights, equal_mass_edges(strip_density(density, heights), num_patches)


def paper_partition(density: Tensor) -> tuple[Tensor, Tensor]:
    """Regions for figures (1, N, 4), and the true mass of every token (1, N)."""
    heights, edges = paper_geometry(density)
    rows = average_rows(density[..., None], heights)[..., 0] * heights[..., None] / 16  # (1, R, G_w), mass per cell
    masses = (overlap(edges, rows[0].numel()) @ rows.flatten(1)[..., None])[..., 0]
    return token_regions(heights * 2, edges * (SIDE / GRID), SIDE), masses


def masses_of(regions: Tensor, density: Tensor) -> Tensor:
    """The mass of every region: (B, N)."""
    return (region_shares(regions, (SIDE, SIDE), (GRID, GRID)) @ density.flatten(1)[..., None])[..., 0]


def density_of(image: Tensor, floor: float = 0.3) -> Tensor:
    """The gradient control's density of (3, H, W) on the GRID: (1, GRID, GRID)."""
    return invariant_density(GradientScores()(image[None], (GRID, GRID)), floor, 0)


def paper_tokenizer() -> Any:
    """Of paper mode, with random weights in eval mode."""
    torch.manual_seed(0)
    return timm.create_model("dart_deit_tiny", mode="paper", depth=1).eval().patch_embed


def invariant_tokenizer() -> Any:
    """Of invariant mode; its last layer, which starts at zero, is drawn at random."""
    torch.manual_seed(0)
    tokenizer: Any = timm.create_model("dart_deit_tiny", depth=1, scorer="conv").eval().patch_embed
    nn.init.normal_(tokenizer.scorer.head.weight, std=0.2)
    return tokenizer


@torch.inference_mode()
def alone_and_together(tokenizer: Any, images: Tensor) -> tuple[Any, Any]:
    """The first image tokenized alone, and with all others."""
    normal = (images - 0.45) / 0.23
    return tokenizer.inspect(normal[:1]), tokenizer.inspect(normal)


def with_grey(image: Tensor) -> Tensor:
    """A photograph (3, H, W) and seven plain grey images: (8, 3, H, W)."""
    return torch.cat([image[None], torch.full((7, *image.shape), 0.45)])


def moved(tokenizer: Any, images: Tensor) -> float:
    """How far, in pixels, the first image's edges move when others join the batch."""
    alone, together = alone_and_together(tokenizer, images)
    kind = "strip_edges" if hasattr(alone, "strip_edges") else "regions"  # a straddling token has no rectangle
    return float((getattr(alone, kind)[0] - getattr(together, kind)[0]).abs().max())


def straddling(edges: Tensor) -> float:
    """Share of the tokens, edges (B, N + 1) in cells of the strip, that end in another row than they start in."""
    start, end = edges[:, :-1], edges[:, 1:]
    first, last = (start + 1e-3).div(GRID).floor(), (end - 1e-3).div(GRID).floor()
    return float((last > first).float().mean())


def uniform_in_both(images: Tensor) -> tuple[Tensor, Tensor]:
    """Patches of the uniform partition, as paper mode and as invariant mode read them."""
    heights = torch.full((len(images), GRID), SIDE / GRID, dtype=images.dtype)
    edges = torch.arange(TOKENS + 1, dtype=images.dtype).expand(len(images), -1) * (SIDE / GRID)
    regions = uniform_regions(TOKENS, GRID, (SIDE, SIDE), images.device, images.dtype)
    return sample_tokens(images, heights, edges, 16), sample_regions(images, regions, 16)


def checkerboard() -> tuple[str, str]:
    """The mean of what is read off the finest pattern there is."""
    odd = torch.arange(SIDE) % 2
    board = (2.0 * (odd[:, None] ^ odd) - 1)[None, None]
    paper, ours = (f"{abs(float(p.mean())):.0f}" for p in uniform_in_both(board))
    return f"{'±' if paper != '0' else ''}{paper}", ours


def mirrored(images: Tensor) -> tuple[str, str]:
    """How far the patches of a mirrored image are from the mirrored patches, relative to their own deviation."""
    centred = images - images.mean((2, 3), keepdim=True)
    found = []
    for straight, turned in zip(uniform_in_both(centred), uniform_in_both(centred.flip(-1)), strict=True):
        back = turned.unflatten(1, (GRID, GRID)).flip(2).flatten(1, 2).flip(-1)
        found.append(float((back - straight).norm() / straight.norm()))
    return f"{found[0]:.2f}", f"{found[1]:.2f}"


def ones() -> tuple[str, str]:
    """The lowest sample of a constant image: neither mode should find anything darker than 1."""
    image = torch.ones(1, 1, SIDE, SIDE)
    density = scores_to_density(torch.ones(1, GRID, GRID) + 9 * (torch.arange(GRID) > 9))
    heights, edges = paper_geometry(density, 392)
    paper = sample_tokens(image, heights * 2, edges * (SIDE / GRID), 16)
    ours = sample_regions(image, partition_image(density, (SIDE, SIDE), 392), 16)
    return f"{float(paper.min()):.2f}", f"{float(ours.min()):.2f}"


def half_precision_paper(density: Tensor) -> float:
    """The largest error of the paper's edges, in input pixels of the strip, when nothing forbids bfloat16."""
    exact = paper_geometry(density.double())[1]
    return float((paper_geometry(density.bfloat16())[1].double() - exact).abs().max() * SIDE / GRID)
