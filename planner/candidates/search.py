"""The largest batch one replica may run: where memory, an engine limit or a promise binds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.promises import Promises
from planner.pools.decode import Engine, EnginePoint
from planner.pools.prompts import ALL, prompt_queue

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]

SMALLEST_BATCH: Final = 1e-3
"""Sequences in flight below which an option is not worth a replica."""
BISECTIONS: Final = 30
"""Halvings of a logarithmic bracket: a factor of 10^6 shrinks to a relative 1e-8."""
DESCENT: Final = 2.0
"""Factor by which a batch that is too slow is lowered until one is found that is not."""
HALVINGS: Final = 11
"""Halvings between the two: a factor of 2 shrinks to a relative 3e-4."""
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


def cache_room_bytes(engine: Engine) -> Floats:
    """Bytes of KV cache that a rank has room for, (N,)."""
    chunk = engine.profiles[0].chunk_tokens if engine.profiles else 0.0
    return engine.step.kv_room_bytes(ALL, chunk + engine.step.max_num_seqs_per_rank(ALL))


def cache_limit_bytes(engine: Engine) -> Floats:
    """Mean bytes of KV cache allowed on a rank, (N,): the room times the occupancy limit."""
    occupancy = [config.engine.kv_occupancy_limit_fraction for config in engine.configs]
    return np.asarray(np.array(occupancy) * cache_room_bytes(engine))


def roomiest_batch(engine: Engine, composition: Floats) -> Floats:
    """Largest batch (N,) in the proportions `composition` (N, K) that memory, the engine's limits
    and the prompt queue have room for, latencies apart. nan where not even the smallest fits.
    """
    room = cache_limit_bytes(engine)
    per_sequence = engine.kv_bytes(composition)
    with np.errstate(divide="ignore", invalid="ignore"):
        high = np.minimum(np.where(room > 0, room / per_sequence, 0.0), sequence_limit(engine))

    def in_room(total: Floats) -> Flags:
        batch = total[:, None] * composition
        return (total * per_sequence <= room) & _has_room(engine, batch, engine.point(batch))

    low = np.full_like(high, SMALLEST_BATCH)
    return largest(in_room, low, np.maximum(high, SMALLEST_BATCH))


def largest_batch(
    engine: Engine,
    promises: Promises,
    composition: Floats,
    replicas: Ints,
    roomiest: Floats | None = None,
) -> Floats:
    """Largest batch (N,) in the proportions `composition` (N, K) that keeps every limit.

    Memory, the engine's limits, and the promises to every class (in the order of the engine's
    loads), in pools of at least `replicas` (N,). nan where not even the smallest batch does.
    `roomiest` is `roomiest_batch` where it is known.

    Latencies are dear to compute, so they are only asked where still needed: down from the
    roomiest batch by halves to one that keeps them, then by bisection between the two.
    """
    late = roomiest_batch(engine, composition) if roomiest is None else roomiest.copy()
    kept = np.full_like(late, np.nan)
    tried = late.copy()
    asked = _Asked(engine, promises, composition, replicas, np.flatnonzero(np.isfinite(late)))
    while len(asked.rows):
        good = asked.keeps(tried)
        kept[asked.rows[good]] = tried[asked.rows[good]]
        rows = asked.rows[~good]
        late[rows] = tried[rows]
        rows = rows[tried[rows] > SMALLEST_BATCH]
        tried[rows] = np.maximum(tried[rows] / DESCENT, SMALLEST_BATCH)
        asked = asked.on(rows)
    asked = _Asked(engine, promises, composition, replicas, np.flatnonzero(kept < late))
    for _ in range(HALVINGS if len(asked.rows) else 0):
        middle = np.sqrt(kept * late)
        good = asked.keeps(middle)
        rows = asked.rows
        kept[rows[good]], late[rows[~good]] = middle[rows[good]], middle[rows[~good]]
    return kept


class _Asked:
    """Some rows of a search, with their part of the engine and the promises."""

    def __init__(
        self, engine: Engine, promises: Promises, composition: Floats, replicas: Ints, rows: Ints
    ) -> None:
        self.whole = (engine, promises, composition, replicas)
        self.rows = rows
        everything = len(rows) == len(replicas)
        self.engine = engine if everything else engine.select(rows)
        self.promises = promises.take(rows)
        self.composition = composition[rows]
        self.replicas = replicas[rows]

    def on(self, rows: Ints) -> _Asked:
        """The same search on other rows."""
        return self if len(rows) == len(self.rows) else _Asked(*self.whole, rows)

    def keeps(self, total: Floats) -> Flags:
        """Whether the rows keep every latency at their batches of `total`, which has all rows."""
        batch = total[self.rows, None] * self.composition
        return _keeps_latencies(self.engine, batch, self.promises, self.replicas)


def _has_room(engine: Engine, batch: Floats, point: EnginePoint) -> Flags:
    """Whether memory, engine and prompt queue have room for a batch that fluctuates, (N,)."""
    good = np.isfinite(point.step_s)
    room = cache_room_bytes(engine) * (1.0 - engine.cache_share)
    good &= engine.kv_bytes_peak(batch, point) <= room * (1 - LIMIT_MARGIN)
    good &= engine.batch_peak(batch, point) <= sequence_limit(engine) * (1 - LIMIT_MARGIN)
    if engine.profiles is not None:
        good &= point.prefill_utilization <= utilization_cap(engine)
        good &= point.prefill_utilization < 1.0
        good &= point.prefill_tokens <= engine.chunk_room_tokens(batch)
    return np.asarray(good)


def _keeps_latencies(engine: Engine, batch: Floats, promises: Promises, replicas: Ints) -> Flags:
    """Whether the percentiles promised to each class are kept, (N,)."""
    point = engine.point(batch)
    queue = None if engine.profiles is None else prompt_queue(engine, batch, point)
    good = np.ones(len(batch), dtype=bool)
    for index, workload in enumerate(promises.workloads):
        for limit in workload.tpot_limits:
            limit_s = limit.limit_s * (1 - LIMIT_MARGIN) / promises.tpot_margin[:, index]
            good &= engine.keeps_tpot(
                batch, index, limit.percentile, limit_s, replicas, point, queue
            )
        if queue is None:
            continue
        for limit in workload.ttft_limits:
            limit_s = limit.limit_s * (1 - LIMIT_MARGIN) / promises.ttft_margin[:, index]
            good &= engine.keeps_ttft(index, limit.percentile, limit_s, replicas, queue)
    return good


def utilization_cap(engine: Engine) -> Floats:
    """Stated cap on the prefill utilisation of aggregated engines, (N,)."""
    return np.array(
        [config.engine.aggregated_utilization_cap_fraction for config in engine.configs]
    )
