"""Checks between the parts of an instance that need no catalogue."""

from __future__ import annotations

from collections.abc import Iterator

from planner.errors import Problem
from planner.schema.fields import repeated
from planner.schema.messages import Places
from planner.schema.parts import InstanceParts
from planner.units import ROLES


def check_parts(parts: InstanceParts, places: Places) -> list[Problem]:
    """Every mistake between parts."""
    return [*_names(parts, places), *_roles(parts, places)]


def _names(parts: InstanceParts, places: Places) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, name in parts.texts("workloads", "name"):
        if name in seen:
            message = f"the name {name!r} is taken by workloads[{seen[name]}]"
            hint = "names are unique"
            yield places.problem(("workloads", index, "name"), message, hint)
        seen.setdefault(name, index)


def _roles(parts: InstanceParts, places: Places) -> Iterator[Problem]:
    """The roles allowed can serve a whole request, within the kinds of pool allowed."""
    raw = parts.raw.get("roles")
    if not isinstance(raw, list):
        return
    roles = [role for role in raw if role in ROLES]
    for index in repeated(roles):
        yield places.problem(("roles", index), f"{roles[index]} is listed twice", "list it once")
    if not roles or "aggregated" in roles:
        return
    if len(set(roles)) < 2:
        message = f"{roles[0]} alone cannot serve a request"
        hint = "allow prefill and decode, or aggregated"
        yield places.problem(("roles",), message, hint)
    elif parts.fleet is not None and parts.fleet.max_pool_kinds_per_model == 1:
        message = "is 1, but prefill and decode pools are two kinds"
        path = ("fleet", "max_pool_kinds_per_model")
        yield places.problem(path, message, "raise it to 2, or allow the role aggregated")
