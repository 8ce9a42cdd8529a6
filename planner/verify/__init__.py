"""Re-evaluation of a fleet by the full model, from the raw instance. Imports no Pyomo.

Nothing here reads the candidate table or the program: the operating point of every pool is
found from its replicas and flows, and every promise, memory limit, stock and demand is checked
against the instance. The printed latencies are the ones computed here.
"""

from __future__ import annotations

from planner.verify.check import verify
from planner.verify.records import (
    TOLERANCE,
    FleetPool,
    FleetRules,
    PoolState,
    SloState,
    Verification,
)

__all__ = [
    "TOLERANCE",
    "FleetPool",
    "FleetRules",
    "PoolState",
    "SloState",
    "Verification",
    "verify",
]
