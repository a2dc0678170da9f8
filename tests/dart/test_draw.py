"""The figures show what the tokenizer did: every token once, in its place, as bright as its image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dart.draw.figures import Caption, draw_tokens, in_rows, mosaic, outlines, show_mosaic, tokens_per_row


def grid_regions(counts: list[int], side: float) -> np.ndarray:
    """Rows of equal height, the r-th cut into counts[r] equal regions, in reading order."""
    height = side / len(counts)
    boxes = [
        (k * side / n, r * height, (k + 1) * side / n, (r + 1) * height) for r, n in enumerate(counts) for k in range(n)
    ]
    return np.array(boxes, dtype=np.float32)


def cut(image: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The patches of equal whole-pixel regions."""
    boxes = regions.astype(int)
    return np.stack([image[:, y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])


@pytest.mark.parametrize("counts", [[1], [3], [1, 1, 1], [3, 3, 3], [2, 3, 2, 3], [1, 5]])
def test_rows_are_found_from_the_regions(counts: list[int]) -> None:
    assert tokens_per_row(grid_regions(counts, 30.0)) == counts


@pytest.mark.parametrize("num_chans", [1, 3])
def test_the_mosaic_of_the_uniform_grid_is_the_image_with_coloured_gaps(num_chans: int) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (num_chans, 12, 12)).astype(np.float32)
    regions = grid_regions([3, 3, 3], 12.0)
    picture = mosaic(image, regions, cut(image, regions), color="blue")
    gaps = [0, 5, 10, 15]
    assert (picture[gaps] == (0, 0, 1)).all()
    assert (picture[:, gaps] == (0, 0, 1)).all()
    seen = np.delete(np.delete(picture, gaps, 0), gaps, 1)
    expected = np.moveaxis((image - image.min()) / (image.max() - image.min()), 0, -1)
    np.testing.assert_allclose(seen, np.broadcast_to(expected, seen.shape), atol=1e-6)


def test_a_short_row_ends_in_white() -> None:
    image = np.zeros((1, 12, 12), dtype=np.float32)
    patches = np.zeros((5, 1, 4, 4), dtype=np.float32)
    picture = mosaic(image, grid_regions([2, 3], 12.0), patches)
    assert picture.shape == (11, 16, 3)
    assert (picture[1:5, 11:] == 1).all()
    assert (picture[6:10, 11:15] == 0).all()


def test_outlines_are_closed_and_span_their_region() -> None:
    regions = np.array([[1, 2, 5, 9]], dtype=np.float32)
    corners = outlines(regions)[0]
    assert (corners[0] == corners[-1]).all()
    assert corners.min(0).tolist() == [1, 2]
    assert corners.max(0).tolist() == [5, 9]


@pytest.mark.parametrize("num_chans", [1, 3, 4])
def test_draw_tokens_takes_tensors_with_gradients_and_any_channels(num_chans: int) -> None:
    images = torch.randn(2, num_chans, 12, 12)
    regions = torch.from_numpy(grid_regions([2, 3], 12.0)).expand(2, -1, -1)
    tokens = SimpleNamespace(
        density=torch.rand(2, 3, 4, requires_grad=True),
        regions=regions,
        patches=torch.randn(2, 5, num_chans, 4, 4),
    )
    figure = draw_tokens(images, tokens, [Caption("says 3", True), Caption("says 4", False)])
    labels = [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()]
    assert labels == ["✓ says 3", "✗ says 4"]
    assert len(figure.axes) == 8


def test_a_constant_image_and_density_are_drawn_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    tokens = SimpleNamespace(
        density=np.ones((1, 3, 3)), regions=grid_regions([2], 8.0)[None], patches=np.ones((1, 2, 1, 4, 4))
    )
    draw_tokens(np.ones((1, 1, 8, 8)), tokens, ["nothing to see"]).canvas.draw()
    assert not recwarn.list


def test_regions_in_no_rows_are_shown_where_they_are():
    rows = np.array([[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 8, 8]], dtype=np.float32)
    tree = np.array([[0, 0, 4, 4], [0, 4, 4, 8], [4, 0, 8, 8]], dtype=np.float32)
    assert in_rows(rows)
    assert not in_rows(tree)
    figure = Figure()
    ax, image = figure.subplots(), np.zeros((1, 8, 8), dtype=np.float32)
    show_mosaic(ax, image, tree, np.linspace(0, 1, 3 * 4, dtype=np.float32).reshape(3, 1, 2, 2))
    assert [tuple(shown.get_extent()) for shown in ax.images] == [(0, 4, 4, 0), (0, 4, 8, 4), (4, 8, 8, 0)]
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 8), (8, 0))
