"""Performance of one replica: seconds per engine step, bytes of memory, TPOT and TTFT.

`PoolConfig` says what runs where; `StepModel` turns many of them into arrays of coefficients at
once; `serving` goes from steps to what a user sees; `backend` is the protocol by which other
sources of step times take the roofline's place.
"""

from __future__ import annotations

from planner.perf.coefficients import StepModel
from planner.perf.config import (
    EngineProfile,
    Layout,
    PoolConfig,
    Speculative,
    config_problem,
    enumerate_layouts,
)
from planner.perf.constants import Constants, load_constants
from planner.perf.engines import engine_profile, engines

__all__ = [
    "Constants",
    "EngineProfile",
    "Layout",
    "PoolConfig",
    "Speculative",
    "StepModel",
    "config_problem",
    "engine_profile",
    "engines",
    "enumerate_layouts",
    "load_constants",
]
