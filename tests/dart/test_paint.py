"""Theorems of painting: every pixel reads the map of its own token, at its place in the region, and no other."""

import pytest
import torch
from torch.nn import functional as F

from dart.paint import find_tokens, paint_tokens, upsample
from dart.partition import flow_regions, grid_regions, partition_image, uniform_regions
from dart.pos_embed import map_features
from tests.dart.clips import F64
from tests.dart.on_meta import OnMeta

CPU = torch.device("cpu")
KINDS = {
    "flow": {"partition": "flow"},
    "density": {"partition": "flow", "row_weight": "density"},
    "grid": {"partition": "grid"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def regions_of(kind: str, img_size: tuple[int, int] = (30, 41), num_patches: int = 20, num_rows: int = 4):
    """Regions (3, N, 4) of densities that are far from uniform; some are narrower than a pixel."""
    values = torch.rand(3, 6, 7, dtype=F64, generator=torch.Generator().manual_seed(0)) ** 3 + 1e-2
    density = values / values.sum((1, 2), keepdim=True)
    return partition_image(density, img_size, num_patches, num_rows, **KINDS[kind])


def holds(regions, y, x):
    """Whether places lie in regions (., N): half-open."""
    x0, y0, x1, y1 = regions.unbind(-1)
    return (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)


def read(values, regions, y, x):
    """One pixel of one image, by the definition: the map (d, S, S) of its token, interpolated in its region."""
    token = int(holds(regions, y, x).int().argmax())
    x0, y0, x1, y1 = regions[token]
    place = torch.stack([2 * (x - x0) / (x1 - x0) - 1, 2 * (y - y0) / (y1 - y0) - 1])
    return F.grid_sample(
        values[None, token], place.view(1, 1, 1, 2), padding_mode="border", align_corners=False
    ).flatten()


@every_kind
@pytest.mark.parametrize(("num_patches", "num_rows"), [(1, 1), (20, 4), (24, 24), (300, 60)])
def test_every_pixel_has_one_token_which_holds_its_centre(kind, num_patches, num_rows):
    regions = regions_of(kind, (30, 41), num_patches, num_rows)  # 60 rows of 30 lines: some hold no pixel
    tokens = find_tokens(regions, (30, 41), num_rows)
    y, x = torch.arange(30)[:, None, None] + 0.5, torch.arange(41)[:, None] + 0.5
    inside = holds(regions[:, None, None], y, x)  # (B, H, W, N)
    assert torch.equal(inside.sum(-1), torch.ones_like(tokens))
    assert torch.equal(inside.int().argmax(-1), tokens)
    assert torch.equal(find_tokens(regions, (30, 41)), tokens)


@every_kind
@pytest.mark.parametrize("side", [1, 2, 5])
def test_a_pixel_reads_its_tokens_map_at_its_place_in_the_region(kind, side):
    regions = regions_of(kind)
    values = torch.randn(3, 20, 2, side, side, dtype=F64)
    painted = paint_tokens(values, regions, (30, 41), 4)
    for i, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(0, 30, 3), torch.arange(0, 41, 4)).tolist():
        expected = read(values[i], regions[i], y + 0.5, x + 0.5)
        torch.testing.assert_close(painted[i, :, y, x], expected)


@pytest.mark.parametrize("stride", [2, 3, 7])
def test_a_coarser_raster_reads_at_the_centres_of_its_cells(stride):
    regions, values = regions_of("flow", (28, 42)), torch.randn(3, 20, 2, 4, 4, dtype=F64)
    painted = paint_tokens(values, regions, (28, 42), 4, stride)
    assert painted.shape == (3, 2, -(-28 // stride), 42 // stride)
    for y, x in torch.cartesian_prod(torch.arange(28 // stride), torch.arange(42 // stride)).tolist():
        expected = read(values[1], regions[1], (y + 0.5) * stride, (x + 0.5) * stride)
        torch.testing.assert_close(painted[1, :, y, x], expected)
    if stride == 3:  # the last line's centre is beyond the image, and reads its border
        last = [read(values[1], regions[1], 28 - 1e-9, (x + 0.5) * stride) for x in range(14)]
        torch.testing.assert_close(painted[1, :, -1], torch.stack(last, 1))


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1, 7), (1, 1, 2)])
def test_on_the_uniform_grid_as_fine_as_the_pixels_it_is_a_pixel_shuffle(shape):
    rows, cols, side = shape
    size = (rows * side, cols * side)
    regions = uniform_regions(rows * cols, rows, size, CPU, F64)
    values = torch.randn(2, rows * cols, 3, side, side, dtype=F64)
    expected = F.pixel_shuffle(values.flatten(2).mT.unflatten(2, (rows, cols)), side)
    torch.testing.assert_close(paint_tokens(values, regions, size, rows), expected)


@every_kind
def test_constant_tokens_paint_their_regions(kind):
    regions = regions_of(kind).round()  # edges between pixels: a pixel lies in one token
    tokens = torch.randn(3, 20, 5, dtype=F64)
    painted = paint_tokens(tokens[..., None, None].expand(-1, -1, -1, 4, 4), regions, (30, 41), 4)
    expected = tokens.gather(1, find_tokens(regions, (30, 41), 4).flatten(1)[..., None].expand(-1, -1, 5))
    torch.testing.assert_close(painted, expected.mT.unflatten(2, (30, 41)))
    torch.testing.assert_close(painted, map_features(tokens, regions, (30, 41), (30, 41)))


def test_a_map_that_is_linear_in_the_image_is_painted_so_between_its_outer_points():
    """Every token says where its points are, by x and y; then so does every pixel."""
    regions = regions_of("flow")
    steps = (torch.arange(8, dtype=F64) + 0.5) / 8
    x0, y0, x1, y1 = regions[..., None].unbind(-2)
    x, y = (low + (high - low) * steps for low, high in ((x0, x1), (y0, y1)))  # (B, N, S)
    values = torch.stack([x[:, :, None].expand(-1, -1, 8, -1), y[..., None].expand(-1, -1, -1, 8)], 2)
    painted = paint_tokens(values, regions, (30, 41), 4)
    error = painted - torch.stack(torch.meshgrid(torch.arange(41) + 0.5, torch.arange(30) + 0.5, indexing="xy"))
    side = torch.stack([x1 - x0, y1 - y0], 1)[..., 0]  # (B, 2, N)
    tokens = find_tokens(regions, (30, 41), 4)[:, None].flatten(2).expand(-1, 2, -1)
    reach = side.gather(2, tokens).view_as(error) / 16  # half a point: outside it the border is repeated
    assert (error.abs() <= reach + 1e-9).all()
    assert (error.abs() < 1e-9).float().mean() > 0.5


def test_an_image_does_not_depend_on_its_batch_mates():
    regions, values = regions_of("flow"), torch.randn(3, 20, 2, 4, 4, dtype=F64)
    together = paint_tokens(values, regions, (30, 41), 4)
    for i in range(3):
        assert torch.equal(paint_tokens(values[i : i + 1], regions[i : i + 1], (30, 41), 4)[0], together[i])


def test_one_partition_may_serve_all_images_and_more_rows_than_there_are_change_nothing():
    regions, values = regions_of("flow")[:1], torch.randn(3, 20, 2, 4, 4, dtype=F64)
    expected = paint_tokens(values, regions.expand(3, -1, -1), (30, 41), 4)
    assert torch.equal(paint_tokens(values, regions, (30, 41), 4), expected)
    assert torch.equal(paint_tokens(values, regions, (30, 41)), expected)


@pytest.mark.parametrize("cut", [flow_regions, grid_regions])
@pytest.mark.parametrize("side", [1, 3])
def test_gradients_reach_the_values_and_through_the_regions_the_density(cut, side):
    density = (torch.rand(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(1)) + 0.1).requires_grad_()
    values = torch.randn(2, 6, 2, side, side, dtype=F64, requires_grad=True)

    def paint(values, density):
        regions = cut(density, 6, 2, (9, 11)) if cut is flow_regions else cut(density, (2, 3), (9, 11))
        return paint_tokens(values, regions, (9, 11), 2)

    assert torch.autograd.gradcheck(paint, (values, density))
    gradient = torch.autograd.grad(paint(values, density).square().sum(), density)[0]
    assert (gradient.abs().max() > 0) == (side > 1)  # a constant token looks the same wherever its edges are


@pytest.mark.parametrize("case", ["one token", "one per pixel", "one peak", "rows without a line"])
def test_gradients_are_finite_in_every_corner(case):
    density = torch.full((2, 4, 4), 0.3 / 16)
    density[:, 1, 2] += 0.7
    density.requires_grad_()
    num_patches, num_rows = {"one token": (1, 1), "one per pixel": (64, 8), "rows without a line": (64, 64)}.get(
        case, (9, 3)
    )
    regions = flow_regions(density, num_patches, num_rows, (8, 8))
    values = torch.randn(2, num_patches, 1, 4, 4, requires_grad=True)
    painted = paint_tokens(values, regions, (8, 8), num_rows)
    painted.square().sum().backward()
    assert painted.isfinite().all()
    assert density.grad.isfinite().all()
    assert values.grad.isfinite().all()


def test_places_are_those_of_float32_whatever_the_values():
    regions, values = regions_of("flow").float(), torch.randn(3, 20, 2, 4, 4)
    expected = paint_tokens(values, regions, (30, 41), 4)
    low = paint_tokens(values.bfloat16(), regions, (30, 41), 4)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low, paint_tokens(values.bfloat16().float(), regions, (30, 41), 4).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(paint_tokens(values, regions, (30, 41), 4), expected)


@pytest.mark.parametrize("num_rows", [4, None])
def test_nothing_waits_for_the_device(num_rows):
    """On tensors without data, forward and backward: no value and no shape depends on data, nothing is copied over."""
    regions = torch.zeros(2, 20, 4, device="meta", requires_grad=True)
    values = torch.zeros(2, 20, 3, 4, 4, device="meta", requires_grad=True)
    with OnMeta() as mode:
        upsample(paint_tokens(values, regions, (30, 41), num_rows, 2), 2).sum().backward()
    assert 20 < mode.num_operators < 200


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 7])
def test_upsampling_is_bilinear_interpolation(factor):
    maps = torch.randn(2, 3, 5, 6, dtype=F64, requires_grad=True)
    found, expected = upsample(maps, factor), F.interpolate(maps, scale_factor=factor, mode="bilinear")
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((out * weights).sum(), maps)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("values", "regions", "num_rows", "said"),
    [
        ((2, 20, 3, 4, 5), (2, 20, 4), 4, r"values = \(2, 20, 3, 4, 5\), .*: must be \(B, N, d, S, S\)"),
        ((2, 20, 3, 4, 4), (2, 19, 4), 4, r"regions = \(2, 19, 4\): must be .* \(B or 1, N, 4\)"),
        ((2, 20, 3, 4, 4), (3, 20, 4), 4, r"regions = \(3, 20, 4\): must be"),
        ((2, 20, 3, 4, 4), None, 3, "num_rows = 3: the regions lie in 4 rows"),
    ],
)
def test_what_cannot_be_painted_is_refused(values, regions, num_rows, said):
    found = regions_of("flow")[:2] if regions is None else torch.zeros(regions)
    with pytest.raises(ValueError, match=said):
        paint_tokens(torch.zeros(values), found, (30, 41), num_rows)
