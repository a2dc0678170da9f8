"""Deformable patches: every token of the uniform grid may move and change its size, each on its own, end to end.

The differentiable relatives of DART, DePatch (arXiv 2107.14467: an offset and a scale of every patch, from its own
features) and PS-ViT (arXiv 2108.01684: sampling places that move, in several steps), reduced to what they share, on
DART's sampler and behind DART's small convolutions. Regions may overlap, and places may be left out: where DART's
tokens must share out the image among them, these need not.

# B batch, C channels, H W image pixels, N tokens, S points on the side of what a token looks at, d feature channels
"""

import torch
from torch import Tensor, nn

from dart.kernels import sample_regions
from dart.partition import geometry_dtype, uniform_regions, whole_precision
from dart.scorer import ConvScorer
from dart.tokenizer import DartTokenizer

MAX_SHIFT = 1.0  # sides of its own that a token may move, in each direction
MAX_ZOOM = 2.0  # by how much its sides may grow or shrink, each
LOOK = 2.0  # a token looks at a field of so many of its sides, which is what it may move to
LOOK_POINTS = 4  # on the side of that field


class Deformation(nn.Module):
    """Two shifts and two zooms for every token, read off the features around it.

    The features are those of DART's light scorer: group norm, so no image depends on its batch mates. The last layer
    starts at zero, so training starts exactly at the uniform grid.
    """

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        scorer = ConvScorer(in_chans)
        self.features = scorer.features
        self.head = nn.Linear(scorer.head.in_channels * LOOK_POINTS**2, 4)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, regions: Tensor) -> Tensor:
        """Images (B, C, H, W) and regions (1, N, 4) in pixels -> raw shifts x, y and zooms x, y (B, N, 4)."""
        features = self.features(images)  # (B, d, G_h, G_w)
        middle, side = (regions[..., :2] + regions[..., 2:]) / 2, regions[..., 2:] - regions[..., :2]
        fields = torch.cat([middle - LOOK / 2 * side, middle + LOOK / 2 * side], -1)
        x, y = (fields[..., i::2] * (features.shape[-1 - i] / images.shape[-1 - i]) for i in (0, 1))  # in cells
        seen = sample_regions(features, torch.stack([x, y], -1).flatten(-2), LOOK_POINTS, "point")  # (B, N, d, S, S)
        return self.head(seen.flatten(2))


class DeformableTokenizer(DartTokenizer):
    """A `DartTokenizer` whose regions are those of the uniform grid, moved and zoomed by its `scorer`.

    The scorer is a `Deformation`, and has that name because it has that part: it is trained at the scorer's rate.
    `score_floor`, `score_blur` and `row_weight` are not read. There is no density: it is returned as constant.
    """

    scorer: Deformation

    def regions(self, images: Tensor, num_patches: int, num_rows: int | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """No scores, a constant density (B, 1, 1), and regions (B, N, 4), differentiable in the scorer."""
        size = (images.shape[-2], images.shape[-1])
        dtype = geometry_dtype(images.dtype)
        grid = uniform_regions(num_patches, num_rows, size, images.device, dtype, self.partition)
        raw = self.scorer(images, grid)
        with whole_precision(images.device):
            regions = deform_regions(grid, raw.to(dtype), size)
        return None, grid.new_ones(images.shape[0], 1, 1), regions


def deform_regions(regions: Tensor, raw: Tensor, img_size: tuple[int, int]) -> Tensor:
    """Move and zoom regions, and push those that would leave the image back inside.

    Args:
        regions: (B or 1, N, 4) in pixels, inside the image.
        raw: Shifts x, y and zooms x, y (B, N, 4), any real numbers; 0 changes nothing. Their hyperbolic tangents are
            shares of `MAX_SHIFT` sides, and exponents of `MAX_ZOOM`.
        img_size: H, W.

    Returns:
        (B, N, 4) in pixels, inside the image, differentiable in both.
    """
    shares = raw.tanh()
    x, y = (
        _deform(regions[..., i], regions[..., i + 2], shares[..., i], shares[..., i + 2], img_size[1 - i])
        for i in (0, 1)
    )
    return torch.stack([x[0], y[0], x[1], y[1]], -1)


def _deform(low: Tensor, high: Tensor, shift: Tensor, zoom: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Intervals on one axis, moved and zoomed by shares from -1 to 1, inside [0, size]."""
    side = high - low
    half = (side * MAX_ZOOM**zoom).clamp(max=size) / 2
    # A clamp with tensors lets the gradient through at its bounds, where the tokens of the border start.
    middle = ((low + high) / 2 + MAX_SHIFT * side * shift).clamp(half, size - half)
    return middle - half, middle + half
