"""A model's keyword arguments -> what warps images and brings predictions back: learned, uniform, or the paper's.

# B batch, C channels, H W image pixels, h w warped pixels, G_h G_w score grid, R K rows and columns, P patch side
"""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from dart import warp
from dart.models.tokenizers import refuse_unread
from dart.paper import reshaper as paper
from dart.paper.geometry import CELL_PX
from dart.paper.geometry import scores_to_density as share_scores
from dart.paper.scorer import PaperScorer
from dart.partition import geometry_dtype, grid_cells, plan_grid, whole_precision
from dart.registry import MODES, ROW_TOKENIZERS, SAMPLINGS
from dart.scorer import build_scorer, scores_to_density
from dart.tokenizer import check_budget, check_images, check_patch, check_score_options, check_size, one_of


class Warping(NamedTuple):
    """Where the rows and columns of images lie, and why.

    scores: (B, G_h, G_w) raw, or None for the uniform grid.
    density: (B, G_h, G_w), sum 1 per image; for the uniform grid (B, 1, 1), ones.
    regions: (B or 1, R K, 4) as x0, y0, x1, y1 pixels, in reading order.
    grid: The warp itself, for the warper that made it.
    """

    scores: Tensor | None
    density: Tensor
    regions: Tensor
    grid: Any


class Warper(nn.Module):
    """Rows and columns of equal mass (`dart.warp`); an image's warp never depends on its batch mates.

    Args:
        img_size: H, W.
        patch_size: P.
        in_chans: C.
        scorer: Images to raw scores (B, G_h, G_w); None for the uniform grid, which is what DART is compared with.
        token_budget: R K.
        num_rows: R; None for what makes cells of the uniform grid most nearly square.
        score_floor, score_blur: See `dart.scorer.scores_to_density`.
        sampling: See `dart.warp.warp_images`.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        scorer: nn.Module | None,
        *,
        token_budget: int,
        num_rows: int | None = None,
        score_floor: float = 0.3,
        score_blur: int = 2,
        sampling: str = "area",
    ) -> None:
        super().__init__()
        check_score_options(score_floor, score_blur)
        self.img_size, self.patch_size, self.in_chans = img_size, patch_size, in_chans
        self.grid = plan_grid(check_budget(token_budget, img_size), num_rows, img_size[0] / img_size[1])
        self.score_floor, self.score_blur = score_floor, score_blur
        self.sampling = one_of("sampling", sampling, SAMPLINGS)
        self.scorer = scorer

    @property
    def warped_size(self) -> tuple[int, int]:
        """Height and width of the warped image."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def forward(self, images: Tensor) -> Warping:
        """(B, C, H, W) -> their warp, differentiable down to the scores."""
        check_images(images, self.in_chans, 1)
        if self.scorer is None:
            dtype = geometry_dtype(images.dtype)
            even = warp.uniform_grid(self.img_size, self.grid, self.patch_size, images.device, dtype)
            return Warping(None, even.rows.new_ones(images.shape[0], 1, 1), even.regions, even)
        scores = self.scorer(images)
        density = scores_to_density(scores, self.score_floor, self.score_blur)
        grid = warp.warp_grid(density, self.img_size, self.grid, self.patch_size)
        return Warping(scores, density, grid.regions, grid)

    def draw(self, images: Tensor, warping: Warping) -> Tensor:
        """The warped images (B, C, h, w)."""
        return warp.warp_images(images, warping.grid, self.sampling)

    def bring_back(self, logits: Tensor, warping: Warping) -> Tensor:
        """Logits (B, K, ., .) of the warped images, at any resolution -> of the images' pixels (B, K, H, W)."""
        return warp.unwarp(logits, warping.grid, self.img_size)

    def compare(self, logits: Tensor, labels: Tensor, warping: Warping) -> tuple[Tensor, Tensor]:
        """What a loss compares, logits and classes: of the images' own pixels, every one of which counts once."""
        return self.bring_back(logits, warping), labels


