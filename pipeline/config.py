"""params.yaml and suites/*.yaml -> typed, validated configuration; every problem is reported at once.

Scientific choices have no defaults: DVC sees only what is written, so what matters must be written.
Machine choices (`placement`, `tracking`) may default.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dart import registry
from pipeline.budget_rules import AdaptiveConfig
from pipeline.clip_rules import ViewsConfig
from pipeline.data.catalog import DATASETS
from pipeline.errors import ConfigError, UserError, problem, unknown_name
from pipeline.mask_rules import TestMasksConfig, head_problems
from pipeline.model_rules import INVARIANT_ONLY, SCORER_KEYS, ModelConfig, TokenizerConfig, fitting_problems
from pipeline.placement import Placement, Tracking
from pipeline.recipe import TokenWarmupConfig, TrainConfig
from pipeline.schema import Budgets, Seeds, Strict
from pipeline.search_rules import SweepConfig
from pipeline.validation import validate

SUITES_DIR = Path("suites")
# Keys of a recipe that came later: left out, a training is what it was without them.
ADDED = ("clips", "masks", "token_budgets", "token_warmup", "divergence")


class ShardsConfig(Strict):
    samples_per_shard: int = Field(ge=1)


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

    seeds: Seeds | None = None
    num_workers: Annotated[int, Field(ge=1)] | None = None
    agrees_with: str | None = None
    init_from: str | None = None


class EvaluateConfig(Strict):
    batch_size: int = Field(ge=1)
    gallery_samples: int = Field(ge=0)
    clips: ViewsConfig | None = None  # where the samples are clips
    masks: TestMasksConfig | None = None  # where every pixel has a class
    token_budgets: Budgets | None = None  # that every run is asked at, beside its own
    adaptive: AdaptiveConfig | None = None  # budgets that follow the image


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
    seeds: Seeds
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

    @property
    def token_warmup(self) -> TokenWarmupConfig | None:
        """The first steps' tokens, where they are fewer than the model's own: else it is a training without."""
        found = self.train.token_warmup
        return found if found is not None and found.token_budget < self.tokenizer.token_budget else None

    def architecture(self) -> dict[str, Any]:
        """What cost and speed depend on: the model and the tokenizer, not the training."""
        unread = set() if self.tokenizer.name == "dart" else {*registry.unread_options(self.tokenizer.name), "mode"}
        unread |= {key for key in (*INVARIANT_ONLY, *SCORER_KEYS) if getattr(self.tokenizer, key) is None}
        tokenizer = self.tokenizer.model_dump(mode="json", exclude=unread)
        unsaid = {key for key in ("num_frames", "head", "pretrained", "reducer") if getattr(self.model, key) is None}
        return {"model": self.model.model_dump(mode="json", exclude=unsaid), "tokenizer": tokenizer}

    def science(self) -> dict[str, Any]:
        """What the weights depend on; its hash, with data and code, is the run's fingerprint."""
        pinned: dict[str, Any] = {} if self.num_workers is None else {"num_workers": self.num_workers}
        if self.init_from is not None:
            pinned["init_from"] = self.init_from.science()
        learns = registry.learns_regions(self.tokenizer.name, self.tokenizer.scorer)
        unread = set() if learns else {"scorer_lr_scale"}
        unread |= {key for key in ADDED if getattr(self.train, key) is None}
        unread |= {"token_warmup"} if self.token_warmup is None else set()
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
    params = validate(Params, raw, "", problems)
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
    suite = validate(Suite, {**raw, "name": name, "dataset": dataset}, "", problems)
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
    return problems + head_problems(trial, where) + fitting_problems(trial, where)


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
    return validate(DATASETS[raw["name"]].options, raw, "dataset.", problems)


def _from_env(variable: str, key: str) -> dict[str, str]:
    value = os.environ.get(variable)
    return {key: value} if value else {}
