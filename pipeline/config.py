"""params.yaml and suites/*.yaml -> typed, validated configuration; every problem is reported at once.

Scientific choices have no defaults: DVC sees only what is written, so what matters must be written.
Machine choices (`placement`, `tracking`) may default.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dart import registry
from pipeline.clip_rules import ViewsConfig
from pipeline.data.catalog import DATASETS
from pipeline.errors import ConfigError, UserError, problem, unknown_name
from pipeline.mask_rules import WARP_UNREAD, TestMasksConfig, head_problems
from pipeline.recipe import AUGMENT_TAGS, TrainConfig
from pipeline.schema import MISSING, Seed, Strict, inconsistent, one_of, several

SUITES_DIR = Path("suites")
# What paper mode has no choice of: the authors' model is what it is.
INVARIANT_ONLY = ("partition", "row_weight", "score_floor", "score_blur", "sampling", "pos_embed")
# Of score networks that are more than a few convolutions of our own.
SCORER_KEYS = ("pretrained_scorer", "frozen_scorer", "score_input")


class ShardsConfig(Strict):
    samples_per_shard: int = Field(ge=1)


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

    @model_validator(mode="after")
    def _backbone_has_variant(self) -> "ModelConfig":
        known = registry.VARIANTS[self.backbone]
        if self.variant not in known:
            rule = f"not of backbone {self.backbone}"
            raise inconsistent("variant", self.variant, rule, f"known: {', '.join(known)}")
        return self


class TokenizerConfig(Strict):
    """How an image is cut into tokens; `dart.tokenizer` and `dart.scorer` explain each key.

    A key is null, or left out, exactly where it has no meaning: most of them in paper mode, `SCORER_KEYS` beside the
    scorer "conv", `WARP_UNREAD` before the head "upernet".
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
        paper, conv = self.mode == "paper", self.scorer == "conv"
        unread = [*(INVARIANT_ONLY if paper else ()), *(SCORER_KEYS if conv else ("frozen_scorer",) if paper else ())]
        where = "paper mode has no such choice" if paper else "the scorer 'conv' has no such choice"
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
        elif not conv:
            problems += self._score_input_problems()
        return problems

    def _score_input_problems(self) -> list[str]:
        value = self.score_input
        if self.mode == "paper" and value not in ("full", 224, None):
            return [problem("score_input", value, "must be full or 224 in paper mode")]
        if self.mode == "invariant" and (value == "full" or (isinstance(value, int) and value % 32)):
            return [problem("score_input", value, "must be a multiple of 32 pixels", "try 224")]
        return []


class Placement(Strict):
    """Where the work runs. Not science: no result depends on it beyond rounding.

    With `min_workers`, a training goes on with fewer than `num_workers` of them while nodes are missing, and takes new
    nodes in at its next restart. The global batch stays: it must split equally over every number in between.

    A worker that has more than `device_batch_size` samples of a global batch takes them in pieces and adds the
    gradients up. That is the same mean, up to rounding; not where a model looks at its batch as a whole (batch norm,
    paper mode), or draws at random for each of its samples (drop_path: the same in distribution).
    """

    num_workers: int = Field(default=1, ge=1)
    min_workers: Annotated[int, Field(ge=1)] | None = None  # None: as many as num_workers, always
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    loader_workers: int = Field(default=0, ge=0)
    max_failures: int = Field(default=2, ge=0)
    ray_address: str | None = None
    device_batch_size: Annotated[int, Field(ge=1)] | None = None  # samples at once on a worker; None: all it has
    data_parallel: Literal["ddp", "fsdp"] = "ddp"  # fsdp: weights, gradients and moments are spread over the workers
    silence_s: Annotated[float, Field(gt=0)] | None = 60.0  # a worker not heard of is named, and tried again by then
    ledger: bool = False  # write down which samples each step read; python -m pipeline.data.ledger checks it

    @model_validator(mode="after")
    def _fewest_are_not_more_than_all(self) -> "Placement":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            rule = f"more than num_workers ({self.num_workers})"
            raise inconsistent("min_workers", self.min_workers, rule, f"at most {self.num_workers}, or null")
        return self


class Tracking(Strict):
    uri: str = "sqlite:///mlflow.db"


class Overrides(Strict):
    """What an experiment changes; anything it does not name is the suite's."""

    model: dict[str, Any] = Field(default_factory=dict)
    tokenizer: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)


