"""The largest batch one replica may run: where memory, an engine limit or a promise binds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.pools.decode import ALL, Engine
from planner.workload.classes import WorkloadClass

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SMALLEST_BATCH: Final = 1e-3
"""Sequences in flight below which an option is not worth a replica."""
BISECTIONS: Final = 30
"""Halvings of a logarithmic bracket: a factor of 10^6 shrinks to a relative 1e-8."""
LIMIT_MARGIN: Final = 1e-9
"""Limits are met with this relative margin, so that rounding cannot break a promise."""


def largest(
    feasible: Callable[[Floats], Flags], low: Floats, high: Floats, halvings: int = BISECTIONS
) -> Floats:
    """Largest value in [low, high] where a monotone condition holds; nan where it never does.

    The value returned satisfies the condition, whatever the number of halvings.
    """
    at_low = feasible(low)
    at_high = feasible(high)
    inside, outside = np.log(low), np.log(np.maximum(high, low))
    undecided = bool((at_low & ~at_high).any())
    for _ in range(halvings if undecided else 0):
        middle = 0.5 * (inside + outside)
        good = feasible(np.exp(middle))
        inside, outside = np.where(good, middle, inside), np.where(good, outside, middle)
    found = np.where(at_high, high, np.exp(inside))
    return np.where(at_low, found, np.nan)


def sequence_limit(engine: Engine) -> Floats:
    """Sequences that a replica accepts: max_num_seqs on each of its attention groups."""
    return engine.step.max_num_seqs(ALL)


def cache_limit_bytes(engine: Engine) -> Floats:
    """Mean bytes of KV cache allowed on a rank: the room times the occupancy limit."""
    occupancy = [config.engine.kv_occupancy_limit_fraction for config in engine.configs]
    chunk = engine.profiles[0].chunk_tokens if engine.profiles else 0.0
    batched = chunk + engine.step.max_num_seqs_per_rank(ALL)
    return np.asarray(np.array(occupancy) * engine.step.kv_room_bytes(ALL, batched))


def largest_batch(
    engine: Engine, workloads: Sequence[WorkloadClass], composition: Floats
) -> Floats:
    """Largest batch (N,) in the proportions `composition` (N, K) that keeps every limit.

    Memory, the engine's limits, and the promises to every class in `workloads` (K of them, in
    the order of the engine's loads). nan where not even the smallest batch does.
    """
    room = cache_limit_bytes(engine)
    per_sequence = engine.kv_bytes(composition)
    with np.errstate(divide="ignore", invalid="ignore"):
        high = np.minimum(np.where(room > 0, room / per_sequence, 0.0), sequence_limit(engine))

    def feasible(total: Floats) -> Flags:
        return (total <= high) & meets_limits(engine, total[:, None] * composition, workloads)

    low = np.full_like(high, SMALLEST_BATCH)
    return largest(feasible, low, np.maximum(high, SMALLEST_BATCH))


def meets_limits(engine: Engine, batch: Floats, workloads: Sequence[WorkloadClass]) -> Flags:
    """Whether a batch composition (N, K) keeps the promises to every class, (N,)."""
    point = engine.point(batch)
    good = np.isfinite(point.step_s)
    tpot_limits = {limit for workload in workloads for limit in workload.tpot_limits}
    for limit in sorted(tpot_limits, key=lambda each: (each.limit_s, each.percentile or 0.0)):
        value = engine.tpot_s(batch, limit.percentile, point)
        good &= value <= limit.limit_s * (1 - LIMIT_MARGIN)
    if engine.profiles is not None:
        good &= point.prefill_tokens <= engine.chunk_capacity_tokens()
        good &= point.prefill_utilization <= utilization_cap(engine)
        for index, workload in enumerate(workloads):
            for limit in workload.ttft_limits:
                first = engine.first_token_s(point, index, limit.percentile)
                good &= first <= limit.limit_s * (1 - LIMIT_MARGIN)
    return good


def utilization_cap(engine: Engine) -> Floats:
    """Stated cap on the prefill utilisation of aggregated engines, (N,)."""
    return np.array(
        [config.engine.aggregated_utilization_cap_fraction for config in engine.configs]
    )
