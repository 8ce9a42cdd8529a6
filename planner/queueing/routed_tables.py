"""Capacity tables of prefill pools under any routing policy.

One shared queue: pools of up to `LATTICE_SERVERS` replicas by the lattice of
`planner.queueing.routing`, which follows the tail of the prompts, larger ones by the exponential
wait of `planner.queueing.capacity`, which is quicker and as good there. Fewest requests: the
lattice up to eight replicas, above them a line from there that lies below the lattice at the
sizes in `CHECKED_SERVERS`. Policies that split the stream: pools of one replica; what one carries
does not fall with the size of the pool.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from planner.queueing.capacity import (
    EXACT_SERVERS,
    MAX_SERVERS,
    CapacityTables,
    capacity_tables,
)
from planner.queueing.prefill import FloatArray, ttft_quantile
from planner.queueing.routing import RoutedPool, largest_loads, ttft_quantile_routed
from planner.queueing.work import POOLED, SPLIT, Work
from planner.schema.serving import Routing

LATTICE_SERVERS: Final = 3
"""Largest shared queue at whose p99 the tail of the prompts shows."""
CHECKED_SERVERS: Final = (9, 10, 12, 16, 32, 64)
_ROUNDING: Final = 1e-7
"""Loads of the lattice are rounded down by this share."""


def routed_tables(
    own_s: FloatArray,
    limit_s: FloatArray,
    percentile: FloatArray,
    work: Work,
    weight: FloatArray,
    *,
    routing: Routing,
    ca2: float = 1.0,
) -> CapacityTables:
    """Tabulate each row: a limit on the first token of a class in pools of every size.

    own_s (N, P), weight (P,): seconds from the start of service to the first token of the class;
    limit_s (N,); percentile (N,), nan for the mean; work: busy times of all classes in the pool,
    N rows. Raises ValueError for shapes or values that do not fit.
    """
    limits = (own_s, weight, limit_s, percentile, work)
    mean_s, ratio_s, _ = work.moments()
    if routing in POOLED:
        tables = capacity_tables(
            own_s, limit_s, percentile, ratio_s, weight, ca2=ca2, mean_service_s=mean_s
        )
        small = np.arange(1, LATTICE_SERVERS + 1)
        exact = tables.exact.copy()
        exact[:, :LATTICE_SERVERS] = _rounded(
            largest_loads(*limits, small, routing=routing, ca2=ca2)
        )
        return CapacityTables(exact, tables.spare, tables.max_servers, tables.slope)
    small = np.arange(1, EXACT_SERVERS + 1)
    exact = _rounded(largest_loads(*limits, small, routing=routing, ca2=ca2))
    last = exact[:, -1]
    if routing in SPLIT:
        slope, spare = last / EXACT_SERVERS, np.zeros_like(last)
    else:
        far = np.array(CHECKED_SERVERS)
        above = _rounded(largest_loads(*limits, far, routing=routing, ca2=ca2))
        rises = (above - last[:, None]) / (far - EXACT_SERVERS)
        slope = np.minimum(last - exact[:, -2], rises.min(axis=1))
        spare = slope * EXACT_SERVERS - last
    usable = last > 0.0
    return CapacityTables(
        exact,
        np.where(usable, spare, math.inf),
        MAX_SERVERS,
        np.where(usable, slope, 1.0),
    )


def _rounded(loads: FloatArray) -> FloatArray:
    return np.asarray(loads * (1.0 - _ROUNDING))


def ttft_of_pool(
    percentile: float | None,
    own_s: FloatArray,
    weight: FloatArray,
    work: Work,
    *,
    servers: int,
    load_erlangs: float,
    routing: Routing,
    ca2: float = 1.0,
) -> float:
    """TTFT in seconds that a share `percentile` of a class keeps (None: its mean), by the formula
    behind the table of its pool. `work` is one row, with the shares of its classes.
    """
    if routing not in POOLED or servers <= LATTICE_SERVERS:
        pool = RoutedPool(work, servers, load_erlangs, routing, ca2)
        return ttft_quantile_routed(percentile, own_s, weight, pool)
    mean_s, ratio_s, _ = work.moments()
    return ttft_quantile(
        percentile,
        own_s,
        weight,
        servers=servers,
        load_erlangs=load_erlangs,
        mean_service_s=float(mean_s[0]),
        second_moment_service_s2=float(mean_s[0] * ratio_s[0]),
        ca2=ca2,
    )
