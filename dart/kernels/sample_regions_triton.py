"""`sample_regions` in Triton: every sample is gathered from the image itself, without an integral or a grid in memory.

# B batch, C channels, H W image pixels, N tokens, P patch side
A tile is any block of samples; "cell" is the part of a region that one sample reads. Positions are float32 relative to
the pixel that the region starts in: as absolute numbers they would be exact to 1e-4 px only, and a cell may be 1e-2.
"""

# mypy: disable-error-code="no-untyped-def"
# The parameters of a kernel are pointers and numbers that Triton types by itself.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dart.kernels.sample_regions import MIN_CELL_PX

# Samples per program.
BLOCK = 256

_MIN_CELL = tl.constexpr(MIN_CELL_PX)


def sample_regions_triton(images: Tensor, regions: Tensor, patch_size: int, sampling: str) -> Tensor:
    """See `dart.kernels.sample_regions`."""
    return sample(images, regions, patch_size, is_area(sampling))


def is_area(sampling: str) -> bool:
    """The name of a sampling as the kernels take it."""
    if sampling not in ("area", "point"):
        raise ValueError(f"sampling = {sampling!r}: unknown; known: 'area', 'point'")
    return sampling == "area"


@torch.library.custom_op("dart::sample_regions", mutates_args=())
def sample(images: Tensor, regions: Tensor, patch_size: int, area: bool) -> Tensor:
    """(B, C, H, W) of any strides and (B or 1, N, 4) -> (B, N, C, P, P)."""
    regions = regions.contiguous()
    out = _empty_patches(images, regions, patch_size, area)
    if out.numel():
        with torch.cuda.device_of(images):
            _sample_kernel[_grid(out)](images, regions, out, *layout(images, regions), **_constants(out, area))
    return out


@sample.register_fake
def _empty_patches(images: Tensor, regions: Tensor, patch_size: int, area: bool) -> Tensor:
    return images.new_empty(images.shape[0], regions.shape[1], images.shape[1], patch_size, patch_size)


@torch.library.custom_op("dart::sample_regions_grad_regions", mutates_args=())
def grad_regions(grad: Tensor, images: Tensor, regions: Tensor, area: bool) -> Tensor:
    """Gradient (B, N, C, P, P) of the patches -> (B, N, 4) of the regions; one program per token, nothing shared."""
    grad, regions = grad.contiguous(), regions.contiguous()
    out = _empty_grad_regions(grad, images, regions, area)
    if out.numel():
        with torch.cuda.device_of(images):
            kernel = _grad_regions_kernel[(grad.shape[0] * grad.shape[1],)]
            kernel(grad, images, regions, out, *layout(images, regions), **_constants(grad, area))
    return out


@grad_regions.register_fake
def _empty_grad_regions(grad: Tensor, images: Tensor, regions: Tensor, area: bool) -> Tensor:
    return regions.new_empty(images.shape[0], regions.shape[1], 4)


@torch.library.custom_op("dart::sample_regions_grad_images", mutates_args=())
def grad_images(grad: Tensor, images: Tensor, regions: Tensor, area: bool) -> Tensor:
    """Gradient (B, N, C, P, P) of the patches -> (B, C, H, W) of the images: float32 atomics, any order of addition."""
    grad, regions = grad.contiguous(), regions.contiguous()
    out = torch.zeros(images.shape, dtype=torch.float32, device=images.device)
    if grad.numel():
        with torch.cuda.device_of(images):
            _grad_images_kernel[_grid(grad)](grad, out, regions, *layout(out, regions), **_constants(grad, area))
    return out.to(images.dtype)


@grad_images.register_fake
def _empty_grad_images(grad: Tensor, images: Tensor, regions: Tensor, area: bool) -> Tensor:
    return images.new_empty(images.shape)


def backward_of_patches(ctx: Any, grad: Tensor, images: Tensor, regions: Tensor, area: bool) -> tuple[Any, Any]:
    """What the gradient of the patches is worth to the images and the regions, for the inputs 0 and 1 that ask."""
    to_images = grad_images(grad, images, regions, area) if ctx.needs_input_grad[0] else None
    to_regions = grad_regions(grad, images, regions, area) if ctx.needs_input_grad[1] else None
    if to_regions is not None and regions.shape[0] < images.shape[0]:
        to_regions = to_regions.sum(0, keepdim=True)
    return to_images, to_regions


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int, bool], output: Tensor) -> None:
    images, regions, _, ctx.area = inputs
    ctx.save_for_backward(images, regions)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    images, regions = ctx.saved_tensors
    return *backward_of_patches(ctx, grad, images, regions, ctx.area), None, None


