"""The models that timm knows by name.

`{dart,uniform}_vit_{nano,micro}` for small images, `{dart,uniform}_deit_{tiny,small,base}` at 448 px with 196 tokens,
and `..._121`, `_144`, `_288`, `_392` for the paper's other budgets; `{quadtree,deformable}_{vit,deit}_*` likewise.
`{dart,uniform}_vim_{nano,tiny,small}` and `{dart,uniform}_videomamba_{nano,tiny}` likewise, any budget by its option,
and the published `vim_{tiny,small}` and `videomamba_tiny` on patches; `num_frames` makes a VideoMamba one of clips.
A class for every pixel: `{dart,uniform}_{vit_*,deit_*}_segmenter`, and `{dart,uniform}_swin_{tiny,small,base}_upernet`
at 512 px as 1024 cells, which need segmentation-models-pytorch.
"""

from itertools import product
from typing import Any, NamedTuple

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from dart.models.checkpoint import filter_checkpoint
from dart.models.segmenter import TokenSegmenter
from dart.models.state_space import StateSpaceModel
from dart.models.videomamba import VideoMamba
from dart.models.vim import VisionMamba
from dart.models.vit import RegionVisionTransformer
from dart.registry import (
    BUDGETS,
    CLASSIFIERS,
    DART_ONLY,
    SEGMENTERS,
    VARIANTS,
    model_name,
    tokenizers_of,
    unread_options,
)

CLASSES: dict[str, type[RegionVisionTransformer | StateSpaceModel]] = {
    "vit": RegionVisionTransformer,
    "deit": RegionVisionTransformer,
    "vim": VisionMamba,
    "videomamba": VideoMamba,
}
DEFAULT_BUDGET = 196
# What a model reads and how, where the caller does not say.
SMALL_IMAGES: dict[str, Any] = {
    "img_size": 96, "patch_size": 8, "token_budget": 36, "scorer": "conv", "sampling": "area",
}  # fmt: skip
LARGE_IMAGES: dict[str, Any] = {
    "img_size": 448, "patch_size": 16, "token_budget": DEFAULT_BUDGET, "scorer": "mobilenetv3_small",
    "sampling": "point", "pos_embed": "table",
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {**SMALL_IMAGES, "class_token": False, "global_pool": "avg", "pos_embed": "geometry"},
    "deit": {**LARGE_IMAGES, "class_token": True, "global_pool": "token"},
}
# One cell is 16 px of the warped image, which is as large as the image.
WARPED_IMAGES: dict[str, Any] = {
    "img_size": 512, "patch_size": 16, "token_budget": 1024, "scorer": "mobilenetv3_small", "sampling": "area",
}  # fmt: skip
# What paints the tokens of a segmenter. Convolutions over all pixels would cost small backbones more than themselves.
PAINT: dict[str, dict[str, Any]] = {
    "vit": {"head_points": 8, "head_dim": 8, "head_depth": 0, "head_stride": 1},
    "deit": {"head_points": 8, "head_dim": 64, "head_depth": 2, "head_stride": 4},
}
CLIP_SIDE_PX = 224
# Published models on plain patches that timm does not have.
PLAIN = (("vim", "tiny"), ("vim", "small"), ("videomamba", "tiny"))
# Where timm finds weights.
HOSTED = {"deit": "timm/deit_{variant}_patch16_224.fb_in1k"}
# Score networks of the published models, by backbone and variant.
PUBLISHED_SCORERS: dict[str, dict[str, str]] = {
    "deit": {"tiny": "mobilenetv3_small_v1", "small": "mobilenetv3_large_v1", "base": "mobilenetv3_large_v1"},
    "vim": {"tiny": "mobilenetv3_small_v2", "small": "mobilenetv3_large_v2"},
    # The published cost is that of the small network.
    "videomamba": {"tiny": "mobilenetv3_small_v2"},
    "swin": dict.fromkeys(VARIANTS["swin"], "efficientnet_b0_v1"),
}


class Spec(NamedTuple):
    """What a name says; a budget of None is the backbone's own, a head of None one of image classes."""

    tokenizer: str
    backbone: str
    variant: str
    budget: int | None = None
    head: str | None = None


