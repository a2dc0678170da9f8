"""What every part of a configuration is made of: strict models, and problems that several keys make together."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeline.errors import problem

Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Channels = Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=3, max_length=3)]
Range = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
Budgets = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]  # patch tokens, class token excluded


def _different(values: list[Any]) -> list[Any]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise PydanticCustomError("twice", "{value} is twice in the list; leave one out", {"value": repr(value)})
    return values


DIFFERENT = AfterValidator(_different)  # of a list: what is tried twice would be recorded twice under one name
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1), DIFFERENT]
MISSING = "missing; science has no hidden defaults, write it down"


class Strict(BaseModel):
    """No unknown keys, no silent conversions, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def one_of(names: Iterable[str], prefix: str | None = None) -> AfterValidator:
    """A string that must be one of the registry's names, or begin with `prefix` and say something after it."""
    known = sorted(names)

    def check(value: str) -> str:
        if value not in known and not (prefix and value.startswith(prefix) and value != prefix):
            choices = [*known, f"{prefix}NAME"] if prefix else known
            raise PydanticCustomError("unknown_name", "unknown", {"known": choices})
        return value

    return AfterValidator(check)


def inconsistent(key: str, value: Any, rule: str, remedy: str = "") -> PydanticCustomError:
    """To raise in a validator: `key = value` does not go with other keys of its section."""
    return several([problem(key, value, rule, remedy)])


def several(lines: list[str]) -> PydanticCustomError:
    """To raise in a validator: one or more problems, each beginning with its key."""
    return PydanticCustomError("several_keys", "{text}", {"said": lines, "text": "; ".join(lines)})
