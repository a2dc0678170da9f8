"""Theorems of the partition of space and time: every frame is tiled, and none shares a token with another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dart.partition import flow_regions, uniform_regions
from dart.pos_embed import region_shares
from dart.video import clip_regions, plan_clip_rows, uniform_clip_regions
from tests.dart.clips import F64, density_of, frame_of

CPU = torch.device("cpu")


@st.composite
def cases(draw):
    num_frames, grid = draw(st.integers(1, 9)), (draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    budget = draw(st.integers(num_frames, 80))
    rows = draw(st.integers(num_frames, budget))
    frame_size = draw(st.integers(8, 224)), draw(st.integers(8, 224))
    dtype = draw(st.sampled_from([torch.float32, F64]))
    return density_of(num_frames, grid, budget, dtype), num_frames, budget, rows, frame_size


@given(cases(), st.sampled_from(["mass", "density"]))
@settings(max_examples=80, deadline=None)
def test_regions_tile_every_frame_in_rows_and_none_lies_in_two(case, row_weight):
    density, num_frames, budget, rows, (height, width) = case
    regions = clip_regions(density, num_frames, budget, rows, (height, width), row_weight)
    assert regions.shape == (2, budget, 4)
    frames = frame_of(regions, height)
    x0, y0, x1, y1 = regions.unbind(-1)
    assert ((x1 > x0) & (y1 > y0)).all()
    begins = x0 == 0
    assert (begins.sum(1) == rows).all()
    assert torch.equal(torch.where(begins[:, 1:], width, x0[:, 1:]), x1[:, :-1])
    assert torch.equal(y0[:, 1:], torch.where(begins[:, 1:], y1[:, :-1], y0[:, :-1]))
    for t in range(num_frames):  # the borders of frames are exact
        for clip in range(2):
            own = frames[clip] == t
            assert y0[clip][own].min() == t * height
            assert y1[clip][own].max() == (t + 1) * height


@given(cases())
@settings(max_examples=60, deadline=None)
def test_tokens_of_one_frame_hold_equal_masses(case):
    density, num_frames, budget, rows, frame_size = case
    density = density.double() / density.double().sum((1, 2), keepdim=True)
    regions = clip_regions(density, num_frames, budget, rows, frame_size)
    tall = (num_frames * frame_size[0], frame_size[1])
    held = (region_shares(regions, tall, tuple(density.shape[1:])) @ density.flatten(1)[..., None])[..., 0]
    one_hot = torch.nn.functional.one_hot(frame_of(regions, frame_size[0]), num_frames).to(F64)
    counts = one_hot.sum(1)
    mean = torch.einsum("bn,bnt->bt", held, one_hot) / counts
    torch.testing.assert_close(held, torch.einsum("bt,bnt->bn", mean, one_hot), rtol=1e-9, atol=1e-12)
    assert (counts >= 1).all()


@given(st.integers(1, 9), st.integers(2, 9), st.data())
@settings(max_examples=30, deadline=None)
def test_frames_get_tokens_by_their_mass_up_to_rounding(num_frames, tokens_per_frame, data):
    budget, rows = 2 * tokens_per_frame * num_frames, data.draw(st.integers(num_frames, 2 * num_frames))
    density = torch.rand(2, num_frames * 4, 4, dtype=F64) + 1.5  # no frame asks for less than its rows
    density = density / density.sum((1, 2), keepdim=True)
    frames = frame_of(clip_regions(density, num_frames, budget, rows, (32, 32)), 32)
    counts = torch.nn.functional.one_hot(frames, num_frames).sum(1)
    wanted = budget * density.unflatten(1, (num_frames, -1)).sum((2, 3))
    assert ((counts - wanted).cumsum(1).abs() <= 0.502).all()


def test_a_frame_of_four_times_the_mass_gets_four_times_the_tokens_in_twice_the_rows():
    density = torch.ones(1, 4, 6, 6, dtype=F64)
    density[:, 2] = 4
    regions = clip_regions((density / density.sum()).flatten(1, 2), 4, 112, 20, (48, 48))
    frames = frame_of(regions, 48)[0]
    assert frames.bincount().tolist() == [16, 16, 64, 16]
    assert [regions[0, frames == t, 1].unique().numel() for t in range(4)] == [4, 4, 8, 4]
    shifted = regions[0, frames == 2] - torch.tensor([0, 96, 0, 96])
    torch.testing.assert_close(shifted, uniform_regions(64, 8, (48, 48), CPU, F64)[0])


@given(cases(), st.sampled_from(["mass", "density"]))
@settings(max_examples=30, deadline=None)
def test_one_frame_is_cut_exactly_as_an_image(case, row_weight):
    density, _, budget, rows, size = case
    expected = flow_regions(density, budget, rows, size, row_weight)
    assert torch.equal(clip_regions(density, 1, budget, rows, size, row_weight), expected)
    aspect = size[0] / size[1]
    assert plan_clip_rows(budget, None, 1, aspect) == min(budget, max(1, round((budget * aspect) ** 0.5)))


@pytest.mark.parametrize("row_weight", ["mass", "density"])
@pytest.mark.parametrize(("num_frames", "budget", "rows"), [(8, 128, 32), (8, 392, 56), (4, 20, 4), (3, 18, 6)])
def test_equal_scores_cut_every_frame_as_the_uniform_image(num_frames, budget, rows, row_weight):
    height, width = 48, 64
    density = torch.full((1, num_frames * 6, 8), 1 / (num_frames * 48))
    found = clip_regions(density, num_frames, budget, rows, (height, width), row_weight)
    closed = uniform_clip_regions(budget, rows, num_frames, (height, width), CPU, torch.float32)
    frame = uniform_regions(budget // num_frames, rows // num_frames, (height, width), CPU, torch.float32)
    shift = torch.arange(num_frames)[:, None, None] * torch.tensor([0.0, height, 0, height])
    torch.testing.assert_close(closed, (frame + shift).flatten(0, 1)[None], rtol=0, atol=1e-4)
    torch.testing.assert_close(found, closed, rtol=0, atol=1e-3)


@given(st.one_of(st.tuples(st.integers(1, 9), st.integers(1, 80)), st.just((16, 3144))), st.data())
@settings(max_examples=60, deadline=None)
def test_the_closed_form_is_the_partition_of_a_constant_density(size, data):
    """Also where frames cannot be equal: rounding must not decide which of them get more."""
    num_frames, budget = size
    rows = data.draw(st.integers(1, budget))
    density = torch.full((1, num_frames * 5, 7), 1 / (num_frames * 35))
    found = clip_regions(density, num_frames, budget, rows, (40, 56))
    closed = uniform_clip_regions(budget, rows, num_frames, (40, 56), CPU, torch.float32)
    torch.testing.assert_close(found, closed, rtol=0, atol=1e-3)


def test_rounding_decides_nothing_in_large_clips_either():
    """Frames get half tokens here, and sums of 70007 are off by more than a thousandth."""
    density = torch.full((1, 14 * 5, 7), 1 / (14 * 35))
    closed = uniform_clip_regions(70007, 14, 14, (40, 56), CPU, torch.float32)
    torch.testing.assert_close(clip_regions(density, 14, 70007, 14, (40, 56)), closed, rtol=0, atol=1e-3)


def test_fewer_rows_than_frames_span_frames():
    density = density_of(6, (4, 4))
    assert torch.equal(clip_regions(density, 6, 12, 3, (16, 16)), flow_regions(density, 12, 3, (96, 16)))
    assert plan_clip_rows(3, None, 6) == 3  # fewer tokens than frames leave no choice


@pytest.mark.parametrize("row_weight", ["mass", "density"])
def test_gradcheck_through_the_partition(row_weight):
    density = density_of(3, (4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: clip_regions(d, 3, 17, 7, (16, 20), row_weight), (density,))
