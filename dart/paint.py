"""Tokens back in their places: every region's small map of values is painted on the pixels that the region covers.

# B batch, N tokens, R rows, d values, S points on the side of a token's map, H W image pixels
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dart.partition import geometry_dtype

MIN_SIDE_PX = 1e-6  # of a region that is divided by; a narrower one holds no pixel's centre but by chance


class Places(NamedTuple):
    """Which part of the tokens' maps every pixel reads: along x it is the same for all lines of a row.

    row: The row of every line (B or 1, H).
    token: The token of every row and column (B or 1, R, W).
    y, x: Where in the token's map the line and the column are (B or 1, H) and (B or 1, R, W), in points from 0 to
        S - 1, differentiable in the regions.
    """

    row: Tensor
    token: Tensor
    y: Tensor
    x: Tensor


def paint_tokens(
    values: Tensor,
    regions: Tensor,
    img_size: tuple[int, int],
    num_rows: int | None = None,
    stride: int = 1,
) -> Tensor:
    """Every pixel reads the map of the token that it lies in, bilinearly at its place; the map's border is repeated.

    The points of a map are the centres of S x S equal parts of its region, so that S x S maps on regions of S x S
    pixels are `F.pixel_shuffle`. Nothing is read across the edge of a region.

    Args:
        values: (B, N, d, S, S), the map of every token. Nothing is copied that lies in memory as (B, N, x, y, d).
        regions: (B or 1, N, 4) x0, y0, x1, y1 in pixels, in reading order; they tile the image, none lies in two rows.
        img_size: H, W.
        num_rows: R, or more. None for N, which is always enough, and slower.
        stride: Pixels on the side of the cells that are painted; the last ones may reach beyond the image.

    Returns:
        (B, d, ceil(H / stride), ceil(W / stride)), channels last in memory, in the dtype of `values`. Differentiable in
        the values and in the regions; which token a pixel lies in is a constant.

    Raises:
        ValueError: shapes that do not fit; on the CPU also regions in more than R rows.
    """
    batch, num_tokens, dim, side, width = values.shape
    if side != width or regions.shape[1:] != (num_tokens, 4) or regions.shape[0] not in (1, batch):
        said = f"values = {tuple(values.shape)}, regions = {tuple(regions.shape)}"
        raise ValueError(f"{said}: must be (B, N, d, S, S) and (B or 1, N, 4)")
    places = find_places(regions, img_size, side, num_rows, stride)
    rows, cols = places.token.shape[1:]
    dtype = torch.promote_types(values.dtype, places.x.dtype)
    # Along x first: the points of one column of a token's map lie together, and all lines of a row share the look-up.
    columns = values.to(dtype).permute(0, 1, 4, 3, 2).reshape(batch * num_tokens * side, side * dim)
    wide = _read(columns, places.token, places.x, num_tokens, side, batch)  # (B * R * W, S * d)
    lines = wide.view(batch, rows, cols, side, dim).transpose(2, 3).reshape(batch * rows * side, cols * dim)
    painted = _read(lines, places.row, places.y, rows, side, batch)  # (B * H, W * d)
    return painted.view(batch, -1, cols, dim).permute(0, 3, 1, 2).to(values.dtype)


def find_tokens(regions: Tensor, img_size: tuple[int, int], num_rows: int | None = None) -> Tensor:
    """The token that every pixel's centre lies in: regions (B or 1, N, 4) -> (B or 1, H, W), whole numbers.

    Args and errors as of `paint_tokens`.
    """
    found = find_places(regions.detach(), img_size, 1, num_rows)
    return found.token.gather(1, found.row[..., None].expand(-1, -1, img_size[1]))


def find_places(
    regions: Tensor,
    img_size: tuple[int, int],
    side: int,
    num_rows: int | None = None,
    stride: int = 1,
) -> Places:
    """Where the pixels of an image lie in maps of side x side points; see `paint_tokens`."""
    x0, y0, x1, y1 = regions.to(geometry_dtype(regions.dtype)).unbind(-1)
    height, width = (-(-pixels // stride) for pixels in img_size)
    row_of = _find_rows(x0, x1)
    rows = _check_rows(x0.shape[1] if num_rows is None else num_rows, row_of)
    centres = (torch.arange(max(height, width), device=x0.device, dtype=x0.dtype) + 0.5) * stride
    v, u = centres[:height], centres[:width]
    # Whole numbers, so that rows cannot mix by rounding: the first line and column whose centres are in the token.
    top, left = (
        (low.detach() / stride - 0.5).ceil().long().clamp(0, cells) for low, cells in ((y0, height), (x0, width))
    )
    first = _last_before(top, height + 1)[:, :-1]  # some token of every line's row (B, H)
    token = _last_before(row_of * (width + 1) + left, rows * (width + 1))
    token = token.unflatten(1, (rows, width + 1))[..., :-1].flatten(1)  # (B, R * W)
    y = _to_points(v, y0.gather(1, first), y1.gather(1, first), side)
    x = _to_points(u.repeat(rows), x0.gather(1, token), x1.gather(1, token), side)
    return Places(row_of.gather(1, first), token.unflatten(1, (rows, width)), y, x.unflatten(1, (rows, width)))


def _find_rows(x0: Tensor, x1: Tensor) -> Tensor:
    """The row of every token, from 0 (B, N): the first of a row is left of the one before it."""
    starts = x0[:, 1:] < (x0 + x1)[:, :-1] / 2
    return F.pad(starts.cumsum(-1), (1, 0))


def upsample(maps: Tensor, factor: int) -> Tensor:
    """Bilinear, every sample in the middle of factor x factor pixels: (B, C, h, w) -> (B, C, factor h, factor w).

    `F.interpolate(maps, scale_factor=factor, mode="bilinear")` as a transposed convolution, which on a CPU takes less
    than half of the time with its gradient.
    """
    if factor == 1:
        return maps
    size = 2 * factor - factor % 2
    taps = torch.arange(size, device=maps.device, dtype=maps.dtype)
    hat = 1 - (taps - (size - 1) / 2).abs() / factor
    kernel = (hat[:, None] * hat).expand(maps.shape[1], 1, -1, -1)
    framed = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(framed, kernel, stride=factor, padding=factor + factor // 2, groups=maps.shape[1])


def _read(table: Tensor, index: Tensor, place: Tensor, count: int, side: int, batch: int) -> Tensor:
    """Lines of a table between which a place lies, blended: (B * count * S, K) -> (B * places, K).

    Args:
        index: Of the map that is read (B or 1, ...), from 0 to count.
        place: Where in the map, in points (B or 1, ...).
    """
    low = place.detach().floor().long().clamp(0, max(side - 2, 0))
    share = (place - low).expand(batch, *place.shape[1:]).flatten()
    images = torch.arange(batch, device=table.device) * count
    first = ((images.view(-1, *[1] * (index.ndim - 1)) + index) * side + low).flatten()
    pairs = torch.stack([first, first + min(1, side - 1)], -1)
    weights = torch.stack([1 - share, share], -1)
    if torch.compiler.is_exporting():  # to a loop over the pairs, it would be
        return (table[pairs] * weights[..., None]).sum(-2)
    # One pass over what is read; `table[pairs]` would be written out first.
    return F.embedding_bag(pairs, table, mode="sum", per_sample_weights=weights)


def _to_points(centres: Tensor, low: Tensor, high: Tensor, side: int) -> Tensor:
    """Pixel centres in a region from low to high -> points of its map, of which there are `side`."""
    return ((centres - low) / (high - low).clamp(min=MIN_SIDE_PX) * side - 0.5).clamp(0, side - 1)


def _last_before(places: Tensor, count: int) -> Tensor:
    """The last of increasing whole numbers (B, N) that is not above 0, 1, ..., count - 1: (B, count).

    Counted, not searched for: every exporter can do that.
    """
    marks = places.new_zeros(places.shape[0], count).scatter_add(1, places, torch.ones_like(places))
    return (marks.cumsum(-1) - 1).clamp(min=0)


def _check_rows(num_rows: int, row_of: Tensor) -> int:
    """The number of rows, if the tokens lie in no more. Values are read on the CPU only: elsewhere it would wait."""
    if row_of.device.type == "cpu" and not torch.compiler.is_compiling() and int(row_of.max()) >= num_rows:
        raise ValueError(f"num_rows = {num_rows}: the regions lie in {int(row_of.max()) + 1} rows")
    return num_rows
