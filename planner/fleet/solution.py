"""What the program found: counts and flows by name, cost and proven bound. No Pyomo."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
        missing = max(self.cost_usd_per_hour - self.bound_usd_per_hour, 0.0)
        return missing / max(self.cost_usd_per_hour, 1e-10)