sample.register_autograd(_backward, setup_context=_save)


def layout(images: Tensor, regions: Tensor) -> tuple[int, ...]:
    """What every kernel takes: tokens, image size, strides of the images, step from image to image in the regions."""
    per_image = 4 * regions.shape[1] if regions.shape[0] == images.shape[0] else 0
    return regions.shape[1], images.shape[2], images.shape[3], *images.stride(), per_image


def _grid(patches: Tensor) -> tuple[int, int]:
    return patches.shape[0] * patches.shape[1], triton.cdiv(patches[0, 0].numel(), BLOCK)


def _constants(patches: Tensor, area: bool) -> dict[str, Any]:
    channels, patch_size = patches.shape[2:4]
    block = min(BLOCK, triton.next_power_of_2(patches[0, 0].numel()))
    return {"CHANNELS": channels, "PATCH": patch_size, "AREA": area, "BLOCK": block}


@triton.jit
def cells(low, high, index, PATCH: tl.constexpr):
    """Cell `index` of an interval: the pixel that the interval starts in, and the ends of the cell from there."""
    low, high = low.to(tl.float32), high.to(tl.float32)
    side = tl.maximum((high - low) / PATCH, _MIN_CELL)
    start = (low + high - side * PATCH) * 0.5
    origin = tl.floor(start)
    return origin, start - origin + index * side, start - origin + (index + 1) * side


@triton.jit
def _to_ends(low, high, to_start, to_side, PATCH: tl.constexpr):
    """Gradient of an interval's start and cell side -> of its two ends."""
    low, high = low.to(tl.float32), high.to(tl.float32)
    side = to_side / PATCH
    free = (high - low) / PATCH >= _MIN_CELL
    return tl.where(free, to_start - side, to_start * 0.5), tl.where(free, side, to_start * 0.5)


@triton.jit
def _extent(begin, end, size):
    """How many pixels the widest cell of a tile touches; bounded, whatever the regions are."""
    return tl.minimum(tl.max((tl.ceil(end) - tl.floor(begin)).to(tl.int32)), size + 1)


@triton.jit
def _centre(origin, begin, end, size):
    """Where linear interpolation reads: the two pixels, the weight of the second, and 0 where the border repeats."""
    at = (begin + end) * 0.5 - 0.5
    moves = ((origin + at > 0) & (origin + at < size - 1)).to(tl.float32)
    at = tl.where(origin + at > 0, at, -origin)
    at = tl.where(origin + at < size - 1, at, size - 1 - origin)
    near = (origin + tl.floor(at)).to(tl.int32)
    near = tl.minimum(tl.maximum(near, 0), size - 1)  # a wild number from NaN is no address
    return near, tl.minimum(near + 1, size - 1), at - tl.floor(at), moves


@triton.jit
def read(image, mask, height, width, stride_y, stride_x, y, y0, y1, x, x0, x1, AREA: tl.constexpr):
    """The value of every cell of a tile: `image` points to the channel, y and x are origins, the others cell ends."""
    if AREA:
        value = (y0 + x0) * 0  # of the tile's shape
        lines, pixels = _extent(y0, y1, height), _extent(x0, x1, width)
        for dy in tl.range(0, lines):
            row = tl.floor(y0) + dy
            line = (y + row).to(tl.int32)
            in_y = tl.maximum(tl.minimum(row + 1, y1) - tl.maximum(row, y0), 0.0)  # how much of it a cell covers
            for dx in tl.range(0, pixels):
                column = tl.floor(x0) + dx
                pixel = (x + column).to(tl.int32)
                part = in_y * tl.maximum(tl.minimum(column + 1, x1) - tl.maximum(column, x0), 0.0)
                inside = mask & (part > 0) & (line >= 0) & (line < height) & (pixel >= 0) & (pixel < width)
                value += part * tl.load(image + line * stride_y + pixel * stride_x, inside, 0.0).to(tl.float32)
        value = value / ((y1 - y0) * (x1 - x0))
    else:
        top, bottom, fy, _ = _centre(y, y0, y1, height)
        left, right, fx, _ = _centre(x, x0, x1, width)
        upper, lower = image + top * stride_y, image + bottom * stride_y
        a = tl.load(upper + left * stride_x, mask, 0.0).to(tl.float32)
        b = tl.load(upper + right * stride_x, mask, 0.0).to(tl.float32)
        c = tl.load(lower + left * stride_x, mask, 0.0).to(tl.float32)
        d = tl.load(lower + right * stride_x, mask, 0.0).to(tl.float32)
        value = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)
    return value


