"""VideoMamba (arXiv 2403.06977) on images and clips: `videomamba_*`, `dart_videomamba_*`, `uniform_videomamba_*`.

`dart.models.entrypoints` registers its sizes with timm.

# B batch, C channels, T frames, H W image or frame pixels, N patch tokens, D embedding, G_h G_w table
"""

from typing import Any

import torch
from torch import Tensor, nn

from dart.models.state_space import StateSpaceModel
from dart.pos_embed import map_by_shares, resample_times
from dart.tokenizer import check_size


class VideoMamba(StateSpaceModel):
    """Images (B, C, H, W) or clips (B, C, T, H, W) to classes: the class token first, the sum of both directions.

    The scan goes through a clip frame by frame. With a position table, clips have a second one over time, zero at the
    start, so that a model of clips starts as its model of images.

    Args:
        num_frames: T that the model is made for, and the length of the time table, which is resampled for clips of
            another length. None for images.
        others: See `StateSpaceModel`.
    """

    average_directions = False
    reads_clips = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.num_frames is not None and self.pos_embed is not None:
            self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, self.num_frames, self.embed_dim))

    @staticmethod
    def class_index(num_patches: int) -> int:
        """In front."""
        return 0

    def build_patches(
        self,
        embed_dim: int,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        num_frames: int | None = None,
        **unread: Any,
    ) -> nn.Module:
        """The patch embedding of the plain model, of images or of clips."""
        images = super().build_patches(embed_dim, img_size, patch_size, in_chans, **unread)
        return images if num_frames is None else ClipPatchEmbed(img_size, patch_size, in_chans, embed_dim)

    def tokenize(
        self, images: Tensor, table: Tensor | None, num_patches: int | None, num_rows: int | None
    ) -> tuple[Tensor, Any]:
        """Images as ever, or clips (B, C, T, H, W) -> patch tokens with positions in space and time, and how.

        Regions are pixels of the tall image of all frames below each other, T H x W.
        """
        if self.num_frames is None:
            return super().tokenize(images, table, num_patches, num_rows)
        if self.tokenizer == "plain":
            tokens = self.patch_embed(images)  # (B, T, G_h * G_w, D)
            times = resample_times(self.temporal_pos_embedding, tokens.shape[1])
            return (tokens + table + times[:, :, None]).flatten(1, 2), None
        found = self.patch_embed.inspect(images, num_patches, num_rows, with_patches=False)
        if table is None:
            return found.tokens, found
        return found.tokens + self.patch_embed.carry(table, found, self.temporal_pos_embedding), found

    def to_map(self, patches: Tensor, tokenization: Any, images: Tensor) -> Tensor:
        """Of clips, one map per frame: (B, N, D) -> (B, D, T, rows, columns)."""
        if self.num_frames is None:
            return super().to_map(patches, tokenization, images)
        frames, height, width = images.shape[-3:]
        if tokenization is None:
            return patches.mT.unflatten(2, (frames, *self.patch_embed.grid_size))
        grid = self.patch_embed.dynamic_feat_size((frames * height, width), frames)
        stacked = map_by_shares(patches, self.patch_embed.share_cells(tokenization, grid), grid)
        return stacked.unflatten(2, (frames, grid[0] // frames))

    def fit_entries(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of an image model start one of clips, and those of clips fit another number of frames."""
        state = super().fit_entries(state)
        name, times = "patch_embed.proj.weight", "temporal_pos_embedding"
        kernel, axes = state.get(name), self.patch_embed.proj.weight.ndim
        if kernel is not None and kernel.ndim == 4 and axes == 5:
            state[name] = kernel[:, :, None]
        elif kernel is not None and kernel.ndim == 5 and kernel.shape[2] == 1 and axes == 4:
            state[name] = kernel[:, :, 0]
        if self.num_frames is None:
            state.pop(times, None)
        elif self.pos_embed is not None:
            own = self.temporal_pos_embedding.detach()
            table = state.get(times, torch.zeros_like(own))
            state[times] = resample_times(table, self.num_frames) if table.shape[2:] == own.shape[2:] else table
        return state

    def _check_plain(self, images: Tensor, num_patches: int | None, num_rows: int | None) -> None:
        if self.num_frames is None:
            return super()._check_plain(images, num_patches, num_rows)
        readable = images.ndim == 5 and images.shape[2] > 0
        if not readable or (images.shape[1], *images.shape[3:]) != (self.in_chans, *self.patch_embed.img_size):
            wanted = f"(B, {self.in_chans}, frames, {self.patch_embed.img_size[0]}, {self.patch_embed.img_size[1]})"
            raise ValueError(f"clips = {tuple(images.shape)}: must be {wanted}; resize, or build with img_size")
        super()._check_plain(images[:, :, 0], num_patches, num_rows)


class ClipPatchEmbed(nn.Module):
    """timm's PatchEmbed for every frame of a clip, its kernel with an axis of one frame, as published.

    Args:
        img_size: H, W of a frame.
        patch_size: P.
        in_chans: C.
        embed_dim: D.
    """

    def __init__(self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, (1, patch_size, patch_size), (1, patch_size, patch_size))
        self.set_input_size(img_size)

    def forward(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, T, G_h * G_w, D)."""
        return self.proj(clips).flatten(3).permute(0, 2, 3, 1)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Frames of another size; no weight changes."""
        self.img_size = check_size(img_size, self.patch_size[0])
        self.grid_size = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per patch (timm's contract)."""
        return self.patch_size[0] if as_scalar else self.patch_size
