"""What the program found: counts and flows by name, cost and proven bound. No Pyomo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from planner.fleet.inputs import FleetInputs

ROUND_OFF: Final = 1e-9
"""Share of a class's demand below which a flow is the solver's tolerance."""


@dataclass(frozen=True, slots=True)
class FleetSolution:
    """Integer counts and flows. Bound and gap hold over every enumerated option."""

    status: str
    cost_usd_per_hour: float
    bound_usd_per_hour: float
    replicas: dict[str, int]
    """By option name; unused options are left out."""
    flow: dict[tuple[int, str], float]
    """Requests/s by class index and option name."""
    nodes: dict[str, int]
    """By offer id."""
    relaxation_usd_per_hour: float
    columns: int
    """Options in the last program, after pricing."""
    branch_nodes: int
    elapsed_s: float
    solver: str

    @property
    def gap_fraction(self) -> float:
        """(cost - bound) / cost; infinite without a plan."""
        if not math.isfinite(self.cost_usd_per_hour):
            return math.inf
        missing = self.cost_usd_per_hour - self.bound_usd_per_hour
        if missing < 1e-9 * self.cost_usd_per_hour:  # round-off of the solver's objective
            return 0.0
        return missing / max(self.cost_usd_per_hour, 1e-10)


def exact_demand(
    inputs: FleetInputs, flow: dict[tuple[int, str], float]
) -> dict[tuple[int, str], float]:
    """Flows scaled so that every class and KV group balances to the last digit.

    The solver satisfies equalities to its tolerance; the plan should satisfy them exactly.
    """
    exact = dict(flow)
    for (k, _), sides in inputs.kv_pairs.items():
        sums = [math.fsum(exact.get((k, p), 0.0) for p in side) for side in sides]
        if min(sums) <= ROUND_OFF * max(inputs.demand[k]):
            # What only one side holds is round-off of the solver, not an exchange.
            for p in (*sides[0], *sides[1]):
                exact.pop((k, p), None)
    for k in range(len(inputs.classes)):
        demand = inputs.demand[k][0]
        served = math.fsum(
            v for (c, p), v in exact.items() if c == k and inputs.by_name[p].prefills
        )
        if served <= 0:
            continue
        for (c, p), value in list(exact.items()):
            if c == k and inputs.by_name[p].prefills:
                exact[c, p] = value * demand / served
    for (k, _), (prefill, decode) in inputs.kv_pairs.items():
        sent = math.fsum(exact.get((k, p), 0.0) for p in prefill)
        received = math.fsum(exact.get((k, p), 0.0) for p in decode)
        if received > 0:
            for p in decode:
                if (k, p) in exact:
                    exact[k, p] *= sent / received
    return exact