@triton.jit
def _slopes(image, mask, height, width, stride_y, stride_x, y, y0, y1, x, x0, x1, AREA: tl.constexpr):
    """Derivatives of every cell's value: as the cell moves down, as its lower end does, and the same to the right.

    The mean over [a, b] of a function f moves with b by (f(b) - mean) / (b - a), and with the cell by
    (f(b) - f(a)) / (b - a); f is the mean along the other axis. An end on the image's border, or outside, is clipped.
    """
    if AREA:
        total = (y0 + x0) * 0
        at_y0, at_y1, at_x0, at_x1 = total, total, total, total
        # One pixel more than `read` needs: an end on a pixel's border belongs to the pixel that begins there.
        lines, pixels = _extent(y0, y1, height), _extent(x0, x1, width)
        for dy in tl.range(0, lines + 1):
            row = tl.floor(y0) + dy
            line = (y + row).to(tl.int32)
            in_y = tl.maximum(tl.minimum(row + 1, y1) - tl.maximum(row, y0), 0.0)  # how much of it a cell covers
            for dx in tl.range(0, pixels + 1):
                column = tl.floor(x0) + dx
                pixel = (x + column).to(tl.int32)
                in_x = tl.maximum(tl.minimum(column + 1, x1) - tl.maximum(column, x0), 0.0)
                inside = mask & (row <= y1) & (column <= x1)
                inside &= (line >= 0) & (line < height) & (pixel >= 0) & (pixel < width)
                found = tl.load(image + line * stride_y + pixel * stride_x, inside, 0.0).to(tl.float32)
                total += in_y * in_x * found
                at_y0 += tl.where(row == tl.floor(y0), in_x * found, 0.0)
                at_y1 += tl.where(row == tl.floor(y1), in_x * found, 0.0)
                at_x0 += tl.where(column == tl.floor(x0), in_y * found, 0.0)
                at_x1 += tl.where(column == tl.floor(x1), in_y * found, 0.0)
        size_y, size_x = y1 - y0, x1 - x0
        size = size_y * size_x
        at_y0 = tl.where((y + y0 > 0) & (y + y0 < height), at_y0, 0.0)
        at_y1 = tl.where((y + y1 > 0) & (y + y1 < height), at_y1, 0.0)
        at_x0 = tl.where((x + x0 > 0) & (x + x0 < width), at_x0, 0.0)
        at_x1 = tl.where((x + x1 > 0) & (x + x1 < width), at_x1, 0.0)
        move_y, grow_y = (at_y1 - at_y0) / size, (at_y1 - total / size_y) / size
        move_x, grow_x = (at_x1 - at_x0) / size, (at_x1 - total / size_x) / size
    else:
        top, bottom, fy, moves_y = _centre(y, y0, y1, height)
        left, right, fx, moves_x = _centre(x, x0, x1, width)
        upper, lower = image + top * stride_y, image + bottom * stride_y
        a = tl.load(upper + left * stride_x, mask, 0.0).to(tl.float32)
        b = tl.load(upper + right * stride_x, mask, 0.0).to(tl.float32)
        c = tl.load(lower + left * stride_x, mask, 0.0).to(tl.float32)
        d = tl.load(lower + right * stride_x, mask, 0.0).to(tl.float32)
        move_y = moves_y * ((1 - fx) * (c - a) + fx * (d - b))
        move_x = moves_x * ((1 - fy) * (b - a) + fy * (d - c))
        grow_y, grow_x = move_y * 0.5, move_x * 0.5
    return move_y, grow_y, move_x, grow_x


