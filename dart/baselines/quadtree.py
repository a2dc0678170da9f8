"""An entropy quadtree with a fixed number of tokens, in the manner of APT (arXiv 2510.18091): nothing is learned.

APT splits a cell into four where its entropy is above a threshold, from coarse to fine, and so spends more tokens on
some images than on others. Here every image has its own threshold, the one that gives it exactly the budget: what is
compared with DART is where the tokens go, not how many there are.

# B batch, C channels, H W image pixels, N tokens, R K start cells, L levels below them, S splits
Nodes of a level are in Z-order: the children of node j are nodes 4 j to 4 j + 3 of the next level.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dart.partition import check_whole, geometry_dtype
from dart.tokenizer import DartTokenizer, check_budget

NUM_BINS = 32  # of the histogram of grey values, from the image's darkest to its brightest
TOKENS_PER_START_CELL = 4  # that the start grid aims at: on average every start cell is split once
ROOM = 2  # finest cells for every token, at least
SQUARE_WEIGHT = 4.0  # how much oblong start cells count against missing that aim, both as logarithms


class StartGrid(NamedTuple):
    """The cells that a quadtree starts from; every split makes one token into four."""

    rows: int
    cols: int
    num_splits: int


class QuadtreeTokenizer(DartTokenizer):
    """A `DartTokenizer` whose regions are the leaves of an entropy quadtree; everything else is the same.

    `num_rows` are the rows of the start grid (`plan_quadtree`); `partition` and all of a scorer's options are not read.
    With as many start cells as tokens nothing is split, and it is the uniform grid. What it returns as scores are the
    entropies of the finest cells, and as density their shares.
    """

    def plan(self, token_budget: int, num_rows: int | None) -> None:
        """Refuse a budget that no quadtree over so many rows of start cells has."""
        check_budget(token_budget, self.img_size)
        plan_quadtree(token_budget, num_rows, self.img_size[0] / self.img_size[1])

    def regions(self, images: Tensor, num_patches: int, num_rows: int | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Entropies of the finest cells (B, G_h, G_w), their shares, and regions (B, N, 4) without a gradient."""
        size = (images.shape[-2], images.shape[-1])
        grid = plan_quadtree(num_patches, num_rows, size[0] / size[1])
        num_levels = count_levels(grid, num_patches, size, self.patch_size[0])
        entropies = cell_entropies(images, grid, num_levels)
        regions = quadtree_regions(entropies, grid, size)
        finest = entropies[-1].index_select(1, z_order(grid, num_levels, images.device).flatten())
        finest = finest.unflatten(1, (grid.rows << num_levels, grid.cols << num_levels))
        shares = finest + 1e-6  # a blank image has none
        return finest, shares / shares.sum((1, 2), keepdim=True), regions


