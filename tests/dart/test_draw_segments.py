"""Segmentations as figures: a class has one colour everywhere, and what does not count is seen to count nowhere."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dart.draw.segments import (
    ALPHA,
    COLORS,
    IGNORE,
    OTHER_COLOR,
    choose_palette,
    draw_segments,
    image_miou,
    miou_caption,
    paint,
    show_legend,
)

NAMES = ("background", *(f"class {i}" for i in range(1, 40)))


@pytest.fixture
def classes() -> np.ndarray:
    """(2, 24, 36): one line of class 1, two of class 2, ... six of class 6; ignored and background below."""
    lines = [label for label in range(1, 7) for _ in range(label)] + [IGNORE, 0, 0]
    return np.broadcast_to(np.array(lines, np.uint8)[None, :, None], (2, 24, 36)).copy()


def test_the_more_pixels_a_class_has_the_sooner_it_gets_a_colour_and_the_background_gets_none(classes):
    assert choose_palette([classes], NAMES) == dict(zip([6, 5, 4, 3, 2, 1], COLORS, strict=False))
    more = np.full((1, 24, 36), 3, np.uint8)  # of another panel
    assert next(iter(choose_palette([classes, more], NAMES))) == 3


def test_a_palette_has_no_colour_for_classes_that_do_not_occur_and_one_for_all_beyond_its_own():
    classes = np.arange(1, 40, dtype=np.uint8)[None]
    palette = choose_palette([classes], NAMES)
    assert set(palette) == set(range(1, 40))
    assert list(palette.values()) == [*COLORS, *[OTHER_COLOR] * (39 - len(COLORS))]
    assert choose_palette([np.full((4, 4), IGNORE), np.zeros((4, 4), np.uint8)], NAMES) == {}


# How linear RGB looks to who lacks one of the three kinds of cones (Machado, Oliveira and Fernandes 2009).
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
WHITE = [0.95047, 1, 1.08883]


def to_lab(color: str, vision: np.ndarray) -> np.ndarray:
    """CIELAB, in which a distance of 2 can just be seen."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(vision) @ linear, 0, 1) / WHITE
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart_with_any_colour_vision(vision):
    seen = [to_lab(color, VISIONS[vision]) for color in COLORS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_every_pixel_is_painted_in_its_class_colour_and_the_background_lets_the_image_through(classes):
    palette = choose_palette([classes], NAMES)
    painted = paint(classes[0], palette)
    for label, color in palette.items():
        np.testing.assert_allclose(painted[classes[0] == label], np.float32([[*to_rgb(color), ALPHA]] * (36 * label)))
    assert (painted[classes[0] == 0] == 0).all()
    np.testing.assert_allclose(painted[classes[0] == IGNORE, 3], ALPHA)


def test_the_legend_names_every_colour_in_the_order_of_the_classes(classes):
    figure = Figure(figsize=(4, 3), layout="constrained")
    show_legend(figure, choose_palette([classes], NAMES), NAMES)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [NAMES[i] for i in range(1, 7)]
    assert figure.get_figheight() > 3
    show_legend(figure, choose_palette([np.arange(1, 14)], NAMES), NAMES)
    assert figure.legends[1].texts[-1].get_text() == "3 other classes"
    show_legend(figure, {}, NAMES)
    assert len(figure.legends) == 2


def test_the_miou_of_an_image_is_the_mean_over_its_classes_and_ignored_pixels_are_nowhere_in_it():
    truth = np.array([[1, 1, 2, 2, IGNORE]])
    assert image_miou(np.array([[1, 1, 2, 2, 7]]), truth) == 1
    assert image_miou(np.array([[1, 2, 2, 2, 7]]), truth) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert image_miou(np.array([[1, 3, 2, 2, 7]]), truth) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert image_miou(truth[:, :4], np.full((1, 4), IGNORE)) is None
    assert miou_caption(truth, np.full((1, 5), IGNORE)).text == "no pixel counts"


def test_tensors_and_arrays_give_the_same_figure_with_a_panel_less_where_there_is_no_density(classes):
    images = np.random.default_rng(0).random((2, 3, 24, 36), dtype=np.float32)
    regions = np.array([[[0, 0, 18, 24], [18, 0, 36, 24]]], np.float32)
    density = np.ones((2, 4, 4), np.float32)
    arrays = (images, classes, classes, regions)
    figures = [
        draw_segments(*arrays, NAMES, density),
        draw_segments(*(torch.from_numpy(a) for a in arrays), NAMES, torch.from_numpy(density)),
    ]
    ours, theirs = (np.asarray(figure_pixels(figure)) for figure in figures)
    np.testing.assert_array_equal(ours, theirs)
    assert [ax.get_title() for ax in figures[0].axes[:5]] == [
        "image", "true classes", "density", "token regions", "prediction"
    ]  # fmt: skip
    assert len(draw_segments(*arrays, NAMES).axes) == 2 * 4
    assert [figures[0].axes[i].get_xlabel() for i in (4, 9)] == ["mIoU 100.0%"] * 2


def figure_pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()
