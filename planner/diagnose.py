"""What is in the way of an infeasible instance, in the user's words."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from planner.candidates.build import build_candidates
from planner.candidates.options import CandidateTable
from planner.candidates.request import CandidateRequest
from planner.fleet.elastic import smallest_changes
from planner.fleet.inputs import FleetInputs
from planner.fleet.solver import SolveSettings
from planner.plan import Conflict
from planner.problem import Problem
from planner.workload.classes import LatencyLimit, WorkloadClass

ALL_METRICS: Final = ("ttft", "tpot")
LOOSEST: Final = 4096.0
"""Factor on latency limits above which they are not what is in the way."""
STEPS: Final = 9
"""Halvings of the logarithm of that factor: amounts are good to about 2 %."""


def conflicts(
    problem: Problem, table: CandidateTable, inputs: FleetInputs, settings: SolveSettings
) -> tuple[Conflict, ...]:
    """The smallest change of each kind that would make the instance feasible.

    Workloads that no option can serve come first: their latency limits are relaxed until one
    does, or memory and precision are named. If every workload has options, the program is
    solved again with one kind of limit relaxed at a time.
    """
    stuck = [
        workload for index, workload in enumerate(problem.classes) if index not in inputs.servable
    ]
    if stuck:
        return tuple(_stuck_conflict(problem, table, workload) for workload in stuck)
    return tuple(
        Conflict(
            requirement=change.requirement,
            change=change.sentence,
            amount=change.amount,
            unit=change.unit,
        )
        for change in smallest_changes(inputs, settings)
    )


def _stuck_conflict(problem: Problem, table: CandidateTable, workload: WorkloadClass) -> Conflict:
    request = replace(
        problem.request(),
        classes=(workload,),
        models=tuple(each for each in problem.models if each.card.id == workload.model),
    )
    factor: float | None = None
    metrics: tuple[str, ...] = ALL_METRICS
    for metrics in (("tpot",), ("ttft",), ALL_METRICS):
        factor = _least_factor(problem, request, workload, metrics)
        if factor is not None:
            break
    if factor is None:
        reasons = table.refusals.get(workload.name, {})
        listed = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        return Conflict(
            requirement="hardware",
            change=(
                f"{workload.name} fits on none of the hardware allowed, whatever its latency "
                f"limits: {listed or 'no configuration exists'}; allow other accelerators, lower "
                "precisions or larger replicas"
            ),
            amount=0.0,
            unit="",
        )
    limits = ", ".join(
        f"{slo.metric} to {slo.limit_s * factor * 1e3:,.1f} ms"
        for slo in workload.slos
        if slo.metric in metrics or slo.metric == "e2e" or metrics == ALL_METRICS
    )
    return Conflict(
        requirement="slo",
        change=(
            f"{workload.name}: no hardware allowed meets its latency limits; relaxing "
            f"{' and '.join(each.upper() for each in metrics)} by a factor of {factor:.2f} would "
            f"do ({limits})"
        ),
        amount=factor,
        unit="factor",
    )


def _least_factor(
    problem: Problem,
    request: CandidateRequest,
    workload: WorkloadClass,
    metrics: tuple[str, ...],
) -> float | None:
    """Smallest factor on a class's limits of some metrics at which some option serves it."""

    def possible(factor: float) -> bool:
        looser = replace(
            workload,
            ttft_limits=_scaled(workload.ttft_limits, factor if "ttft" in metrics else 1.0),
            tpot_limits=_scaled(workload.tpot_limits, factor if "tpot" in metrics else 1.0),
        )
        table = build_candidates(replace(request, classes=(looser,)))
        inputs = replace(
            problem.inputs(),
            classes=(workload.name,),
            class_models=(workload.model,),
            demand=(workload.rate_per_s,),
        ).with_options(table.options)
        return 0 in inputs.servable

    if not possible(LOOSEST):
        return None
    low, high = 1.0, LOOSEST
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if possible(middle) else (middle, high)
    return high


def _scaled(limits: tuple[LatencyLimit, ...], factor: float) -> tuple[LatencyLimit, ...]:
    return tuple(LatencyLimit(limit.limit_s * factor, limit.percentile) for limit in limits)
