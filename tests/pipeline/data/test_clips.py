"""Which frames and squares are read: never outside the clip, in order, evenly; tests draw nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.clips import (
    ClipSampling,
    ClipTransform,
    Views,
    crop,
    fixed_frames,
    normalise_clip,
    random_frames,
    resize,
)
from pipeline.data.transforms import Transform

available = st.integers(1, 400)
num_frames = st.integers(1, 40)
strides = st.one_of(st.none(), st.integers(1, 9))


def clip_of(num_frames: int, frame_stride: int | None) -> ClipSampling:
    return ClipSampling(num_frames, "dense" if frame_stride else "sparse", frame_stride)


@given(n=available, t=num_frames, stride=strides, seed=st.integers(0, 1000), segments=st.integers(1, 6))
def test_frames_are_in_the_clip_in_order_and_as_many_as_asked_for(n, t, stride, seed, segments):
    clip = clip_of(t, stride)
    chosen = [random_frames(n, clip, np.random.default_rng(seed))]
    chosen += [fixed_frames(n, clip, s, segments) for s in range(segments)]
    for frames in chosen:
        assert frames.shape == (t,)
        assert 0 <= frames[0] <= frames[-1] < n
        assert (np.diff(frames) >= 0).all()


@given(n=available, t=num_frames, seed=st.integers(0, 1000))
def test_sparse_takes_one_frame_of_each_segment(n, t, seed):
    clip = ClipSampling(t, "sparse", None)
    edges = np.arange(t + 1) * n / t
    for frames in (random_frames(n, clip, np.random.default_rng(seed)), fixed_frames(n, clip)):
        assert (frames + 1 > edges[:-1]).all()
        assert (frames < edges[1:]).all()


@given(t=num_frames, seed=st.integers(0, 1000))
def test_as_many_frames_as_there_are_is_the_clip_itself(t, seed):
    clip = ClipSampling(t, "sparse", None)
    assert random_frames(t, clip, np.random.default_rng(seed)).tolist() == list(range(t))
    assert fixed_frames(t, clip, 2, 4).tolist() == list(range(t))


@given(n=available, t=num_frames, stride=strides)
def test_few_frames_are_repeated_evenly(n, t, stride):
    counts = np.bincount(fixed_frames(n, clip_of(t, stride)), minlength=n)
    if n < t:
        assert counts.min() >= t // n
        assert counts.max() <= -(-t // n)


@given(n=st.integers(60, 400), seed=st.integers(0, 1000))
def test_dense_frames_are_a_stride_apart_and_reach_both_ends(n, seed):
    clip = ClipSampling(8, "dense", 7)  # spans 50 frames
    assert set(np.diff(random_frames(n, clip, np.random.default_rng(seed)))) == {7}
    first, middle, last = (fixed_frames(n, clip, s, 3) for s in range(3))
    assert (first[0], last[-1]) == (0, n - 1)
    assert middle.tolist() == fixed_frames(n, clip).tolist()
    assert abs(middle[0] - (n - 1 - middle[-1])) <= 1


def test_random_frames_reach_every_frame():
    for clip in (ClipSampling(4, "sparse", None), ClipSampling(4, "dense", 2)):
        seen = {f for seed in range(300) for f in random_frames(12, clip, np.random.default_rng(seed)).tolist()}
        assert seen == set(range(12))


def test_videomambas_four_segments_by_hand():
    clip = ClipSampling(2, "sparse", None)
    assert [fixed_frames(20, clip, s, 4).tolist() for s in range(4)] == [[2, 12], [4, 14], [6, 16], [8, 18]]
    assert fixed_frames(20, clip).tolist() == [5, 15]


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (40, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_shorter_side_is_resized_and_crops_go_from_end_to_end(height, width, channels):
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, channels), np.uint8)
    resized = resize(frames, 20, "bilinear")
    assert min(resized.shape[1:3]) == 20
    assert abs(max(resized.shape[1:3]) - 20 * max(height, width) / min(height, width)) < 1
    assert resized.shape[3] == channels
    assert resize(resized, 20, "bilinear") is resized
    left, middle, right = (crop(resized, 20, place, 3) for place in range(3))
    assert left.shape == middle.shape == right.shape == (2, 20, 20, channels)
    assert np.array_equal(left, resized[:, :20, :20])
    assert np.array_equal(right, resized[:, -20:, -20:])
    assert np.array_equal(middle, crop(resized, 20))


def test_values_are_those_of_the_frames_from_minus_one_to_one():
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    expected = torch.from_numpy(frames / 127.5 - 1).permute(3, 0, 1, 2)
    torch.testing.assert_close(normalise_clip(frames).double(), expected, rtol=0, atol=1e-6)


FRAMES = np.random.default_rng(1).integers(0, 256, (30, 24, 36, 3), np.uint8)


def read(wanted):
    return FRAMES[wanted]


def training(augment="flip_crop", **changes) -> ClipTransform:
    options = {"seed": 1, "epoch": 2, "img_size": 16, **changes}
    return ClipTransform(Transform(augment, **options), ClipSampling(4, "sparse", None), 16)


def test_a_training_clip_is_a_function_of_seed_epoch_index_and_repeat():
    first = training()(read, 30, 3, 1)
    assert first.shape == (3, 4, 16, 16)
    training()(read, 30, 4)  # another sample in between changes nothing
    assert torch.equal(training()(read, 30, 3, 1), first)
    others = [training(seed=0)(read, 30, 3, 1), training(epoch=0)(read, 30, 3, 1), training()(read, 30, 3, 0),
              training()(read, 30, 9, 1)]  # fmt: skip
    assert not any(torch.equal(other, first) for other in others)


def test_all_frames_are_drawn_alike():
    still = np.broadcast_to(FRAMES[:1], FRAMES.shape)
    for index in range(10):
        clip = training()(lambda wanted: still[wanted], 30, index)
        assert all(torch.equal(clip[:, 0], clip[:, t]) for t in range(4))


def test_without_augmentation_training_reads_the_middle_square():
    clip = ClipSampling(30, "sparse", None)
    seen = ClipTransform(Transform("none", img_size=16), clip, 16)(read, 30, 0)
    assert torch.equal(seen, normalise_clip(crop(resize(FRAMES, 16, "bilinear"), 16)))


def test_a_test_reads_every_view_and_one_view_is_the_middle_of_them():
    transform = ClipTransform(Transform(training=False), ClipSampling(4, "sparse", None), 16, Views(3, 3))
    views = transform(read, 30, 7)
    assert views.shape == (9, 3, 4, 16, 16)
    assert len({view.numpy().tobytes() for view in views}) == 9
    one = ClipTransform(Transform(training=False), ClipSampling(4, "sparse", None), 16)
    assert torch.equal(one(read, 30, 7), views[4])
    assert torch.equal(transform(read, 30, 8), views)  # nothing is drawn


def test_every_frame_is_decoded_once_for_all_views():
    asked = []
    transform = ClipTransform(Transform(training=False), ClipSampling(4, "sparse", None), 16, Views(4, 3))
    transform(lambda wanted: asked.append(wanted) or FRAMES[wanted], 30, 0)
    assert len(asked) == 1
    assert len(set(asked[0])) == len(asked[0])
