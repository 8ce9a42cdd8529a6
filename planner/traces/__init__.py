"""Traces of requests and dumps of metrics, and what they say of a workload."""

from planner.traces.reading import read_trace
from planner.traces.trace import Trace

__all__ = ["Trace", "read_trace"]
