"""Images in, tokens out: scores -> density -> regions -> patches -> tokens (arXiv 2506.10390, section 3).

# B batch, C channels, H W image pixels, G_h G_w score grid, N tokens, P patch side, D embedding
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.kernels import embed_regions, sample_regions
from dart.partition import check_whole, geometry_dtype, partition_image, plan_grid, plan_rows, uniform_regions
from dart.pos_embed import GeometricPosEmbed, carry_table, region_shares
from dart.registry import PARTITIONS, POS_EMBEDS, ROW_WEIGHTS, SAMPLINGS
from dart.scorer import scores_to_density


class Tokenization(NamedTuple):
    """Everything between an image and its tokens, for models, figures and tests.

    img_size: H, W.
    scores: (B, G_h, G_w) raw, or None for the uniform tokenizer.
    density: (B, G_h, G_w), sum 1 per image.
    regions: (B or 1, N, 4) as x0, y0, x1, y1 pixels, in reading order; one partition may serve all images.
    patches: (B, N, C, P, P), what the model sees, or None where nobody asked for it.
    tokens: (B, N, D).
    num_frames: How many frames lie below each other in the image; see `dart.video`.
    """

    img_size: tuple[int, int]
    scores: Tensor | None
    density: Tensor
    regions: Tensor
    patches: Tensor | None
    tokens: Tensor
    num_frames: int = 1


class DartTokenizer(nn.Module):
    """Learned regions, read at patch resolution and projected; an image's tokens never depend on its batch mates.

    Takes the place of timm's `PatchEmbed`: call it with images, get tokens. With uniform scores, and as many tokens
    as the image has patches, the tokens are those of `PatchEmbed`.

    Args:
        img_size: H, W that the model is made for, or one number for both; `forward` takes any other size too.
        patch_size: P.
        in_chans: C.
        embed_dim: D.
        scorer: Images to raw scores (B, G_h, G_w). None cuts the uniform grid, which is what
            DART is compared with, everything else being equal.
        token_budget: N, patch tokens per image; `forward` can be told another.
        num_rows: R for this budget; None for round(sqrt(N H / W)).
        partition: "flow" or "grid", see `dart.partition`.
        row_weight: "mass" or "density", see `dart.partition.flow_regions`.
        score_floor: Uniform share of the density, in (0, 1].
        score_blur: Passes of a 3 x 3 mean filter over the density.
        sampling: "area" or "point", see `dart.kernels.sample_regions`.
        pos_embed: "geometry" adds an embedding of each region's place and size; "table" leaves positions to the
            model (`dart.pos_embed.carry_table`).
        norm_layer: Makes a norm of the finished tokens.
    """

    geometry: type[GeometricPosEmbed] = GeometricPosEmbed

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        in_chans: int,
        embed_dim: int,
        scorer: nn.Module | None,
        *,
        token_budget: int,
        num_rows: int | None = None,
        partition: str = "flow",
        row_weight: str = "mass",
        score_floor: float = 0.3,
        score_blur: int = 2,
        sampling: str = "area",
        pos_embed: str = "geometry",
        norm_layer: Callable[[int], nn.Module] | None = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.patch_size = check_patch(patch_size)
        self.img_size = check_size(img_size, self.patch_size[0])
        self.in_chans = in_chans
        self.num_patches, self.num_rows = token_budget, num_rows
        self.partition = one_of("partition", partition, PARTITIONS)
        self.row_weight = one_of("row_weight", row_weight, ROW_WEIGHTS)
        self.sampling = one_of("sampling", sampling, SAMPLINGS)
        check_score_options(score_floor, score_blur)
        self.score_floor, self.score_blur = score_floor, score_blur
        self.plan(self.num_patches, num_rows)
        self.scorer = scorer
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size)
        self.pos_embed = self.geometry(embed_dim) if one_of("pos_embed", pos_embed, POS_EMBEDS) == "geometry" else None
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None) -> Tensor:
        """(B, C, H, W) -> tokens (B, N, D), differentiable down to the scores.

        Raises:
            ValueError: another number of channels, a side below one patch, more tokens than pixels, pixels that are not
                floating point, or not finite.
        """
        return self.inspect(images, num_patches, num_rows, with_patches=False).tokens

    def inspect(
        self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None, *, with_patches: bool = True
    ) -> Tokenization:
        """As `forward`, with everything that leads to the tokens; without the patches a GPU need not store them."""
        img_size = (images.shape[-2], images.shape[-1])
        check_images(images, self.in_chans, self.patch_size[0])
        budget = check_budget(self.num_patches if num_patches is None else num_patches, img_size)
        if num_rows is None and budget == self.num_patches:
            num_rows = self.num_rows
        scores, density, regions = self.regions(images, budget, num_rows)
        patches, tokens = self.read(images, regions, with_patches)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed(regions, img_size)
        return Tokenization(img_size, scores, density, regions, patches, self.norm(tokens))

    def regions(self, images: Tensor, num_patches: int, num_rows: int | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Scores, density (B, G_h, G_w) and regions of these images; without a scorer, one partition for all."""
        img_size = (images.shape[-2], images.shape[-1])
        if self.scorer is None:
            dtype = geometry_dtype(images.dtype)
            shared = uniform_regions(num_patches, num_rows, img_size, images.device, dtype, self.partition)
            return None, shared.new_ones(images.shape[0], 1, 1), shared
        scores = self.scorer(images)
        density = scores_to_density(scores, self.score_floor, self.score_blur)
        options = {"partition": self.partition, "row_weight": self.row_weight}
        return scores, density, partition_image(density, img_size, num_patches, num_rows, **options)

    def read(self, images: Tensor, regions: Tensor, with_patches: bool) -> tuple[Tensor | None, Tensor]:
        """Patches (B, N, C, P, P), or None, and their projections (B, N, D), of given regions."""
        if not with_patches:
            return None, embed_regions(images, regions, self.proj.weight, self.proj.bias, self.sampling)
        patches = sample_regions(images, regions, self.patch_size[0], self.sampling)
        return patches, F.linear(patches.flatten(2), self.proj.weight.flatten(1), self.proj.bias)

    def plan(self, token_budget: int, num_rows: int | None) -> None:
        """Refuse a budget that images of the usual size do not allow, and rows that the budget does not."""
        check_budget(token_budget, self.img_size)
        (plan_grid if self.partition == "grid" else plan_rows)(token_budget, num_rows)

    @staticmethod
    def carry(table: Tensor, tokenization: Tokenization) -> Tensor:
        """A square position table (1, G * G, D) averaged over each region: (B or 1, N, D)."""
        side = math.isqrt(table.shape[1])
        return carry_table(table, tokenization.regions, tokenization.img_size, (side, side))

    @staticmethod
    def share_cells(tokenization: Tokenization, grid_size: tuple[int, int]) -> Tensor:
        """How much of every cell of a grid over the image lies in every region: (B or 1, N, G_h * G_w), in cells."""
        return region_shares(tokenization.regions, tokenization.img_size, grid_size)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make another image size the usual one (timm's contract); regions of any image are read at the same P."""
        check_same_patch(patch_size, self.patch_size)
        if img_size is not None:
            self.img_size = check_size(img_size, self.patch_size[0])
            self.plan(self.num_patches, self.num_rows)

    @property
    def grid_size(self) -> tuple[int, int]:
        """The regular grid of about as many cells as there are tokens, for feature maps (timm's contract)."""
        return self.dynamic_feat_size(self.img_size)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the feature map of an image of this size; one cell per token where sides allow."""
        side = (img_size[0] * img_size[1] / self.num_patches) ** 0.5
        return max(1, round(img_size[0] / side)), max(1, round(img_size[1] / side))

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per cell of `grid_size`, to the nearest whole number (timm's contract)."""
        ratio = (round(self.img_size[0] / self.grid_size[0]), round(self.img_size[1] / self.grid_size[1]))
        return max(ratio) if as_scalar else ratio


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """A size as height, width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check_patch(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """A patch's height and width, which are equal."""
    height, width = to_pair(patch_size)
    if height != width or height < 1:
        raise ValueError(f"patch_size = {patch_size}: must be square, at least 1 px")
    return height, width


def check_same_patch(asked: int | tuple[int, int] | None, own: tuple[int, int]) -> None:
    """Refuse another patch size: the projection's weights have one."""
    if asked is not None and to_pair(asked) != own:
        raise ValueError(f"patch_size = {asked}: the weights are of {own}; create another model")


def check_size(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """An image's height and width, if a patch fits."""
    height, width = to_pair(img_size)
    if min(height, width) < patch_size:
        raise ValueError(f"img_size = {height} x {width} px: sides must be at least one patch ({patch_size} px)")
    return height, width


def one_of(where: str, value: str, known: tuple[str, ...]) -> str:
    """The value, if it is a known name."""
    if value not in known:
        raise ValueError(f"{where} = {value!r}: unknown; known: {', '.join(known)}")
    return value


def check_score_options(score_floor: float, score_blur: int) -> None:
    """Refuse what makes no density of scores."""
    if not 0 < score_floor <= 1:
        raise ValueError(f"score_floor = {score_floor}: must be above 0 and at most 1 (share that is uniform)")
    if check_whole("score_blur", score_blur) < 0:
        raise ValueError(f"score_blur = {score_blur}: must be at least 0 (passes of a mean filter)")


def check_budget(token_budget: int, img_size: tuple[int, int], whole: str = "image") -> int:
    """The budget, if an image of that size allows it."""
    pixels = img_size[0] * img_size[1]
    if not 1 <= check_whole("token_budget", token_budget) <= pixels:
        raise ValueError(f"token_budget = {token_budget}: must be from 1 to the {whole}'s {pixels} pixels")
    return token_budget


def check_images(images: Tensor, in_chans: int, patch_size: int) -> None:
    """Refuse what cannot be tokenized. Values are looked at on the CPU only: elsewhere it would wait."""
    if images.ndim != 4 or images.shape[1] != in_chans:
        raise ValueError(f"images = {tuple(images.shape)}: must be (batch, {in_chans}, height, width)")
    check_pixels(images, patch_size, "images")


def check_pixels(images: Tensor, patch_size: int, name: str) -> None:
    """Refuse images or clips (B, ..., H, W) that are too small, not floating point, or not of numbers."""
    if not images.dtype.is_floating_point:
        raise ValueError(f"{name} = {images.dtype}: must be floating point; divide bytes by 255")
    if min(images.shape[-2:]) < patch_size:
        size = f"{images.shape[-2]} x {images.shape[-1]}"
        raise ValueError(f"{name} = {size} px: sides must be at least one patch ({patch_size} px); resize them")
    if images.device.type == "cpu" and not torch.compiler.is_compiling() and not images.sum().isfinite():
        odd = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if odd:  # a sum of finite numbers may overflow
            raise ValueError(f"{name}[{odd[0]}] = NaN or infinity: pixels must be finite; check the decoding")
