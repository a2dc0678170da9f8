"""The names that a configuration may use. Imports nothing, so a typo is found before torch is loaded."""

from typing import Any

# Model scales (timm's word is variant): what a ViT of that size is made of.
# The two small ones keep torch's initialisation: timm's, a standard deviation of 0.02 whatever the width, is made for
# the others and holds narrow models on the first plateau of their training.
VARIANTS: dict[str, dict[str, Any]] = {
    "nano": {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "weight_init": "skip"},
    "micro": {"embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "weight_init": "skip"},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_ratio": 4.0},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0},
}
BACKBONES = ("vit",)
TOKENIZERS = ("dart", "uniform")
SCORERS = ("conv",)
# Options that only the DART tokenizer reads: they are no part of another model's identity.
DART_ONLY = ("scorer", "score_floor", "score_blur")
SAMPLINGS = ("area", "point")
POS_EMBEDS = ("geometry", "table")


def model_name(tokenizer: str, backbone: str, variant: str) -> str:
    """The name under which timm knows a model, for example `dart_vit_micro`."""
    return f"{tokenizer}_{backbone}_{variant}"
