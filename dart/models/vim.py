"""Vision Mamba (arXiv 2401.09417), plain or behind a region tokenizer: `vim_*`, `dart_vim_*`, `uniform_vim_*`.

`dart.models.entrypoints` registers its sizes with timm.
"""

from typing import Any

from timm.layers import PatchEmbed
from torch import nn

from dart.models.state_space import StateSpaceModel
from dart.tokenizer import to_pair


class VisionMamba(StateSpaceModel):
    """Images to classes: the class token in the middle of the tokens, the mean of both directions.

    The token in the middle is as far from the first token as from the last, and a scan forgets with distance.
    """

    average_directions = True

    @staticmethod
    def class_index(num_patches: int) -> int:
        """In the middle; after the first half where the number is odd."""
        return num_patches // 2

    def build_patches(
        self,
        embed_dim: int,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        patch_stride: int | None = None,
        **unread: Any,
    ) -> nn.Module:
        """As every plain model's, or with `patch_stride`, in pixels, `OverlappingPatches`."""
        patches = super().build_patches(embed_dim, img_size, patch_size, in_chans, **unread)
        if patch_stride in (None, patch_size):
            return patches
        if not isinstance(patch_stride, int) or not 1 <= patch_stride < patch_size:
            raise ValueError(f"patch_stride = {patch_stride!r}: must be from 1 to patch_size ({patch_size} px), whole")
        return OverlappingPatches(img_size, patch_size, in_chans, embed_dim, patch_stride)


class OverlappingPatches(PatchEmbed):
    """timm's PatchEmbed with a patch every `stride` pixels: the long sequences of the published Vim (+), 8 for 16."""

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, stride: int
    ) -> None:
        self.stride = stride  # before the base asks for the grid
        super().__init__(img_size, patch_size, in_chans, embed_dim)
        self.proj.stride = (stride, stride)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches that lie wholly in an image of this size, in pixels."""
        height, width = (
            (side - patch) // self.stride + 1 for side, patch in zip(img_size, self.patch_size, strict=True)
        )
        return height, width

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels from one patch to the next (timm's contract)."""
        return self.stride if as_scalar else (self.stride, self.stride)

    def _init_img_size(self, img_size: int | tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], int]:
        grid = self.dynamic_feat_size(size := to_pair(img_size))
        return size, grid, grid[0] * grid[1]
