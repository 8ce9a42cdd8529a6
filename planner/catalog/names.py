"""Looking a thing up by the name a person typed: exact aliases, never guesses.

Case, spaces, underscores and hyphens do not distinguish names ("H100_SXM" is "h100-sxm"). A name
that is not in the table is an error that offers the nearest ones, so that a typing mistake never
silently becomes another chip or model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from planner.errors import InputError, Problem

Value = TypeVar("Value")


def normalise(name: str) -> str:
    """Lower case, with every run of spaces, underscores and hyphens as one hyphen."""
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def lookup(name: str, table: Mapping[str, Value], kind: str) -> Value:
    """The entry of `table` (keys normalised) called `name`.

    Raises InputError naming up to three similar entries when there is none.
    """
    found = table.get(normalise(name))
    if found is None:
        raise InputError([unknown(name, table, kind)])
    return found


def unknown(name: str, known: Iterable[str], kind: str) -> Problem:
    """The problem "unknown accelerator 'h10'", with suggestions or the way to list all."""
    near = difflib.get_close_matches(normalise(name), list(known), n=3, cutoff=0.6)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"`planner list {kind}s` shows all of them"
    return Problem(f"unknown {kind} {name!r}", hint=hint)
