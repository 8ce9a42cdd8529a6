"""Plan LLM inference fleets at least cost under latency targets, with a proven bound.

    import planner

    plan = planner.solve(planner.load("instances/enterprise.yaml"))

The names below are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Where each public name lives.
_HOMES = {
    "load": "planner.api",
    "solve": "planner.api",
    "evaluate": "planner.api",
    "simulate_plan": "planner.api",
    "SimulationSettings": "planner.simulate.records",
    "Failure": "planner.simulate.records",
    "frames": "planner.frames",
    "Plan": "planner.plan",
    "PlannerError": "planner.errors",
    "InputError": "planner.errors",
    "UnsupportedModelError": "planner.errors",
    "SolverUnavailableError": "planner.errors",
    "NoPlanError": "planner.errors",
    "SolverError": "planner.errors",
}

__all__ = [
    "Failure",
    "InputError",
    "NoPlanError",
    "Plan",
    "PlannerError",
    "SimulationSettings",
    "SolverError",
    "SolverUnavailableError",
    "UnsupportedModelError",
    "__version__",
    "evaluate",
    "frames",
    "load",
    "simulate_plan",
    "solve",
]

if TYPE_CHECKING:
    from planner.api import evaluate, load, simulate_plan, solve
    from planner.errors import (
        InputError,
        NoPlanError,
        PlannerError,
        SolverError,
        SolverUnavailableError,
        UnsupportedModelError,
    )
    from planner.frames import frames
    from planner.plan import Plan
    from planner.simulate.records import Failure, SimulationSettings


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