def plan_quadtree(num_patches: int, num_rows: int | None = None, aspect: float = 1.0) -> StartGrid:
    """Start cells for exactly N tokens: R K of them and S splits, N = R K + 3 S.

    Of all such grids with `num_rows` rows, or any, the one with the most nearly square cells, about N / 4 of them.
    Every N has one. Of a square image the cells are square, but where N = 3 k + 2, or 3 or 6: no square fits there.

    Args:
        num_patches: N, at least 1.
        num_rows: R; None for any.
        aspect: Height over width of the image.

    Raises:
        ValueError: no grid with so many rows fits; says the nearest budget that one fits.
    """
    wanted = num_patches / TOKENS_PER_START_CELL
    found = []
    for rows in _row_counts(num_patches, num_rows, aspect):
        middle = min(max(1, round(rows / aspect)), num_patches // rows)
        for cols in range(max(1, middle - 2), middle + 3):
            splits, rest = divmod(num_patches - rows * cols, 3)
            if splits >= 0 and rest == 0:
                oblong = abs(math.log(rows / cols / aspect))
                miss = abs(math.log(rows * cols / wanted)) + SQUARE_WEIGHT * oblong
                found.append((miss, StartGrid(rows, cols, splits)))
    if not found:
        raise ValueError(_no_grid(num_patches, num_rows))
    return min(found)[1]


def count_levels(grid: StartGrid, num_patches: int, img_size: tuple[int, int], patch_size: int) -> int:
    """L: cells are halved down to one patch, where a token shows all there is, and until there are `ROOM` N of them.

    With N finest cells and no more, there would be no choice of where to split.
    """
    needed = next(level for level in range(32) if grid.rows * grid.cols * 4**level >= ROOM * num_patches)
    side = min(img_size[0] / grid.rows, img_size[1] / grid.cols)
    useful = math.floor(math.log2(max(1.0, side / patch_size)) + 1e-9)
    return max(needed, useful) if grid.num_splits else 0


def cell_entropies(images: Tensor, grid: StartGrid, num_levels: int) -> list[Tensor]:
    """Entropy of the grey values of every cell of every level, in bits per pixel.

    Grey values fall into `NUM_BINS` equal bins from the image's darkest to its brightest, so neither brightness nor
    contrast changes an entropy; a pixel belongs to the cell that its centre lies in. Counts are whole numbers and
    logarithms come from one table, so equal cells tie exactly, in every batch and on every device.

    Returns:
        Levels 0 to L, (B, R * K * 4**level) each, in Z-order, without a gradient.
    """
    batch, (height, width) = images.shape[0], images.shape[-2:]
    grey = images.detach().to(geometry_dtype(images.dtype)).mean(1).flatten(1)
    low, high = grey.amin(1, keepdim=True), grey.amax(1, keepdim=True)
    scale = NUM_BINS / (high - low).clamp(min=torch.finfo(grey.dtype).tiny)
    bins = ((grey - low) * scale).long().clamp(0, NUM_BINS - 1)
    cell = z_order(grid, num_levels, images.device)
    rows, cols = (
        (2 * torch.arange(side, device=images.device) + 1) * cells // (2 * side)
        for side, cells in zip((height, width), cell.shape, strict=True)
    )
    own = cell.index_select(0, rows).index_select(1, cols).flatten()  # every pixel's cell (H * W,)
    index = own * NUM_BINS + bins
    counts = index.new_zeros(batch, cell.numel() * NUM_BINS).scatter_add_(1, index, torch.ones_like(index))
    counts = counts.view(batch, -1, NUM_BINS)
    num = torch.arange(height * width + 1, device=images.device, dtype=grey.dtype)
    log = num.clamp(min=1).log2()
    found = [_entropy(counts, log, num * log)]
    for _ in range(num_levels):
        counts = counts.unflatten(1, (-1, 4)).sum(2)
        found.append(_entropy(counts, log, num * log))
    return found[::-1]


def quadtree_regions(importance: Sequence[Tensor], grid: StartGrid, img_size: tuple[int, int]) -> Tensor:
    """Split the most important cells until there are N: one sort for all images, no loop over cells.

    A cell can be split only where its parents have been, so it counts as the least important of itself and them. The
    S largest of these are the cells above a threshold all the way down, which is APT's rule, with the threshold that
    gives this image its N tokens; equal ones are split from coarse to fine, in Z-order.

    Args:
        importance: Of every cell of levels 0 to L, (B, R * K * 4**level) each, in Z-order; the finest are not split.
        grid: R, K, S.
        img_size: H, W in pixels.

    Returns:
        (B, N, 4) pixels, in Z-order; they tile the image.
    """
    num_levels, dtype = len(importance) - 1, importance[0].dtype
    device, batch = importance[0].device, importance[0].shape[0]
    bounds = list(importance[:1])
    for level in importance[1:-1]:
        bounds.append(torch.minimum(level, bounds[-1].repeat_interleave(4, 1)))
    chosen = torch.cat(bounds, 1).sort(dim=1, descending=True, stable=True).indices[:, : grid.num_splits]
    splits = torch.zeros(batch, sum(level.shape[1] for level in importance), dtype=torch.bool, device=device)
    splits = splits.scatter(1, chosen, True).split([level.shape[1] for level in importance], 1)
    parents = [torch.ones_like(splits[0])] + [above.repeat_interleave(4, 1) for above in splits[:-1]]
    leaves = torch.cat([parent & ~split for parent, split in zip(parents, splits, strict=True)], 1)
    # Nodes in the order of their first finest cell, those that are no leaves last.
    first = [torch.arange(n.shape[1], device=device) << 2 * (num_levels - i) for i, n in enumerate(importance)]
    order = torch.where(leaves, torch.cat(first), 1 << 62).argsort(1)
    num_patches = grid.rows * grid.cols + 3 * grid.num_splits
    boxes = torch.cat([cell_boxes(grid, level, img_size, device, dtype) for level in range(num_levels + 1)])
    return boxes.index_select(0, order[:, :num_patches].flatten()).view(batch, num_patches, 4)


def cell_boxes(
    grid: StartGrid, level: int, img_size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """All cells of a level as regions (R * K * 4**level, 4) in pixels, in Z-order."""
    y, x = (
        torch.arange((n << level) + 1, device=device, dtype=dtype) * side / (n << level)
        for n, side in zip(grid[:2], img_size, strict=True)
    )
    shape = (len(y) - 1, len(x) - 1)
    sides = (x[:-1].expand(shape), y[:-1, None].expand(shape), x[1:].expand(shape), y[1:, None].expand(shape))
    return torch.stack(sides, -1).flatten(0, 1).index_select(0, z_order(grid, level, device).flatten().argsort())


def z_order(grid: StartGrid, level: int, device: torch.device) -> Tensor:
    """The number in Z-order of every cell of a level: (R * 2**level, K * 2**level), start cells row by row."""
    rows = torch.arange(grid.rows << level, device=device)[:, None]
    cols = torch.arange(grid.cols << level, device=device)
    number = ((rows >> level) * grid.cols + (cols >> level)) << 2 * level
    for bit in range(level):
        number = number + (((rows >> bit & 1) << 2 * bit + 1) + ((cols >> bit & 1) << 2 * bit))
    return number


def _entropy(counts: Tensor, log: Tensor, num_log: Tensor) -> Tensor:
    """Whole counts (B, cells, bins) -> bits (B, cells), 0 for no pixels; by tables of log2 n and n log2 n."""
    num = counts.sum(2)
    return (log.take(num) - num_log.take(counts).sum(2) / num.clamp(min=1)).clamp(min=0)


def _row_counts(num_patches: int, num_rows: int | None, aspect: float) -> range:
    """Rows that a start grid of at most N cells may have."""
    if num_rows is None:
        return range(1, min(num_patches, math.ceil((num_patches * aspect) ** 0.5) + 1) + 1)
    if not 1 <= check_whole("num_rows", num_rows) <= num_patches:
        raise ValueError(f"num_rows = {num_rows}: must be from 1 to num_patches ({num_patches})")
    return range(num_rows, num_rows + 1)


def _no_grid(num_patches: int, num_rows: int | None) -> str:
    """Why there is no start grid: rows in threes hold a multiple of three cells, and splits add three."""
    near = num_patches - num_patches % 3 if num_patches % 3 == 1 else num_patches + 1
    rule = f"a quadtree over {num_rows} rows of cells has a multiple of 3 tokens"
    return f"token_budget = {num_patches}: {rule}; try {near}, or another num_rows"
