"""Theorems of the warp: there and back again, uniform grids change nothing, means and classes are kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from dart.kernels import sample_regions
from dart.paper import reshaper as paper
from dart.scorer import scores_to_density
from dart.warp import (
    GridWarp,
    map_boxes,
    map_points,
    uniform_grid,
    unwarp,
    warp_grid,
    warp_images,
    warp_labels,
)
from tests.dart.on_meta import OnMeta

F64 = torch.float64
CPU = torch.device("cpu")
SIZE, GRID, P = (48, 80), (4, 6), 5
both_samplings = pytest.mark.parametrize("sampling", ["area", "point"])


def density_of(batch: int = 2, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    """Far from uniform, and no product of its margins."""
    values = torch.rand(batch, 7, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype) ** 4 + 1e-2
    return values / values.sum((1, 2), keepdim=True)


def warp_of(batch: int = 2, seed: int = 0, dtype: torch.dtype = F64, **changed) -> GridWarp:
    """A warp of images of SIZE, or as changed."""
    kwargs = {"img_size": SIZE, "grid": GRID, "cell_px": P, **changed}
    return warp_grid(density_of(batch, seed, dtype), **kwargs)


def uniform(img_size, grid, cell_px, dtype=torch.float32) -> GridWarp:
    return uniform_grid(img_size, grid, cell_px, CPU, dtype)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 32), st.sampled_from([torch.float32, F64]))
@settings(max_examples=40, deadline=None)
def test_points_and_boxes_come_back(seed, cells, cell_px, dtype):
    size = (512, 683)
    warp = warp_of(2, seed, dtype, img_size=size, grid=(cells, cells + 3), cell_px=cell_px)
    share = torch.rand(2, 50, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    share[:, 0, :2], share[:, 1, :2] = 0, 1  # the image's corners
    for way, back, (height, width) in (("warped", "source", size), ("source", "warped", warp.warped_size)):
        boxes = share.to(F64) * torch.tensor([width, height, width, height])
        points = boxes[..., :2]
        there = map_points(points, warp, way)
        assert there.dtype == F64  # float32 does not resolve the promise
        torch.testing.assert_close(map_points(there, warp, back), points, rtol=0, atol=1e-5)
        torch.testing.assert_close(map_boxes(map_boxes(boxes, warp, way), warp, back), boxes, rtol=0, atol=1e-5)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_maps_are_monotonic_and_map_borders_to_borders(seed):
    warp = warp_of(1, seed)
    line = torch.linspace(-3, SIZE[1] + 3, 400, dtype=F64)[None]
    there = map_points(torch.stack([line, line], -1), warp, "warped")
    assert (there.diff(dim=1) > 0).all()
    corners = torch.cartesian_prod(warp.cols[0], warp.rows[0])[None]
    drawn = torch.cartesian_prod(torch.arange(GRID[1] + 1.0) * P, torch.arange(GRID[0] + 1.0) * P)[None]
    torch.testing.assert_close(map_points(corners, warp, "warped"), drawn.to(F64))
    torch.testing.assert_close(map_points(drawn, warp, "source"), corners)


def test_a_boxs_corners_are_mapped_as_points():
    boxes = torch.rand(2, 9, 4, dtype=F64) * 40
    found = map_boxes(boxes, warp_of(), "warped")
    for corner in (slice(0, 2), slice(2, 4)):
        torch.testing.assert_close(found[..., corner], map_points(boxes[..., corner], warp_of(), "warped"))


@both_samplings
@pytest.mark.parametrize("grid", [(4, 6), (8, 12), (1, 1), (32, 48)])
def test_a_uniform_grid_of_the_images_size_is_the_identity(grid, sampling):
    cell_px = 32 // grid[0]
    grid = (grid[0], 48 // cell_px)
    images, labels = torch.rand(2, 3, 32, cell_px * grid[1]), torch.randint(256, (2, 32, cell_px * grid[1]))
    warp = uniform((32, cell_px * grid[1]), grid, cell_px)
    assert torch.equal(warp_images(images, warp, sampling), images)
    assert torch.equal(warp_labels(labels, warp), labels)
    torch.testing.assert_close(unwarp(images, warp, (32, cell_px * grid[1])), images, rtol=0, atol=1e-5)


def test_a_uniform_density_makes_the_uniform_grid():
    warp = warp_grid(torch.ones(1, 7, 5, dtype=F64), SIZE, GRID, P)
    expected = uniform(SIZE, GRID, P, F64)
    torch.testing.assert_close((warp.rows, warp.cols), (expected.rows, expected.cols))
    assert warp.warped_size == expected.warped_size == (20, 30)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 5e-5), (F64, 1e-10)])
@pytest.mark.parametrize("shape", [(24, 40), (12, 20), (7, 9), (48, 80), (100, 90), (1, 1)])
def test_unwarping_a_uniform_grid_is_torchs_interpolation(shape, dtype, atol):
    predictions = torch.randn(2, 3, *shape, dtype=dtype)
    expected = F.interpolate(predictions, SIZE, mode="bilinear", align_corners=False)
    found = unwarp(predictions, uniform(SIZE, GRID, P, dtype), SIZE)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_uniform_warps_shrink_as_torch_does():
    images = torch.rand(2, 3, 48, 96)
    warp = uniform((48, 96), (4, 8), 4)  # thirds
    torch.testing.assert_close(warp_images(images, warp), F.avg_pool2d(images, 3), rtol=0, atol=1e-6)
    expected = F.interpolate(images, (16, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(warp_images(images, warp, "point"), expected, rtol=0, atol=1e-5)


@both_samplings
def test_warped_cells_are_the_patches_of_the_grid_partition(sampling):
    images, warp = torch.rand(2, 3, *SIZE, dtype=F64), warp_of()
    patches = sample_regions(images, warp.regions, P, sampling)
    found = warp_images(images, warp, sampling).unflatten(2, (-1, P)).unflatten(4, (-1, P))
    torch.testing.assert_close(found.permute(0, 2, 4, 1, 3, 5).flatten(1, 2), patches)


def test_area_sampling_keeps_the_mean_of_every_cell():
    images, warp = torch.rand(2, 3, *SIZE, dtype=F64), warp_of()
    means = sample_regions(images, warp.regions, 1, "area").flatten(2).mT.unflatten(2, GRID)
    torch.testing.assert_close(F.avg_pool2d(warp_images(images, warp), P), means)


@both_samplings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_stays(sampling, dtype):
    images = torch.full((2, 3, *SIZE), 0.5).to(dtype)
    warp = warp_of(dtype=torch.float32)
    warped = warp_images(images, warp, sampling)
    assert warped.dtype == dtype
    torch.testing.assert_close(warped, torch.full_like(warped, 0.5), rtol=0, atol=1e-6)
    torch.testing.assert_close(unwarp(warped, warp, SIZE), images, rtol=0, atol=1e-6)


@given(st.integers(0, 10**6), st.sampled_from([torch.uint8, torch.int64]))
@settings(max_examples=20, deadline=None)
def test_labels_are_classes_that_were_there(seed, dtype):
    labels = (torch.randint(4, (2, *SIZE), generator=torch.Generator().manual_seed(seed)) * 85).to(dtype)
    warp = warp_of(2, seed, torch.float32)
    warped = warp_labels(labels, warp)
    assert warped.dtype == dtype
    assert warped.shape == (2, *warp.warped_size)
    assert set(warped.unique().tolist()) <= set(labels.unique().tolist())
    same = warp_labels(torch.full_like(labels, 77), warp)
    assert torch.equal(same, torch.full_like(same, 77))


def test_a_warped_label_is_the_class_under_the_pixels_centre():
    columns, lines = torch.arange(SIZE[1]).expand(2, *SIZE), torch.arange(SIZE[0])[:, None].expand(2, *SIZE)
    warp = warp_of()
    height, width = warp.warped_size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    there = map_points(torch.stack([x, y], -1).view(1, -1, 2), warp, "source").floor().long().unflatten(1, (height, -1))
    torch.testing.assert_close(warp_labels(columns, warp), there[..., 0])
    torch.testing.assert_close(warp_labels(lines, warp), there[..., 1])


def test_labels_follow_the_image():
    """An image that shows the classes, read at points, lies where the classes are, but for pixels where two meet."""
    labels = torch.zeros(2, *SIZE, dtype=torch.long)
    labels[:, 10:30, 22:60] = 1
    warp = warp_of()
    shown = warp_images(labels[:, None].to(F64), warp, "point")[:, 0]
    clear = (shown == 0) | (shown == 1)
    assert clear.double().mean() > 0.8
    assert torch.equal(shown[clear], warp_labels(labels, warp)[clear].to(F64))


@pytest.mark.parametrize("moved", [0.0, 20.0])
def test_unwarping_undoes_the_warp_of_what_is_smooth(moved):
    """The error falls with the square of the warped pixels' side, as that of interpolation does."""
    y, x = torch.meshgrid(torch.arange(48, dtype=F64), torch.arange(80, dtype=F64), indexing="ij")
    images = torch.sin((x + moved) / 12)[None, None] * torch.cos(y / 9) + torch.zeros(2, 1, 1, 1)
    errors = []
    for cell_px in (12, 24):
        warp = warp_of(cell_px=cell_px)
        back = unwarp(warp_images(images, warp, "point"), warp, SIZE)
        errors.append((back - images)[..., 2:-2, 2:-2].abs().max().item())
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 2


