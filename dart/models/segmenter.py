"""A class for every pixel from irregular tokens: a Vision Transformer whose tokens are painted back where they lie.

`dart.models.entrypoints` registers its sizes with timm. DART and the uniform grid share every line but the partition.

# B batch, C channels, H W image pixels, N tokens, D embedding, d painted values, S points, K classes
"""

from typing import Any

from torch import Tensor, nn

from dart.models.vit import RegionVisionTransformer
from dart.paint import paint_tokens, upsample
from dart.partition import plan_grid, plan_rows
from dart.tokenizer import Tokenization


class PaintHead(nn.Module):
    """Tokens -> classes: every token says what is where in its region, that is painted, and a small network reads it.

    Args:
        embed_dim: D.
        num_classes: K; 0 leaves the d painted values.
        points: S, on the side of a token's map; a region is told apart as finely as that, whatever its size.
        dim: d.
        depth: 3 x 3 convolutions over the painted values, which see across the edges of regions; 0 for none.
        stride: Pixels on the side of a painted cell; logits are interpolated to the pixels.
    """

    def __init__(self, embed_dim: int, num_classes: int, *, points: int, dim: int, depth: int, stride: int) -> None:
        super().__init__()
        for name, value in (("points", points), ("dim", dim), ("stride", stride), ("depth", depth)):
            if not isinstance(value, int) or value < (name != "depth"):
                raise ValueError(f"head_{name} = {value!r}: must be a whole number, at least {int(name != 'depth')}")
        self.points, self.dim, self.stride = points, dim, stride
        self.decode = nn.Linear(embed_dim, points * points * dim)
        blocks = [[nn.Conv2d(dim, dim, 3, padding=1), nn.GELU()] for _ in range(depth)]
        self.refine = nn.Sequential(*[layer for block in blocks for layer in block])
        self.classifier = self.make_classifier(num_classes)

    def forward(
        self, tokens: Tensor, regions: Tensor, img_size: tuple[int, int], num_rows: int | None = None
    ) -> Tensor:
        """Tokens (B, N, D) of regions (B or 1, N, 4) in pixels, in R rows or fewer -> (B, K, H, W)."""
        # In the order in which they are painted: columns of a map, from left to right, and their points downwards.
        maps = self.decode(tokens).unflatten(-1, (self.points, self.points, self.dim))
        # Painting is linear: classes that are fewer than values are told before it, at fewer points than pixels.
        early = not self.refine and getattr(self.classifier, "out_features", 0) <= self.dim
        if early:
            maps = self.classifier(maps)
        painted = paint_tokens(maps.permute(0, 1, 4, 3, 2), regions, img_size, num_rows, self.stride)
        if not early:
            painted = self.classifier(self.refine(painted).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return upsample(painted, self.stride)[..., : img_size[0], : img_size[1]]

    def make_classifier(self, num_classes: int) -> nn.Module:
        """The last layer, freshly initialised."""
        weight = self.decode.weight
        if not num_classes:
            return nn.Identity()
        return nn.Linear(self.dim, num_classes, device=weight.device, dtype=weight.dtype)


class TokenSegmenter(RegionVisionTransformer):
    """Images to a class for every pixel; whatever `RegionVisionTransformer` can do, it can, but for pooling.

    Args:
        num_classes: K; 0 for the painted values alone.
        head_points, head_dim, head_depth, head_stride: See `PaintHead`.
        others: As of `RegionVisionTransformer`; `mode` must be "invariant": in paper mode a token may lie in two rows.
    """

    head: PaintHead

    def __init__(
        self,
        *,
        num_classes: int = 150,
        head_points: int = 8,
        head_dim: int = 8,
        head_depth: int = 0,
        head_stride: int = 1,
        mode: str = "invariant",
        **kwargs: Any,
    ) -> None:
        if mode == "paper":
            raise ValueError("mode = 'paper': tokens that lie in two rows cannot be painted; use an upernet model")
        if kwargs.get("reducer") is not None:
            raise ValueError(f"reducer = {kwargs['reducer']!r}: a segmenter paints every token; leave it out")
        if kwargs.get("global_pool"):
            raise ValueError(f"global_pool = {kwargs['global_pool']!r}: a segmenter pools nothing; leave it out")
        # Every token counts by itself: nothing is pooled, and the last norm is of tokens.
        super().__init__(num_classes=0, mode=mode, **{**kwargs, "global_pool": ""})
        self.num_classes = num_classes
        sizes = {"points": head_points, "dim": head_dim, "depth": head_depth, "stride": head_stride}
        self.head = PaintHead(self.embed_dim, num_classes, **sizes)

    def forward(  # type: ignore[override]
        self, x: Tensor, labels: Tensor | None = None, *, num_patches: int | None = None, num_rows: int | None = None
    ) -> Any:
        """Images (B, C, H, W) -> logits (B, K, H, W), with another token budget and row count if given.

        With labels (B, H, W), the pair of logits and labels that a loss compares: here both are of the image's pixels.
        """
        img_size = (x.shape[-2], x.shape[-1])
        tokens, found = self.embed(x, num_patches, num_rows)
        logits = self.forward_head(
            self.run_blocks(tokens), found.regions, img_size, self.count_rows(img_size, num_patches, num_rows)
        )
        return logits if labels is None else (logits, labels)

    def forward_head(
        self, x: Tensor, regions: Tensor, img_size: tuple[int, int], num_rows: int | None = None
    ) -> Tensor:
        """Tokens (B, prefix + N, D) and their regions (B or 1, N, 4), in R rows or fewer -> logits (B, K, H, W)."""
        return self.head(self.head_drop(x[:, self.num_prefix_tokens :]), regions, img_size, num_rows)

    def inspect(self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None) -> Tokenization:
        """How images are tokenized: density, regions, patches."""
        return self.patch_embed.inspect(images, num_patches, num_rows)

    def count_rows(self, img_size: tuple[int, int], num_patches: int | None = None, num_rows: int | None = None) -> int:
        """In how many rows the regions of an image lie: painting asks for it, and a GPU shall not be."""
        tokenizer = self.patch_embed
        budget = tokenizer.num_patches if num_patches is None else num_patches
        if num_rows is None and budget == tokenizer.num_patches:
            num_rows = tokenizer.num_rows
        aspect = img_size[0] / img_size[1]
        if tokenizer.partition == "grid":
            return plan_grid(budget, num_rows, aspect)[0]
        return plan_rows(budget, num_rows, aspect)

    def get_classifier(self) -> nn.Module:
        """timm's: the last layer."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's: a fresh last layer; 0 classes for none."""
        if global_pool:
            raise ValueError(f"global_pool = {global_pool!r}: a segmenter pools nothing; leave it out")
        self.num_classes = num_classes
        self.head.classifier = self.head.make_classifier(num_classes)
