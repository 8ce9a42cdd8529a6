"""Typed access to parsed files, with errors that name the file, the line and the field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from planner.errors import InputError, Problem
from planner.schema.yaml_positions import FieldPath, field_name, shown

LARGEST_NUMBER: Final = 1e18
SMALLEST_NUMBER: Final = 1e-15
"""Outside these no figure of a benchmark makes sense, and ratios could leave what floats hold."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a parsed file and where it stands.

    `path` leads to it from the top of the file, or of the line where `line` is set.
    """

    value: object
    file: str
    path: FieldPath = ()
    line: int | None = None

    def error(self, message: str, hint: str = "") -> InputError:
        """An error of this value."""
        return InputError([self.problem(message, hint)])

    def problem(self, message: str, hint: str = "") -> Problem:
        """A problem of this value: its file, line and field with the message."""
        return Problem(message, hint, file=self.file, line=self.line, field=field_name(self.path))

    @property
    def place(self) -> str:
        """Line and field, as a person would say it; empty for the whole file."""
        line = f"line {self.line}" if self.line is not None else ""
        return ", ".join(part for part in (line, field_name(self.path)) if part)

    def find(self, *keys: str | int) -> Node | None:
        """The value below these keys, or None if one of them is absent or null.

        Raises InputError when something on the way is no mapping or list.
        """
        here = self
        for key in keys:
            if isinstance(key, int):
                sequence = here._as_list()
                inner = sequence[key] if key < len(sequence) else None
            else:
                inner = here.mapping().get(key)
            if inner is None:
                return None
            here = Node(inner, self.file, (*here.path, key), self.line)
        return here

    def at(self, *keys: str | int) -> Node:
        """The value below these keys. Raises InputError when it is absent or null."""
        found = self.find(*keys)
        if found is None:
            raise self.missing(*keys)
        return found

    def first(self, *keys: str) -> Node | None:
        """The value under the first of these keys that has one; None if none has."""
        return next((found for key in keys if (found := self.find(key)) is not None), None)

    def first_text(self, *keys: str) -> str | None:
        """Text under the first of these keys that has a value. Raises InputError if it is none."""
        found = self.first(*keys)
        return found.text() if found is not None else None

    def first_count(self, *keys: str) -> int | None:
        """As `first_text`, a whole number above 0, also where it is written in quotes."""
        found = self.first(*keys)
        return found.written_count() if found is not None else None

    def missing(self, *keys: str | int, hint: str = "") -> InputError:
        """The error of an absent value below these keys."""
        return Node(None, self.file, (*self.path, *keys), self.line).error("is missing", hint)

    def mapping(self) -> Mapping[str, object]:
        """The value as a mapping. Raises InputError otherwise."""
        if not isinstance(self.value, dict):
            raise self.error(f"is {kind(self.value)}", "must be an object with fields")
        return self.value

    def items(self) -> Iterator[Node]:
        """The elements of a list, each as a node. Raises InputError when it is no list."""
        for index, value in enumerate(self._as_list()):
            yield Node(value, self.file, (*self.path, index), self.line)

    def children(self) -> Iterator[Node]:
        """The values of a mapping, each as a node. Raises InputError when it is none."""
        for key, value in self.mapping().items():
            yield Node(value, self.file, (*self.path, key), self.line)

    def _as_list(self) -> list[object]:
        if not isinstance(self.value, list):
            raise self.error(f"is {kind(self.value)}", "must be a list")
        return self.value

    def number(self) -> float:
        """A finite number. Raises InputError for text, NaN, infinity and other types."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"is {kind(value)}", "must be a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error("is not a finite number", "measure again, or leave this run out")
        if abs(number) > LARGEST_NUMBER:
            raise self.error(f"{number:g} is too large to be measured")
        return number

    def positive(self, hint: str = "") -> float:
        """A number above 0. Raises InputError otherwise, with `hint`."""
        number = self.number()
        if number <= 0:
            raise self.error(f"{number:g} must be above 0", hint)
        if number < SMALLEST_NUMBER:
            raise self.error(f"{number:g} is too small to be measured")
        return number

    def count(self, least: int = 0) -> int:
        """A whole number of at least `least`. Raises InputError otherwise."""
        number = self.number()
        if number != int(number) or number < least:
            raise self.error(f"{number:g} must be a whole number of at least {least}")
        return int(number)

    def written_count(self, least: int = 1) -> int:
        """As `count`, also for digits in quotes, as command lines put them into files."""
        value = self.value
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                raise self.error(f"is {kind(value)}", "must be a whole number") from None
            return Node(number, self.file, self.path, self.line).count(least)
        return self.count(least)

    def text(self) -> str:
        """Text that is not empty. Raises InputError otherwise."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(f"is {kind(self.value)}", "must be text")
        return self.value.strip()

    def truth(self) -> bool:
        """True or false, also in words. Raises InputError otherwise."""
        words: dict[object, bool] = {"true": True, "false": False, "1": True, "0": False}
        value = self.value
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower() if isinstance(value, str | int) else ""
        if word not in words:
            raise self.error(f"is {kind(value)}", "must be true or false")
        return words[word]


def kind(value: object) -> str:
    """What a value is, in words: `the text 'fast'`, `a list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {shown(value, 40)}" if value.strip() else "empty text"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int | float):
        return f"the number {value:g}" if abs(value) <= LARGEST_NUMBER else "a number"
    return f"a {type(value).__name__}"
