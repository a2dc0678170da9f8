"""moving-digits: the target moves straight and stays inside, the rest stands still, no leak between splits."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import moving_digits
from pipeline.data.catalog import DATASETS, SPLITS
from pipeline.data.fetch import fetch_dataset
from pipeline.data.moving_digits import MOTIONS, plan_path
from pipeline.data.options import MovingDigitsOptions
from pipeline.data.video import decode_clip

OPTIONS = MovingDigitsOptions(
    name="moving-digits",
    img_size=32,
    num_frames=6,
    num_clutter=3,
    label="motion",
    train_samples=60,
    val_samples=30,
    test_samples=30,
    seed=0,
)


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw_dir = tmp_path_factory.mktemp("moving") / "raw"
    fetch_dataset(OPTIONS, raw_dir)
    return raw_dir


def samples(raw_dir: Path, split: str = "train", **changes):
    return DATASETS["moving-digits"].samples(OPTIONS.model_copy(update=changes), raw_dir, split)


def frames_of(sample) -> np.ndarray:
    return decode_clip(sample.image.data, range(sample.image.num_frames), grey=True)


@given(
    motion=st.sampled_from(sorted(MOTIONS)),
    room=st.integers(0, 100),
    num_frames=st.integers(2, 20),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3),
)
def test_a_path_is_straight_even_and_inside(motion, room, num_frames, draws):
    corners = plan_path(MOTIONS[motion], room, num_frames, draws)
    assert corners.min() >= 0
    assert corners.max() <= room
    steps = np.diff(corners, axis=0)
    dx, dy = MOTIONS[motion]
    forward, aside = (steps[:, 0] * dx, steps[:, 1]) if dx else (steps[:, 1] * dy, steps[:, 0])
    assert not aside.any()
    assert (forward >= 0).all()
    assert np.ptp(forward) <= 1  # constant up to rounding
    low, high = moving_digits.PATH_FRACS
    assert low * room - 1 <= forward.sum() <= high * room + 1


def test_only_the_box_of_the_digit_changes_and_it_moves_as_labelled(raw_dir):
    for sample in samples(raw_dir):
        frames = frames_of(sample)
        assert frames.shape == (6, 32, 32)
        dx, dy = list(MOTIONS.values())[sample.label]
        for (a, box_a), (b, box_b) in itertools.pairwise(zip(frames, sample.box, strict=True)):
            outside = np.ones_like(a, bool)
            for x0, y0, x1, y1 in (box_a, box_b):
                outside[y0:y1, x0:x1] = False
            assert np.array_equal(a[outside], b[outside])
            step = np.subtract(box_b, box_a)
            assert (step[:2] == step[2:]).all()
            assert step[0] * dy == step[1] * dx == 0
        assert np.dot(np.subtract(sample.box[-1], sample.box[0])[:2], (dx, dy)) > 0


def test_splits_share_no_source_digit(raw_dir):
    used = {split: {s for sample in samples(raw_dir, split) for s in sample.sources} for split in SPLITS}
    assert all(used[a].isdisjoint(used[b]) for a, b in itertools.combinations(SPLITS, 2))


def test_a_clip_is_a_function_of_options_split_and_index(raw_dir):
    forward = [sample.image.data for sample in samples(raw_dir)]
    for index in (41, 3, 59):
        assert samples(raw_dir)[index].image.data == forward[index]
    others = [samples(raw_dir, seed=1)[0], samples(raw_dir, "test")[0], samples(raw_dir, num_clutter=2)[0]]
    assert len({forward[0], *(sample.image.data for sample in others)}) == 4


def test_labels_are_named_and_balanced(raw_dir):
    entry = DATASETS["moving-digits"]
    assert entry.class_names(OPTIONS, raw_dir) == ["right", "left", "down", "up"]
    both = OPTIONS.model_copy(update={"label": "digit-motion"})
    names = entry.class_names(both, raw_dir)
    assert (len(names), names[13]) == (40, "3 left")
    motions, pairs = (
        [s.label for s in samples(raw_dir, label=label, train_samples=400)] for label in ("motion", "digit-motion")
    )
    assert [pair % 4 for pair in pairs] == motions
    assert min(np.bincount(motions)) > 70
    assert min(np.bincount([pair // 4 for pair in pairs])) > 20
