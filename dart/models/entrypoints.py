"""The sizes of the Vision Transformer that timm knows by name.

`{dart,uniform}_vit_{nano,micro}` for small images, `{dart,uniform}_deit_{tiny,small,base}` at 448 px with 196 tokens,
and `..._121`, `_144`, `_288`, `_392` for the paper's other budgets.
"""

from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dart.models.vit import RegionVisionTransformer
from dart.registry import BUDGETS, DART_ONLY, TOKENIZERS, VARIANTS

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


def build(model_name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`; options that only DART reads are dropped for the other tokenizers."""
    if not model_name.startswith("dart_"):
        kwargs = {key: value for key, value in kwargs.items() if key not in DART_ONLY}
    return timm.create_model(model_name, **kwargs)


def filter_checkpoint(state: dict[str, Any], model: RegionVisionTransformer) -> dict[str, Tensor]:
    """A checkpoint of ours as it is; weights of a plain DeiT complete, with this model's own scorer.

    Raises:
        ValueError: the checkpoint has a position table and the model none, or it is another architecture's.
    """
    own = model.state_dict()
    state = {**{k: v for k, v in own.items() if k.startswith("patch_embed.scorer.")}, **state.get("model", state)}
    table = state.get("pos_embed")
    if table is not None and model.pos_embed is None:
        raise ValueError("checkpoint has pos_embed: the model has no table; create it with pos_embed='table'")
    if table is not None and table.shape[:2] != own["pos_embed"].shape[:2]:
        size = list(model.table_size)
        state["pos_embed"] = resample_abs_pos_embed(table, size, num_prefix_tokens=model.num_table_prefixes)
    # timm fits the head to the classes and the projection to the channels afterwards.
    found, wanted = _fixed_shapes(state), _fixed_shapes(own)
    if odd := sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name)):
        name = odd[0]
        said, ours = (tuple(entries[name].shape) if name in entries else "missing" for entries in (state, own))
        raise ValueError(
            f"checkpoint {name} = {said}: the model's is {ours}, and {len(odd) - 1} more entries differ; "
            "it is the checkpoint of another architecture"
        )
    return state


def _fixed_shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What nobody adapts of the entries' shapes: not the head's, and of the projection all but its channels."""
    shapes = {name: tuple(value.shape) for name, value in state.items() if not name.startswith("head.")}
    projection = "patch_embed.proj.weight"
    return shapes | ({projection: shapes[projection][:1] + shapes[projection][2:]} if projection in shapes else {})


def _create(
    name: str, tokenizer: str, backbone: str, variant: str, budget: int | None, pretrained: bool, **kwargs: Any
) -> RegionVisionTransformer:
    defaults = {**DEFAULTS[backbone], **VARIANTS[backbone][variant]}
    if budget is not None:
        defaults["token_budget"] = budget
    if kwargs.get("mode") == "paper":
        scorer = PAPER_SCORERS.get(variant, "mobilenetv3_small_v1")
        defaults |= {"scorer": scorer, "score_input": "full", "pos_embed": "table"}
        defaults.pop("sampling")
        if tokenizer != "dart":
            raise ValueError(f"mode = 'paper': only of DART models, not of {name}; leave it out")
    if tokenizer != "dart":
        defaults.pop("scorer")
        if unread := [key for key in DART_ONLY if kwargs.get(key) is not None]:
            raise ValueError(f"{unread[0]} = {kwargs[unread[0]]!r}: {name} has no scorer; leave it out")
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
        for backbone in DEFAULTS:
            for variant in VARIANTS[backbone]:
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