class ExperimentConfig(Overrides):
    """One row of the table.

    `init_from` names the experiment whose final weights, of the same seed, it starts from. `num_workers` pins the
    number of Ray Train workers, for an experiment whose subject is that number: it is shown under Agreement instead of
    in the table. `agrees_with` names the experiment that must give the same result.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    num_workers: Annotated[int, Field(ge=1)] | None = None
    agrees_with: str | None = None
    init_from: str | None = None


class SweepConfig(Strict):
    seeds: Annotated[list[Seed], Field(min_length=1)]
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]]  # dotted key -> values


class EvaluateConfig(Strict):
    batch_size: int = Field(ge=1)
    gallery_samples: int = Field(ge=0)
    clips: ViewsConfig | None = None  # where the samples are clips
    masks: TestMasksConfig | None = None  # where every pixel has a class


class BenchmarkConfig(Strict):
    batch_size: int = Field(ge=1)
    rounds: int = Field(ge=1)


class Suite(Strict):
    """One params file of suites/: a data set, a table of experiments and a sweep."""

    name: str
    dataset: Any  # the options model of the catalogue's entry
    shards: ShardsConfig
    max_bad_frac: Annotated[float, Field(ge=0, lt=1)]  # share of a split's samples that may be damaged in the shards
    model: ModelConfig
    tokenizer: TokenizerConfig
    train: TrainConfig
    seeds: Annotated[list[Seed], Field(min_length=1)]
    experiments: Annotated[dict[str, ExperimentConfig], Field(min_length=1)]
    sweep: SweepConfig | None
    evaluate: EvaluateConfig
    benchmark: BenchmarkConfig


class Trial(Strict):
    """One training to be done: the resolved science of it, and nothing of the machine."""

    name: str
    seed: int
    model: ModelConfig
    tokenizer: TokenizerConfig
    train: TrainConfig
    num_workers: int | None = None  # pinned by the experiment, else left to `placement`
    init_from: "Trial | None" = None  # whose final weights it starts from

    @property
    def model_name(self) -> str:
        """timm's name of the model."""
        return registry.model_name(self.tokenizer.name, self.model.backbone, self.model.variant, self.model.head)

    def architecture(self) -> dict[str, Any]:
        """What cost and speed depend on: the model and the tokenizer, not the training."""
        unread = set() if self.tokenizer.name == "dart" else {*registry.DART_ONLY, "mode"}
        unread |= {key for key in (*INVARIANT_ONLY, *SCORER_KEYS) if getattr(self.tokenizer, key) is None}
        tokenizer = self.tokenizer.model_dump(mode="json", exclude=unread)
        unsaid = {key for key in ("num_frames", "head", "pretrained") if getattr(self.model, key) is None}
        return {"model": self.model.model_dump(mode="json", exclude=unsaid), "tokenizer": tokenizer}

    def science(self) -> dict[str, Any]:
        """What the weights depend on; its hash, with data and code, is the run's fingerprint."""
        pinned: dict[str, Any] = {} if self.num_workers is None else {"num_workers": self.num_workers}
        if self.init_from is not None:
            pinned["init_from"] = self.init_from.science()
        unread = set() if self.tokenizer.name == "dart" else {"scorer_lr_scale"}
        unread |= {key for key in ("clips", "masks", "divergence") if getattr(self.train, key) is None}
        train = self.train.model_dump(mode="json", exclude=unread)
        return {**self.architecture(), "train": train, "seed": self.seed, **pinned}


class Params(Strict):
    """params.yaml: the active suites and where the work runs."""

    suites: Annotated[list[str], Field(min_length=1)]
    placement: Placement = Placement()
    tracking: Tracking = Tracking()


