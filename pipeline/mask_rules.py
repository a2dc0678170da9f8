"""What a suite says of masks: required where every pixel of its data set has a class, else forbidden."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from dart import registry
from pipeline.data.catalog import DATASETS
from pipeline.errors import problem
from pipeline.schema import MISSING, Channels, Probability, Range, Strict, inconsistent

if TYPE_CHECKING:
    from pipeline.config import Suite, Trial

WARP_HEAD = "upernet"  # reads a warped image instead of tokens: rows by columns of equal mass, in their places
WARP_UNREAD = ("partition", "row_weight", "pos_embed")  # so it has no choice of these
PAPER_CELL_PX = 16  # the authors' warp has a cell for every 16 x 16 pixels


class MasksConfig(Strict):
    """`train.masks`: random squares of an image and of the classes of its pixels; and how tests see an image.

    The recipe of semantic segmentation as in MMSegmentation. The square's side is `model.img_size`.
    """

    short_side: int = Field(ge=1)  # pixels: what an image's shorter side is resized to, in tests exactly
    ratio: Range  # in training, that times a number between these two
    cat_max_frac: Annotated[float, Field(gt=0, le=1)]  # ten squares are tried until no class has more of the pixels
    hflip: Probability  # of mirroring
    photometric: bool  # brightness, contrast, saturation and hue are changed, each one time in two
    mean: Channels  # of the pixels' channels, from 0 to 1, taken off everywhere; published weights expect ImageNet's
    std: Channels  # by which they are divided then

    @model_validator(mode="after")
    def _ratio_increases(self) -> "MasksConfig":
        if self.ratio[0] > self.ratio[1]:
            raise inconsistent("ratio", self.ratio, "must be two factors, the smaller first", f"try {self.ratio[::-1]}")
        return self


class TestMasksConfig(Strict):
    """`evaluate.masks`: how the classes of an image's pixels are found, and which objects are small."""

    __test__ = False  # no test case, whatever pytest thinks of the name

    small_frac: Annotated[float, Field(gt=0, lt=1)]  # objects of a smaller share of the image's pixels are small
    windows: Literal["whole", "slide"]  # one look at the image, or squares of the model's size all over it
    stride: Annotated[int, Field(ge=1)] | None  # pixels from square to square, sliding only

    @model_validator(mode="after")
    def _stride_is_of_sliding_windows(self) -> "TestMasksConfig":
        if self.windows == "slide" and self.stride is None:
            raise inconsistent("stride", None, "sliding windows need one", "for example two thirds of model.img_size")
        if self.windows == "whole" and self.stride is not None:
            raise inconsistent("stride", self.stride, "one look at the whole has none", "write null")
        return self


def mask_problems(suite: "Suite", trial: "Trial") -> list[str]:
    """Where a trial of the suite speaks of masks and has labels, or the other way round; and what no head reads."""
    if suite.dataset is None:  # unknown, which is said elsewhere
        return []
    name = suite.dataset.name
    if DATASETS[name].masks:
        return _missing(suite, trial) + _unmoved_masks(trial) + _fixed_size(suite, trial) + _unread(trial)
    return _unwanted(suite, trial) + _unread(trial)


