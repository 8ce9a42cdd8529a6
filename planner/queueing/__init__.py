"""Percentiles of waiting as bounds a linear program can hold: TTFT of pools, TPOT of batches."""

from __future__ import annotations

from planner.queueing.capacity import (
    CapacityTable,
    CapacityTables,
    FirstTokenLimit,
    capacity_table,
    capacity_tables,
    combine,
    largest_load,
    thin_points,
)
from planner.queueing.decode import largest_utilisation, tpot_quantile, utilisation_at_step
from planner.queueing.prefill import (
    erlang_c,
    mean_wait_if_waiting_s,
    ttft_mean,
    ttft_quantile,
    ttft_tail,
    wait_probability,
)

__all__ = [
    "CapacityTable",
    "CapacityTables",
    "FirstTokenLimit",
    "capacity_table",
    "capacity_tables",
    "combine",
    "erlang_c",
    "largest_load",
    "largest_utilisation",
    "mean_wait_if_waiting_s",
    "thin_points",
    "tpot_quantile",
    "ttft_mean",
    "ttft_quantile",
    "ttft_tail",
    "utilisation_at_step",
    "wait_probability",
]
