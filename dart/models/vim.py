"""Vision Mamba (arXiv 2401.09417) on a uniform grid and behind DART, registered with timm: `vim_*`, `dart_vim_*`.

Entry names are the published ones, so that those weights load.

# B batch, C channels, H W image pixels, N patch tokens, L = N + 1 with the class token, D embedding
"""

from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from dart.models.mamba import NO_WEIGHT_DECAY, BidirectionalMixer, MambaBlock, StreamNorm, add_to_stream
from dart.pos_embed import map_features

VARIANTS = {"tiny": 192, "small": 384}
# The score network that goes with each in the published models.
SCORERS = {"tiny": "mobilenetv3_small_v2", "small": "mobilenetv3_large_v2"}

default_cfgs = generate_default_cfgs(
    {
        f"{prefix}vim_{variant}": {
            "num_classes": 1000,
            "input_size": (3, size, size),
            "pool_size": None,
            "fixed_input_size": True,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for prefix, size in (("", 224), ("dart_", 448))
        for variant in VARIANTS
    }
)


class VisionMamba(nn.Module):
    """Patch tokens and a class token in their middle, bidirectional Mamba blocks, the class token to the classes.

    The scan goes through the tokens in reading order; it knows nothing else of where they are than what the
    position table, read at their regions, says.

    Args:
        tokenizer: "uniform" for timm's patch embedding, "dart" for regions.
        img_size: Side of the images in pixels, or H, W for the uniform grid.
        mode: What "dart" stands for; "paper" is the only one so far (`dart.paper.PaperTokenizer`).
        scorer, token_budget, num_rows, score_input: That tokenizer's.
        depth: Blocks.
        state_size: States per channel of the scan.
        global_pool: "token" for the class token, "avg" for the mean of the patch tokens, "" for all tokens.
        others: timm's.
    """

    def __init__(
        self,
        tokenizer: str = "uniform",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        state_size: int = 16,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        *,
        mode: str = "paper",
        **dart: Any,
    ) -> None:
        super().__init__()
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.num_features = self.head_hidden_size = embed_dim
        self.num_prefix_tokens = 1
        self.global_pool = _check_pool(global_pool)
        self.grad_checkpointing = False
        self.tokenizer = tokenizer
        self.patch_embed: Any  # timm's, or a dart.paper.PaperTokenizer, which needs torchvision's networks
        if tokenizer == "uniform":
            if dart:
                raise ValueError(f"{', '.join(dart)}: for dart_vim_* alone; leave out, or choose one of those models")
            self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        elif mode == "paper":
            from dart.paper import PaperTokenizer

            self.patch_embed = PaperTokenizer(img_size, patch_size, in_chans, embed_dim, **dart)
        else:
            raise ValueError(f'mode = {mode!r}: unknown to Vision Mamba; use "paper"')
        self.in_chans = in_chans
        places = self.patch_embed.grid_size[0] * self.patch_embed.grid_size[1]
        self.pos_embed = nn.Parameter(torch.randn(1, places + 1, embed_dim) * 0.02)  # the class token's in the middle
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(MambaBlock(embed_dim, state_size, rate) for rate in rates)
        self.norm_f: nn.Module = StreamNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"module": f"layers.{i}", "num_chs": embed_dim, "reduction": patch_size} for i in range(depth)
        ]
        for module in self.modules():
            if isinstance(module, BidirectionalMixer):
                # The stream is a sum over the blocks: its variance at the start shall not grow with their number.
                module.out_proj.weight.data.div_(depth**0.5)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> normalised tokens (B, L, D), the class token at index floor(N / 2)."""
        mixed, stream = self.embed(images)[0], None
        for layer in self.layers:
            mixed, stream = self._run(layer, mixed, stream)
        return self.norm_f(add_to_stream(mixed, stream))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, L, D) -> (B, num_classes), or the pooled feature (B, D)."""
        prefix, patches = split_class(tokens)
        pooled = {"token": prefix[:, 0], "avg": patches.mean(1), "": tokens}[self.global_pool]
        pooled = self.head_drop(pooled)
        return pooled if pre_logits else self.head(pooled)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> the first block's tokens (B, L, D), and the regions (B, N, 4) if they are not the grid.

        Raises:
            ValueError: images of another shape than the model is made for.
        """
        expected = (self.in_chans, *self.patch_embed.img_size)
        if images.dim() != 4 or images.shape[1:] != expected:
            wanted = ", ".join(map(str, expected))
            raise ValueError(f"images = {tuple(images.shape)}: must be (B, {wanted}); resize, or build with img_size")
        place, table = split_class(self.pos_embed)
        regions = None
        if self.tokenizer == "dart":
            tokenization = self.patch_embed.inspect(images)
            patches = tokenization.tokens + self.patch_embed.carry(table, tokenization)
            regions = tokenization.regions
        else:
            patches = self.patch_embed(images) + table
        middle = patches.shape[1] // 2
        prefix = (self.cls_token + place).expand(images.shape[0], -1, -1)
        tokens = torch.cat((patches[:, :middle], prefix, patches[:, middle:]), 1)
        return self.pos_drop(tokens), regions

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's: the stream after the blocks asked for, without the class token; as maps or as tokens."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt = {output_fmt!r}: must be "NCHW" or "NLC"')
        taken, last = feature_take_indices(len(self.layers), indices)
        mixed, regions = self.embed(x)
        stream = None
        found = []
        for i, layer in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            mixed, stream = self._run(layer, mixed, stream)
            if i in taken:
                after = add_to_stream(mixed, stream)
                found.append(split_class(self.norm_f(after) if norm else after.to(mixed.dtype)))
        maps = [patches for _, patches in found]
        if output_fmt == "NCHW":
            grid, size = self.patch_embed.grid_size, (x.shape[-2], x.shape[-1])
            maps = [
                patches.mT.unflatten(2, grid) if regions is None else map_features(patches, regions, size, grid)
                for patches in maps
            ]
        out = list(zip(maps, [prefix for prefix, _ in found], strict=True)) if return_prefix_tokens else maps
        return out if intermediates_only else (self.norm_f(add_to_stream(mixed, stream)), out)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's: drop what the intermediates asked for do not need."""
        taken, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """timm's: another image size on the uniform grid; the position table is resampled.

        Raises:
            ValueError: in paper mode, whose sizes are part of it.
        """
        if self.tokenizer == "dart":
            sizes = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
            if sizes != tuple(self.patch_embed.img_size):
                raise ValueError(f"img_size = {img_size}: paper mode is made for {self.patch_embed.img_size[0]} px")
            return
        old = list(self.patch_embed.grid_size)
        self.patch_embed.set_input_size(img_size)
        new = list(self.patch_embed.grid_size)
        place, table = split_class(self.pos_embed.detach())
        table = resample_abs_pos_embed(table, new, old, num_prefix_tokens=0)
        middle = table.shape[1] // 2
        self.pos_embed = nn.Parameter(torch.cat((table[:, :middle], place, table[:, middle:]), 1))

    def get_classifier(self) -> nn.Module:
        """timm's."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's: a fresh head; 0 classes for none."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _check_pool(global_pool)
        device, dtype = self.pos_embed.device, self.pos_embed.dtype
        head = nn.Linear(self.embed_dim, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        self.head = head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's: keep the blocks' inputs alone and compute the rest again in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """timm's: the tables, what shapes the memory of the scan, and the frozen or small scorer."""
        no_decay = ("pos_embed", "cls_token", *(f".mixer.{name}" for name in NO_WEIGHT_DECAY))
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name.endswith(no_decay) or name.startswith("patch_embed.scorer.")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's: layers for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }

    def _run(self, layer: nn.Module, mixed: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.grad_checkpointing and self.training:
            return checkpoint(layer, mixed, stream)
        return layer(mixed, stream)


def split_class(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N + 1, D) -> the class token in the middle (B, 1, D), and the others (B, N, D) in their order."""
    middle = (tokens.shape[1] - 1) // 2
    return tokens[:, middle : middle + 1], torch.cat((tokens[:, :middle], tokens[:, middle + 1 :]), 1)


def _check_pool(global_pool: str) -> str:
    if global_pool not in ("token", "avg", ""):
        raise ValueError(f'global_pool = {global_pool!r}: must be "token", "avg" or ""')
    return global_pool


def _create(name: str, pretrained: bool, **kwargs: Any) -> VisionMamba:
    prefix, variant = name.rsplit("vim_", 1)
    kwargs = {"embed_dim": VARIANTS[variant], **kwargs}
    if prefix == "dart_":
        kwargs = {"tokenizer": "dart", "scorer": SCORERS[variant], **kwargs}
    if pretrained and not kwargs.get("pretrained_cfg"):
        raise ValueError(f"pretrained = True: no weights of {name} are hosted; convert a checkpoint with dart.official")
    return build_model_with_cfg(
        VisionMamba, name, pretrained, feature_cfg={"out_indices": 3, "feature_cls": "getter"}, **kwargs
    )


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti: width 192, 24 blocks, 224 px as 196 tokens."""
    return _create("vim_tiny", pretrained, **kwargs)


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S: width 384, 24 blocks, 224 px as 196 tokens."""
    return _create("vim_small", pretrained, **kwargs)


@register_model
def dart_vim_tiny(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """DART before Vim-Ti, 448 px as 196 tokens; the paper's other budget is `token_budget=392`."""
    return _create("dart_vim_tiny", pretrained, **kwargs)


@register_model
def dart_vim_small(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """DART before Vim-S, 448 px as 196 tokens; the paper's other budget is `token_budget=392`."""
    return _create("dart_vim_small", pretrained, **kwargs)