def head_problems(trial: "Trial", where: str) -> list[str]:
    """What a head cannot do: token budgets that are no grid of the warp's cells, tokens that cannot be painted."""
    if trial.model.head == "segmenter" and trial.tokenizer.mode == "paper":
        rule = "tokens that lie in two rows cannot be painted"
        return [problem(f"{where}tokenizer.mode", "paper", rule, f"use invariant, or model.head: {WARP_HEAD}")]
    if trial.model.head != WARP_HEAD:
        return []
    budget, rows, side = trial.tokenizer.token_budget, trial.tokenizer.num_rows, trial.model.img_size
    key, cells = f"{where}tokenizer.token_budget", (side // PAPER_CELL_PX) ** 2
    if trial.tokenizer.mode == "paper" and budget != cells:
        rule = f"in paper mode the warp has one cell for every {PAPER_CELL_PX} x {PAPER_CELL_PX} pixels"
        return [problem(key, budget, rule, f"use {cells}")]
    if rows is not None and budget % rows:
        rule = f"not a grid of num_rows ({rows}) rows"
        return [problem(key, budget, rule, f"try {max(1, round(budget / rows)) * rows}")]
    return []


def _unwanted(suite: "Suite", trial: "Trial") -> list[str]:
    """What speaks of pixels with classes."""
    rule = f"the samples of {suite.dataset.name} have one label each"
    says = {"model.head": trial.model.head, "train.masks": trial.train.masks, "evaluate.masks": suite.evaluate.masks}
    values = {where: value.model_dump() if isinstance(value, Strict) else value for where, value in says.items()}
    problems = [problem(where, value, rule, "leave it out") for where, value in values.items() if value is not None]
    if trial.model.backbone not in registry.CLASSIFIERS:
        known = f"known: {', '.join(registry.CLASSIFIERS)}"
        problems.append(problem("model.backbone", trial.model.backbone, f"has no head for labels, and {rule}", known))
    return problems


def _missing(suite: "Suite", trial: "Trial") -> list[str]:
    """What says how pixels get their classes."""
    because = f"missing, the samples of {suite.dataset.name} have a class for every pixel"
    problems = []
    known = [head for head in registry.HEADS if trial.model.backbone in registry.SEGMENTERS[head]]
    if not known:
        all_known = ", ".join(sorted({name for names in registry.SEGMENTERS.values() for name in names}))
        rule = "has no head that gives every pixel a class"
        problems.append(problem("model.backbone", trial.model.backbone, rule, f"known: {all_known}"))
    elif trial.model.head is None:
        problems.append(f"model.head: {because}; say which: {' or '.join(known)}")
    elif trial.model.head not in known:
        rule = f"not of backbone {trial.model.backbone}"
        problems.append(problem("model.head", trial.model.head, rule, f"known: {', '.join(known)}"))
    if suite.evaluate.masks is None:
        example = "{small_frac: 0.01, windows: whole, stride: null}"
        problems.append(f"evaluate.masks: {because}; say how: {example}")
    return problems


def _unmoved_masks(trial: "Trial") -> list[str]:
    """`train.augment` is of pictures alone: it would leave the classes of their pixels where they are."""
    augment = trial.train.augment
    if augment == "none":
        return []
    value = augment if isinstance(augment, str) else augment.model_dump()
    return [problem("train.augment", value, "moves pixels and not their classes", "use none, and train.masks")]


def _fixed_size(suite: "Suite", trial: "Trial") -> list[str]:
    """A window is the model's square; a model behind a warp reads no other size."""
    masks, side = suite.evaluate.masks, trial.model.img_size
    if masks is None:
        return []
    if masks.stride is not None and masks.stride > side:
        rule = f"larger than model.img_size ({side}), pixels between the windows would have no class"
        return [problem("evaluate.masks.stride", masks.stride, rule, f"at most {side}")]
    if masks.windows == "whole" and trial.model.head == WARP_HEAD and trial.train.masks is not None:
        rule = f"the head {WARP_HEAD!r} reads squares of model.img_size ({side}), and images keep their proportions"
        return [problem("evaluate.masks.windows", masks.windows, rule, "use slide")]
    return []


def _unread(trial: "Trial") -> list[str]:
    """How tokens are cut and placed is said where there are tokens, and only there; the rest where there are none."""
    warped, given = trial.model.head == WARP_HEAD, trial.tokenizer.mode == "invariant"
    problems = []
    if warped and trial.model.pretrained is None:
        problems.append(f"model.pretrained: {MISSING}")
    elif not warped and trial.model.pretrained is not None:
        rule = f"only of the head {WARP_HEAD!r}"
        problems.append(problem("model.pretrained", trial.model.pretrained, rule, "leave it out"))
    for key in WARP_UNREAD:
        value = getattr(trial.tokenizer, key)
        if warped and value is not None:
            rule = f"the head {WARP_HEAD!r} has no such choice"
            problems.append(problem(f"tokenizer.{key}", value, rule, "null, or leave it out"))
        elif not warped and given and value is None:
            problems.append(f"tokenizer.{key}: {MISSING}")
    return problems
