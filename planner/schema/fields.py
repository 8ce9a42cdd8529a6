"""What all parts of the instance share: strictness, number types, and mistakes within one part.

Numbers are strict: `"12"` in quotes is text and refused, `true` is not 1. A whole number may be
written as `1e5`. Lists become tuples, so that a checked instance cannot change.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError, PydanticUndefined

MISTAKES = "planner_mistakes"
"""Type of the pydantic error that carries several mistakes of one part."""

T = TypeVar("T")


class Part(BaseModel):
    """Base of every part of an instance: unknown keys refused, numbers strict, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def described(
    description: str,
    *,
    unit: str = "",
    default: Any = PydanticUndefined,
    examples: list[Any] | None = None,
) -> Any:
    """A field with its meaning and unit; required unless a default is given."""
    extra: dict[str, Any] = {"unit": unit} if unit else {}
    return Field(default, description=description, json_schema_extra=extra, examples=examples)


def _whole(value: Any) -> Any:
    """`1e5` is the whole number 100000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _percent(value: Any) -> Any:
    """`"0.1%"` is 0.001; anything else is left for the number check."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        try:
            return float(value.rstrip()[:-1]) / 100
        except ValueError:
            return value
    return value


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
ShareOfOne = Annotated[float, Field(gt=0, le=1)]
"""A fraction above 0, up to and including 1."""
InnerShare = Annotated[float, Field(gt=0, lt=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Whole = BeforeValidator(_whole)
Count = Annotated[int, Field(ge=1, le=10**9), Whole]
CountOrZero = Annotated[int, Field(ge=0, le=10**9), Whole]
Gap = Annotated[
    float,
    Field(gt=0, lt=0.5),
    BeforeValidator(_percent),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
                {"type": "string", "pattern": r"^[0-9.]+ *%$"},
            ]
        }
    ),
]
"""A fraction, or a percentage in text such as `0.1%`."""
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\s\x00-\x1f](.*[^\s])?$")]
"""Text shown in reports: not empty, on one line, no blanks around it."""


def _listed(value: Any) -> Any:
    """One text is a list of one."""
    return [value] if isinstance(value, str) else value


Many = Annotated[tuple[T, ...], Strict(False)]
"""A list in the file, a tuple in memory; its items stay strict."""
Some = Annotated[tuple[T, ...], Strict(False), Field(min_length=1)]
"""As `Many`, with at least one item."""
FileNames = Annotated[
    Some[Name],
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ]
        }
    ),
]
"""One file name, or a list of them."""


def mistakes(found: Sequence[tuple[str, str, str]]) -> None:
    """Refuse a part for every (field, message, hint) in `found`; nothing if it is empty.

    Raises PydanticCustomError, which the reader of the file turns into one problem each.
    """
    if found:
        raise PydanticCustomError(MISTAKES, "several mistakes", {"found": list(found)})


def repeated(values: Sequence[Hashable]) -> list[int]:
    """Indices of the values that were given before."""
    seen: set[Hashable] = set()
    found = []
    for index, value in enumerate(values):
        if value in seen:
            found.append(index)
        seen.add(value)
    return found
