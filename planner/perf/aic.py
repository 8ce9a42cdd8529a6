"""Registers the backend `aiconfigurator`, if the package behind it is installed.

Importing this module raises ModuleNotFoundError where it is not: the extra
`llm-fleet-planner[aiconfigurator]` brings it.
"""

from __future__ import annotations

from planner.perf.aic_backend import AicBackend
from planner.perf.aic_engine import PACKAGE, installed
from planner.perf.backend import register

if not installed():
    raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)

register(AicBackend())
