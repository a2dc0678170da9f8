"""Where the detail is: a small network scores a grid of cells, and the scores become a density.

# B batch, C channels, H W image pixels, G_h G_w score grid, d feature channels
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart.baselines.scores import CONTROLS
from dart.features import Features, batch_to_group_norm, build_features, has_running_statistics
from dart.partition import geometry_dtype
from dart.registry import PLAIN_SCORERS

SCORE_INPUT_PX = 224  # what the paper's figures are counted with, and what the pretrained weights were made for
STRIDE_PX = 32  # of the deepest stage of most feature extractors
SCORE_CELL_PX = 16  # one score per 16 px of the scored copy: 14 x 14 scores of 224 px, as in the paper


Reader = Callable[[Tensor], Tensor]  # features (B, d, h, w) -> scores (B, 1, h, w)


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

    def forward(self, images: Tensor, also: Reader | None = None) -> Tensor:
        """(B, C, H, W) -> raw scores (B, ceil(H / 8), ceil(W / 8)), any real number.

        Args:
            also: Reads more scores (B, 1, h, w) off the same features (B, d, h, w); they are added.
        """
        features = self.features(images)
        scores = self.head(features)
        return (scores if also is None else scores + also(features)).squeeze(1)


class FeatureScorer(nn.Module):
    """Features of a known network, frozen or trained, and two 1 x 1 convolutions that read scores off them.

    An image's scores never depend on its batch mates, in training either: frozen features stay in eval mode, and
    batch norms of trained features keep their stored statistics (their gains and biases learn). The last layer
    starts at zero, so training starts exactly at the uniform grid. Initialises itself: build it after, or apart
    from, anything that re-draws the weights of all its children (timm's ViT does).

    Args:
        features: The network (B, C, h, w) -> (B, d, h / s, w / s), or a list that ends with that (timm's extractors);
            d; and whether it reads score_input x score_input px only (transformers with position tables).
        frozen: The features get no gradient and stay in eval mode.
        score_input: The image is scored on a copy with this many pixels on a side, a multiple of 32; None: as it is.
        hidden: Channels between the two convolutions.
    """

    def __init__(
        self,
        features: Features,
        *,
        frozen: bool,
        score_input: int | None = SCORE_INPUT_PX,
        hidden: int = 96,
    ) -> None:
        super().__init__()
        self.frozen, self.score_input, self.fixed_size = frozen, score_input, features.fixed_size
        self.features = features.network.requires_grad_(not frozen)
        # No bias: the density does not change with a constant added to every score.
        last = nn.Conv2d(hidden, 1, 1, bias=False)
        self.head = nn.Sequential(nn.Conv2d(features.dim, hidden, 1), nn.GELU(), last)
        nn.init.zeros_(last.weight)
        self.train()

    def train(self, mode: bool = True) -> "FeatureScorer":
        """As ever, but what would mix the images of a batch stays in eval mode."""
        super().train(mode)
        for module in self.features.modules():
            if self.frozen or has_running_statistics(module):
                module.training = False
        return self

    def forward(self, images: Tensor, also: Reader | None = None) -> Tensor:
        """(B, C, H, W) -> raw scores (B, G_h, G_w), any real number; one per 16 px of the scored copy at least.

        Args:
            also: As in `ConvScorer`.
        """
        images = self.resize(images)
        maps = self.features(images)
        features = maps[-1] if isinstance(maps, list | tuple) else maps
        features = features.detach() if self.frozen else features
        scores = self.head(features)
        if also is not None:
            scores = scores + also(features)
        grid = [
            max(cells, side // SCORE_CELL_PX) for cells, side in zip(scores.shape[-2:], images.shape[-2:], strict=True)
        ]
        if grid != list(scores.shape[-2:]):
            scores = F.interpolate(scores, size=grid, mode="bilinear")
        # On a blank image every group norm divides nothing by the root of its epsilon, and dozens of them in a row
        # multiply gradients beyond the range of floats. There is nothing to see: its scores are zero, and constant.
        seen = (images != 0).flatten(1).any(1)
        return torch.where(seen[:, None, None], scores.squeeze(1), 0.0)

    def resize(self, images: Tensor) -> Tensor:
        """The copy that is scored: (B, C, H, W) -> (B, C, h, w), shape kept, detail finer than its pixels removed.

        Bilinear with antialiasing, the filter that pretrained weights saw in training. It is right for every ratio,
        up and down, where averaging areas is only for whole ones; and it is the faster of the two on CPU.
        """
        size = images.shape[-2], images.shape[-1]
        side = self.score_input
        wanted = (side, side) if side and self.fixed_size else scored_size(*size, side)
        if size == wanted:
            return images
        # On CPU the filter does not know bfloat16.
        whole = images.to(geometry_dtype(images.dtype))
        return F.interpolate(whole, size=wanted, mode="bilinear", antialias=True).to(images.dtype)


def scored_size(height: int, width: int, score_input: int | None) -> tuple[int, int]:
    """Height and width in pixels of the copy that is scored: the image's shape, score_input ** 2 px in all.

    Both are whole multiples of 32 px, so that the features' cells cover the image exactly. With None, the image's own
    size, at least 32 px: a smaller one has no deepest stage.
    """
    if score_input is None:
        return max(height, STRIDE_PX), max(width, STRIDE_PX)
    cells = score_input / STRIDE_PX / math.sqrt(height * width)
    return max(1, round(height * cells)) * STRIDE_PX, max(1, round(width * cells)) * STRIDE_PX


def build_scorer(
    name: str,
    in_chans: int,
    *,
    pretrained: bool = False,
    frozen: bool | None = None,
    score_input: int | str | None = SCORE_INPUT_PX,
    stage: int | None = None,
    norm: str | None = None,
) -> nn.Module:
    """A scorer by its name: images (B, C, H, W) -> raw scores (B, G_h, G_w), all zero until trained.

    Args:
        name: "conv" (reads the image as it is; has none of the options below), one of the paper's
            ("mobilenetv3_small", "mobilenetv3_large", "mnasnet_050", "squeezenet1_1", "efficientnet_b0"),
            "timm/NAME" for any network that timm can take features from, such as "timm/resnet18", or a control that
            learns nothing and has no options either ("constant", "random", "gradient": `dart.baselines.scores`).
        in_chans: C.
        pretrained: Start from the network's published ImageNet weights. They expect images normalised as theirs were.
        frozen: No training of the features; None: frozen if pretrained.
        score_input: See `FeatureScorer`; "full" is None, which `timm.create_model` does not hand through.
        stage: Which of the network's stages is scored, as timm counts them (`out_indices`); None: the deepest.
        norm: What becomes of batch norms: "batch" keeps them, with stored statistics; "group" replaces them. None is
            "group" for features trained from scratch, else "batch". Say "batch" to build, without downloading anything,
            the network that the weights of a formerly pretrained scorer are loaded into.

    Raises:
        ValueError: An unknown name, stage or size; weights that cannot be had.
    """
    if name in PLAIN_SCORERS:
        if pretrained or frozen or stage is not None:
            remedy = "train it" if name == "conv" else "leave them out"
            raise ValueError(f"scorer = {name!r}: has no published weights, to freeze or not, and no stages; {remedy}")
        if score_input not in (SCORE_INPUT_PX, None, "full"):  # the first is what nobody said
            raise ValueError(f"score_input = {score_input!r}: {name} reads the image as it is; leave it out")
        return ConvScorer(in_chans) if name == "conv" else CONTROLS[name]()
    side = check_score_input(score_input)
    if norm not in (None, "batch", "group"):
        raise ValueError(f"norm = {norm!r}: unknown; known: batch, group")
    frozen = pretrained if frozen is None else frozen
    features = build_features(name, in_chans, pretrained=pretrained, stage=stage, score_input=side)
    if norm == "group" or (norm is None and not pretrained and not frozen):
        batch_to_group_norm(features.network)
    return FeatureScorer(features, frozen=frozen, score_input=side)


def check_score_input(score_input: int | str | None) -> int | None:
    """Pixels on a side of the copy that is scored; None for the image as it is."""
    if score_input is None or score_input == "full":
        return None
    if not isinstance(score_input, int) or score_input < STRIDE_PX or score_input % STRIDE_PX:
        rule = f"must be a multiple of {STRIDE_PX} px; try {SCORE_INPUT_PX}, or 'full'"
        raise ValueError(f"score_input = {score_input!r}: {rule}")
    return score_input


def scores_to_density(scores: Tensor, floor: float, blur: int) -> Tensor:
    """Softmax over the cells, smoothed, mixed with the uniform density.

    Args:
        scores: (B, G_h, G_w), any real numbers; a constant added to all of them changes nothing. Of clips
            (B, T, G_h, G_w): one density of all frames, each of them smoothed by itself.
        floor: Share of the result that is uniform, in (0, 1]: it bounds how large a region can grow, and keeps
            every cell's gradient alive.
        blur: Passes of a 3 x 3 mean filter: peaks of two or three cells would draw the whole budget.

    Returns:
        As scores, positive, sum 1 for each image or clip.
    """
    density = scores.to(geometry_dtype(scores.dtype)).flatten(1).softmax(-1).view_as(scores)
    for _ in range(blur):
        frames = density.flatten(0, -3)[:, None]
        density = F.avg_pool2d(frames, 3, 1, 1, count_include_pad=False).view_as(density)
    density = density / density.sum(tuple(range(1, density.ndim)), keepdim=True)
    return (1 - floor) * density + floor / density.shape[1:].numel()
