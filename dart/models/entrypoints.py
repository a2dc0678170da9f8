"""The models that timm knows by name.

`{dart,uniform}_vit_{nano,micro}` for small images, `{dart,uniform}_deit_{tiny,small,base}` at 448 px with 196 tokens,
and `..._121`, `_144`, `_288`, `_392` for the paper's other budgets.
`{dart,uniform}_vim_{nano,tiny,small}` and `{dart,uniform}_videomamba_{nano,tiny}` likewise, any budget by its option,
and the published `vim_{tiny,small}` and `videomamba_tiny` on patches; `num_frames` makes a VideoMamba one of clips.
"""

from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from dart.models.checkpoint import filter_checkpoint
from dart.models.state_space import StateSpaceModel
from dart.models.videomamba import VideoMamba
from dart.models.vim import VisionMamba
from dart.models.vit import RegionVisionTransformer
from dart.registry import BUDGETS, DART_ONLY, TOKENIZERS, VARIANTS

Model = RegionVisionTransformer | StateSpaceModel
CLASSES: dict[str, type[Model]] = {
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
}


def build(model_name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`; options that only DART reads are dropped for the other tokenizers."""
    if not model_name.startswith("dart_"):
        kwargs = {key: value for key, value in kwargs.items() if key not in DART_ONLY}
    return timm.create_model(model_name, **kwargs)


def _create(
    name: str, tokenizer: str, backbone: str, variant: str, budget: int | None, pretrained: bool, **kwargs: Any
) -> Model:
    defaults = _defaults(tokenizer, backbone, variant, kwargs.get("num_frames"))
    if budget is not None:
        defaults["token_budget"] = budget
    if kwargs.get("mode") == "paper":
        if tokenizer != "dart":
            raise ValueError(f"mode = 'paper': only of DART models, not of {name}; leave it out")
        defaults |= {"score_input": "full", "pos_embed": "table"}
        scorers = PUBLISHED_SCORERS.get(backbone, {})
        defaults["scorer"] = None if kwargs.get("num_frames") else scorers.get(variant, "mobilenetv3_small_v1")
        defaults.pop("sampling")
    if tokenizer != "dart":
        defaults.pop("scorer", None)
        if unread := [key for key in DART_ONLY if kwargs.get(key) is not None]:
            raise ValueError(f"{unread[0]} = {kwargs[unread[0]]!r}: {name} has no scorer; leave it out")
    told = kwargs.get("pretrained_cfg") or kwargs.get("pretrained_cfg_overlay")
    if pretrained and backbone not in HOSTED and not told:
        raise ValueError(f"pretrained = True: no weights of {name} are hosted; convert a checkpoint with dart.official")
    return build_model_with_cfg(
        CLASSES[backbone],
        name,
        pretrained,
        pretrained_filter_fn=filter_checkpoint,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        tokenizer=tokenizer,
        **{**defaults, **kwargs},
    )


def _defaults(tokenizer: str, backbone: str, variant: str, num_frames: int | None) -> dict[str, Any]:
    """What the caller may leave out; a plain model's class knows the rest."""
    size = VARIANTS[backbone][variant]
    if tokenizer == "plain":
        return dict(size)
    if backbone in DEFAULTS:
        return {**DEFAULTS[backbone], **size}
    if variant == "nano":
        found = {**SMALL_IMAGES, "pos_embed": "table"}
    else:
        scorer = "mobilenetv3_large" if variant == "small" else "mobilenetv3_small"
        found = {**LARGE_IMAGES, "table_size": 14, "scorer": scorer}
    if num_frames:
        found["token_budget"] *= num_frames
        found["img_size"] = min(found["img_size"], CLIP_SIDE_PX)
    return {**found, **size}


def _cfg(tokenizer: str, backbone: str, variant: str) -> dict[str, Any]:
    side = _defaults(tokenizer, backbone, variant, None).get("img_size", 224)
    # Images are resized to 512 px and cropped to 448 at test time, as the authors do.
    cfg: dict[str, Any] = {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
    }
    cfg |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "license": "apache-2.0"}
    cfg |= {"first_conv": "patch_embed.proj", "classifier": "head", "pool_size": None}
    cfg["fixed_input_size"] = tokenizer == "plain"
    if backbone in HOSTED:  # a DART model starts from the plain DeiT's weights; its scorer has none there
        cfg["hf_hub_id"] = HOSTED[backbone].format(variant=variant)
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
    for backbone, variant in PLAIN:
        names[f"{backbone}_{variant}"] = ("plain", backbone, variant, None)
    return names


default_cfgs = generate_default_cfgs({name: _cfg(*spec[:3]) for name, spec in _names().items()})


def _register(name: str, tokenizer: str, backbone: str, variant: str, budget: int | None) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Model:
        return _create(name, tokenizer, backbone, variant, budget, pretrained, **kwargs)

    tokens = budget or _defaults(tokenizer, backbone, variant, None).get("token_budget", DEFAULT_BUDGET)
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"{backbone} {variant} behind the {tokenizer} tokenizer with {tokens} tokens."
    if tokenizer == "plain":
        entrypoint.__doc__ = f"{backbone} {variant} as published, 224 px as {tokens} patches."
    register_model(entrypoint)


for _name, _spec in _names().items():
    _register(_name, *_spec)
