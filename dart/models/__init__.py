"""Backbones with region tokenizers. Importing this package registers them with timm."""

from dart.models.entrypoints import build
from dart.models.segmenter import TokenSegmenter
from dart.models.videomamba import VideoMamba
from dart.models.vim import VisionMamba
from dart.models.vit import RegionVisionTransformer

__all__ = ["RegionVisionTransformer", "TokenSegmenter", "VideoMamba", "VisionMamba", "build"]
