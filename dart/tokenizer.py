"""Images in, tokens out: scores -> density -> partition -> patches -> tokens (arXiv 2506.10390, section 3).

# B batch, C channels, H W image pixels, G_h G_w score grid, R rows, N tokens, P patch side, D embedding
"""

from typing import NamedTuple

from torch import Tensor, nn

from dart.partition import Partition, flow_partition, geometry_dtype, plan_rows, uniform_partition
from dart.pos_embed import build_pos_embed
from dart.sampling import sample_patches
from dart.scorer import scores_to_density


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


class DartTokenizer(nn.Module):
    """Learned regions, read at patch resolution, projected, with their positions.

    Takes the place of timm's `PatchEmbed`: call it with images, get tokens.

    Args:
        img_size: Side in pixels of the images the position table is laid out for; any size is accepted.
        patch_size: P; every region is read at P x P pixels.
        in_chans: C.
        embed_dim: D.
        scorer: Images to raw scores (B, G_h, G_w), see `dart.scorer`; None cuts the uniform grid, which is what
            DART is compared with, everything else being equal.
        token_budget: N, patch tokens per image; `forward` can be told another.
        num_rows: R; None for round(sqrt(N)).
        score_floor: Uniform share of the density, in (0, 1].
        score_blur: Passes of a 3 x 3 mean filter over the density.
        sampling: "area" or "point", see `dart.sampling.sample_patches`.
        pos_embed: "geometry" or "table", see `dart.pos_embed`.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        scorer: nn.Module | None,
        *,
        token_budget: int,
        num_rows: int | None = None,
        score_floor: float = 0.3,
        score_blur: int = 2,
        sampling: str = "area",
        pos_embed: str = "geometry",
    ) -> None:
        super().__init__()
        if not 1 <= token_budget <= img_size**2:
            raise ValueError(f"token_budget = {token_budget}: must be from 1 to the image's {img_size**2} pixels")
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.num_patches = token_budget
        self.num_rows = num_rows
        self.score_floor, self.score_blur = score_floor, score_blur
        self.sampling = sampling
        self.scorer = scorer
        self.proj = nn.Linear(in_chans * patch_size**2, embed_dim)
        self.pos_embed = build_pos_embed(pos_embed, embed_dim, img_size // patch_size)
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
        """Scores, density (B, G_h, G_w) and partition of these images; without a scorer, one partition for all."""
        img_size = (images.shape[-2], images.shape[-1])
        if self.scorer is None:
            uniform = uniform_partition(counts, img_size, images.device, geometry_dtype(images.dtype))
            cells = (len(images), len(counts), max(counts))
            return None, uniform.row_edges.new_full(cells, 1 / (cells[1] * cells[2])), uniform
        scores = self.scorer(images)
        density = scores_to_density(scores, self.score_floor, self.score_blur)
        return scores, density, flow_partition(density, counts, img_size)

    def feat_ratio(self) -> int:
        """Pixels per token side of the uniform grid (timm's contract)."""
        return self.patch_size[0]
