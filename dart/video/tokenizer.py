"""Clips in, tokens out: `dart.tokenizer` over space and time, one budget for the whole clip.

# B batch, C channels, T frames, H W frame pixels, G_h G_w score grid of a frame, N tokens, P patch side, D embedding
A clip (B, C, T, H, W) is one tall image, its frames below each other: (B, C, T * H, W). Regions are in its pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dart.partition import geometry_dtype, plan_rows
from dart.pos_embed import ClipPosEmbed, carry_clip_tables
from dart.scorer import scores_to_density
from dart.tokenizer import DartTokenizer, Tokenization, check_budget, check_pixels
from dart.video.partition import clip_regions, plan_clip_rows, uniform_clip_regions


class VideoTokenizer(DartTokenizer):
    """Learned regions of a clip, read at patch resolution and projected; a token reads one frame, as a rule.

    Frames of much mass get more tokens and rows than others; with fewer rows than frames, rows span frames. One frame
    gives the regions of `DartTokenizer`, and its tokens but for their position.

    Args:
        img_size: H, W of the frames that the model is made for, or one number for both.
        patch_size: P.
        in_chans: C.
        embed_dim: D.
        scorer: Clips to raw scores (B, T, G_h, G_w), see `build_video_scorer`. None cuts the uniform grid.
        num_frames: T that the model is made for; `forward` takes any other number, and any other size.
        token_budget: N, tokens of the whole clip.
        num_rows: R, rows of the whole clip, for this budget and T; None: see `plan_clip_rows`.
        options: Those of `DartTokenizer`, but `partition`: that is "flow". With pos_embed = "table" the model adds
            positions (`carry`).

    Raises:
        ValueError: a value out of range.
    """

    geometry = ClipPosEmbed

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        in_chans: int,
        embed_dim: int,
        scorer: nn.Module | None,
        *,
        num_frames: int,
        token_budget: int,
        num_rows: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(num_frames, int) or num_frames < 1:
            raise ValueError(f"num_frames = {num_frames!r}: must be a whole number, at least 1")
        if options.get("partition", "flow") == "grid":
            raise ValueError("partition = 'grid': no frame of a clip would get more tokens than others; choose 'flow'")
        self.num_frames = num_frames  # what follows checks the budget of the whole clip
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, scorer,
            token_budget=token_budget, num_rows=num_rows, **options,
        )  # fmt: skip

    def forward(self, clips: Tensor, num_patches: int | None = None, num_rows: int | None = None) -> Tensor:
        """(B, C, T, H, W) -> tokens (B, N, D), frame after frame, differentiable down to the scores.

        Raises:
            ValueError: as `DartTokenizer.forward`, and for clips without frames.
        """
        return self.inspect(clips, num_patches, num_rows, with_patches=False).tokens

    def inspect(
        self, clips: Tensor, num_patches: int | None = None, num_rows: int | None = None, *, with_patches: bool = True
    ) -> Tokenization:
        """As `forward`, with everything that leads to the tokens, in the coordinates of the tall image."""
        self.check_clips(clips)
        num_frames, height, width = clips.shape[2:]
        tall_size = (num_frames * height, width)
        budget = check_budget(self.num_patches if num_patches is None else num_patches, tall_size, "clip")
        if num_rows is None and budget == self.num_patches and num_frames == self.num_frames:
            num_rows = self.num_rows
        scores, density, regions = self.regions(clips, budget, num_rows)
        patches, tokens = self.read(clips, regions, with_patches)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed(regions, tall_size, num_frames)
        return Tokenization(tall_size, scores, density, regions, patches, self.norm(tokens), num_frames)

    def regions(self, clips: Tensor, num_patches: int, num_rows: int | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Scores, density (B, T * G_h, G_w) and regions of these clips; without a scorer, one partition for all."""
        num_frames, height, width = clips.shape[2:]
        rows = plan_clip_rows(num_patches, num_rows, num_frames, height / width)
        frame_size = (height, width)
        if self.scorer is None:
            dtype = geometry_dtype(clips.dtype)
            shared = uniform_clip_regions(num_patches, rows, num_frames, frame_size, clips.device, dtype)
            return None, shared.new_ones(clips.shape[0], num_frames, 1) / num_frames, shared
        scores = self.scorer(clips)
        density = scores_to_density(scores, self.score_floor, self.score_blur).flatten(1, 2)
        return scores, density, clip_regions(density, num_frames, num_patches, rows, frame_size, self.row_weight)

    def read(self, clips: Tensor, regions: Tensor, with_patches: bool) -> tuple[Tensor | None, Tensor]:
        """Patches (B, N, C, P, P), or None, and their projections (B, N, D), of given regions of the tall image.

        A token of one frame does not depend on the pixels of others.
        """
        if self.sampling == "point" and clips.shape[2] > 1:
            clips, regions = pad_frames(clips, regions)
        return super().read(clips.flatten(2, 3), regions, with_patches)

    def plan(self, token_budget: int, num_rows: int | None) -> None:
        """Refuse a budget that clips of the usual size do not allow, and rows that the budget does not."""
        check_budget(token_budget, (self.num_frames * self.img_size[0], self.img_size[1]), "clip")
        plan_rows(token_budget, num_rows)

    def check_clips(self, clips: Tensor) -> None:
        """Refuse what cannot be tokenized. Values are looked at on the CPU only: elsewhere it would wait."""
        if clips.ndim != 5 or clips.shape[1] != self.in_chans or clips.shape[2] < 1:
            rule = f"must be (batch, {self.in_chans}, frames, height, width), at least 1 frame"
            raise ValueError(f"clips = {tuple(clips.shape)}: {rule}")
        check_pixels(clips, self.patch_size[0], "clips")

    @staticmethod
    def carry(table: Tensor, tokenization: Tokenization, time_table: Tensor | None = None) -> Tensor:
        """Where and when every token is, by two tables, summed: (B or 1, N, D), see `carry_clip_tables`.

        Args:
            table: (1, G * G, D), of places in a frame.
            tokenization: Of `inspect`.
            time_table: (1, T, D), of times; None for places alone.
        """
        found = tokenization
        times = table.new_zeros(1, found.num_frames, table.shape[2]) if time_table is None else time_table
        return carry_clip_tables(table, times, found.regions, found.img_size, found.num_frames)

    @property
    def grid_size(self) -> tuple[int, int]:
        """The regular grid of about as many cells as tokens, of the tall image: a multiple of T rows."""
        return self.dynamic_feat_size((self.num_frames * self.img_size[0], self.img_size[1]), self.num_frames)

    def dynamic_feat_size(self, img_size: tuple[int, int], num_frames: int | None = None) -> tuple[int, int]:
        """Rows and columns of the feature map of a tall image of this size, rows being a multiple of T."""
        num_frames = self.num_frames if num_frames is None else num_frames
        side = (img_size[0] * img_size[1] / self.num_patches) ** 0.5
        return num_frames * max(1, round(img_size[0] / num_frames / side)), max(1, round(img_size[1] / side))

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per cell of `grid_size`, to the nearest whole number (timm's contract)."""
        rows, cols = self.grid_size
        ratio = (round(self.num_frames * self.img_size[0] / rows), round(self.img_size[1] / cols))
        return max(ratio) if as_scalar else ratio


def pad_frames(clips: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Clips whose frames have their first and last line twice, and regions (B, N, 4) in the tall image of them.

    Interpolation at a frame's border then repeats the border, and does not see the next frame.
    """
    height = clips.shape[3]
    lines = torch.arange(-1, height + 1, device=clips.device).clamp(0, height - 1)
    x0, y0, x1, y1 = regions.unbind(-1)
    last = (y1 / height).ceil() - 1  # the frame that a region ends in, and the one that it starts in
    first = (y0 / height).floor().minimum(last)
    return clips.index_select(3, lines), torch.stack([x0, y0 + 2 * first + 1, x1, y1 + 2 * last + 1], -1)
