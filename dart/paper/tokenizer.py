"""Images in, tokens out, as the paper's code does it, odd corners included (arXiv 2506.10390, section 3).

# B batch, C channels, H W image pixels, R rows, N tokens, P patch side, D embedding
Loads the authors' weights and gives their numbers. For anything new prefer `dart.tokenizer`: here an image's tokens
depend on its batch mates, tokens straddle row ends, and only two image sizes are known.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.paper.geometry import CELL_PX, carry_grid, cut_image, strip_shares, token_regions
from dart.paper.sampling import sample_tokens
from dart.paper.scorer import PaperScorer
from dart.partition import plan_rows
from dart.tokenizer import check_budget, check_images, check_same_patch, to_pair

GRID_SIDE = 14
IMG_SIZES = (448, 224)


class PaperTokenization(NamedTuple):
    """Everything between an image and its tokens.

    scores: (B, 14, 14), positive, as the score network gives them.
    density: (B, 14, 14), sum 1 per image.
    row_heights: (B, R) nominal px, sum 224.
    strip_edges: (B, N + 1) input px on the strip of all rows, from 0 to R W.
    regions: (B, N, 4) as x0, y0, x1, y1 input px, for figures; see `dart.paper.geometry.token_regions`.
    patches: (B, N, C, P, P).
    tokens: (B, N, D), without position.
    """

    scores: Tensor
    density: Tensor
    row_heights: Tensor
    strip_edges: Tensor
    regions: Tensor
    patches: Tensor
    tokens: Tensor


class PaperTokenizer(nn.Module):
    """The paper's tokenizer, in the place of timm's `PatchEmbed`.

    Args:
        img_size: 448 (the paper's: 224 nominal pixels, each two wide) or 224.
        patch_size: P; every token is read at P x P points.
        in_chans: C; the score networks know 3 only.
        embed_dim: D.
        scorer: A key of `dart.paper.scorer.SCORERS`.
        token_budget: N, patch tokens per image.
        num_rows: R; None for round(sqrt(N)).
        score_input: "full" or "224", see `PaperScorer`.
        pretrained_scorer: Start the score network's features from torchvision's ImageNet weights.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 448,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 192,
        *,
        scorer: str = "mobilenetv3_small_v1",
        token_budget: int = 196,
        num_rows: int | None = None,
        score_input: str = "full",
        pretrained_scorer: bool = False,
    ) -> None:
        super().__init__()
        if in_chans != 3:
            raise ValueError(f"in_chans = {in_chans}: paper mode needs 3; use mode='invariant'")
        self.img_size = check_sides(img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (GRID_SIDE, GRID_SIDE)
        self.num_patches = check_budget(token_budget, self.img_size)
        self.num_rows = num_rows
        plan_rows(token_budget, num_rows)
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.scorer = PaperScorer(scorer, score_input, pretrained_scorer)

    def forward(self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None) -> Tensor:
        """(B, 3, H, W) -> tokens (B, N, D) without position, with another token budget and row count if given."""
        return self.inspect(images, num_patches, num_rows).tokens

    def inspect(
        self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None, *, with_patches: bool = True
    ) -> PaperTokenization:
        """As `forward`, with everything that leads to the tokens; differentiable down to the score network's head.

        Patches are made in any case: this mode is for agreement, not for speed.
        """
        check_paper_images(images, self.img_size)
        budget = check_budget(self.num_patches if num_patches is None else num_patches, self.img_size)
        if num_rows is None and budget == self.num_patches:
            num_rows = self.num_rows
        rows = plan_rows(budget, num_rows)
        return self.read(images, self.scorer(images, self.grid_size), budget, rows)

    def read(self, images: Tensor, scores: Tensor, num_patches: int, num_rows: int) -> PaperTokenization:
        """What the scores (B, 14, 14) make of the images: as `inspect`, without the score network."""
        width = images.shape[-1]
        density, heights, edges = cut_image(scores, num_rows, num_patches)
        edges = edges * (width / GRID_SIDE)
        heights_px = heights * (width / (CELL_PX * GRID_SIDE))
        patches = sample_tokens(images, heights_px, edges, self.patch_size[0]).to(images.dtype)
        tokens = F.linear(patches.flatten(2), self.proj.weight.flatten(1), self.proj.bias)
        regions = token_regions(heights_px.detach(), edges.detach(), width)
        return PaperTokenization(scores, density, heights, edges, regions, patches, tokens)

    @staticmethod
    def plan(token_budget: int, num_rows: int | None) -> None:
        """Refuse a number of rows that the budget does not allow."""
        plan_rows(token_budget, num_rows)

    def carry(self, table: Tensor, tokenization: PaperTokenization) -> Tensor:
        """The position of every token: the mean of a table (1, 196, D) over it, (B, N, D) (section 3.3)."""
        heights, edges = tokenization.row_heights, tokenization.strip_edges
        with torch.autocast(table.device.type, enabled=False):
            grid = table.to(edges.dtype).unflatten(1, self.grid_size)
            return carry_grid(grid, heights, edges * (GRID_SIDE / self.img_size[1])).to(table.dtype)

    def share_cells(self, tokenization: PaperTokenization, grid_size: tuple[int, int]) -> Tensor:
        """How much of every cell of the score grid lies in every token: (B, N, G_h * G_w), in cells."""
        scale = GRID_SIDE / self.img_size[1]  # cells per pixel
        return strip_shares(tokenization.row_heights, tokenization.strip_edges * scale, grid_size)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change between 448 and 224 px (timm's contract)."""
        check_same_patch(patch_size, self.patch_size)
        if img_size is not None:
            self.img_size = check_sides(img_size)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the feature map (timm's contract): those of the score grid, whatever the budget."""
        return self.grid_size

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per cell of `grid_size` (timm's contract)."""
        ratio = self.img_size[0] // GRID_SIDE
        return ratio if as_scalar else (ratio, ratio)


def check_sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, if paper mode knows them."""
    height, width = to_pair(img_size)
    if height != width or height not in IMG_SIZES:
        raise ValueError(f"img_size = {img_size}: paper mode knows 448 and 224 px only; use mode='invariant'")
    return height, width


def check_paper_images(images: Tensor, img_size: tuple[int, int]) -> None:
    """Refuse what is not (B, 3, H, W) of this size, and pixels that are not numbers."""
    check_images(images, 3, 1)
    if tuple(images.shape[-2:]) != img_size:
        size = f"{images.shape[-2]} x {images.shape[-1]}"
        raise ValueError(
            f"images = {size} px: must be {img_size[0]} x {img_size[1]} in this model of paper mode; "
            "resize them, or use mode='invariant'"
        )
