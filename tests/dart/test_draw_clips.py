"""The film strips show what the tokenizer did: every token in its place and frame, as bright as its clip."""

import numpy as np
import pytest
import torch

from dart.draw.clips import MAX_FRAMES, Block, choose_frames, draw_blocks, draw_clips, paste, split_regions
from dart.draw.figures import UNIFORM_COLOR, Caption
from dart.video import VideoTokenizer, build_video_scorer, uniform_clip_regions


def uniform(num_frames: int, budget: int, frame_size: tuple[int, int]) -> np.ndarray:
    """Regions (N, 4) of the uniform partition."""
    found = uniform_clip_regions(budget, None, num_frames, frame_size, torch.device("cpu"), torch.float32)
    return found[0].numpy()


def inspect(clips: torch.Tensor, budget: int = 12):
    """What a trained-looking tokenizer makes of clips."""
    torch.manual_seed(0)
    scorer = build_video_scorer("conv", clips.shape[1])
    torch.nn.init.normal_(scorer.head.weight)
    tokenizer = VideoTokenizer(16, 4, clips.shape[1], 8, scorer, num_frames=clips.shape[2], token_budget=budget)
    return tokenizer.inspect(clips)


@pytest.mark.parametrize("zoom", [1, 3])
@pytest.mark.parametrize("num_chans", [1, 3])
def test_uniform_tokens_put_back_in_their_places_are_the_clip(num_chans: int, zoom: int) -> None:
    clip = np.random.default_rng(0).uniform(-1, 1, (num_chans, 3, 8, 12)).astype(np.float32)
    regions = uniform(3, 18, (8, 12))  # 4 x 4 px each
    tall = clip.reshape(num_chans, 24, 12)
    patches = np.stack([tall[:, y0:y1, x0:x1] for x0, y0, x1, y1 in regions.astype(int)])
    expected = tall.repeat(zoom, 1).repeat(zoom, 2)
    np.testing.assert_array_equal(paste(patches, regions, (24, 12), zoom), expected)


def test_every_pixel_is_painted_by_the_token_it_lies_in() -> None:
    found = inspect(torch.rand(1, 1, 4, 16, 16), budget=37)
    numbers = np.arange(1, 38, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 4, 4), np.float32)
    painted = paste(numbers, found.regions[0].detach().numpy(), found.img_size)[0]
    assert painted.min() == 1
    areas = np.unique(painted, return_counts=True)[1] / 16
    x0, y0, x1, y1 = found.regions[0].detach().unbind(-1)
    np.testing.assert_allclose(areas, ((x1 - x0) * (y1 - y0)).numpy(), atol=2.5)  # up to a quarter of a pixel a side


def test_regions_are_counted_in_their_frame_and_cut_at_its_borders() -> None:
    parts, counts = split_regions(uniform(3, 12, (8, 8)), 3, 8)
    assert counts == [4, 4, 4]
    np.testing.assert_array_equal(parts[2], uniform(1, 4, (8, 8)))
    spanning = np.array([[0, 0, 8, 14], [0, 14, 8, 24]], dtype=np.float32)
    parts, counts = split_regions(spanning, 3, 8)
    assert counts == [1, 0, 1]
    assert parts[1].tolist() == [[0, 0, 8, 6], [0, 6, 8, 8]]


def test_many_frames_are_thinned_out_from_the_first_to_the_last() -> None:
    assert choose_frames(5) == [0, 1, 2, 3, 4]
    chosen = choose_frames(33)
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 32, MAX_FRAMES)


@pytest.mark.parametrize(("num_chans", "num_frames"), [(1, 1), (3, 4), (4, 11)])
def test_draw_clips_takes_tensors_with_gradients_and_says_how_many_tokens_a_frame_got(num_chans, num_frames) -> None:
    clips = torch.randn(2, num_chans, num_frames, 16, 16)
    found = inspect(clips)
    figure = draw_clips(clips, found, [Caption("says up", True), "nothing known"])
    figure.canvas.draw()
    first = figure.subfigs[0]
    assert first.get_supxlabel() == "✓ says up"
    columns = min(num_frames, MAX_FRAMES)
    assert len(first.axes) == 4 * columns
    counts = split_regions(found.regions[0].detach().numpy(), num_frames, 16)[1]
    titles = [ax.get_title() for ax in first.axes[:columns]]
    assert titles == [f"{counts[t]} token{'' if counts[t] == 1 else 's'}" for t in choose_frames(num_frames)]


def test_a_still_grey_clip_is_drawn_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    clip = np.ones((1, 3, 8, 8), np.float32)
    patches = np.ones((12, 1, 4, 4), np.float32)
    strips = {"regions": "uniform grid", "seen": "seen"}
    short = Block(clip[:, :2], None, uniform(2, 8, (8, 8)), patches[:8], "", strips, UNIFORM_COLOR)
    draw_blocks([Block(clip, np.ones((3, 1)), uniform(3, 12, (8, 8)), patches), short]).canvas.draw()
    assert not recwarn.list
