"""Clips in, tokens out: the paper's tokenizer over space and time, for VideoMamba.

# B batch, T frames, H W frame pixels, R rows, N tokens, P patch side, D embedding
The frames are stacked into one tall image; rows cut it wherever the density says, between frames too.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.paper.geometry import CELL_PX, carry_grid, cut_image, strip_shares, token_regions
from dart.paper.sampling import sample_tokens
from dart.paper.scorer import first_stages, standardise
from dart.paper.tokenizer import GRID_SIDE
from dart.partition import plan_rows
from dart.tokenizer import check_budget, check_images, check_same_patch, to_pair

FRAME_PX = CELL_PX * GRID_SIDE
NUM_STAGES, NUM_FEATURES = 8, 48  # of MobileNetV3-Small: stride 16, so that a 224 px frame has 14 x 14 cells


class VideoTokenization(NamedTuple):
    """Everything between a clip and its tokens.

    scores: (B, T, 14, 14), in [0, 1].
    row_heights: (B, R) px of the stacked frames, sum 224 T.
    strip_edges: (B, N + 1) px on the strip of all rows, from 0 to 224 R.
    regions: (B, N, 4) as x0, y0, x1, y1 px of the stacked frames, for figures; see `dart.paper.geometry.token_regions`.
    patches: (B, N, C, P, P).
    tokens: (B, N, D), without position.
    """

    scores: Tensor
    row_heights: Tensor
    strip_edges: Tensor
    regions: Tensor
    patches: Tensor
    tokens: Tensor


class VideoScorer(nn.Module):
    """What is new in a frame, weighed by what the video is about; every video standardised by itself.

    The first frame has no predecessor: its score is 1/2 everywhere. Features are frozen, as in `PaperScorer`.
    """

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        self.features = first_stages("mobilenet_v3_small", NUM_STAGES, pretrained)
        self.change = nn.Linear(NUM_FEATURES, NUM_FEATURES)
        self.topic = nn.Linear(NUM_FEATURES, NUM_FEATURES)

    def forward(self, clips: Tensor) -> Tensor:
        """(B, 3, T, 224, 224) -> scores (B, T, 14, 14) in [0, 1]."""
        frames = clips.transpose(1, 2)
        with torch.no_grad():
            features = self.features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).movedim(2, -1)
        change = self.change(features.diff(dim=1)).relu()  # (B, T - 1, 14, 14, 48)
        topic = self.topic(features[:, 1:].mean((1, 2, 3))).sigmoid()
        raw = torch.einsum("bthwf,bf->bthw", change, topic)
        scores = (1.5 * (standardise(raw, (1, 2, 3)) - 1)).sigmoid()
        return torch.cat([torch.full_like(scores[:, :1], 0.5), scores], 1)


class VideoTokenizer(nn.Module):
    """Clips of T frames of 224 px to N tokens and a class token, positions added.

    Args:
        num_frames: T, at least 2.
        token_budget: N, tokens per clip.
        embed_dim: D.
        patch_size: P.
        num_rows: R; None for floor(sqrt(N / T) T), as floating point rounds it in the paper's code.
        pretrained_scorer: Start the features from torchvision's ImageNet weights.
    """

    def __init__(
        self,
        num_frames: int,
        token_budget: int,
        embed_dim: int = 192,
        patch_size: int = 16,
        *,
        num_rows: int | None = None,
        pretrained_scorer: bool = False,
    ) -> None:
        super().__init__()
        if num_frames < 2:
            raise ValueError(f"num_frames = {num_frames}: must be at least 2, scores compare frames")
        self.num_frames, self.patch_size = num_frames, (patch_size, patch_size)
        self.img_size = (FRAME_PX, FRAME_PX)
        self.num_patches = check_budget(token_budget, (num_frames * FRAME_PX, FRAME_PX))
        self.num_rows = self.plan(token_budget, num_rows)
        self.proj = nn.Conv3d(3, embed_dim, (1, patch_size, patch_size), (1, patch_size, patch_size))
        self.scorer = VideoScorer(pretrained_scorer)

    def forward(self, clips: Tensor, pos_embed: Tensor, time_embed: Tensor, cls_token: Tensor) -> Tensor:
        """Tokens with their positions, the class token first.

        Args:
            clips: (B, 3, T, 224, 224).
            pos_embed: (1, 1 + 196, D): the class token's row, then a row per grid cell.
            time_embed: (1, T, D).
            cls_token: (1, 1, D).

        Returns:
            (B, 1 + N, D).
        """
        tokenization = self.inspect(clips)
        positions = self.carry(pos_embed[:, 1:], tokenization, time_embed)
        first = (cls_token + pos_embed[:, :1]).expand(clips.shape[0], -1, -1)
        return torch.cat([first, tokenization.tokens + positions], 1)

    def inspect(
        self, clips: Tensor, num_patches: int | None = None, num_rows: int | None = None, *, with_patches: bool = True
    ) -> VideoTokenization:
        """Everything that leads to the tokens, and the tokens without position.

        Patches are made in any case: this mode is for agreement, not for speed.
        """
        expected = (3, self.num_frames, FRAME_PX, FRAME_PX)
        if clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
            rule = f"must be (batch, {', '.join(map(str, expected))})"
            raise ValueError(f"clips = {tuple(clips.shape)}: {rule}; resize the clip or choose other frames")
        check_images(clips.flatten(2, 3), 3, self.patch_size[0])
        budget = self.num_patches if num_patches is None else num_patches
        check_budget(budget, (self.num_frames * FRAME_PX, FRAME_PX))
        return self.read(clips, self.scorer(clips), budget, num_rows)

    def read(
        self, clips: Tensor, scores: Tensor, num_patches: int | None = None, num_rows: int | None = None
    ) -> VideoTokenization:
        """What the scores (B, T, 14, 14) make of the clips: as `inspect`, without the score network."""
        if num_patches is None or num_patches == self.num_patches:
            num_patches, num_rows = self.num_patches, num_rows or self.num_rows
        rows = self.plan(num_patches, num_rows)
        _, heights, edges = cut_image(scores.flatten(1, 2), rows, num_patches)  # of (B, 14 T, 14) scores
        edges = edges * CELL_PX
        patches = sample_tokens(clips.flatten(2, 3), heights, edges, self.patch_size[0]).to(clips.dtype)
        tokens = F.linear(patches.flatten(2), self.proj.weight.flatten(1), self.proj.bias)
        regions = token_regions(heights.detach(), edges.detach(), FRAME_PX)
        return VideoTokenization(scores, heights, edges, regions, patches, tokens)

    def plan(self, token_budget: int, num_rows: int | None) -> int:
        """The number of rows of the whole clip.

        Raises:
            ValueError: a number that the budget does not allow.
        """
        # Not isqrt(N T): sqrt(961 / 9) * 9 is just below 93.
        rows = math.floor(math.sqrt(token_budget / self.num_frames) * self.num_frames)
        return plan_rows(token_budget, num_rows or rows)

    @staticmethod
    def share_cells(tokenization: VideoTokenization, grid_size: tuple[int, int]) -> Tensor:
        """How much of every cell of the score grids lies in every token: (B, N, G_h * G_w), in cells."""
        return strip_shares(tokenization.row_heights, tokenization.strip_edges / CELL_PX, grid_size)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Refuse another size (timm's contract)."""
        check_same_patch(patch_size, self.patch_size)
        if img_size is not None and to_pair(img_size) != self.img_size:
            raise ValueError(f"img_size = {img_size}: clips of paper mode are {FRAME_PX} px; use mode='invariant'")

    def dynamic_feat_size(self, img_size: tuple[int, int], num_frames: int) -> tuple[int, int]:
        """Rows and columns of the feature map of the stacked frames (timm's contract): those of the score grid."""
        return GRID_SIDE * num_frames, GRID_SIDE

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per cell of the score grid (timm's contract)."""
        return CELL_PX if as_scalar else (CELL_PX, CELL_PX)

    def carry(self, table: Tensor, tokenization: VideoTokenization, time_table: Tensor | None = None) -> Tensor:
        """Where and when every token is: the sum of `carry_places` and, given a table of times, `carry_times`."""
        places = self.carry_places(table, tokenization)
        return places if time_table is None else places + self.carry_times(time_table, tokenization)

    def carry_places(self, table: Tensor, tokenization: VideoTokenization) -> Tensor:
        """Where every token is in its frame: a table (1, 196, D) -> (B, N, D)."""
        return _carry(table.unflatten(1, (GRID_SIDE, GRID_SIDE)).repeat(1, self.num_frames, 1, 1), tokenization)

    def carry_times(self, table: Tensor, tokenization: VideoTokenization) -> Tensor:
        """When every token is: a table (1, T, D) -> (B, N, D)."""
        return _carry(table.repeat_interleave(GRID_SIDE, 1)[:, :, None].expand(-1, -1, GRID_SIDE, -1), tokenization)


def _carry(grid: Tensor, tokenization: VideoTokenization) -> Tensor:
    """The means over the tokens of an embedding (1, 14 T, 14, D) of the stacked frames' cells."""
    edges = tokenization.strip_edges / CELL_PX
    with torch.autocast(grid.device.type, enabled=False):
        return carry_grid(grid.to(edges.dtype), tokenization.row_heights, edges).to(grid.dtype)
