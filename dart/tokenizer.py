"""Images in, tokens out: scores -> density -> partition -> patches -> tokens (arXiv 2506.10390, section 3).

# B batch, C channels, H W image pixels, G_h G_w score grid, R rows, N tokens, P patch side, D embedding
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dart.partition import Partition, flow_partition, plan_rows, uniform_partition
from dart.pos_embed import GeometricPosEmbed, TablePosEmbed
from dart.sampling import sample_patches
from dart.scorer import build_scorer, scores_to_density, uniform_density


class Tokenization(NamedTuple):
    """Everything between an image and its tokens, for figures and tests.

    scores: (B, G_h, G_w) raw, or None for the uniform tokenizer.
    density: (B, G_h, G_w), sum 1 per image.
    row_edges: (B, R + 1) pixels.
    regions: (B, N, 4) as x0, y0, x1, y1 pixels, in reading order.
    patches: (B, N, C, P, P), what the model sees.
    tokens: (B, N, D).
    """

    scores: Tensor | None
    density: Tensor
    row_edges: Tensor
    regions: Tensor
    patches: Tensor
    tokens: Tensor


class RegionTokenizer(nn.Module):
    """Partition -> patches -> projection, position, norm: what every region tokenizer shares.

    Takes the place of timm's `PatchEmbed`: call it with images, get tokens with their positions.

    Args:
        img_size: Side in pixels of the images the position table is laid out for; any size is accepted.
        patch_size: P; every region is read at P x P pixels.
        in_chans: C.
        embed_dim: D.
        token_budget: N, patch tokens per image; `forward` can be told another.
        num_rows: R; None for round(sqrt(N)).
        sampling: "area" or "point", see `dart.sampling.sample_patches`.
        pos_embed: "geometry" or "table", see `dart.pos_embed`.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        token_budget: int,
        num_rows: int | None = None,
        sampling: str = "area",
        pos_embed: str = "geometry",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if token_budget < 1 or token_budget > img_size**2:
            raise ValueError(f"token_budget = {token_budget}: must be from 1 to the image's {img_size**2} pixels")
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.num_patches = token_budget
        self.num_rows = num_rows
        self.sampling = sampling
        self.proj = nn.Linear(in_chans * patch_size**2, embed_dim, bias=bias)
        self.pos_embed: nn.Module
        if pos_embed == "geometry":
            self.pos_embed = GeometricPosEmbed(embed_dim)
        else:
            side = img_size // patch_size
            self.pos_embed = TablePosEmbed(embed_dim, (side, side))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor, num_patches: int | None = None) -> Tensor:
        """(B, C, H, W) -> tokens (B, N, D), differentiable down to the scores."""
        return self.inspect(images, num_patches).tokens

    def inspect(self, images: Tensor, num_patches: int | None = None) -> Tokenization:
        """As `forward`, with everything that leads to the tokens."""
        img_size = (images.shape[-2], images.shape[-1])
        counts = plan_rows(num_patches or self.num_patches, self.num_rows)
        scores, density, partition = self.partition(images, counts)
        patches = sample_patches(images, partition, self.patch_size[0], self.sampling)
        tokens = self.norm(self.proj(patches.flatten(2)) + self.pos_embed(partition, img_size))
        regions = partition.regions().expand(len(images), -1, -1)
        return Tokenization(scores, density, partition.row_edges, regions, patches, tokens)

    def partition(self, images: Tensor, counts: tuple[int, ...]) -> tuple[Tensor | None, Tensor, Partition]:
        """Scores (or None), density and partition of these images."""
        raise NotImplementedError

    def feat_ratio(self) -> int:
        """Pixels per token side of the uniform grid (timm's contract)."""
        return self.patch_size[0]


class DartTokenizer(RegionTokenizer):
    """Learned regions: a scorer's density decides where the tokens go.

    Args:
        scorer: Name in `dart.registry.SCORERS`.
        score_floor: Uniform share of the density, in (0, 1].
        score_blur: Passes of a 3 x 3 mean filter over the density.
        others: See `RegionTokenizer`.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        scorer: str = "conv",
        score_floor: float = 0.3,
        score_blur: int = 2,
        token_budget: int,
        num_rows: int | None = None,
        sampling: str = "area",
        pos_embed: str = "geometry",
        bias: bool = True,
    ) -> None:
        super().__init__(
            img_size,
            patch_size,
            in_chans,
            embed_dim,
            token_budget=token_budget,
            num_rows=num_rows,
            sampling=sampling,
            pos_embed=pos_embed,
            bias=bias,
        )
        self.scorer = build_scorer(scorer, in_chans)
        self.score_floor = score_floor
        self.score_blur = score_blur

    def partition(self, images: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Partition]:
        """Scores (B, G_h, G_w), their density, and the quantiles of the density as a partition."""
        scores = self.scorer(images)
        density = scores_to_density(scores, self.score_floor, self.score_blur)
        return scores, density, flow_partition(density, counts, (images.shape[-2], images.shape[-1]))


class UniformTokenizer(RegionTokenizer):
    """The same rows and tokens at equal sizes: what DART is compared with, everything else being equal."""

    def partition(self, images: Tensor, counts: tuple[int, ...]) -> tuple[None, Tensor, Partition]:
        """No scores, a constant density, and one partition for all images."""
        img_size = (images.shape[-2], images.shape[-1])
        density = uniform_density(len(images), (len(counts), max(counts)), images.device)
        return None, density, uniform_partition(counts, img_size, images.device, torch.float32)
