"""DART-Grid: an image warped by rows and columns of equal mass, for backbones that need a regular image.

# B batch, C channels, H W image pixels, G_h G_w grid cells of 16 px, R rows and columns, P points, D channels
Coordinates are pixel indices (pixel 0 sits at 0), x before y. Warped and source image share cells: cell i of an axis,
16 px long in the warped image, is `sizes[i]` px long in the source.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.paper.geometry import CELL_PX, EPS, average_rows, row_heights, scores_to_density
from dart.paper.sampling import sample_tokens
from dart.paper.scorer import PaperScorer
from dart.paper.tokenizer import GRID_SIDE, check_paper_images, check_sides
from dart.tokenizer import check_images, one_of


class GridWarp(NamedTuple):
    """Rows by columns: heights (B, G_h) and widths (B, G_w) of the cells, in px of the source image."""

    heights: Tensor
    widths: Tensor


class Reshaping(NamedTuple):
    """A warped image and what led to it; grid sizes in nominal px (sum 224), strip edges in input px."""

    scores: Tensor  # (B, 14, 14)
    grid: GridWarp
    strip_edges: Tensor  # (B, R R + 1)
    images: Tensor  # (B, C, 16 R, 16 R)


class PaperReshaper(nn.Module):
    """448 or 224 px -> 224 px for hierarchical backbones such as RMT (supplement, DART-Grid).

    Args:
        img_size: 448 or 224.
        scorer: A key of `dart.paper.scorer.SCORERS`.
        score_input: "full" or "224", see `PaperScorer`.
        num_rows: R, rows and columns alike; the result is 16 R px wide and high.
    """

    def __init__(
        self,
        img_size: int = 448,
        scorer: str = "efficientnet_b0_v1",
        *,
        score_input: str = "full",
        num_rows: int = GRID_SIDE,
    ) -> None:
        super().__init__()
        self.img_size = check_sides(img_size)
        self.num_rows = num_rows
        self.scorer = PaperScorer(scorer, score_input)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, 16 R, 16 R), differentiable down to the score network's head."""
        return self.inspect(images).images

    def inspect(self, images: Tensor) -> Reshaping:
        """As `forward`, with everything that leads to the warped image."""
        check_paper_images(images, self.img_size)
        return self.read(images, self.scorer(images))

    def read(self, images: Tensor, scores: Tensor) -> Reshaping:
        """What the scores (B, 14, 14) make of the images: as `inspect`, without the score network."""
        with torch.autocast(images.device.type, enabled=False):
            grid = equal_mass_grid(scores, self.num_rows, self.num_rows)
            scale = images.shape[-1] / (CELL_PX * GRID_SIDE)
            edges = strip_edges(grid.widths, self.num_rows) * scale
            warped = warp_by_strip(images, grid.heights * scale, edges).to(images.dtype)
        return Reshaping(scores, grid, edges, warped)

    def carry(self, table: Tensor, grid: GridWarp) -> Tensor:
        """Positions (1, 196, D) of the warped image's cells: (B, R R, D).

        As in the paper, the sizes are divided by their sum over the whole batch: right for B = 1 only.
        """
        heights, widths = (sizes / sizes.sum() * (CELL_PX * GRID_SIDE) for sizes in grid)
        rows = average_rows(table.to(heights.dtype).unflatten(1, (GRID_SIDE, GRID_SIDE)), heights)  # (B, R, 14, D)
        return average_rows(rows.transpose(1, 2), widths).transpose(1, 2).flatten(1, 2).to(table.dtype)


class DenseReshaper(nn.Module):
    """The warp of dense prediction: the image keeps its size, any multiple of 16 px (supplement, DART-Grid).

    Train on `warp_images` and `warp_labels` of a grid; at inference bring the logits back with `unwarp`.
    """

    def __init__(
        self, scorer: str = "efficientnet_b0_v1", *, score_input: str = "full", pretrained_scorer: bool = False
    ) -> None:
        super().__init__()
        self.scorer = PaperScorer(scorer, score_input, pretrained_scorer)

    def forward(self, images: Tensor) -> GridWarp:
        """(B, 3, H, W) -> the grid, sizes in px that sum to H and to W; differentiable."""
        scores = score_cells(self.scorer, images)
        return equal_mass_grid(scores, *scores.shape[1:])


