"""How far a routing can grow before the full model finds a promise or a limit broken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from planner.assemble import fleet_rules
from planner.evaluation import Limit
from planner.problem import Problem
from planner.verify import TOLERANCE, FleetPool, Verification, verify

PRECISION: Final = 1e-4
"""Load factors are found to this share of themselves, and rounded down."""
FIRST_STEP: Final = 0.02
"""First step above a load that is known to be carried."""
LEAST_FACTOR: Final = 1e-3
"""A load factor below this is told as none."""
LARGEST_FACTOR: Final = 1e6


class Loads:
    """The pools and classes of one model under requests that are multiplied by factors."""

    def __init__(self, problem: Problem, pools: Sequence[FleetPool], model: str) -> None:
        self.rules = fleet_rules(problem)
        self.classes = [each for each in problem.classes if each.model == model]
        self.pools = [pool for pool in pools if pool.config.model.id == model]
        self.routed = any(rate > 0 for pool in self.pools for rate in pool.requests_per_s.values())

    def at(self, factor: float, others: float = 1.0, grown: str = "") -> Verification:
        """The fleet under `factor` times the requests of the class `grown` and `others` times
        those of all others; under `factor` times all of them where no class is named.
        """
        growth = {
            workload.name: factor if grown in ("", workload.name) else others
            for workload in self.classes
        }
        # A queue without end has infinite latencies, and some of their differences are no
        # numbers; neither passes for a promise that is kept.
        with np.errstate(all="ignore"):
            pools = [grown_pool(pool, growth) for pool in self.pools]
            return verify(self.classes, pools, {}, self.rules)

    def largest(self, start: float, others: float = 1.0, grown: str = "") -> float:
        """The largest factor, as in `at`, under which every pool and promise is within its
        limits; 0 if none is. `start` is where it is thought to be.
        """
        if not self.routed:
            return 0.0

        def keeps(factor: float) -> bool:
            return _kept(self.at(factor, others, grown))

        low, high, step = 0.0, start, FIRST_STEP
        while high < LARGEST_FACTOR and keeps(high):
            low, high, step = high, high * (1 + step), 2 * step
        while low == 0.0:
            if high < LEAST_FACTOR:
                return 0.0
            if keeps(high / 2):
                low = high / 2
            else:
                high /= 2
        while high - low > PRECISION * low:
            middle = (low + high) / 2
            low, high = (middle, high) if keeps(middle) else (low, middle)
        return low


def grown_pool(pool: FleetPool, growth: Mapping[str, float]) -> FleetPool:
    """The pool with the requests of each class multiplied by its factor."""
    rates = {name: rate * growth.get(name, 1.0) for name, rate in pool.requests_per_s.items()}
    return replace(pool, requests_per_s=rates)


def _kept(check: Verification) -> bool:
    """Whether all that depends on the load is within its limits."""
    pressures = (value for state in check.pools.values() for value in state.pressure.values())
    return all(value <= 1 + TOLERANCE for value in pressures) and all(
        state.kept for states in check.slos.values() for state in states
    )


def is_finite(check: Verification) -> bool:
    """Whether every figure of a verification is a number."""
    return all(
        math.isfinite(value)
        for state in check.pools.values()
        for value in (*state.pressure.values(), *state.utilization.values())
    ) and all(
        math.isfinite(state.predicted_s) for states in check.slos.values() for state in states
    )


def tightest(check: Verification) -> Limit:
    """The limit that is used most: one of a pool, or the promise to a class if that is tighter."""
    found: list[tuple[float, Limit]] = []
    for pool, state in check.pools.items():
        limit = state.binding
        found.append((state.pressure[limit], Limit(where=pool, limit=limit)))
    for name, states in check.slos.items():
        for each in states:
            # Most promises are limits of a pool too, which says more.
            use = each.predicted_s / each.slo.limit_s * (1 - 1e-6)
            found.append((use, Limit(where=name, limit=each.slo.metric)))
    return max(found, key=lambda item: item[0])[1]
