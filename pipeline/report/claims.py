"""A claims file: what somebody says of experiments, each statement with its source, so that a table can be asked.

`suites/SUITE/claims.yaml` is the suite's; anybody's file of this form can be checked against anybody's results
(`python -m pipeline.report.verify_claims`).
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from pipeline.config import SUITES_DIR, load_yaml
from pipeline.errors import ConfigError, problem
from pipeline.schema import Strict, several
from pipeline.validation import validate

COMPARISONS = ("difference_at_least", "difference_at_most", "level_within", "ratio_at_least", "ratio_at_most")


def _not_blank(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("blank", "must say something")
    return value


def _bare(measure: str) -> str:
    return measure.removesuffix("_mean")  # one name, so that no other column is read than of the plain name


Said = Annotated[str, AfterValidator(_not_blank)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]


class Claim(Strict):
    """One statement about a measure, in the unit of the results: shares are fractions, parameters are numbers.

    Of kind `value`: the measure of `experiment` is `value`, give or take `tolerance`. Of kind `comparison`: the measure
    of `experiment` against that of `than`, in exactly one of the ways of `COMPARISONS`; `tolerance` moves the border.
    """

    id: Said
    statement: Said
    source: Said  # paper, table and row, or file
    kind: Literal["value", "comparison"]
    experiment: Said
    # A column of the results, with or without _mean: top1, miou, params, gflops, images_per_s ...
    measure: Annotated[Said, AfterValidator(_bare)]
    seeds: Annotated[int, Field(ge=0)]  # complete runs that are needed; from 2 on their interval decides
    value: Number | None = None
    tolerance: Annotated[Number, Field(ge=0)] | None = None
    than: Said | None = None
    difference_at_least: Number | None = None
    difference_at_most: Number | None = None
    level_within: Positive | None = None
    ratio_at_least: Positive | None = None
    ratio_at_most: Positive | None = None
    recalled: bool = False  # the source was not read for this: verify before printing
    absent: Said | None = None  # why the suite has no such experiment
    note: Said | None = None  # what a reader of the verdict should know

    @model_validator(mode="after")
    def _one_way(self) -> "Claim":
        lines = self._value_problems() if self.kind == "value" else self._comparison_problems()
        if lines:
            raise several(lines)
        return self

    @property
    def way(self) -> str:
        """How a comparison compares; `value` of a value."""
        return next((key for key in COMPARISONS if getattr(self, key) is not None), "value")

    @property
    def claimed(self) -> float:
        """The figure that is claimed: a value, a difference, or a ratio. Level is a difference of 0."""
        return 0.0 if self.way == "level_within" else float(getattr(self, self.way))

    def _value_problems(self) -> list[str]:
        lines = [
            problem(key, None, "a claim of a value needs it") for key in ("value", "tolerance") if not self._says(key)
        ]
        others = [key for key in ("than", *COMPARISONS) if self._says(key)]
        remedy = "leave it out, or let kind be 'comparison'"
        return lines + [problem(key, getattr(self, key), "a claim of a value has none", remedy) for key in others]

    def _comparison_problems(self) -> list[str]:
        lines = [] if self._says("than") else [problem("than", None, "a comparison needs it", "name an experiment")]
        if self._says("value"):
            lines.append(problem("value", self.value, "a comparison has none", "leave it out, or let kind be 'value'"))
        ways = [key for key in COMPARISONS if self._says(key)]
        if len(ways) != 1:
            lines.append(problem("kind", self.kind, f"needs exactly one of {', '.join(COMPARISONS)}, has {len(ways)}"))
        if self._says("level_within") and self._says("tolerance"):
            lines.append(problem("tolerance", self.tolerance, "level_within is one already", "leave it out"))
        return lines + self._border_problems()

    def _border_problems(self) -> list[str]:
        """A verdict must rest on what the claim says: on its sign, and on the seeds that it asks for."""
        lines = []
        effect = abs(self.difference_at_least or self.difference_at_most or 0.0)
        if 0 < effect < (self.tolerance or 0.0):
            rule = "more than the difference itself: figures that the claim excludes would confirm it"
            lines.append(problem("tolerance", self.tolerance, rule, f"at most {effect:g}"))
        if self.seeds > 1 and (self._says("ratio_at_least") or self._says("ratio_at_most")):
            lines.append(problem("seeds", self.seeds, "a ratio has no interval over seeds", "use 0 or 1"))
        return lines

    def _says(self, key: str) -> bool:
        return getattr(self, key) is not None


class Claims(Strict):
    """A claims file."""

    claims: Annotated[list[Claim], Field(min_length=1)]


def load_claims(path: Path) -> tuple[Claim, ...]:
    """Read and check a claims file.

    Raises:
        UserError: no such file, or not YAML.
        ConfigError: with every problem found; a claim without a source is one.
    """
    problems: list[str] = []
    found: Claims | None = validate(Claims, load_yaml(path), "", problems)
    seen: set[str] = set()
    for i, claim in enumerate(found.claims if found else ()):
        if claim.id in seen:
            problems.append(problem(f"claims[{i}].id", claim.id, "is there twice", "rename one of them"))
        seen.add(claim.id)
    if problems or found is None:
        raise ConfigError(str(path), problems)
    return tuple(found.claims)


def suite_claims(suite: str, folder: Path = SUITES_DIR) -> tuple[Claim, ...]:
    """The claims of a suite; none where it has no file of them."""
    path = claims_path(suite, folder)
    return load_claims(path) if path.is_file() else ()


def claims_path(suite: str, folder: Path = SUITES_DIR) -> Path:
    """Where a suite's claims are."""
    return folder / suite / "claims.yaml"
