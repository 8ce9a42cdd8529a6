"""Why an instance is infeasible: the smallest change of each kind that would make it feasible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from planner.fleet.inputs import FleetInputs
from planner.fleet.model import Model, build_model
from planner.fleet.slacks import SLACKS
from planner.fleet.solver import SolveSettings, solve_model

LEAST_AMOUNT: Final = 1e-6
TIME_LIMIT_S: Final = 10.0
"""Longest time for one kind of change; without an answer in it the kind is left out."""


@dataclass(frozen=True, slots=True)
class Change:
    """One requirement relaxed by the least amount that helps, the others kept."""

    requirement: str
    amount: float
    unit: str
    sentence: str


def smallest_changes(inputs: FleetInputs, settings: SolveSettings) -> list[Change]:
    """For each kind of requirement alone, then for all together, the smallest change.

    Kinds that alone cannot make the instance feasible are left out; serving less demand always
    can. Solved with a gap of 1 %, as amounts are for reading.
    """
    limit = TIME_LIMIT_S if settings.time_limit_s is None else settings.time_limit_s
    limit = min(limit, TIME_LIMIT_S)
    loose = replace(settings, gap_fraction=0.01, time_limit_s=limit, progress=None)
    changes: list[Change] = []
    for family in _applicable(inputs):
        model = build_model(inputs, relaxed=(family,), objective="slack")
        if solve_model(model, loose).has_incumbent:
            changes.extend(_read(model, inputs, family))
    if not any(change.requirement != "demand" for change in changes):
        families = [family for family in _applicable(inputs) if family != "demand"]
        if len(families) > 1:
            model = build_model(inputs, relaxed=families, objective="slack")
            if solve_model(model, loose).has_incumbent:
                together = [
                    change for family in families for change in _read(model, inputs, family)
                ]
                for change in together:
                    plain = change.sentence.removesuffix(" (together)")
                    changes.append(replace(change, sentence=f"{plain} (together)"))
    return changes


def _applicable(inputs: FleetInputs) -> list[str]:
    families = []
    if inputs.stocks:
        families.append("stock")
    if inputs.budget_usd_per_hour is not None:
        families.append("budget")
    if inputs.max_pool_kinds_per_model is not None:
        families.append("pool_kinds")
    return [*families, "demand"]


def _read(model: Model, inputs: FleetInputs, family: str) -> list[Change]:
    """The changes of one family in a solved elastic model."""
    found: Sequence[tuple[str, float]]
    if family == "stock":
        found = [
            (inputs.stocks[s].name, round(variable.value or 0.0))
            for s, variable in model.extra_nodes.items()
        ]
    elif family == "budget":
        found = [("", float(model.over_budget_usd_per_hour.value or 0.0))]
    elif family == "pool_kinds":
        found = [(m, round(variable.value or 0.0)) for m, variable in model.extra_kinds.items()]
    else:
        found = [
            (inputs.classes[k], float(variable.value or 0.0))
            for k, variable in model.unserved_fraction.items()
        ]
    record = SLACKS[family]
    needed = [(subject, amount) for subject, amount in found if amount > LEAST_AMOUNT]
    together = " (together)" if len(needed) > 1 else ""
    return [
        Change(
            family,
            amount,
            record.unit,
            record.sentence.format(amount=_rounded(family, amount), subject=subject) + together,
        )
        for subject, amount in needed
    ]


def _rounded(family: str, amount: float) -> float:
    """Round up, so that the change as read is enough."""
    if family == "budget":
        return math.ceil(amount * 100) / 100
    if family == "demand":
        return math.ceil(amount * 1000) / 1000
    return amount
