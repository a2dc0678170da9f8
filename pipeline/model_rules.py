"""What a model is: the sections `model` and `tokenizer` of a suite."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dart import registry
from dart.baselines.schedule import plan_counts
from pipeline.errors import problem
from pipeline.mask_rules import WARP_UNREAD
from pipeline.schema import MISSING, Strict, inconsistent, one_of, several

if TYPE_CHECKING:
    from pipeline.config import Trial

# What paper mode has no choice of: the authors' model is what it is.
INVARIANT_ONLY = ("partition", "row_weight", "score_floor", "score_blur", "sampling", "pos_embed")
# Of score networks that are more than a few convolutions of our own.
SCORER_KEYS = ("pretrained_scorer", "frozen_scorer", "score_input")


class ReducerConfig(Strict):
    """What takes tokens away between the blocks; `dart.baselines` explains each name and what `keep` means for it.

    A key is null, or left out, exactly where the name has no such choice.
    """

    name: Annotated[str, one_of(registry.REDUCERS)]
    keep: Annotated[float, Field(gt=0, le=1)]  # share of the patch tokens that the last block leaves
    fuse: bool | None = None  # evit: what is left out becomes one token
    ratio_weight: Annotated[float, Field(ge=0)] | None = None  # dynamicvit: of the loss on the shares that are kept

    @model_validator(mode="after")
    def _keys_agree(self) -> "ReducerConfig":
        problems = []
        for key in ("fuse", "ratio_weight"):
            value, read = getattr(self, key), key in registry.REDUCERS[self.name]
            if read and value is None:
                problems.append(f"{key}: {MISSING}")
            elif not read and value is not None:
                problems.append(problem(key, value, f"{self.name} has no such choice", "null, or leave it out"))
        if problems:
            raise several(problems)
        return self

    @model_serializer(mode="wrap")
    def _say_what_is_read(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if value is not None}


class ModelConfig(Strict):
    """The backbone: everything after the tokens."""

    backbone: Annotated[str, one_of(registry.BACKBONES)]
    variant: Annotated[str, one_of(variant for scales in registry.VARIANTS.values() for variant in scales)]
    img_size: int = Field(ge=1)  # pixels, square
    patch_size: int = Field(ge=1)  # pixels on the side of every token's patch, whatever its region's size
    in_chans: int = Field(ge=1)
    num_frames: Annotated[int, Field(ge=1)] | None = None  # that the model reads of a clip; None: it reads images
    head: Annotated[str, one_of(registry.HEADS)] | None = None  # that gives every pixel a class; None: the image one
    pretrained: bool | None = None  # of the head upernet: the backbone starts from published weights, downloaded once

    reducer: ReducerConfig | None = None  # what takes tokens away between the blocks; None: nothing does

    @model_validator(mode="after")
    def _backbone_has_variant(self) -> "ModelConfig":
        known = registry.VARIANTS[self.backbone]
        if self.variant not in known:
            rule = f"not of backbone {self.backbone}"
            raise inconsistent("variant", self.variant, rule, f"known: {', '.join(known)}")
        if self.reducer is not None and (self.backbone not in registry.REDUCED or self.head is not None):
            rule = f"only of classifiers with backbone {' or '.join(registry.REDUCED)}"
            raise inconsistent("reducer", self.reducer.name, rule, "null, or leave it out")
        return self

    @property
    def learned_reducer(self) -> str | None:
        """The name of the reducer, if it has parameters: one that keeps all tokens predicts nothing."""
        found = self.reducer
        return found.name if found is not None and found.ratio_weight is not None and found.keep < 1 else None


class TokenizerConfig(Strict):
    """How an image is cut into tokens; `dart.tokenizer` and `dart.scorer` explain each key.

    A key is null, or left out, exactly where it has no meaning: most of them in paper mode, `SCORER_KEYS` beside the
    scorer "conv" and the controls, `WARP_UNREAD` before the head "upernet".
    """

    name: Annotated[str, one_of(registry.TOKENIZERS)]
    mode: Annotated[str, one_of(registry.MODES)]
    token_budget: int = Field(ge=1)  # patch tokens per image, class token excluded
    num_rows: Annotated[int, Field(ge=1)] | None
    partition: Annotated[str, one_of(registry.PARTITIONS)] | None = None
    row_weight: Annotated[str, one_of(registry.ROW_WEIGHTS)] | None = None
    scorer: Annotated[str, one_of((*registry.SCORERS, *registry.PAPER_SCORERS), prefix="timm/")]
    pretrained_scorer: bool | None = None  # from published weights; a network is needed, once
    frozen_scorer: bool | None = None  # its features do not learn
    score_input: Annotated[int, Field(ge=32)] | Literal["full"] | None = None  # pixels on the scored copy's side
    score_floor: Annotated[float, Field(gt=0, le=1)] | None = None
    score_blur: Annotated[int, Field(ge=0)] | None = None
    sampling: Annotated[str, one_of(registry.SAMPLINGS)] | None = None
    pos_embed: Annotated[str, one_of(registry.POS_EMBEDS)] | None = None

    @model_validator(mode="after")
    def _keys_agree(self) -> "TokenizerConfig":
        problems = self._scorer_problems()
        if self.num_rows is not None and self.num_rows > self.token_budget:
            rule = f"more rows than token_budget ({self.token_budget})"
            problems.append(problem("num_rows", self.num_rows, rule, "null = round(sqrt(token_budget))"))
        if self.mode == "paper" and self.name != "dart":
            problems.append(problem("mode", self.mode, f"only of dart, not of {self.name}", "use invariant"))
        if problems:
            raise several(problems)
        return self

    def _scorer_problems(self) -> list[str]:
        paper, plain = self.mode == "paper", self.scorer in registry.PLAIN_SCORERS
        unread = [*(INVARIANT_ONLY if paper else ()), *(SCORER_KEYS if plain else ("frozen_scorer",) if paper else ())]
        where = "paper mode has no such choice" if paper else f"the scorer {self.scorer!r} has no such choice"
        problems = []
        for key in (*INVARIANT_ONLY, *SCORER_KEYS):
            value = getattr(self, key)
            if key in unread and value is not None:
                problems.append(problem(key, value, where, "null, or leave it out"))
            elif key not in unread and value is None and key not in WARP_UNREAD:  # which the head decides
                problems.append(f"{key}: {MISSING}")
        if (self.scorer in registry.PAPER_SCORERS) != paper:
            known = registry.PAPER_SCORERS if paper else (*registry.SCORERS, "timm/NAME")
            problems.append(problem("scorer", self.scorer, f"not of mode {self.mode}", f"known: {', '.join(known)}"))
        elif not plain:
            problems += self._score_input_problems()
        return problems

    def _score_input_problems(self) -> list[str]:
        value = self.score_input
        if self.mode == "paper" and value not in ("full", 224, None):
            return [problem("score_input", value, "must be full or 224 in paper mode")]
        if self.mode == "invariant" and isinstance(value, int) and value % 32:
            return [problem("score_input", value, "must be a multiple of 32 pixels", "try 224, or full")]
        return []


def fitting_problems(trial: "Trial", where: str) -> list[str]:
    """Parts of a model that do not go together."""
    model, tokenizer = trial.model, trial.tokenizer
    return tokenizer_problems(trial, where) + reducer_problems(model, tokenizer.token_budget, where)


def tokenizer_problems(trial: "Trial", where: str) -> list[str]:
    """A tokenizer that the backbone, or its head, does not have."""
    model, name = trial.model, trial.tokenizer.name
    known = registry.tokenizers_of(model.backbone, model.head)
    if name in known:
        return []
    rule = f"not of backbone {model.backbone}" if model.head is None else f"not of the head {model.head!r}"
    return [problem(f"{where}tokenizer.name", name, rule, f"known: {', '.join(known)}")]


def reducer_problems(model: ModelConfig, token_budget: int, where: str) -> list[str]:
    """That a reducer cannot leave as few tokens as it is told, which depends on how many there are."""
    if model.reducer is None:
        return []
    depth = registry.VARIANTS[model.backbone][model.variant]["depth"]
    try:
        plan_counts(model.reducer.name, model.reducer.keep, token_budget, depth)
    except ValueError as error:
        return [f"{where}model.{error}"]
    return []
