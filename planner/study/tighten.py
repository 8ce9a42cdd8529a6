"""Solve, simulate, tighten where the simulation is slower than the formulas, solve again.

A formula that is off by 10 % somewhere is worth more than a promise: the program keeps the
formula, and a margin per class and kind of pool makes up for what the simulation of its plan
found. Margins are never below 1 and only ever grow, so a round can cost money but never safety.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from planner.candidates.promises import NO_MARGIN, Margin, Margins, pool_kind
from planner.embedded import EmbeddedPlan, embedded_plan
from planner.plan import MissedSlo, Plan, SimulatedRound
from planner.simulate import statistics
from planner.simulate.asked import checked
from planner.simulate.latencies import Latencies, class_latencies, estimate
from planner.simulate.predictions import predictions_s
from planner.simulate.records import NO_PLACE, Bools, ComponentRun, SimulationSettings
from planner.simulate.run import simulate_plan
from planner.workload.classes import Slo, WorkloadClass

MAX_ROUNDS: Final = 5
"""Solves at most; most plans need one or two."""
REQUESTS_PER_CLASS: Final = 20_000
OVERSHOOT: Final = 1.01
"""A margin grows by this more than what was missed, so that rounds come to an end."""
NOISE: Final = 2.0
"""Half intervals that a promise must have in hand: the noise of this run and of the next."""

MarginTable = dict[tuple[str, str], Margin]
SolveWith = Callable[[Margins], Plan]
ProgressOf = Callable[[float, str], None]


@dataclass(slots=True)
class _Findings:
    """What one simulation says of the promises: those missed, and the margins they ask for."""

    margins: MarginTable
    missed: list[MissedSlo] = field(default_factory=list)
    requests: int = 0

    def widen(self, key: tuple[str, str], phase: str, ratio: float) -> None:
        """Raise the margin of a class on a kind of pool by `ratio`, in one phase."""
        found = self.margins.get(key, NO_MARGIN)
        ttft, tpot = found.ttft, found.tpot
        if phase == "ttft":
            ttft *= max(ratio, 1.0) * OVERSHOOT
        else:
            tpot *= max(ratio, 1.0) * OVERSHOOT
        self.margins[key] = Margin(ttft, tpot)


def solve_and_simulate(
    solve: SolveWith,
    *,
    seed: int = 0,
    rounds: int = MAX_ROUNDS,
    requests_per_class: int = REQUESTS_PER_CLASS,
    progress: ProgressOf = lambda fraction, what: None,
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """The plan whose simulation keeps every promise, with its rounds; or the last one tried.

    `solve` makes a plan that keeps the margins it is given. Each round is simulated with a seed
    of its own. A plan with a last round that still misses a promise carries a warning; callers
    must not take it for one that holds. Raises what `solve` and the simulation raise.
    """
    margins: MarginTable = {}
    done: list[SimulatedRound] = []
    plan = solve(margins)
    while plan.has_fleet and plan.status != "interrupted":
        embedded = embedded_plan(plan, "<plan>")
        settings = SimulationSettings(seed=seed + len(done), requests_per_class=requests_per_class)
        found = _simulated(embedded, settings, margins, progress)
        done.append(_round(plan, found, settings.seed))
        note(_told(len(done), done[-1]))
        plan = plan.model_copy(update={"rounds": tuple(done)})
        if not found.missed or len(done) == rounds:
            break
        margins = found.margins
        tighter = solve(margins)
        if not tighter.has_fleet or tighter.status == "interrupted":
            # What is left of the search says nothing against the plan that stands.
            reason = f"no fleet keeps the promises with these margins ({tighter.status})"
            return _warned(plan, reason.replace("_", " "))
        plan = tighter
    if done and done[-1].missed:
        return _warned(plan, f"after {len(done)} rounds")
    return plan


def _warned(plan: Plan, reason: str) -> Plan:
    missed = ", ".join(
        f"{each.workload} {each.metric}"
        + (" mean" if each.percentile is None else f" p{each.percentile:g}")
        for each in plan.rounds[-1].missed
    )
    text = f"The simulation still sees promises missed, {reason}: {missed}."
    return plan.model_copy(update={"warnings": (*plan.warnings, text)})


def _round(plan: Plan, found: _Findings, seed: int) -> SimulatedRound:
    assert plan.cost_usd_per_hour is not None
    assert plan.bound_usd_per_hour is not None
    return SimulatedRound(
        cost_usd_per_hour=plan.cost_usd_per_hour,
        bound_usd_per_hour=plan.bound_usd_per_hour,
        gpus=sum(pool.gpus for pool in plan.pools),
        requests=found.requests,
        seed=seed,
        missed=tuple(found.missed),
    )


def _told(number: int, done: SimulatedRound) -> str:
    cost = f"round {number}: ${done.cost_usd_per_hour:,.2f}/hour, {done.gpus} GPUs"
    if not done.missed:
        return f"{cost}: the simulation keeps every promise"
    worst = max(done.missed, key=_use)
    few = "promise is" if len(done.missed) == 1 else "promises are"
    return (
        f"{cost}: in the simulation {len(done.missed)} {few} missed or too close to tell, worst "
        f"{worst.workload} {worst.metric} at {_use(worst):.2f} of its limit"
    )


def _use(missed: MissedSlo) -> float:
    return math.inf if missed.simulated_ms is None else missed.simulated_ms / missed.limit_ms


def _simulated(
    embedded: EmbeddedPlan,
    settings: SimulationSettings,
    margins: MarginTable,
    progress: ProgressOf,
) -> _Findings:
    run = simulate_plan(embedded, checked(embedded, settings), progress)
    found = _Findings(dict(margins))
    wanted = [
        (workload.name, slo.metric, slo.percentile)
        for workload in embedded.classes
        for slo in workload.slos
    ]
    predicted = predictions_s(embedded, wanted)
    for component in run.components:
        found.requests += int(component.requests.counted.sum())
        for name in component.classes:
            workload = next(each for each in embedded.classes if each.name == name)
            latencies = class_latencies(component, name)
            for slo in workload.slos:
                value = estimate(latencies, slo.metric, slo.percentile)
                needed_s = _with_noise(value)
                if needed_s <= slo.limit_s:
                    continue
                expected_s = predicted[name, slo.metric, slo.percentile]
                found.missed.append(_missed(name, slo, value.value, expected_s))
                for key, phase, ratio in _causes(embedded, component, workload, slo, needed_s):
                    found.widen(key, phase, ratio)
    return found


def _with_noise(value: statistics.Estimate) -> float:
    """What a promise must leave room for: the figure and the noise of two runs."""
    if not math.isfinite(value.high):
        return value.value
    return value.value + NOISE * max(value.high - value.value, 0.0)


def _missed(name: str, slo: Slo, value_s: float, expected_s: float) -> MissedSlo:
    return MissedSlo(
        workload=name,
        metric=slo.metric,  # type: ignore[arg-type]  # the schema allows these only
        percentile=None if slo.percentile is None else round(slo.percentile * 100, 9),
        limit_ms=slo.limit_s * 1e3,
        predicted_ms=expected_s * 1e3,
        simulated_ms=value_s * 1e3 if math.isfinite(value_s) else None,
    )


def _causes(
    embedded: EmbeddedPlan,
    component: ComponentRun,
    workload: WorkloadClass,
    slo: Slo,
    needed_s: float,
) -> Iterator[tuple[tuple[str, str], str, float]]:
    """Pools that make a class miss a promise: key of the margin, phase, and what it must grow by.

    TTFT is made where prompts are computed, TPOT where tokens are. Limits on the whole request,
    or on a token behind hidden ones, are made in both.
    """
    whole = slo.metric == "e2e" or (slo.metric == "ttft" and workload.mix.max_hidden_tokens > 0)
    phases = ("ttft", "tpot") if whole else (slo.metric,)
    ratio = min(needed_s / slo.limit_s, 10.0)
    for phase in phases:
        log = component.requests
        place = log.prefill_pool if phase == "ttft" else log.decode_pool
        mine = log.counted & (log.class_index == component.classes.index(workload.name))
        pools = [int(each) for each in np.unique(place[mine]) if each != NO_PLACE]
        worst = {
            pool: ratio
            if whole
            else _of_pool(component, workload.name, slo, place[mine] == pool) * ratio
            for pool in pools
        }
        top = max(worst.values(), default=1.0)
        for pool, value in worst.items():
            # The pool that is slowest answers for the class; others only for what they miss.
            grown = ratio if value == top else value
            if grown > 1.0:
                yield (workload.name, _kind(embedded, component.pools[pool])), phase, grown


def _of_pool(component: ComponentRun, name: str, slo: Slo, part: Bools) -> float:
    """A promise's figure over the requests of one pool, relative to that of the whole class."""
    latencies: Latencies = class_latencies(component, name)
    whole = estimate(latencies, slo.metric, slo.percentile).value
    mine = estimate(latencies.part(part), slo.metric, slo.percentile).value
    return mine / whole if math.isfinite(mine) and math.isfinite(whole) and whole > 0 else 1.0


def _kind(embedded: EmbeddedPlan, pool_id: str) -> str:
    pool = next(each for each in embedded.plan.pools if each.id == pool_id)
    return pool_kind(embedded.configs[pool_id], pool.role, pool.chunk_tokens)
