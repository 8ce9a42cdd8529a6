"""Pydantic's findings in the words of this program: where, what is wrong, what would be right."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from planner.errors import Problem
from planner.schema.fields import MISTAKES
from planner.schema.suggest import hint_for_key, hint_for_word, key_meant
from planner.schema.yaml_positions import FieldPath, Positions, YamlDocument, field_name, shown

_COMPARISONS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
}
_NUMBER_WITH_UNIT = re.compile(r"([-+]?[0-9.][0-9._,eE+]*)\s*([^\d\s].*)?")


@dataclass(frozen=True, slots=True)
class Places:
    """Makes problems out of field paths, with line and column looked up."""

    file: str
    positions: Positions
    key_positions: Positions

    @classmethod
    def of(cls, document: YamlDocument, file: str) -> Places:
        """The places of a parsed file."""
        return cls(file, document.positions, document.key_positions)

    def problem(
        self, path: FieldPath, message: str, hint: str = "", *, at_key: bool = False
    ) -> Problem:
        """A problem at a path; where the path is not in the file, at what would hold it."""
        known = path
        if at_key and path in self.key_positions:
            place = self.key_positions[path]
        else:
            while known not in self.positions:
                known = known[:-1]
            # A field that is missing from a mapping is told at the key of that mapping.
            absent = known != path
            place = self.positions[known]
            if absent:
                place = self.key_positions.get(known, place)
        name = field_name(path)
        return Problem(message, hint, file=self.file, line=place[0], column=place[1], field=name)


def problems_of(
    error: ValidationError, model: type[BaseModel], places: Places, at: FieldPath
) -> list[Problem]:
    """Every finding of `error`, which came from reading the value at path `at` as `model`."""
    located = [(detail, _locate(detail, model)) for detail in error.errors(include_url=False)]
    meant: set[FieldPath] = set()
    for detail, spot in located:
        if detail["type"] == "extra_forbidden":
            near = key_meant(str(spot.path[-1]), spot.known)
            if near is not None:
                meant.add((*spot.path[:-1], near))
    found: list[Problem] = []
    for detail, spot in located:
        if detail["type"] == "missing" and spot.path in meant:
            continue  # its misspelt key is reported
        found += _problems(detail, spot, (*at, *spot.path), places)
    return found


def _problems(
    detail: ErrorDetails, spot: _Spot, path: FieldPath, places: Places
) -> Iterator[Problem]:
    kind, value = detail["type"], detail["input"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind == MISTAKES:
        for inner, message, hint in context["found"]:
            yield places.problem((*path, *_split(inner)), message, hint)
    elif kind == "missing":
        yield places.problem(path, "is missing", _missing_hint(spot))
    elif kind == "extra_forbidden":
        key = str(path[-1])
        if spot.elsewhere(key):
            message = f"does not go with the other keys here ({', '.join(spot.known)})"
            hint = "keep one way of giving this"
        else:
            message, hint = f"unknown key {shown(key)}", hint_for_key(key, spot.known)
        yield places.problem(path, message, hint, at_key=True)
    elif kind == "literal_error":
        yield places.problem(path, f"unknown value {_bare(value)}", _choice(value, context))
    elif kind in _COMPARISONS:
        name, words = _COMPARISONS[kind]
        yield places.problem(path, f"is {_value(value)}", f"must be {words} {context[name]:g}")
    elif kind in _WANTED:
        wanted = _WANTED[kind]
        if isinstance(value, bool):
            hint = f"write {wanted}"
        elif value is None:
            hint = f"write {wanted}{spot.or_leave_out()}"
        elif isinstance(value, str) and "number" in wanted:
            hint = _number_hint(value)
        elif kind == "tuple_type" and isinstance(value, (str, int, float)):
            hint = f"put it in brackets: [{value}]"
        elif kind in ("model_type", "model_attributes_type"):
            hint = "write its fields, as in {key: value}"
        else:
            hint = f"write {wanted}"
        yield places.problem(path, f"is {_value(value)}, not {wanted}", hint)
    elif kind == "too_short":
        if not value:  # else its items are wrong, and are told of
            yield places.problem(
                path, "is an empty list", f"list at least one{spot.or_leave_out()}"
            )
    elif kind == "string_too_short":
        yield places.problem(path, "is empty text", "give it a name")
    elif kind == "string_too_long":
        yield places.problem(path, "is longer than 100 characters", "shorten it")
    elif kind == "string_pattern_mismatch":
        hint = "keep it on one line, without blanks around it"
        yield places.problem(path, f"is {_value(value)}", hint)
    else:
        yield places.problem(path, detail["msg"])


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a finding is: its path in the file, and what fields are known there."""

    path: FieldPath
    holders: Sequence[type[BaseModel]]
    others: Sequence[type[BaseModel]] = ()
    """Other forms that the same value could have had."""

    @property
    def known(self) -> list[str]:
        return [name for each in self.holders for name in each.model_fields]

    def description(self) -> str:
        """First sentence of the description of the field that the path ends in."""
        for each in self.holders:
            field = each.model_fields.get(str(self.path[-1])) if self.path else None
            if field is not None and field.description:
                sentence = field.description.split(". ")[0].rstrip(".")
                return sentence[0].lower() + sentence[1:]
        return ""

    def or_leave_out(self) -> str:
        """The end of a hint for a field that may be absent; nothing for one that may not."""
        key = str(self.path[-1]) if self.path else ""
        optional = any(
            key in each.model_fields and not each.model_fields[key].is_required()
            for each in self.holders
        )
        return ", or leave it out" if optional else ""

    def elsewhere(self, key: str) -> bool:
        """Whether a key that is unknown here belongs to another form of the value."""
        return any(key in each.model_fields for each in self.others)


