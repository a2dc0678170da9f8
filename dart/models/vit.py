"""Vision Transformers behind a region tokenizer, registered with timm.

`{dart,uniform}_vit_{nano,micro}` for small images, `{dart,uniform}_deit_{tiny,small,base}` at 448 px with 196 tokens,
and `..._121`, `_144`, `_288`, `_392` for the paper's other budgets. Both families of tokenizers share every line but
the partition: same backbone, same sampling, same position embedding.
"""

from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint, checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dart.pos_embed import map_features
from dart.registry import BUDGETS, DART_ONLY, MODES, POS_EMBEDS, TOKENIZERS, VARIANTS
from dart.scorer import build_scorer
from dart.tokenizer import DartTokenizer, check_budget, one_of

DEFAULT_BUDGET = 196
# What a backbone reads and how, where the caller does not say.
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {
        "img_size": 96, "patch_size": 8, "token_budget": 36, "class_token": False, "global_pool": "avg",
        "scorer": "conv", "sampling": "area", "pos_embed": "geometry",
    },
    "deit": {
        "img_size": 448, "patch_size": 16, "token_budget": DEFAULT_BUDGET, "class_token": True, "global_pool": "token",
        "scorer": "mobilenetv3_small", "sampling": "point", "pos_embed": "table",
    },
}  # fmt: skip
PAPER_SCORERS = {"tiny": "mobilenetv3_small_v1", "small": "mobilenetv3_large_v1", "base": "mobilenetv3_large_v1"}


