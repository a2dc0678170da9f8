"""How a model is trained: the sections `train` and `train.augment` of a suite.

Keys have the names of timm's training script where it has one, and its meaning. All of them are science: none has a
default, so that what a result depends on is written in the suite.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dart.registry import REDUCERS
from pipeline.clip_rules import ClipsConfig
from pipeline.mask_rules import MasksConfig
from pipeline.schema import Budgets, Channels, Fraction, Probability, Range, Strict, inconsistent

REDUCER_OPTIONS = {option for options in REDUCERS.values() for option in options}  # beside keep


class AugmentConfig(Strict):
    """Random pictures of a picture, in training; and how a picture of any size becomes a square, everywhere."""

    scale: Range  # of a random crop: smallest and largest share of the picture's area; [1.0, 1.0]: almost all of it
    hflip: Probability  # of mirroring
    interpolation: Literal["bicubic", "bilinear"]
    auto_augment: str | None  # timm's words for RandAugment and its like: rand-m9-mstd0.5-inc1
    color_jitter: Annotated[float, Field(ge=0)]  # of brightness, contrast and saturation; not beside auto_augment
    reprob: Probability  # of erasing a rectangle, filling it with noise
    aug_repeats: Annotated[int, Field(ge=1)]  # times that a drawn sample comes in an epoch, differently each time
    mixup: Annotated[float, Field(ge=0)]  # alpha of mixup, 0: off
    cutmix: Annotated[float, Field(ge=0)]  # alpha of cutmix, 0: off; with mixup as well, each batch draws one of them
    crop_pct: Annotated[float, Field(gt=0, le=1)]  # in tests: the model sees this share of the shorter side, centred
    mean: Channels  # of the pixels' channels, from 0 to 1, taken off everywhere; published weights expect ImageNet's
    std: Channels  # by which they are divided then

    @model_validator(mode="after")
    def _keys_agree(self) -> "AugmentConfig":
        low, high = self.scale
        if not low <= high <= 1:
            raise inconsistent("scale", self.scale, "must be two shares of the area, the smaller first, at most 1")
        if self.auto_augment is not None and self.color_jitter:
            raise inconsistent("color_jitter", self.color_jitter, "not applied beside auto_augment", "write 0.0")
        if self.auto_augment is not None and not self.auto_augment.startswith(
            ("rand", "augmix", "original", "v0", "3a")
        ):
            remedy = "for example rand-m9-mstd0.5-inc1, or null"
            raise inconsistent("auto_augment", self.auto_augment, "not a policy that timm knows", remedy)
        return self

    @property
    def mixes(self) -> bool:
        """Whether samples of a batch are mixed, and labels with them."""
        return self.mixup > 0 or self.cutmix > 0


# "flip_crop": small pictures, shifted by up to an eighth of their side and mirrored one time in two.
Augment = Annotated[
    Annotated[Literal["none", "flip_crop"], Tag("a word")] | Annotated[AugmentConfig, Tag("a mapping")],
    Discriminator(lambda value: "a word" if isinstance(value, str) else "a mapping"),
]
AUGMENT_TAGS = ("a word", "a mapping")


class DivergenceConfig(Strict):
    """What becomes of a training that loses what it learnt: `pipeline.train.divergence` explains."""

    action: Literal["stop", "rewind"]  # stop: it ends there, and the table says so; rewind: go on from a snapshot
    spike_factor: (
        Annotated[float, Field(gt=1)] | None
    )  # of the running median: a loss above is lost; None: if not finite
    max_rewinds: Annotated[int, Field(ge=0)]  # after which it is stopped; 0 with stop

    @model_validator(mode="after")
    def _keys_agree(self) -> "DivergenceConfig":
        if (self.action == "rewind") != (self.max_rewinds > 0):
            rule = f"with action {self.action}"
            raise inconsistent("max_rewinds", self.max_rewinds, rule, "0 with stop, at least 1 with rewind")
        return self


class TokenWarmupConfig(Strict):
    """A training that begins with few tokens, which are cheaper and learnt sooner: docs/budgets.md has the figures."""

    token_budget: Annotated[int, Field(ge=1)]  # of the first steps; or tokenizer.token_budget, if that is less
    frac: Annotated[float, Field(gt=0, lt=1)]  # of all steps

    def steps(self, num_steps: int) -> int:
        """How many of a training's steps are the first."""
        return round(self.frac * num_steps)


class TrainConfig(Strict):
    """The recipe."""

    epochs: int = Field(ge=1)
    global_batch_size: int = Field(ge=1)  # samples per optimizer step over all workers
    lr: float = Field(gt=0)  # at the end of the warm-up
    min_lr: float = Field(ge=0)  # at the end of the cosine
    betas: Annotated[list[float], Field(min_length=2, max_length=2)]
    weight_decay: float = Field(ge=0)
    scorer_lr_scale: float = Field(gt=0)
    warmup_frac: Fraction  # of all steps
    clip_grad: Annotated[float, Field(gt=0)] | None
    label_smoothing: Fraction
    drop_path: Fraction
    model_ema_decay: Annotated[float, Field(gt=0, lt=1)] | None  # the average is validated, and is what is kept
    augment: Augment
    clips: ClipsConfig | None = None  # where the samples are clips: which of their frames are read
    masks: MasksConfig | None = None  # where pixels have classes: how squares are cut; null: images as they are stored
    token_budgets: Budgets | None = None  # a step's budget is one of these in turn; null: tokenizer.token_budget
    token_warmup: TokenWarmupConfig | None = None  # null: the first steps are like all others
    divergence: DivergenceConfig | None = None  # null: a gradient that is not finite ends the run without a result
    precision: Literal["fp32", "bf16", "fp64"]

    @model_validator(mode="after")
    def _keys_agree(self) -> "TrainConfig":
        if self.min_lr > self.lr:
            raise inconsistent("min_lr", self.min_lr, f"above lr ({self.lr})")
        if self.mixing and self.global_batch_size % 2:
            rule, size = "mixup and cutmix mix pairs", self.global_batch_size
            raise inconsistent("global_batch_size", size, f"odd, but {rule}", f"try {size + 1}")
        return self

    @property
    def augmentation(self) -> AugmentConfig | None:
        """The mapping, if it is one."""
        return self.augment if isinstance(self.augment, AugmentConfig) else None

    @property
    def normalised(self) -> AugmentConfig | MasksConfig | None:
        """The mapping that says how pixels are normalised; None: from -1 to 1."""
        return self.masks or self.augmentation

    @property
    def mixing(self) -> AugmentConfig | None:
        """The mapping, if it mixes samples."""
        found = self.augmentation
        return found if found is not None and found.mixes else None


def merge(section: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A section of a suite with what an experiment changes; a mapping inside it is changed key by key.

    With another `name` a reducer loses the options that it had by its old one, and has its `keep` still.
    """
    merged = dict(section)
    if "name" in overrides and overrides["name"] != section.get("name"):
        merged = {key: value for key, value in section.items() if key not in REDUCER_OPTIONS}
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