def test_a_prediction_is_read_where_the_pixel_went():
    """A prediction that tells its own place says, at every source pixel, where in the warped image it is."""
    warp = warp_of()
    height, width = warp.warped_size
    place = (torch.arange(width, dtype=F64) + 0.5).expand(2, 1, height, width)
    found = unwarp(place, warp, SIZE)
    centres = torch.arange(SIZE[1], dtype=F64) + 0.5
    points = torch.stack([centres, torch.zeros_like(centres)], -1)[None]
    expected = map_points(points, warp, "warped")[..., 0].clamp(0.5, width - 0.5)
    torch.testing.assert_close(found, expected[:, None, None].expand(-1, 1, SIZE[0], -1))


def test_borders_and_point_maps_agree_with_paper_mode():
    """The same function of the same numbers; they name a pixel's corner here, its index there."""
    density, cells = density_of(), (3, 5)
    theirs = paper.GridWarp(
        *(paper.row_heights(density.sum(axis), n) * 16 * n / sum_px for axis, n, sum_px in ((2, 3, 112), (1, 5, 80)))
    )
    ours = warp_grid(density, (48, 80), cells, 16)
    for sizes, edges in zip(theirs, (ours.rows, ours.cols), strict=True):
        torch.testing.assert_close(sizes, edges.diff(dim=-1), rtol=0, atol=1e-5)
    points = torch.rand(2, 30, 2, dtype=F64) * torch.tensor([80, 48])
    for to in ("warped", "source"):
        expected = paper.map_points(points, theirs, to)
        torch.testing.assert_close(map_points(points, ours, to), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("of", ["area", "point", "unwarp", "map"])
def test_gradients_through_the_scores(of):
    torch.manual_seed(0)
    scores = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)
    values = torch.randn(2, 2, 6, 9, dtype=F64, requires_grad=True)

    def run(scores, values):
        warp = warp_grid(scores_to_density(scores, 0.3, 1), (6, 9), (2, 3), 3)
        if of == "unwarp":
            return unwarp(values[..., :5, :7], warp, (6, 9))
        if of == "map":
            return map_points(values.abs().flatten(2), warp, "warped"), map_points(
                values.abs().flatten(2), warp, "source"
            )
        return warp_images(values, warp, of)

    if of == "map":
        values = torch.rand(2, 5, 2, dtype=F64, requires_grad=True)
    assert gradcheck(run, (scores, values), nondet_tol=0.0)