def load_yaml(path: Path) -> dict[str, Any]:
    """Read YAML 1.2 as DVC does (`1e-3` is a number)."""
    if not path.is_file():
        raise UserError(problem(str(path.parent), path.name, "no such file", "see suites/ for the known suites"))
    try:
        data = YAML(typ="safe").load(path.read_text())
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping of keys to values")
    return data


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read params.yaml; RAY_ADDRESS and MLFLOW_TRACKING_URI override what it says.

    Raises:
        ConfigError: with every problem found.
    """
    raw = load_yaml(path)
    problems: list[str] = []
    params = _validate(Params, raw, "", problems)
    suites = raw.get("suites")
    known = [p.stem for p in sorted(SUITES_DIR.glob("*.yaml"))]
    for i, name in enumerate(suites if isinstance(suites, list) else []):
        if name not in known:
            problems.append(unknown_name(f"suites[{i}]", name, known))
    if problems or params is None:
        raise ConfigError(str(path), problems)
    placement = {**params.placement.model_dump(), **_from_env("RAY_ADDRESS", "ray_address")}
    tracking = {**params.tracking.model_dump(), **_from_env("MLFLOW_TRACKING_URI", "uri")}
    return Params(suites=params.suites, placement=Placement(**placement), tracking=Tracking(**tracking))


def load_suite(name: str, path: Path | None = None) -> Suite:
    """Read and check `suites/NAME.yaml`, its experiments and its sweep.

    Raises:
        ConfigError: with every problem found, each as `where = value: rule; remedy`.
    """
    from pipeline.sweep.plan import plan_experiments, plan_sweep  # it builds on this module

    path = path or SUITES_DIR / f"{name}.yaml"
    raw = load_yaml(path)
    problems: list[str] = []
    dataset = _validate_dataset(raw.get("dataset"), problems)
    suite = _validate(Suite, {**raw, "name": name, "dataset": dataset}, "", problems)
    if suite is not None:
        for plan in (plan_experiments, plan_sweep):
            try:
                plan(suite)
            except ConfigError as error:
                problems += [line for line in error.problems if line not in problems]
    if problems or suite is None:
        raise ConfigError(str(path), problems)
    return suite


def check_trial(trial: Trial, where: str) -> list[str]:
    """Problems of a resolved trial that no single key shows: budgets, divisibility."""
    model, tokenizer, train = trial.model, trial.tokenizer, trial.train
    problems: list[str] = []
    frames, what = ((), "an image") if model.num_frames is None else ((model.num_frames,), "a clip")
    sides = (*frames, model.img_size, model.img_size)
    pixels = math.prod(sides)
    if tokenizer.token_budget > pixels:
        rule = f"more tokens than the {' x '.join(map(str, sides))} = {pixels} pixels of {what}"
        problems.append(problem(f"{where}tokenizer.token_budget", tokenizer.token_budget, rule, f"at most {pixels}"))
    if trial.num_workers:
        key, paired = f"{where}train.global_batch_size", train.mixing is not None
        problems += indivisible_batch(key, train.global_batch_size, trial.num_workers, paired)
    return problems + head_problems(trial, where)


def indivisible_batch(where: str, global_batch_size: int, world_size: int, paired: bool = False) -> list[str]:
    """At most one line: that a batch cannot be split equally, with the nearest that can.

    Args:
        paired: Samples are mixed two by two, and no pair may be parted.
    """
    multiple = 2 * world_size if paired else world_size
    if global_batch_size % multiple == 0:
        return []
    rule = f"not a multiple of world_size ({world_size})"
    if paired:
        rule = f"mixup and cutmix mix pairs: not a multiple of 2 x world_size ({world_size})"
    nearest = max(1, round(global_batch_size / multiple)) * multiple
    return [problem(where, global_batch_size, rule, f"try {nearest}")]


def absurd_precision(trial: Trial, device_type: str) -> list[str]:
    """The error line for a precision that the device has no circuits for: bfloat16 on a CPU is 40 times slower."""
    if trial.train.precision != "bf16" or device_type == "cuda":
        return []
    return [
        problem(
            "train.precision",
            trial.train.precision,
            f"needs a GPU, training would run on the {device_type}",
            "use fp32",
        )
    ]


def _validate_dataset(raw: Any, problems: list[str]) -> Any:
    if not isinstance(raw, dict) or "name" not in raw:
        problems.append("dataset.name: missing; known: " + ", ".join(sorted(DATASETS)))
        return None
    if raw["name"] not in DATASETS:
        problems.append(unknown_name("dataset.name", raw["name"], DATASETS))
        return None
    return _validate(DATASETS[raw["name"]].options, raw, "dataset.", problems)


def explain_validation(schema: type[BaseModel], error: ValidationError, prefix: str) -> list[str]:
    """Pydantic's findings in the house's form, each `where = value: rule; remedy`."""
    return [line for e in error.errors() for line in _problem_lines(schema, prefix, e)]


def _validate(schema: type[BaseModel], raw: Any, prefix: str, problems: list[str]) -> Any:
    """The validated model, or None with the reasons added to `problems`."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems += explain_validation(schema, error, prefix)
        return None


def _problem_lines(schema: type[BaseModel], prefix: str, error: Any) -> list[str]:
    loc = tuple(part for part in error["loc"] if part not in AUGMENT_TAGS)
    where = prefix + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).lstrip(".")
    if error["type"] == "missing":
        return [f"{where}: {MISSING}"]
    if error["type"] == "several_keys":
        return [f"{where.rstrip('.')}.{said}" for said in error["ctx"]["said"]]
    if error["type"] == "unknown_name":
        return [unknown_name(where, error["input"], error["ctx"]["known"])]
    if error["type"] == "extra_forbidden":
        return [unknown_name(where, loc[-1], _keys_at(schema, loc[:-1]))]
    return [problem(where, error["input"], error["msg"][0].lower() + error["msg"][1:])]


def _keys_at(schema: Any, loc: tuple[Any, ...]) -> list[str]:
    """The field names of the model that sits at `loc` inside `schema`."""
    for part in loc:
        field = getattr(schema, "model_fields", {}).get(part)
        if field is None:
            continue  # a key of a dict, an index of a list
        candidates = [field.annotation, *_parts_of(field.annotation)]
        schema = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), schema)
    return list(getattr(schema, "model_fields", {}))


def _parts_of(annotation: Any) -> list[Any]:
    """What a union or an Annotated is made of, however deep."""
    parts = list(getattr(annotation, "__args__", ()))
    return parts + [inner for part in parts for inner in _parts_of(part)]


def _from_env(variable: str, key: str) -> dict[str, str]:
    value = os.environ.get(variable)
    return {key: value} if value else {}
