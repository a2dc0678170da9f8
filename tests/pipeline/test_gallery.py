"""A gallery of clips becomes the picture that a gallery of images becomes, in strips of frames."""

import numpy as np
import pytest
import torch

from dart.video import VideoTokenizer, build_video_scorer
from pipeline.gallery import draw_gallery, save_gallery
from pipeline.report.figures import clip_gallery, load_pictures

NAMES = ("up", "down")


@pytest.fixture
def galleries(tmp_path):
    """Two files of the same three clips: a uniform model's, and that of one with a scorer."""
    torch.manual_seed(0)
    clips = torch.rand(3, 1, 4, 16, 16)
    for name, scorer in (("uniform", None), ("dart", build_video_scorer("conv", 1))):
        found = VideoTokenizer(16, 4, 1, 8, scorer, num_frames=4, token_budget=16).inspect(clips)
        save_gallery(
            tmp_path / f"{name}.npz",
            NAMES,
            images=clips.numpy(),
            labels=np.array([0, 1, 1]),
            predictions=np.array([1, 1, 0]),
            confidences=np.array([0.6, 0.9, 0.5]),
            density=found.density.detach().numpy(),
            regions=found.regions.detach().expand(3, -1, -1).numpy(),
            patches=found.patches.detach().numpy(),
        )
    return tmp_path


@pytest.mark.parametrize("name", ["uniform", "dart"])
def test_a_gallery_of_clips_is_drawn(galleries, name):
    draw_gallery(galleries / f"{name}.npz", galleries / "picture.png")
    assert (galleries / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_sets_two_models_of_the_same_clips_below_each_other(galleries):
    figure = clip_gallery(*(load_pictures(galleries / f"{name}.npz") for name in ("uniform", "dart")), NAMES)
    captions = [block.get_supxlabel() for block in figure.subfigs]
    assert captions[:2] == ["✗ uniform says down (60%), true: up", "✗ DART says down (60%), true: up"]
    assert captions[2:] == ["✓ uniform says down (90%), true: down", "✓ DART says down (90%), true: down"]
    assert [len(block.axes) for block in figure.subfigs] == [8, 12, 8, 12]