def build(model_name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`; options that only other tokenizers read are dropped."""
    unread = unread_options(model_name.split("_")[0])
    kwargs = {key: value for key, value in kwargs.items() if key not in unread}
    return timm.create_model(model_name, **kwargs)


def _create(name: str, spec: Spec, pretrained: bool, **kwargs: Any) -> nn.Module:
    defaults = _defaults(spec, kwargs.get("num_frames"))
    if kwargs.get("mode") == "paper":
        if spec.tokenizer != "dart":
            raise ValueError(f"mode = 'paper': only of DART models, not of {name}; leave it out")
        defaults |= {"score_input": "full"} | ({} if spec.head == "upernet" else {"pos_embed": "table"})
        scorers = PUBLISHED_SCORERS.get(spec.backbone, {})
        defaults["scorer"] = None if kwargs.get("num_frames") else scorers.get(spec.variant, "mobilenetv3_small_v1")
        defaults.pop("sampling")
    if spec.tokenizer != "dart":
        defaults.pop("scorer", None)
        if unread := [key for key in unread_options(spec.tokenizer) if kwargs.get(key) is not None]:
            what = "scorer" if unread[0] in DART_ONLY else "such choice"
            raise ValueError(f"{unread[0]} = {kwargs[unread[0]]!r}: {name} has no {what}; leave it out")
    told = kwargs.get("pretrained_cfg") or kwargs.get("pretrained_cfg_overlay")
    if pretrained and spec.backbone not in HOSTED and not told:
        remedy = "convert a checkpoint with dart.official"
        if spec.head == "upernet":
            remedy = "pretrained_backbone=True starts from timm's backbone"
        raise ValueError(f"pretrained = True: no weights of {name} are hosted; {remedy}")
    return build_model_with_cfg(
        _model_class(spec),
        name,
        pretrained,
        pretrained_filter_fn=None if spec.head == "upernet" else filter_checkpoint,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        tokenizer=spec.tokenizer,
        **{**defaults, **kwargs},
    )


def _model_class(spec: Spec) -> type[nn.Module]:
    if spec.head == "upernet":  # needs segmentation-models-pytorch, which the others do without
        from dart.models.warped import WarpSegmenter

        return WarpSegmenter
    return TokenSegmenter if spec.head == "segmenter" else CLASSES[spec.backbone]


def _defaults(spec: Spec, num_frames: int | None) -> dict[str, Any]:
    """What the caller may leave out; a plain model's class knows the rest."""
    size = VARIANTS[spec.backbone][spec.variant]
    if spec.tokenizer == "plain":
        return dict(size)
    if spec.head == "upernet":
        return {**WARPED_IMAGES, **size}
    if spec.backbone in DEFAULTS:
        found = {**DEFAULTS[spec.backbone]}
    elif spec.variant == "nano":
        found = {**SMALL_IMAGES, "pos_embed": "table"}
    else:
        scorer = "mobilenetv3_large" if spec.variant == "small" else "mobilenetv3_small"
        found = {**LARGE_IMAGES, "table_size": 14, "scorer": scorer}
    if spec.budget is not None:
        found["token_budget"] = spec.budget
    if num_frames:
        found["token_budget"] *= num_frames
        found["img_size"] = min(found["img_size"], CLIP_SIDE_PX)
    if spec.head:
        found |= {**PAINT[spec.backbone], "global_pool": ""}
    return {**found, **size}


def _cfg(spec: Spec) -> dict[str, Any]:
    side = _defaults(spec, None).get("img_size", 224)
    # Images are resized to 512 px and cropped to 448 at test time, as the authors do.
    cfg: dict[str, Any] = {
        "num_classes": 150 if spec.head else 1000,
        "input_size": (3, side, side),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
    }
    cfg |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "license": "apache-2.0"}
    cfg |= {"first_conv": "patch_embed.proj", "classifier": "head", "pool_size": None}
    if spec.head:
        cfg |= {"crop_pct": 1.0, "classifier": "head.classifier"}
    if spec.head == "upernet":
        cfg["first_conv"], cfg["classifier"] = "network.encoder.model.patch_embed.proj", "network.segmentation_head.0"
    cfg["fixed_input_size"] = spec.tokenizer == "plain"
    if spec.backbone in HOSTED:  # a DART model starts from the plain DeiT's weights; its scorer has none there
        cfg["hf_hub_id"] = HOSTED[spec.backbone].format(variant=spec.variant)
    return cfg


def _names() -> dict[str, Spec]:
    """Every model of this file by its name."""
    names: dict[str, Spec] = {}
    heads = [(None, CLASSIFIERS), *SEGMENTERS.items()]
    for head, backbones in heads:
        for backbone in backbones:
            for tokenizer, variant in product(tokenizers_of(backbone, head), VARIANTS[backbone]):
                name = model_name(tokenizer, backbone, variant, head)
                names[name] = Spec(tokenizer, backbone, variant, None, head)
                for budget in BUDGETS if backbone == "deit" and head is None else ():
                    if budget != DEFAULT_BUDGET:
                        names[f"{name}_{budget}"] = Spec(tokenizer, backbone, variant, budget)
    for backbone, variant in PLAIN:
        names[f"{backbone}_{variant}"] = Spec("plain", backbone, variant)
    return names


default_cfgs = generate_default_cfgs({name: _cfg(spec) for name, spec in _names().items()})


def _register(name: str, spec: Spec) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, spec, pretrained, **kwargs)

    tokens = _defaults(spec, None).get("token_budget", DEFAULT_BUDGET)
    entrypoint.__name__ = entrypoint.__qualname__ = name
    head = f" and a {spec.head} head" if spec.head else ""
    entrypoint.__doc__ = (
        f"{spec.backbone} {spec.variant} behind the {spec.tokenizer} tokenizer with {tokens} tokens{head}."
    )
    if spec.tokenizer == "plain":
        entrypoint.__doc__ = f"{spec.backbone} {spec.variant} as published, 224 px as {tokens} patches."
    register_model(entrypoint)


for _name, _spec in _names().items():
    _register(_name, _spec)
