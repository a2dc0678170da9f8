"""Where the detail is: a small network scores a grid of cells, and the scores become a density.

# B batch, C channels, H W image pixels, G score grid side
"""

from torch import Tensor, nn
from torch.nn import functional as F

from dart.partition import geometry_dtype


class ConvScorer(nn.Module):
    """The light scorer of the default experiment: half resolution, three strided stages, one score per 8 x 8 px.

    Group norm, not batch norm: an image's scores never depend on its batch mates, in training either. The last
    layer starts at zero, so training starts exactly at the uniform grid.
    """

    def __init__(self, in_chans: int = 3, widths: tuple[int, ...] = (8, 16, 24)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        for i, (before, after) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            stride = 1 if i == len(widths) - 1 else 2
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(4, after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        # No bias: the density does not change with a constant added to every score.
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> raw scores (B, ceil(H / 8), ceil(W / 8)), any real number."""
        return self.head(self.features(images)).squeeze(1)


SCORERS = {"conv": ConvScorer}


def build_scorer(name: str, in_chans: int) -> nn.Module:
    """A scorer by its name in `dart.registry.SCORERS`."""
    return SCORERS[name](in_chans=in_chans)


def scores_to_density(scores: Tensor, floor: float, blur: int) -> Tensor:
    """Softmax over the cells, smoothed, mixed with the uniform density.

    Args:
        scores: (B, G_h, G_w), any real numbers; a constant added to all of them changes nothing.
        floor: Share of the result that is uniform, in (0, 1]: it bounds how large a region can grow, and keeps
            every cell's gradient alive.
        blur: Passes of a 3 x 3 mean filter: peaks of two or three cells would draw the whole budget.

    Returns:
        (B, G_h, G_w), positive, sum 1 for each image.
    """
    density = scores.to(geometry_dtype(scores.dtype)).flatten(1).softmax(-1).view_as(scores)
    for _ in range(blur):
        density = F.avg_pool2d(density[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    density = density / density.sum((1, 2), keepdim=True)
    return (1 - floor) * density + floor / density[0].numel()