def test_a_border_between_two_pixels_is_pulled_by_both():
    """At uniform scores all borders may lie so; the gradient is the mean of the two one-sided ones."""
    images = torch.rand(1, 1, 1, 8, dtype=F64)

    def first(border: float, grad: bool = False):
        inner = torch.tensor([[border]], dtype=F64, requires_grad=grad)
        cols = torch.cat([torch.zeros(1, 1, dtype=F64), inner, torch.full((1, 1), 8.0, dtype=F64)], -1)
        warp = GridWarp(torch.tensor([[0.0, 1.0]], dtype=F64), cols, 1)
        return warp_images(images, warp)[0, 0, 0, 0], inner

    value, inner = first(4.0, grad=True)
    value.backward()
    expected = (first(4 + 1e-6)[0] - first(4 - 1e-6)[0]) / 2e-6
    torch.testing.assert_close(inner.grad.squeeze(), expected, rtol=0, atol=1e-6)


def test_an_image_has_no_batch_mates():
    images, predictions = torch.rand(3, 2, *SIZE), torch.rand(3, 4, 8, 11)
    labels = torch.randint(9, (3, *SIZE))
    warp = warp_of(3, dtype=torch.float32)
    for i in range(3):
        alone = GridWarp(warp.rows[i : i + 1], warp.cols[i : i + 1], P)
        for sampling in ("area", "point"):
            one = warp_images(images[i : i + 1], alone, sampling)
            torch.testing.assert_close(one, warp_images(images, warp, sampling)[i : i + 1], rtol=0, atol=1e-6)
        one = unwarp(predictions[i : i + 1], alone, SIZE)
        torch.testing.assert_close(one, unwarp(predictions, warp, SIZE)[i : i + 1], rtol=0, atol=1e-6)
        assert torch.equal(warp_labels(labels[i : i + 1], alone), warp_labels(labels, warp)[i : i + 1])