class PaperWarper(nn.Module):
    """The paper's warp, with the interface of `Warper`; trains on warped classes. Images keep their size."""

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        *,
        token_budget: int,
        num_rows: int | None = None,
        scorer: str = "efficientnet_b0_v1",
        score_input: str = "full",
        pretrained_scorer: bool = False,
    ) -> None:
        super().__init__()
        height, width = img_size
        if patch_size != CELL_PX or in_chans != 3 or height % CELL_PX or width % CELL_PX:
            said = f"img_size = {height} x {width}, patch_size = {patch_size}, in_chans = {in_chans}"
            rule = f"paper mode reads RGB and sides of whole cells of {CELL_PX} px"
            raise ValueError(f"{said}: {rule}; use mode='invariant'")
        rows, cols = height // CELL_PX, width // CELL_PX
        if token_budget != rows * cols or num_rows not in (None, rows):
            said = f"token_budget = {token_budget}, num_rows = {num_rows}"
            raise ValueError(
                f"{said}: paper mode has a cell for every {CELL_PX} x {CELL_PX} px; try {rows * cols}, None"
            )
        self.scorer = PaperScorer(scorer, score_input, pretrained_scorer)
        self.patch_size, self.warped_size = patch_size, img_size

    def forward(self, images: Tensor) -> Warping:
        """(B, 3, H, W) -> their warp; the scores depend on the whole batch, as in the paper."""
        scores = paper.score_cells(self.scorer, images)
        with whole_precision(images.device):
            grid = paper.equal_mass_grid(scores, *scores.shape[1:])
        rows, cols = (F.pad(sizes.cumsum(-1), (1, 0)) for sizes in grid)
        return Warping(scores, share_scores(scores), grid_cells(rows, cols), grid)

    def draw(self, images: Tensor, warping: Warping) -> Tensor:
        """The warped images (B, 3, H, W)."""
        with whole_precision(images.device):
            return paper.warp_images(images.to(warping.grid.heights.dtype), warping.grid).to(images.dtype)

    def bring_back(self, logits: Tensor, warping: Warping) -> Tensor:
        """As of `Warper`: interpolated to the warped image's pixels first."""
        with whole_precision(logits.device):
            large = self.enlarge(logits).to(warping.grid.heights.dtype)
            return paper.unwarp(large, warping.grid).to(logits.dtype)

    def compare(self, logits: Tensor, labels: Tensor, warping: Warping) -> tuple[Tensor, Tensor]:
        """What a loss compares: of the warped image's pixels."""
        return self.enlarge(logits), paper.warp_labels(labels, warping.grid)

    def enlarge(self, logits: Tensor) -> Tensor:
        """Logits at the warped image's pixels."""
        return F.interpolate(logits, self.warped_size, mode="bilinear", align_corners=False)


def build_warper(
    *,
    tokenizer: str,
    token_budget: int,
    mode: str = "invariant",
    img_size: int | tuple[int, int] = 512,
    patch_size: int = 16,
    in_chans: int = 3,
    num_rows: int | None = None,
    partition: str | None = None,
    scorer: str | None = None,
    pretrained_scorer: bool = False,
    frozen_scorer: bool | None = None,
    score_input: int | str | None = 224,
    scorer_stage: int | None = None,
    scorer_norm: str | None = None,
    **options: Any,
) -> Warper | PaperWarper:
    """A `Warper`, or a `PaperWarper`, whose arguments these are.

    Args:
        tokenizer: "dart" or "uniform".
        mode: "invariant", or "paper" for the authors' to the letter.
        partition: "grid": the others have no columns that align.
        scorer: A name of `dart.scorer.build_scorer` (None: "conv"), or of `dart.paper.scorer.SCORERS`
            (None: "efficientnet_b0_v1"). `timm.create_model` leaves out what is None: there it is the model's own.
        pretrained_scorer, frozen_scorer, score_input, scorer_stage, scorer_norm: See `dart.scorer.build_scorer`.
        options: score_floor, score_blur, sampling.

    Raises:
        ValueError: an unknown name, or a choice that the mode does not have.
    """
    one_of("mode", mode, MODES)
    one_of("tokenizer", tokenizer, ROW_TOKENIZERS)
    one_of("partition", partition or "grid", ("grid",))
    (side, _), size = check_patch(patch_size), check_size(img_size, 1)
    budget: Any = {"token_budget": token_budget, "num_rows": num_rows}
    if mode == "paper":
        unread = {**options, "frozen_scorer": frozen_scorer, "scorer_stage": scorer_stage, "scorer_norm": scorer_norm}
        unread["tokenizer"] = None if tokenizer == "dart" else tokenizer
        refuse_unread({key: value for key, value in unread.items() if value is not None})
        scores: Any = {"score_input": str(score_input), "pretrained_scorer": pretrained_scorer}
        return PaperWarper(size, side, in_chans, scorer=scorer or "efficientnet_b0_v1", **budget, **scores)
    network = None
    if tokenizer == "dart":
        looks: Any = {"pretrained": pretrained_scorer, "frozen": frozen_scorer, "score_input": score_input}
        network = build_scorer(scorer or "conv", in_chans, stage=scorer_stage, norm=scorer_norm, **looks)
    return Warper(size, side, in_chans, network, **budget, **options)
