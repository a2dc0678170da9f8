"""Clips in, tokens out: scores from what moves, and one budget of tokens cut over space and time together."""

from dart.video.partition import clip_regions, plan_clip_rows, uniform_clip_regions
from dart.video.scorer import VideoScorer, build_video_scorer
from dart.video.tokenizer import VideoTokenizer

__all__ = [
    "VideoScorer",
    "VideoTokenizer",
    "build_video_scorer",
    "clip_regions",
    "plan_clip_rows",
    "uniform_clip_regions",
]