class RegionVisionTransformer(VisionTransformer):
    """timm's VisionTransformer with a region tokenizer in the place of the patch embedding.

    Args:
        tokenizer: "dart" or "uniform".
        mode: "invariant", or "paper" for the authors' model to the letter (`dart.paper`), whose checkpoints load.
        token_budget: Patch tokens per image, class token excluded; `forward` can be told another.
        img_size: H, W that the model is made for, or one number; invariant models take any other size too.
        pos_embed: "geometry", or "table" for a table of `table_size` squared entries carried onto the regions.
        table_size: Side of that table; 14 is DeiT's.
        scorer, pretrained_scorer, frozen_scorer, score_input, scorer_stage, scorer_norm: See
            `dart.scorer.build_scorer`.
        num_rows, partition, row_weight, score_floor, score_blur, sampling: See `dart.tokenizer.DartTokenizer`.
        others: timm's.
    """

    patch_embed: Any  # a DartTokenizer, or a dart.paper.PaperTokenizer, which needs torchvision's networks
    pos_embed: nn.Parameter | None

    def __init__(
        self,
        *,
        tokenizer: str,
        token_budget: int,
        mode: str = "invariant",
        img_size: int | tuple[int, int] = 448,
        patch_size: int = 16,
        in_chans: int = 3,
        pos_embed: str = "table",
        table_size: int = 14,
        scorer: str = "conv",
        pretrained_scorer: bool = False,
        frozen_scorer: bool | None = None,
        score_input: int | str | None = 224,
        scorer_stage: int | None = None,
        scorer_norm: str | None = None,
        num_rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        regions = {key: kwargs.pop(key) for key in REGION_OPTIONS if key in kwargs}
        one_of("mode", mode, MODES)
        one_of("pos_embed", pos_embed, POS_EMBEDS)
        # timm's own patch embedding is a throw-away: its weight initialisation must not reset the scorer.
        super().__init__(img_size=img_size, patch_size=patch_size, in_chans=in_chans, pos_embed="none", **kwargs)
        self.table_size = (table_size, table_size)
        if pos_embed == "table":
            self.pos_embed = nn.Parameter(torch.empty(1, self.num_table_prefixes + table_size**2, self.embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if mode == "paper":
            from dart.paper import PaperTokenizer

            self.patch_embed = PaperTokenizer(
                img_size, patch_size, in_chans, self.embed_dim,
                scorer=scorer, score_input=str(score_input), pretrained_scorer=pretrained_scorer,
                token_budget=token_budget, num_rows=num_rows,
            )  # fmt: skip
        else:
            options: dict[str, Any] = {
                "pretrained": pretrained_scorer,
                "frozen": frozen_scorer,
                "score_input": score_input,
                "stage": scorer_stage,
                "norm": scorer_norm,
            }
            self.patch_embed = DartTokenizer(
                img_size, patch_size, in_chans, self.embed_dim,
                build_scorer(scorer, in_chans, **options) if tokenizer == "dart" else None,
                token_budget=token_budget, num_rows=num_rows, pos_embed=pos_embed,
                norm_layer=nn.LayerNorm if pos_embed == "geometry" else None, **regions,
            )  # fmt: skip
        for info in self.feature_info:
            info["reduction"] = self.patch_embed.feat_ratio()

    @property
    def num_table_prefixes(self) -> int:
        """Entries of the position table that belong to class and register tokens."""
        return 0 if self.no_embed_class else self.num_prefix_tokens

    def embed(
        self, images: Tensor, num_patches: int | None = None, num_rows: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> the sequence for the blocks (B, prefix + N, D), and the regions (B or 1, N, 4)."""
        found = self.patch_embed.inspect(images, num_patches, num_rows)
        tokens = found.tokens
        prefix = [t.expand(tokens.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.pos_embed is not None:
            special, table = self.pos_embed.split([self.num_table_prefixes, self.table_size[0] * self.table_size[1]], 1)
            tokens = tokens + self.patch_embed.carry(table, found)
            if prefix and self.num_table_prefixes:
                prefix = [torch.cat(prefix, 1) + special]
        return self.norm_pre(self.patch_drop(self.pos_drop(torch.cat([*prefix, tokens], 1)))), found.regions

    def forward(
        self,
        x: Tensor,
        num_patches: int | None = None,
        num_rows: int | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes), with another token budget and row count if given."""
        return self.forward_head(self.forward_features(x, attn_mask, is_causal, num_patches, num_rows))

    def forward_features(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        num_patches: int | None = None,
        num_rows: int | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> (B, prefix + N, D)."""
        x, _ = self.embed(x, num_patches, num_rows)
        if attn_mask is not None or is_causal:
            for block in self.blocks:
                x = block(x, attn_mask=attn_mask, is_causal=is_causal)
        else:
            x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return self.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """timm's contract; maps are re-gridded from irregular tokens by shared area (`map_features`)."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt = {output_fmt!r}: must be NCHW or NLC")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        img_size = (x.shape[-2], x.shape[-1])
        x, regions = self.embed(x)
        found = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            if attn_mask is not None or is_causal:
                x = block(x, attn_mask=attn_mask, is_causal=is_causal)
            else:
                x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            if i in wanted:
                found.append(self.norm(x) if norm else x)
        prefixes = [y[:, : self.num_prefix_tokens] for y in found] if self.num_prefix_tokens else None
        maps = [y[:, self.num_prefix_tokens :] for y in found]
        if output_fmt == "NCHW":
            grid = self.patch_embed.dynamic_feat_size(img_size)
            maps = [map_features(y, regions, img_size, grid) for y in maps]
        with_prefixes = return_prefix_tokens and prefixes is not None
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": maps}
            if with_prefixes:
                result["image_intermediates_prefix"] = prefixes
            return result if intermediates_only else {**result, "image_features": self.norm(x)}
        intermediates = list(zip(maps, prefixes, strict=True)) if with_prefixes and prefixes else maps
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make another image size the usual one; no weight changes (timm's contract)."""
        self.patch_embed.set_input_size(img_size, patch_size)

    def set_token_budget(self, token_budget: int, num_rows: int | None = None) -> None:
        """Spend another number of patch tokens per image from now on; no weight changes."""
        self.patch_embed.num_patches = check_budget(token_budget, self.patch_embed.img_size)
        self.patch_embed.num_rows = num_rows

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay must leave alone: timm's and the scorer."""
        names = dict(self.named_parameters())
        return {n for n in super().no_weight_decay() if n in names} | {n for n in names if ".scorer." in n}


REGION_OPTIONS = ("partition", "row_weight", "score_floor", "score_blur", "sampling")


def build(model_name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`; options that only DART reads are dropped for the other tokenizers."""
    if not model_name.startswith("dart_"):
        kwargs = {key: value for key, value in kwargs.items() if key not in DART_ONLY}
    return timm.create_model(model_name, **kwargs)


def filter_checkpoint(state: dict[str, Tensor], model: RegionVisionTransformer) -> dict[str, Tensor]:
    """A checkpoint of ours as it is; weights of a plain DeiT complete, with this model's own scorer.

    Raises:
        ValueError: the checkpoint has a position table and the model none, or an entry has another shape.
    """
    state = state.get("model", state)  # type: ignore[assignment]
    own = model.state_dict()
    state = {**{k: v for k, v in own.items() if k.startswith("patch_embed.scorer.")}, **state}
    table = state.get("pos_embed")
    if table is not None and model.pos_embed is None:
        raise ValueError("checkpoint has pos_embed: the model has no table; create it with pos_embed='table'")
    if table is not None and table.shape[:2] != own["pos_embed"].shape[:2]:
        size = list(model.table_size)
        state["pos_embed"] = resample_abs_pos_embed(table, size, num_prefix_tokens=model.num_table_prefixes)
    for name, value in state.items():
        if name in own and value.shape != own[name].shape and not name.startswith("head."):
            raise ValueError(
                f"checkpoint {name} = {tuple(value.shape)}: the model's is {tuple(own[name].shape)}; "
                "it is the checkpoint of another architecture"
            )
    return state


def _create(
    name: str, tokenizer: str, backbone: str, variant: str, budget: int | None, pretrained: bool, **kwargs: Any
) -> RegionVisionTransformer:
    defaults = {**DEFAULTS[backbone], **VARIANTS[backbone][variant]}
    if budget is not None:
        defaults["token_budget"] = budget
    if kwargs.get("mode") == "paper":
        defaults |= {"scorer": PAPER_SCORERS.get(variant, "mobilenetv3_small_v1"), "score_input": "full"}
        defaults.pop("sampling")
        if tokenizer != "dart":
            raise ValueError(f"mode = 'paper': only of DART models, not of {name}; leave it out")
    return build_model_with_cfg(
        RegionVisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=filter_checkpoint,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        tokenizer=tokenizer,
        **{**defaults, **kwargs},
    )


def _cfg(backbone: str, variant: str) -> dict[str, Any]:
    side = DEFAULTS[backbone]["img_size"]
    # Images are resized to 512 px and cropped to 448 at test time, as the authors do.
    cfg: dict[str, Any] = {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
    }
    cfg |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "license": "apache-2.0"}
    cfg |= {"first_conv": "patch_embed.proj", "classifier": "head", "pool_size": None, "fixed_input_size": False}
    if backbone == "deit":  # a DART model starts from the plain DeiT's weights; its scorer has none there
        cfg["hf_hub_id"] = f"timm/deit_{variant}_patch16_224.fb_in1k"
    return cfg


def _names() -> dict[str, tuple[str, str, str, int | None]]:
    """Every model of this file: name -> tokenizer, backbone, variant, token budget (None: the backbone's own)."""
    names: dict[str, tuple[str, str, str, int | None]] = {}
    for tokenizer in TOKENIZERS:
        for backbone, variants in VARIANTS.items():
            for variant in variants:
                name = f"{tokenizer}_{backbone}_{variant}"
                names[name] = (tokenizer, backbone, variant, None)
                for budget in BUDGETS if backbone == "deit" else ():
                    if budget != DEFAULT_BUDGET:
                        names[f"{name}_{budget}"] = (tokenizer, backbone, variant, budget)
    return names


default_cfgs = generate_default_cfgs({name: _cfg(spec[1], spec[2]) for name, spec in _names().items()})


def _register(name: str, tokenizer: str, backbone: str, variant: str, budget: int | None) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> RegionVisionTransformer:
        return _create(name, tokenizer, backbone, variant, budget, pretrained, **kwargs)

    tokens = budget or DEFAULTS[backbone]["token_budget"]
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"{backbone} {variant} behind the {tokenizer} tokenizer with {tokens} tokens."
    register_model(entrypoint)


for _name, _spec in _names().items():
    _register(_name, *_spec)
