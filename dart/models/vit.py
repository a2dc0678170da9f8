"""Vision Transformers behind a region tokenizer, registered with timm: `dart_vit_*` and `uniform_vit_*`.

Both families share every line but the partition: same backbone, same sampling, same position embedding.
"""

from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dart.registry import DART_ONLY, TOKENIZERS, VARIANTS
from dart.scorer import build_scorer
from dart.tokenizer import DartTokenizer

default_cfgs = generate_default_cfgs(
    {
        f"{tokenizer}_vit_{variant}": {
            "num_classes": 1000,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for tokenizer in TOKENIZERS
        for variant in VARIANTS
    }
)


class RegionVisionTransformer(VisionTransformer):
    """timm's VisionTransformer with a region tokenizer in the place of the patch embedding.

    Args:
        tokenizer: "dart" or "uniform".
        token_budget: Patch tokens per image, class token excluded.
        num_rows, scorer, score_floor, score_blur, sampling, pos_embed: See `dart.tokenizer`.
        others: timm's.
    """

    patch_embed: DartTokenizer

    def __init__(
        self,
        *,
        tokenizer: str,
        token_budget: int,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        pos_embed: str = "geometry",
        num_rows: int | None = None,
        sampling: str = "area",
        scorer: str = "conv",
        score_floor: float = 0.3,
        score_blur: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(img_size=img_size, patch_size=patch_size, in_chans=in_chans, pos_embed="none", **kwargs)
        # The tokenizer comes last, in the place of timm's, whose weight initialisation must not reset the scorer.
        self.patch_embed = DartTokenizer(
            img_size,
            patch_size,
            in_chans,
            self.embed_dim,
            build_scorer(scorer, in_chans) if tokenizer == "dart" else None,
            token_budget=token_budget,
            num_rows=num_rows,
            score_floor=score_floor,
            score_blur=score_blur,
            sampling=sampling,
            pos_embed=pos_embed,
        )

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay must leave alone: timm's, the position table and the scorer."""
        ours = {
            n
            for n, _ in self.named_parameters()
            if n.startswith(("patch_embed.scorer.", "patch_embed.pos_embed.table"))
        }
        return {n for n in super().no_weight_decay() if n in dict(self.named_parameters())} | ours


def build(model_name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`; options that only DART reads are dropped for the other tokenizers."""
    if not model_name.startswith("dart_"):
        kwargs = {key: value for key, value in kwargs.items() if key not in DART_ONLY}
    return timm.create_model(model_name, **kwargs)


def _create(tokenizer: str, variant: str, pretrained: bool, **kwargs: Any) -> RegionVisionTransformer:
    kwargs = {"class_token": False, "global_pool": "avg", **VARIANTS[variant], **kwargs}
    if pretrained:
        raise ValueError(f"pretrained = True: there are no published weights of {tokenizer}_vit_{variant}; train it")
    return build_model_with_cfg(
        RegionVisionTransformer,
        f"{tokenizer}_vit_{variant}",
        pretrained,
        tokenizer=tokenizer,
        **kwargs,
    )


@register_model
def dart_vit_nano(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """DART before a ViT of width 32 and depth 2."""
    return _create("dart", "nano", pretrained, **{"img_size": 96, "patch_size": 8, "token_budget": 36, **kwargs})


@register_model
def dart_vit_micro(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """DART before a ViT of width 64 and depth 3."""
    return _create("dart", "micro", pretrained, **{"img_size": 96, "patch_size": 8, "token_budget": 36, **kwargs})


@register_model
def dart_vit_tiny(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """DART before a ViT of DeiT-Ti's width and depth, 448 px read as 196 tokens."""
    return _create("dart", "tiny", pretrained, **{"img_size": 448, "patch_size": 16, "token_budget": 196, **kwargs})


@register_model
def dart_vit_small(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """DART before a ViT of DeiT-S's width and depth, 448 px read as 196 tokens."""
    return _create("dart", "small", pretrained, **{"img_size": 448, "patch_size": 16, "token_budget": 196, **kwargs})


@register_model
def dart_vit_base(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """DART before a ViT of DeiT-B's width and depth, 448 px read as 196 tokens."""
    return _create("dart", "base", pretrained, **{"img_size": 448, "patch_size": 16, "token_budget": 196, **kwargs})


@register_model
def uniform_vit_nano(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """The uniform twin of `dart_vit_nano`."""
    return _create("uniform", "nano", pretrained, **{"img_size": 96, "patch_size": 8, "token_budget": 36, **kwargs})


@register_model
def uniform_vit_micro(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """The uniform twin of `dart_vit_micro`."""
    return _create("uniform", "micro", pretrained, **{"img_size": 96, "patch_size": 8, "token_budget": 36, **kwargs})


@register_model
def uniform_vit_tiny(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """The uniform twin of `dart_vit_tiny`."""
    return _create("uniform", "tiny", pretrained, **{"img_size": 448, "patch_size": 16, "token_budget": 196, **kwargs})


@register_model
def uniform_vit_small(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """The uniform twin of `dart_vit_small`."""
    return _create("uniform", "small", pretrained, **{"img_size": 448, "patch_size": 16, "token_budget": 196, **kwargs})


@register_model
def uniform_vit_base(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
    """The uniform twin of `dart_vit_base`."""
    return _create("uniform", "base", pretrained, **{"img_size": 448, "patch_size": 16, "token_budget": 196, **kwargs})