@triton.jit
def _sample_kernel(
    images, regions, out, num_tokens, height, width, stride_b, stride_c, stride_y, stride_x, stride_r,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr, AREA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b, n = token // num_tokens, token % num_tokens
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # runs through (C, P, P)
    mask = k < CHANNELS * PATCH * PATCH
    region = regions + b * stride_r + n * 4
    left, top, right, bottom = tl.load(region), tl.load(region + 1), tl.load(region + 2), tl.load(region + 3)
    x, x0, x1 = cells(left, right, k % PATCH, PATCH)
    y, y0, y1 = cells(top, bottom, k // PATCH % PATCH, PATCH)
    image = images + b * stride_b + k // (PATCH * PATCH) * stride_c
    value = read(image, mask, height, width, stride_y, stride_x, y, y0, y1, x, x0, x1, AREA)
    tl.store(out + token * (CHANNELS * PATCH * PATCH) + k, value.to(out.dtype.element_ty), mask)


@triton.jit
def _grad_regions_kernel(
    grad, images, regions, out, num_tokens, height, width, stride_b, stride_c, stride_y, stride_x, stride_r,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr, AREA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b, n = token // num_tokens, token % num_tokens
    region = regions + b * stride_r + n * 4
    left, top, right, bottom = tl.load(region), tl.load(region + 1), tl.load(region + 2), tl.load(region + 3)
    start_y = tl.zeros((BLOCK,), tl.float32)
    side_y, start_x, side_x = start_y, start_y, start_y
    for first in tl.range(0, CHANNELS * PATCH * PATCH, BLOCK):
        k = first + tl.arange(0, BLOCK)
        mask = k < CHANNELS * PATCH * PATCH
        i, j = k // PATCH % PATCH, k % PATCH
        y, y0, y1 = cells(top, bottom, i, PATCH)
        x, x0, x1 = cells(left, right, j, PATCH)
        image = images + b * stride_b + k // (PATCH * PATCH) * stride_c
        move_y, grow_y, move_x, grow_x = _slopes(
            image, mask, height, width, stride_y, stride_x, y, y0, y1, x, x0, x1, AREA
        )
        g = tl.load(grad + token * (CHANNELS * PATCH * PATCH) + k, mask, 0.0).to(tl.float32)
        # Cell i begins at start + i side and ends a side later.
        start_y += g * move_y
        side_y += g * (i * move_y + grow_y)
        start_x += g * move_x
        side_x += g * (j * move_x + grow_x)
    to_left, to_right = _to_ends(left, right, tl.sum(start_x), tl.sum(side_x), PATCH)
    to_top, to_bottom = _to_ends(top, bottom, tl.sum(start_y), tl.sum(side_y), PATCH)
    tl.store(out + token * 4, to_left.to(out.dtype.element_ty))
    tl.store(out + token * 4 + 1, to_top.to(out.dtype.element_ty))
    tl.store(out + token * 4 + 2, to_right.to(out.dtype.element_ty))
    tl.store(out + token * 4 + 3, to_bottom.to(out.dtype.element_ty))


@triton.jit
def _grad_images_kernel(
    grad, out, regions, num_tokens, height, width, stride_b, stride_c, stride_y, stride_x, stride_r,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr, AREA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b, n = token // num_tokens, token % num_tokens
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < CHANNELS * PATCH * PATCH
    region = regions + b * stride_r + n * 4
    left, top, right, bottom = tl.load(region), tl.load(region + 1), tl.load(region + 2), tl.load(region + 3)
    x, x0, x1 = cells(left, right, k % PATCH, PATCH)
    y, y0, y1 = cells(top, bottom, k // PATCH % PATCH, PATCH)
    image = out + b * stride_b + k // (PATCH * PATCH) * stride_c
    g = tl.load(grad + token * (CHANNELS * PATCH * PATCH) + k, mask, 0.0).to(tl.float32)
    if AREA:
        g = g / ((y1 - y0) * (x1 - x0))
        lines, pixels = _extent(y0, y1, height), _extent(x0, x1, width)
        for dy in tl.range(0, lines):
            row = tl.floor(y0) + dy
            line = (y + row).to(tl.int32)
            in_y = tl.maximum(tl.minimum(row + 1, y1) - tl.maximum(row, y0), 0.0)  # how much of it a cell covers
            for dx in tl.range(0, pixels):
                column = tl.floor(x0) + dx
                pixel = (x + column).to(tl.int32)
                part = in_y * tl.maximum(tl.minimum(column + 1, x1) - tl.maximum(column, x0), 0.0)
                inside = mask & (part > 0) & (line >= 0) & (line < height) & (pixel >= 0) & (pixel < width)
                tl.atomic_add(image + line * stride_y + pixel * stride_x, part * g, inside, sem="relaxed")
    else:
        above, below, fy, _ = _centre(y, y0, y1, height)
        before, after, fx, _ = _centre(x, x0, x1, width)
        upper, lower = image + above * stride_y, image + below * stride_y
        tl.atomic_add(upper + before * stride_x, (1 - fy) * (1 - fx) * g, mask, sem="relaxed")
        tl.atomic_add(upper + after * stride_x, (1 - fy) * fx * g, mask, sem="relaxed")
        tl.atomic_add(lower + before * stride_x, fy * (1 - fx) * g, mask, sem="relaxed")
        tl.atomic_add(lower + after * stride_x, fy * fx * g, mask, sem="relaxed")
