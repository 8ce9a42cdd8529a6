"""From the instance as written to numbers: rates, token mixes, latency limits, precisions.

Names are loaded when first used, so that importing the package does not load numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.workload.build import Workload, build_workload
    from planner.workload.classes import LatencyLimit, Slo, WorkloadClass
    from planner.workload.mix import TokenMix

__all__ = ["LatencyLimit", "Slo", "TokenMix", "Workload", "WorkloadClass", "build_workload"]

_HOME = {
    "LatencyLimit": "planner.workload.classes",
    "Slo": "planner.workload.classes",
    "TokenMix": "planner.workload.mix",
    "Workload": "planner.workload.build",
    "WorkloadClass": "planner.workload.classes",
    "build_workload": "planner.workload.build",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