def _locate(detail: ErrorDetails, model: type[BaseModel]) -> _Spot:
    """The place of a finding; the names of union members in its location are left out."""
    path: list[str | int] = []
    candidates: list[type[BaseModel]] = [model]
    holders, others = candidates, candidates[:0]
    location = detail["loc"]
    for index, part in enumerate(location):
        if isinstance(part, int):
            path.append(part)
            continue
        tagged = [each for each in candidates if each.__name__ == part]
        if tagged:
            others = [each for each in candidates if each.__name__ != part]
            holders = candidates = tagged
            continue
        if part == "Number" and len(candidates) > 1:
            continue
        path.append(part)
        holders = candidates
        if index < len(location) - 1:
            others = []
            candidates = [
                member
                for each in holders
                if part in each.model_fields
                for member in _models_in(each.model_fields[part].annotation)
            ]
    return _Spot(tuple(path), holders, others)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _split(inner: str) -> FieldPath:
    """`slo[2].limit_ms` as a path."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", inner))


def _value(value: object) -> str:
    """A wrong value, named briefly."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {shown(value, 40)}"
    if isinstance(value, (int, float)):
        return f"{value:.12g}"
    return "a list" if isinstance(value, (list, tuple)) else "a mapping"


def _bare(value: object) -> str:
    return shown(value, 40) if isinstance(value, str) else _value(value)


def _choice(value: object, context: Mapping[str, Any]) -> str:
    expected = str(context.get("expected", ""))
    words = re.findall(r"'([^']*)'", expected)
    if not words:
        return f"write {expected}"
    return hint_for_word(value, words) if isinstance(value, str) else f"known: {', '.join(words)}"


def _number_hint(text: str) -> str:
    """What number was probably meant by a text."""
    match = _NUMBER_WITH_UNIT.fullmatch(text.strip())
    if match is None:
        return "write a number"
    digits, unit = match.group(1), match.group(2)
    plain = digits.replace("_", "").replace(",", "")
    try:
        float(plain)
    except ValueError:
        return "write a number"
    if unit and unit.strip() == "%":
        return "write a number without a percent sign; a fraction is below 1"
    if unit:
        return f"write {plain} without a unit: the unit is in the key's name"
    if plain != digits:
        return f"write {plain}, without separators"
    return f"write {plain} without quotes"


def _missing_hint(spot: _Spot) -> str:
    if spot.path == ("format_version",):
        return "write format_version: 1"
    if spot.path[-1] == "requests_per_s":
        return "give requests_per_s, tokens_per_day, or users with requests_per_user_per_hour"
    return f"add it: {spot.description()}"
