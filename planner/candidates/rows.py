"""Rows of decode and aggregated options: linear in the flow because the step time is fixed.

At a mean step tau, Little's law makes the sequences in flight B_k = x_k O_k tau / a, so every
resource of n replicas is linear in (n, x). Each function returns replicas per request/s.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.options import ROW_INDEX, ROWS
from planner.candidates.search import cache_limit_bytes, largest, sequence_limit, utilization_cap
from planner.pools.decode import ALL, EACH, Engine, tail_tpot_s
from planner.workload.classes import WorkloadClass

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

CEILING_HALVINGS: Final = 12
"""Halvings of the search for the slowest level that a mix of classes allows; the bracket spans
less than a factor of ten, so the level is within 0.1 % of it and on the safe side."""
REACH_HALVINGS: Final = 24
"""Halvings of the search for the batch of one class at a level."""
COVER_HALVINGS: Final = 8
"""Halvings of the search for the batch at which expert coverage is fixed."""
CHORDS: Final = 3
"""Chords that replace the convex step time between the batches of the classes of a pool."""


def resource_rows(engine: Engine, tau: Floats, full_step_s: Floats) -> Floats:
    """Every row but the calibrated step, (N, rows, K).

    compute        (seconds of FLOPs per request at dense peak) x <= n
    hbm_bandwidth  n weights / tau + (seconds of cache reads per request) x <= n, weights as one
                   token reads them, so that the row bounds every batch
    hbm_capacity   sum_k B_k cache_k <= n occupancy room
    interconnect   (seconds of collectives per request at full link rate) x <= n
    kv_transfer    cache bytes entering a decode pool <= n NIC bandwidth
    batch_limit    sum_k B_k <= n max_num_seqs
    chunk_budget   uncached prompt tokens per step <= n chunk
    prefill_utilization  uncached prompt tokens x full step / chunk <= n cap
    """
    step = engine.step
    rows = np.zeros((len(engine.configs), len(ROWS), len(engine.loads)))
    accepted = engine.accepted
    with np.errstate(divide="ignore", invalid="ignore"):
        weights_share = step.weight_read_s(ALL, 1.0) / tau
        room = cache_limit_bytes(engine)
        for k, load in enumerate(engine.loads):
            flight = load.output_mean * tau / accepted
            steps = load.output_mean / accepted
            token_s = step.compute_s_per_token(ALL)
            compute = (
                steps
                * engine.verified
                * (token_s + step.compute_s_per_sequence(ALL, load.context_mean))
            )
            links = steps * engine.verified * step.collective_s_per_token(ALL)
            if engine.profiles is not None:
                prompt_s = step.prefill_compute_s(EACH, load.uncached, load.cached)
                compute = compute + prompt_s @ load.weight
                links = links + load.uncached_mean * step.collective_s_per_token(ALL)
                chunk = engine.chunk_capacity_tokens()
                _set(rows, "chunk_budget", k, load.uncached_mean * tau / chunk)
                _set(
                    rows,
                    "prefill_utilization",
                    k,
                    load.uncached_mean * full_step_s / chunk / utilization_cap(engine),
                )
            else:
                moved = step.kv_transfer_bytes(EACH, load.prompt) @ load.weight
                _set(rows, "kv_transfer", k, moved / step.nic_bytes_per_s(ALL))
            reads = steps * step.kv_read_s(ALL, load.context_mean)
            cache = step.kv_bytes_per_sequence(ALL, load.context_mean)
            _set(rows, "compute", k, compute)
            _set(rows, "hbm_bandwidth", k, reads / (1.0 - weights_share))
            _set(rows, "hbm_capacity", k, flight * cache / room)
            _set(rows, "interconnect", k, links)
            _set(rows, "batch_limit", k, flight / sequence_limit(engine))
    return rows


def _set(rows: Floats, family: str, class_index: int, value: Floats) -> None:
    rows[:, ROW_INDEX[family], class_index] = value


def single_class_rows(engine: Engine, batch: Floats) -> tuple[Floats, Floats]:
    """Rows (N, rows, 1) and step time (N,) of options dedicated to one class.

    The batch is the largest that every limit allows, so the calibrated row is exact:
    x O tau / a <= n batch.
    """
    point = engine.point(batch[:, None])
    rows = resource_rows(engine, point.step_s, point.full_step_s)
    flight = engine.outputs[0] * point.step_s / engine.accepted
    _set(rows, "calibrated_step_1", 0, flight / batch)
    return rows, point.step_s


class SharedPool:
    """Rows of options that several classes share, at any level of the mean step.

    The calibrated step is G(T) + sum_k B_k (r_k + d_k) with T = sum_k B_k, G convex once the
    expert coverage is fixed at the level's largest batch, r_k the cache reads of a sequence
    and d_k its share of prefill stalls. On the frontier of a mix, T lies between the batches
    that its classes reach alone, so chords of G over that interval bound the step from above
    and every mix that the rows admit meets the level. `packed` writes the prefill stall as
    one constant per step, for a prompt load up to `chunk_fill` of the budget; otherwise each
    request pays for chunks of its own. Either bounds the engine's stall.
    """

    def __init__(self, engine: Engine, workloads: tuple[WorkloadClass, ...], packed: bool) -> None:
        self.engine = engine
        self.workloads = workloads
        self.packed = packed

    def largest_admissible_step(self, low: Floats, high: Floats) -> Floats:
        """Largest level (N,) in [low, high] that keeps every promise; nan if none does."""
        return largest(lambda tau: self.rows(tau)[1], low, high, CEILING_HALVINGS)

    def rows(self, tau: Floats) -> tuple[Floats, Flags]:
        """Rows (N, rows, K) at the levels tau (N,), and where they keep every promise (N,)."""
        engine = self.engine
        classes = len(engine.loads)
        size = len(engine.configs)
        valid = np.isfinite(tau)
        level = np.where(valid, tau, 1.0)
        limit = sequence_limit(engine)
        reach = np.stack([self._reach(level, limit, k) for k in range(classes)], axis=-1)
        cover = np.where(np.isfinite(reach), reach, 1.0).max(axis=-1)
        stall_s, chunk_s = self._stalls(cover, level)
        extra = engine.sequence_s + stall_s
        fixed = chunk_s if self.packed else np.zeros(size)

        def frontier(batch: Floats, k: int) -> Flags:
            step_s = self._token_s(batch, cover) + batch * extra[:, k] + fixed
            return np.asarray(step_s <= level)

        ends = np.stack(
            [
                largest(
                    lambda batch, k=k: frontier(batch, k),  # type: ignore[misc]
                    np.ones(size),
                    limit,
                    REACH_HALVINGS,
                )
                for k in range(classes)
            ],
            axis=-1,
        )
        valid &= np.isfinite(ends).all(axis=-1)
        ends = np.where(np.isfinite(ends), ends, 1.0)

        full_step_s = self._full_step_s(ends, cover, level)
        rows = resource_rows(engine, level, full_step_s)
        self._fill_chords(rows, level, ends, cover, extra, fixed)
        valid &= self._promises(level, ends, full_step_s)
        return rows, valid

    def _reach(self, level: Floats, limit: Floats, class_index: int) -> Floats:
        """A batch that the class alone cannot exceed at the level, a few percent above its own."""
        batch = largest(
            lambda size: self.engine.point(self._one_class(size, class_index)).step_s <= level,
            np.ones_like(limit),
            limit,
            COVER_HALVINGS,
        )
        # The search stops below the true batch, by at most its last bracket.
        return np.minimum(batch * limit ** (2.0**-COVER_HALVINGS), limit)

    def _token_s(self, sequences: Floats, cover: Floats) -> Floats:
        engine = self.engine
        return np.asarray(
            engine.step.token_time_s(
                ALL,
                sequences * engine.verified,
                coverage_tokens=np.maximum(cover, sequences) * engine.verified,
            )
            + engine.step.draft_time_s(ALL, sequences)
        )

    def _stalls(self, cover: Floats, level: Floats) -> tuple[Floats, Floats]:
        """Stall per sequence in flight (N, K), 0 where packed, and per step (N,)."""
        engine = self.engine
        size, classes = len(engine.configs), len(engine.loads)
        if engine.profiles is None:
            return np.zeros((size, classes)), np.zeros(size)
        batches = [self._composition(np.ones(size)), self._composition(cover)]
        if self.packed:
            per_step = np.max([engine.full_chunk_stall_s(batch) for batch in batches], axis=0)
            return np.zeros((size, classes)), per_step
        per_request = np.max([engine.stall_per_request_s(batch) for batch in batches], axis=0)
        return per_request * engine.accepted[:, None] / engine.outputs, np.zeros(size)

    def _composition(self, sequences: Floats) -> Floats:
        share = np.full(len(self.engine.loads), 1.0 / len(self.engine.loads))
        return np.asarray(sequences[:, None] * share)

    def _full_step_s(self, ends: Floats, cover: Floats, level: Floats) -> Floats:
        engine = self.engine
        if engine.profiles is None:
            return level
        decode_s = np.max(
            [engine.decode_s(self._one_class(ends[:, k], k)) for k in range(len(engine.loads))],
            axis=0,
        )
        stall = np.max(
            [
                engine.full_chunk_stall_s(self._composition(sequences))
                for sequences in (np.ones_like(cover), cover)
            ],
            axis=0,
        )
        return np.asarray(np.maximum(decode_s + stall, level))

    def _one_class(self, batch: Floats, class_index: int) -> Floats:
        composition = np.zeros((len(batch), len(self.engine.loads)))
        composition[:, class_index] = batch
        return composition

    def _fill_chords(
        self,
        rows: Floats,
        level: Floats,
        ends: Floats,
        cover: Floats,
        extra: Floats,
        fixed: Floats,
    ) -> None:
        engine = self.engine
        low, high = ends.min(axis=-1), ends.max(axis=-1)
        # A chord needs two points; one class alone, or equal batches, make a short one.
        high = np.maximum(high, low * 1.001)
        knots = [low * (high / low) ** (j / CHORDS) for j in range(CHORDS + 1)]
        times = [self._token_s(knot, np.maximum(cover, high)) for knot in knots]
        for j in range(CHORDS):
            slope = (times[j + 1] - times[j]) / (knots[j + 1] - knots[j])
            intercept = times[j] - slope * knots[j] + fixed
            with np.errstate(divide="ignore", invalid="ignore"):
                per_sequence = (slope[:, None] + extra) / (level - intercept)[:, None]
            per_sequence = np.where(per_sequence > 0, per_sequence, np.inf)
            flight = engine.outputs * (level / engine.accepted)[:, None]
            rows[:, ROW_INDEX[f"calibrated_step_{j + 1}"], :] = flight * per_sequence

    def _promises(self, level: Floats, ends: Floats, full_step_s: Floats) -> Flags:
        """Whether every class keeps its limits whatever the mix.

        The gamma tail grows with E[X^2]/E[X], which in a mix is at most that of the worst
        class, and with a smaller fixed part; both are taken at their worst.
        """
        engine = self.engine
        good = np.ones(len(level), dtype=bool)
        if engine.profiles is None:
            sequences = np.maximum(ends, 1.0)
            slope = np.max(
                [self._slope_s(sequences[:, k]) for k in range(len(engine.loads))],
                axis=0,
            )
            each = slope[:, None] + engine.sequence_s
            ratio = ((each**2 + engine.sequence_std_s**2) / each).max(axis=-1)
            fixed_sequences = (each * sequences).max(axis=-1) / each.max(axis=-1)
            mean = each.max(axis=-1)
        for workload in self.workloads:
            for limit in workload.tpot_limits:
                if engine.profiles is not None:
                    value = level if limit.percentile is None else full_step_s
                elif limit.percentile is None:
                    value = level
                else:
                    value = tail_tpot_s(level, fixed_sequences, mean, ratio, limit.percentile)
                good &= value / engine.accepted <= limit.limit_s
        if engine.profiles is not None:
            good &= self._first_tokens(full_step_s)
        return good

    def _slope_s(self, sequences: Floats) -> Floats:
        engine = self.engine
        after = self.engine.step.token_time_s(ALL, (sequences + 1) * engine.verified)
        before = self.engine.step.token_time_s(ALL, sequences * engine.verified)
        draft = engine.step.draft_time_s(ALL, sequences + 1) - engine.step.draft_time_s(
            ALL, sequences
        )
        return np.asarray(after - before + draft)

    def _first_tokens(self, full_step_s: Floats) -> Flags:
        engine = self.engine
        good = np.ones(len(full_step_s), dtype=bool)
        for k, workload in enumerate(self.workloads):
            for limit in workload.ttft_limits:
                value = engine.first_token_s(full_step_s, k, limit.percentile)
                good &= value <= limit.limit_s
        return good