def test_one_warp_serves_all_images():
    images, labels, points = torch.rand(3, 2, *SIZE), torch.randint(9, (3, *SIZE)), torch.rand(3, 7, 2) * 40
    shared = warp_of(1, dtype=torch.float32)
    each = GridWarp(shared.rows.expand(3, -1), shared.cols.expand(3, -1), P)
    for run in (
        lambda warp: warp_images(images, warp),
        lambda warp: warp_images(images, warp, "point"),
        lambda warp: unwarp(images[..., :9, :7], warp, SIZE),
        lambda warp: warp_labels(labels, warp),
        lambda warp: map_points(points, warp, "warped"),
        lambda warp: map_points(points, warp, "source"),
    ):
        torch.testing.assert_close(run(shared), run(each), rtol=0, atol=1e-6)


@both_samplings
@pytest.mark.parametrize("corner", ["one cell has all", "no width", "one pixel", "one cell"])
def test_corners_are_finite(corner, sampling):
    density = torch.full((1, 7, 5), 1e-30)
    density[0, 3, 2] = 1
    size, grid = SIZE, GRID
    if corner == "one pixel":
        size, density = (1, 1), torch.rand(1, 7, 5)
    if corner == "one cell":
        grid = (1, 1)
    density.requires_grad_()
    warp = warp_grid(density, size, grid, P)
    if corner == "no width":
        rows, cols = (
            torch.tensor([[0.0] * n + [side]], requires_grad=True) for n, side in zip(grid, size, strict=True)
        )
        warp = GridWarp(rows, cols, P)
    images = torch.rand(1, 2, *size, requires_grad=True)
    warped = warp_images(images, warp, sampling)
    back = unwarp(warped, warp, size)
    points = map_points(torch.rand(1, 20, 2) * size[0], warp, "warped")
    leaves = [images, density] if corner != "no width" else [images, warp.rows, warp.cols]
    found = torch.autograd.grad(warped.square().sum() + back.square().sum() + points.sum(), leaves)
    for values in (warped, back, points, *found):
        assert values.isfinite().all()
    assert warped.min() >= images.min() - 1e-6
    assert warped.max() <= images.max() + 1e-6


def test_geometry_keeps_its_precision_under_autocast():
    images, predictions, warp = torch.rand(2, 3, *SIZE), torch.rand(2, 3, 9, 9), warp_of(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        warped, back = warp_images(images, warp), unwarp(predictions, warp, SIZE)
    assert torch.equal(warped, warp_images(images, warp))
    assert torch.equal(back, unwarp(predictions, warp, SIZE))


@both_samplings
def test_nothing_waits_for_the_device(sampling):
    """On tensors without data, forward and backward: no value and no shape depends on data, nothing is copied over."""
    density = torch.rand(2, 7, 5, device="meta", requires_grad=True)
    images, logits = torch.rand(2, 3, *SIZE, device="meta"), torch.rand(2, 9, 5, 7, device="meta", requires_grad=True)
    labels, points = torch.zeros(2, *SIZE, device="meta", dtype=torch.long), torch.rand(2, 4, 2, device="meta")
    with OnMeta() as mode:
        warp = warp_grid(density, SIZE, GRID, P)
        total = warp_images(images, warp, sampling).sum() + unwarp(logits, warp, SIZE).sum()
        warp_labels(labels, warp)
        (total + map_points(map_points(points, warp, "warped"), warp, "source").sum()).backward()
    assert density.grad is not None
    assert logits.grad is not None
    assert mode.num_operators > 50


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda w: warp_images(torch.rand(2, 3, 80, 48), w), r"warp = of 48 x 80 px: the image has 80 x 48 px; make"),
        (lambda w: warp_images(torch.rand(2, 3, *SIZE), w, "nearest"), r"sampling = 'nearest': unknown; known: area"),
        (lambda w: warp_labels(torch.rand(2, *SIZE), w), r"labels = torch.float32: must be whole numbers"),
        (lambda w: warp_labels(torch.zeros(2, 9, 9).long(), w), r"warp = of 48 x 80 px: the image has 9 x 9 px"),
        (lambda w: unwarp(torch.rand(2, 3, 9, 9), w, (47, 80)), r"warp = of 48 x 80 px: the image has 47 x 80 px"),
        (
            lambda w: warp_images(torch.zeros(2, 3, *SIZE).byte(), w),
            r"images = torch.uint8: must be floating point; warp",
        ),
        (
            lambda w: unwarp(torch.zeros(2, 1, 9, 9).long(), w, SIZE),
            r"predictions = torch.int64: must be floating point",
        ),
        (lambda w: map_points(torch.rand(2, 3, 2), w, "image"), r"to = 'image': unknown; known: warped, source"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(run, said):
    with pytest.raises(ValueError, match=said):
        run(warp_of())
