"""Readers of the result files of serving benchmarks, one module per tool."""

from planner.calibrate.formats.reading import read_results

__all__ = ["read_results"]
