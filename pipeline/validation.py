"""Pydantic's findings in the house's form: `where = value: rule; remedy`."""

from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import problem, unknown_name
from pipeline.recipe import AUGMENT_TAGS
from pipeline.schema import MISSING
from pipeline.search_rules import SPACE_TAGS

TAGS = {*AUGMENT_TAGS, *SPACE_TAGS}  # pydantic's names of alternatives, which no user has written


def explain_validation(schema: type[BaseModel], error: ValidationError, prefix: str) -> list[str]:
    """Pydantic's findings in the house's form, each `where = value: rule; remedy`."""
    return [line for e in error.errors() for line in _problem_lines(schema, prefix, e)]


def validate(schema: type[BaseModel], raw: Any, prefix: str, problems: list[str]) -> Any:
    """The validated model, or None with the reasons added to `problems`."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems += explain_validation(schema, error, prefix)
        return None


def _problem_lines(schema: type[BaseModel], prefix: str, error: Any) -> list[str]:
    loc = tuple(part for part in error["loc"] if part not in TAGS)
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
