"""Backbones with region tokenizers. Importing this package registers them with timm."""

from dart.models.vim import VisionMamba
from dart.models.vit import RegionVisionTransformer, build

__all__ = ["RegionVisionTransformer", "VisionMamba", "build"]
