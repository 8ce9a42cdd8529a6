"""What is found of a given fleet: frozen, versioned, plain data that survives JSON.

The parts are those of a plan. Cost, latencies and use are of the fleet as it was given; the load
factor says how much demand it could take.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from planner.plan import ClassPlan, NodePlan, PoolPlan, Provenance, Status


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClassEvaluation(ClassPlan):
    """What one workload gets, what it costs, and how far it alone could grow."""

    load_factor: float
    """Factor on this workload's demand that the fleet carries, while all others stay at their
    demand, or at what the fleet carries of it where that is less."""


class Limit(_Frozen):
    """What more load would break first."""

    where: str
    """A pool, or a workload."""
    limit: str
    """The limit of a pool, or the promise to a workload, that is reached."""


class Optimum(_Frozen):
    """The cheapest fleet for the same instance."""

    status: Status
    cost_usd_per_hour: float
    bound_usd_per_hour: float
    gap_fraction: float
    saving_usd_per_hour: float
    """What it costs less than the given fleet; negative where it costs more."""


class Evaluation(_Frozen):
    """A given fleet: its price, whether it keeps every promise, and the load that it carries."""

    format_version: Literal[1] = 1
    name: str
    """Of the instance."""
    fleet: str
    """Name or file of the fleet."""
    status: Literal["meets", "fails"]
    cost_usd_per_hour: float
    cost_usd_per_month: float
    load_factor: float
    """Largest factor on all demand at which every promise and every limit that depends on the
    load is kept."""
    binding: Limit | None = None
    """What keeps the load factor from being larger."""
    routing: Literal["given", "found"]
    shown_at: Literal["demand", "carried load"]
    """Load at which pools and classes are shown: the demand, unless a queue would grow without
    end there."""
    pools: tuple[PoolPlan, ...] = ()
    classes: tuple[ClassEvaluation, ...] = ()
    nodes: tuple[NodePlan, ...] = ()
    violations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    optimum: Optimum | None = None
    provenance: Provenance | None = None

    def to_json(self) -> str:
        """JSON text with sorted keys, two spaces, a final newline."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2) + "\n"
