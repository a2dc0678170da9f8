"""The names that a configuration may use. Imports nothing, so a typo is found before torch is loaded."""

from typing import Any

# Model scales (timm's word is variant) of each backbone: what a model of that size is made of.
# The two small ones of vit keep torch's initialisation: timm's, a standard deviation of 0.02 whatever the width, is
# made for the others and holds narrow models on the first plateau of their training.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "vit": {
        "nano": {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "weight_init": "skip"},
        "micro": {"embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "weight_init": "skip"},
    },
    "deit": {
        "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_ratio": 4.0},
        "small": {"embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0},
        "base": {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0},
    },
    "vim": {
        "nano": {"embed_dim": 48, "depth": 3, "state_size": 4},
        "tiny": {"embed_dim": 192, "depth": 24},
        "small": {"embed_dim": 384, "depth": 24},
    },
    "videomamba": {
        "nano": {"embed_dim": 48, "depth": 3, "state_size": 4},
        "tiny": {"embed_dim": 192, "depth": 24},
    },
    "swin": {variant: {"backbone": f"swin_{variant}_patch4_window7_224"} for variant in ("tiny", "small", "base")},
}
BACKBONES = tuple(VARIANTS)
# Other adaptive ways to cut an image (dart.baselines). Their regions lie in no rows, which scans, painted pictures,
# warps and clips rely on: they are for the transformers below, and for classes of images.
BASELINES = ("quadtree", "deformable")
BASELINE_BACKBONES = ("vit", "deit")
ROW_TOKENIZERS = ("dart", "uniform")
TOKENIZERS = (*ROW_TOKENIZERS, *BASELINES)
# What makes a class for every pixel out of a backbone's features, and of which backbones'. "segmenter" paints tokens on
# their regions (dart.models.segmenter), "upernet" reads the warped image's feature maps (dart.models.warped).
SEGMENTERS = {"segmenter": ("vit", "deit"), "upernet": ("swin",)}
HEADS = tuple(SEGMENTERS)
CLASSIFIERS = tuple(
    backbone for backbone in BACKBONES if backbone not in SEGMENTERS["upernet"]
)  # without a head's name
# The paper's token budgets; a model is registered for each of them.
BUDGETS = (121, 144, 196, 288, 392)
# Controls that have learned nothing, and have no parameters (dart.baselines.scores).
CONTROL_SCORERS = ("constant", "random", "gradient")
SCORERS = (
    *("conv", "mobilenetv3_small", "mobilenetv3_large", "mnasnet_050", "squeezenet1_1", "efficientnet_b0"),
    *CONTROL_SCORERS,
)
# The authors' score networks, for paper mode; v1 and v2 are their two heads.
PAPER_SCORERS = tuple(
    f"{features}_v{head}"
    for features in ("mobilenetv3_small", "mobilenetv3_large", "efficientnet_b0")
    for head in (1, 2)
)
# Scorers of our own, which have no published weights and no size of their input.
PLAIN_SCORERS = ("conv", *CONTROL_SCORERS)
# Options that only the DART tokenizer reads: they are no part of another model's identity.
DART_ONLY = (
    *("scorer", "pretrained_scorer", "frozen_scorer", "score_input", "scorer_stage", "scorer_norm"),
    *("score_floor", "score_blur", "row_weight"),
)
# And those that the others do not read besides.
UNREAD = {"quadtree": ("partition",)}
PARTITIONS = ("flow", "grid")
# What takes tokens away inside a transformer (dart.baselines), the options that each reads beside `keep`, and of which
# backbones it can.
REDUCERS: dict[str, tuple[str, ...]] = {"tome": (), "evit": ("fuse",), "dynamicvit": ("ratio_weight",), "ats": ()}
REDUCED = ("vit", "deit")
ROW_WEIGHTS = ("mass", "density")
SAMPLINGS = ("area", "point")
POS_EMBEDS = ("geometry", "table")
MODES = ("invariant", "paper")
# The entry of a safetensors file's metadata that says which model the weights are of: {"model": name, "kwargs": ...}.
WEIGHTS_METADATA = "dart"


def model_name(tokenizer: str, backbone: str, variant: str, head: str | None = None) -> str:
    """The name under which timm knows a model, for example `dart_vit_micro` or `dart_vit_micro_segmenter`."""
    return "_".join((tokenizer, backbone, variant) + ((head,) if head else ()))


def unread_options(tokenizer: str) -> tuple[str, ...]:
    """The options of a tokenizer that this one does not read."""
    return () if tokenizer == "dart" else (*DART_ONLY, *UNREAD.get(tokenizer, ()))


def tokenizers_of(backbone: str, head: str | None = None) -> tuple[str, ...]:
    """The tokenizers that a backbone with this head has."""
    return TOKENIZERS if head is None and backbone in BASELINE_BACKBONES else ROW_TOKENIZERS


def learns_regions(tokenizer: str, scorer: str | None) -> bool:
    """Whether anything is trained that decides on regions."""
    return tokenizer == "deformable" or (tokenizer == "dart" and scorer not in CONTROL_SCORERS)


def has_density(tokenizer: str, scorer: str | None) -> bool:
    """Whether a scorer makes a density that follows the image (`dart.adaptive.has_density` says it of a model)."""
    return tokenizer == "dart" and scorer != "constant"