def score_cells(scorer: PaperScorer, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> one score for every 16 x 16 px (B, H / 16, W / 16), positive."""
    check_images(images, 3, CELL_PX)
    height, width = images.shape[-2:]
    if height % CELL_PX or width % CELL_PX:
        raise ValueError(f"images = {height} x {width} px: both sides must be multiples of {CELL_PX}; pad or crop")
    return scorer(images, (height // CELL_PX, width // CELL_PX))


def equal_mass_grid(scores: Tensor, num_rows: int, num_cols: int) -> GridWarp:
    """Rows of equal mass and, independently, columns of equal mass: scores (B, G_h, G_w), sizes of 16 px a cell."""
    density = scores_to_density(scores)
    return GridWarp(row_heights(density.sum(2), num_rows), row_heights(density.sum(1), num_cols))


def strip_edges(widths: Tensor, num_rows: int) -> Tensor:
    """The same columns in every row, on the strip of all rows: (B, G_w) -> (B, num_rows G_w + 1).

    The first edge is 1, not 0: a slip of the paper's code that its weights have seen.
    """
    width = CELL_PX * widths.shape[-1]
    rows = torch.arange(num_rows, device=widths.device, dtype=widths.dtype) * width
    ends = (rows[:, None] + widths.cumsum(-1)[:, None]).flatten(1)  # (B, num_rows G_w)
    edges = torch.cat([torch.ones_like(ends[:, :1]), ends], -1)
    return edges * (num_rows * width / edges[:, -1:])


def warp_by_strip(images: Tensor, heights: Tensor, edges: Tensor, along: str = "linear") -> Tensor:
    """Read every cell at 16 x 16 points and lay the cells out as an image: (B, C, 16 G_h, 16 G_w)."""
    cells = sample_tokens(images, heights, edges, CELL_PX, along).unflatten(1, (heights.shape[-1], -1))
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # from (B, G_h, G_w, C, 16, 16)


def warp_images(images: Tensor, grid: GridWarp) -> Tensor:
    """The image on its grid, same size: (B, C, H, W), differentiable in the image and the grid."""
    return warp_by_strip(images, grid.heights, strip_edges(grid.widths, grid.heights.shape[-1]))


def warp_labels(labels: Tensor, grid: GridWarp) -> Tensor:
    """Class indices (B, H, W) on the grid, the nearest one both ways: no class is made up.

    The paper's code mixes indices down the rows, then truncates; that is not kept.
    """
    height, width = labels.shape[-2:]
    x, y = (axis.round().long() for axis in pixel_map(grid, "source"))
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    return labels.gather(1, y[..., None].expand(-1, -1, width)).gather(2, x[:, None].expand(-1, height, -1))


def map_axis(position: Tensor, sizes: Tensor, to: str) -> Tensor:
    """Positions along one axis, in px: (B, P) and cell sizes (B, G), to "warped" or to "source" coordinates."""
    num_cells = sizes.shape[-1]
    extent = CELL_PX * num_cells
    ends = (sizes * (extent / sizes.sum(-1, keepdim=True))).cumsum(-1)
    edges = torch.cat([torch.zeros_like(ends[:, :1]), ends], -1)
    position = position.expand(sizes.shape[0], -1).contiguous()
    if one_of("to", to, ("warped", "source")) == "warped":
        cell = (torch.searchsorted(edges.detach(), position.detach(), right=True) - 1).clamp(0, num_cells - 1)
        start, end = edges.gather(-1, cell), edges.gather(-1, cell + 1)
        return (cell + (position - start) / (end - start + EPS)) * CELL_PX
    cell = (position.detach() / CELL_PX).floor().long().clamp(0, num_cells - 1)
    start, end = edges.gather(-1, cell), edges.gather(-1, cell + 1)
    return start + position.remainder(CELL_PX) / CELL_PX * (end - start)


def map_points(points: Tensor, grid: GridWarp, to: str) -> Tensor:
    """Points (B, P, 2) as x, y px, to "warped" or to "source" coordinates."""
    x, y = points.unbind(-1)
    return torch.stack([map_axis(x, grid.widths, to), map_axis(y, grid.heights, to)], -1)


def map_boxes(boxes: Tensor, grid: GridWarp, to: str) -> Tensor:
    """Boxes (B, P, 4) as x0, y0, x1, y1 px: their two corners, mapped as points."""
    return map_points(boxes.unflatten(-1, (2, 2)).flatten(1, 2), grid, to).unflatten(1, (-1, 2)).flatten(2)


def pixel_map(grid: GridWarp, to: str) -> tuple[Tensor, Tensor]:
    """Where every column and every row of pixels goes: x (B, W) and y (B, H), in "warped" or "source" coordinates."""
    widths, heights = grid.widths, grid.heights
    x, y = (torch.arange(CELL_PX * s.shape[-1], device=s.device, dtype=s.dtype) for s in (widths, heights))
    return map_axis(x, widths, to), map_axis(y, heights, to)


def unwarp(predictions: Tensor, grid: GridWarp) -> Tensor:
    """Bring a prediction for the warped image back: (B, C, H, W), looked up where each source pixel went."""
    return look_up(predictions, *pixel_map(grid, "warped"))


def warp_by_points(images: Tensor, grid: GridWarp) -> Tensor:
    """The image (B, C, H, W) on its grid by way of the point map; a mask of 0 and 1 stays one."""
    return look_up(images, *pixel_map(grid, "source"), nearest=is_mask(images))


def unwarp_by_points(images: Tensor, grid: GridWarp) -> Tensor:
    """Undo `warp_by_points`; a mask of 0 and 1 stays one."""
    return look_up(images, *pixel_map(grid, "warped"), nearest=is_mask(images))


def is_mask(images: Tensor) -> bool:
    """Whether every value is exactly 0 or 1. The answer is a host's: on a GPU the caller waits for it."""
    return bool(((images == 0) | (images == 1)).all())


def look_up(images: Tensor, x: Tensor, y: Tensor, nearest: bool = False) -> Tensor:
    """The image (B, C, H, W) at all columns x (B, W) and lines y (B, H), the border repeated outside."""
    height, width = images.shape[-2:]
    across, down = x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1
    grid = torch.stack(torch.broadcast_tensors(across[:, None], down[..., None]), -1).to(images.dtype)
    return F.grid_sample(images, grid, "nearest" if nearest else "bilinear", "border", align_corners=True)
