"""Decode and aggregated engines: the mean step, its tail, and the operating point of a load.

Batches are real numbers, in sequences per replica; arrays are (N,) over configurations or
(N, K) over configurations and classes. Below one sequence in flight an engine alternates
between idling and stepping with one sequence, so a step never has less than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.perf.backend import StepTimes
from planner.pools.loads import ClassLoad
from planner.pools.prompts import (
    ALL,
    EACH,
    ChunkProfile,
    PromptQueue,
    attention_groups,
    batch_clumps,
    prompt_queue,
)
from planner.queueing.aggregated import (
    aggregated_tpot_quantile,
    aggregated_tpot_tail,
    aggregated_ttft_quantile,
    aggregated_ttft_tail,
)
from planner.queueing.aggregated.load import quantile
from planner.queueing.decode import tpot_tail
from planner.queueing.work import POOLED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POOL_SIZES: Final = (1, 4, 16)
"""Sizes from which an aggregated pool of one class may count on its prompts waiting less than
they would on one replica."""
UPPER_PERCENTILE: Final = 0.9
SMALLEST_FIXED_SHARE: Final = 1e-6
PEAK_SIGMAS: Final = 2.33
"""Standard deviations of the batch that memory and engine have room for: 99 % of the time."""


@dataclass(frozen=True, slots=True)
class EnginePoint:
    """One replica at a batch composition, all (N,).

    `step_s` is the mean time between steps (prefill stalls included), `full_step_s` a step
    that carries a full chunk, `prefill_tokens` the prompt tokens an average step carries,
    `prefill_utilization` their share of what full chunks could carry.
    """

    step_s: Floats
    decode_s: Floats
    full_step_s: Floats
    prefill_tokens: Floats
    prefill_utilization: Floats


class Engine:
    """Decode (`profiles` None) or aggregated replicas of the configurations of `step` (N,).

    `cache_share` of the KV room is kept for reuse by later requests.
    """

    def __init__(
        self,
        step: StepTimes,
        loads: Sequence[ClassLoad],
        profiles: Sequence[ChunkProfile] | None = None,
        cache_share: float = 0.0,
    ) -> None:
        self.step = step
        self.cache_share = cache_share
        self.configs = step.configs
        self.loads = tuple(loads)
        self.profiles = None if profiles is None else tuple(profiles)
        self.accepted = step.accepted_per_step(ALL)
        self.verified = step.verified_tokens_per_step(ALL)
        self.sequence_s = np.stack(
            [step.sequence_time_s(ALL, load.context_mean) for load in self.loads], axis=-1
        )
        spread = [
            step.sequence_time_s(ALL, load.context_mean + load.context_std) for load in self.loads
        ]
        self.sequence_std_s = np.maximum(np.stack(spread, axis=-1) - self.sequence_s, 0.0)
        held = [step.kv_bytes_per_sequence(ALL, load.context_mean) for load in self.loads]
        more = [
            step.kv_bytes_per_sequence(ALL, load.context_mean + load.context_std)
            for load in self.loads
        ]
        self.sequence_bytes = np.stack(held, axis=-1)
        self.sequence_bytes_std = np.maximum(np.stack(more, axis=-1) - self.sequence_bytes, 0.0)
        self.groups = attention_groups(step)
        self.outputs = np.array([load.output_mean for load in self.loads])
        self.output_second = np.array(
            [float(load.outputs**2 @ load.output_weight) for load in self.loads]
        )
        self.ca2 = max(1.0, *(load.arrival_scv for load in self.loads))
        self.clumps = batch_clumps(self.loads)
        self.pooled = np.array([config.engine.routing in POOLED for config in step.configs])
        self.uncached = np.array([load.uncached_mean for load in self.loads])
        if self.profiles is not None:
            self.worst_attention_per_token_s = np.max(
                [
                    profile.attention_mean_s / load.uncached_mean
                    for profile, load in zip(self.profiles, self.loads, strict=True)
                ],
                axis=0,
            )

    def select(self, keep: Ints) -> Engine:
        """The same engine on a subset of its configurations."""
        profiles = self.profiles and [profile.take(keep) for profile in self.profiles]
        return Engine(self.step.take(keep), self.loads, profiles, self.cache_share)

    def decode_s(self, batch: Floats) -> Floats:
        """Time of a step without prefill work, for a batch composition (N, K)."""
        return self._decode_s(batch, self._base_s(batch))

    def point(self, batch: Floats) -> EnginePoint:
        """Mean step, full step and prefill load of a batch composition (N, K)."""
        base_s = self._base_s(batch)
        decode_s = self._decode_s(batch, base_s)
        if self.profiles is None:
            zero = np.zeros_like(decode_s)
            return EnginePoint(decode_s, decode_s, decode_s, zero, zero)
        per_step = self.requests_per_step(batch)
        tokens = per_step @ self.uncached
        chunk = self.chunk_room_tokens(batch)
        full_ride_s = self._ride_s(batch, chunk, base_s)
        alone, busy = share = self.lane_share(per_step, chunk)
        each_s = self._stall_per_request_s(batch, base_s, chunk, full_ride_s, share)
        one_by_one_s = (per_step * each_s).sum(axis=-1)
        # Where every lane has more than one short prompt per step, they share its chunk.
        carried = np.minimum(tokens / busy, chunk)
        some = alone * busy * self.profiles[0].lanes
        cores_s = sum(
            per_step[:, k] * profile.attention_mean_s * profile.core_factor(busy)
            for k, profile in enumerate(self.profiles)
        )
        shared_s = some * self._ride_s(batch, carried, base_s) + cores_s * alone
        step_s = decode_s + np.minimum(one_by_one_s, shared_s)
        full_step_s = decode_s + full_ride_s + chunk * self.worst_attention_per_token_s
        utilization = tokens / step_s / chunk * full_step_s
        return EnginePoint(step_s, decode_s, np.maximum(full_step_s, step_s), tokens, utilization)

    def requests_per_step(self, batch: Floats) -> Floats:
        """Requests of each class that finish, and so arrive, per step (Little's law)."""
        return np.asarray(batch * self.accepted[:, None] / self.outputs)

    def stall_per_request_s(self, batch: Floats) -> Floats:
        """Time that one request's own chunks add to the engine, (N, K).

        A chunk rides in a decode step and costs the difference of the two steps (performance
        model, aggregated).
        """
        base_s, room = self._base_s(batch), self.chunk_room_tokens(batch)
        share = self.lane_share(self.requests_per_step(batch), room)
        full_ride_s = self._ride_s(batch, room, base_s)
        return self._stall_per_request_s(batch, base_s, room, full_ride_s, share)

    def lane_share(self, per_step: Floats, room: Floats) -> tuple[Floats, Floats]:
        """Share of a step's prompt time that one lane's chunk answers for, and the probability
        that a lane has one, both (N,).

        Lanes step together, so a chunk on one lane holds up all. With m = p g chunks per step on g
        lanes, some lane has one with probability 1 - (1 - p)^g: (1 - (1 - p)^g) / (g p) steps per
        chunk, from 1 where prompts are rare to 1/g where every lane always has one.
        """
        assert self.profiles is not None
        more = self.chunk_capacity_tokens() / room
        lanes = self.profiles[0].lanes
        chunks = sum(
            per_step[:, k] * (profile.full_chunks * more + profile.remainder_share)
            for k, profile in enumerate(self.profiles)
        )
        busy = np.clip(chunks / lanes, 1e-12, 1.0)
        return -np.expm1(lanes * np.log1p(-np.minimum(busy, 1.0 - 1e-12))) / (lanes * busy), busy

    def chunk_capacity_tokens(self) -> Floats:
        """Prompt tokens that one step of a replica can carry at most, (N,)."""
        assert self.profiles is not None
        return self.profiles[0].chunk_tokens * self.profiles[0].lanes

    def chunk_room_tokens(self, batch: Floats) -> Floats:
        """What the decoding sequences, which count first, leave of a step's token budget, (N,)."""
        decoding = batch.sum(axis=-1) * self.verified
        return np.asarray(np.maximum(self.chunk_capacity_tokens() - decoding, 1.0))

    def _stall_per_request_s(
        self,
        batch: Floats,
        base_s: Floats,
        room: Floats,
        full_ride_s: Floats,
        share: tuple[Floats, Floats],
    ) -> Floats:
        assert self.profiles is not None
        # Profiles are cut by the whole budget; what decoding takes of it makes for more chunks.
        more = self.chunk_capacity_tokens() / room
        alone, busy = share
        columns = []
        for profile in self.profiles:
            rest = profile.remainder_tokens * profile.lanes
            pieces = np.maximum(rest / room, 1.0)
            rest_ride_s = pieces * self._ride_s(batch, rest / pieces, base_s)
            whole_ride_s = profile.full_chunks * more * full_ride_s
            ride_s = whole_ride_s + profile.remainder_share * rest_ride_s
            cores_s = profile.attention_mean_s * profile.core_factor(busy)
            columns.append((ride_s + cores_s) * alone)
        return np.stack(columns, axis=-1)

    def _base_s(self, batch: Floats) -> Floats:
        """Token part of a decode step, draft left out."""
        decoded = np.maximum(batch.sum(axis=-1), 1.0) * self.verified
        return self.step.token_time_s(ALL, decoded)

    def _decode_s(self, batch: Floats, base_s: Floats) -> Floats:
        total = batch.sum(axis=-1)
        scale = np.where(total < 1.0, 1.0 / np.maximum(total, 1e-300), 1.0)
        sequences_s = (batch * self.sequence_s).sum(axis=-1) * scale
        draft_s = self.step.draft_time_s(ALL, np.maximum(total, 1.0))
        return np.asarray(base_s + draft_s + sequences_s)

    def _ride_s(self, batch: Floats, tokens: Floats, base_s: Floats) -> Floats:
        """What `tokens` prompt tokens add to a decode step that carries them along."""
        decoded = np.maximum(batch.sum(axis=-1), 1.0) * self.verified
        return self.step.token_time_s(ALL, decoded + tokens, decoded) - base_s

    def ride_s(self, batch: Floats, tokens: Floats) -> Floats:
        """What `tokens` (N,) prompt tokens add to the decode step of a batch (N, K), (N,)."""
        return self._ride_s(batch, tokens, self._base_s(batch))

    def ride_each_s(self, batch: Floats, tokens: Floats) -> Floats:
        """The same for several numbers of tokens (N, P)."""
        decoded = (np.maximum(batch.sum(axis=-1), 1.0) * self.verified)[:, None]
        return np.asarray(
            self.step.token_time_s(EACH, decoded + tokens, decoded)
            - self.step.token_time_s(EACH, decoded)
        )

    def _token_s(self, sequences: Floats) -> Floats:
        return self.step.token_time_s(ALL, sequences * self.verified) + self.step.draft_time_s(
            ALL, sequences
        )

    def tpot_s(
        self,
        batch: Floats,
        class_index: int,
        percentile: float | None,
        replicas: ArrayLike = 1,
        point: EnginePoint | None = None,
    ) -> Floats:
        """TPOT of one class's requests at a percentile (None: the mean) in a pool of so many
        replicas, (N,).

        Decode engines: the gamma form of `planner.queueing.decode` with the step linearised at
        the batch, and the wait for the step under way. Aggregated engines: the form of
        `planner.queueing.aggregated`.
        """
        point = point or self.point(batch)
        if self.profiles is None:
            mean, _ = self.marginal_s(batch)
            if percentile is None:
                # Requests of one clump see each other: (z - 1) E[X] / (1 - rho) more.
                alone_s = self.fixed_s(batch, point.step_s, mean) + mean
                more_s = (self.clumps - 1.0) * mean * point.step_s / alone_s
                return np.asarray((point.step_s + more_s) / self.accepted)
            tail = self._decode_tail(batch, class_index, replicas, point)
            start_s = float(np.max(point.step_s)) * 2.0
            found_s = quantile(percentile, tail, start_s)
            return np.asarray(found_s / self.accepted)
        if not self._decodes(class_index):
            return np.asarray(point.decode_s / self.accepted)
        law = aggregated_tpot_quantile(
            percentile,
            prompt_queue(self, batch, point).load,
            **self._tpot_arguments(class_index, replicas),
        )
        return np.asarray(law / self.accepted)

    def keeps_tpot(
        self,
        batch: Floats,
        class_index: int,
        percentile: float | None,
        limit_s: Floats,
        replicas: ArrayLike,
        point: EnginePoint,
        queue: PromptQueue | None,
    ) -> NDArray[np.bool_]:
        """Whether `tpot_s` is within `limit_s` (N,); quicker than the quantile itself. `queue` is
        that of the batch in aggregated engines.
        """
        step_limit_s = limit_s * self.accepted
        if queue is None and percentile is not None:
            tail = self._decode_tail(batch, class_index, replicas, point)
            return np.asarray(tail(step_limit_s) <= 1.0 - percentile)
        if queue is None or not self._decodes(class_index):
            value = self.tpot_s(batch, class_index, percentile, replicas, point)
            return np.asarray(value <= limit_s)
        arguments = self._tpot_arguments(class_index, replicas)
        if percentile is None:
            mean_s = aggregated_tpot_quantile(None, queue.load, **arguments)
            return np.asarray(mean_s <= step_limit_s)
        # The upper percentiles are above the mean step.
        hopeless = (point.step_s > step_limit_s) & (percentile >= UPPER_PERCENTILE)
        kept = np.zeros(len(limit_s), dtype=bool)
        rows = np.flatnonzero(~hopeless)
        if len(rows):
            arguments["outputs"] = arguments["outputs"][rows]
            arguments["servers"] = arguments["servers"][rows]
            late = aggregated_tpot_tail(step_limit_s[rows], queue.load.take(rows), **arguments)
            kept[rows] = late <= 1.0 - percentile
        return kept

    def _decode_tail(
        self, batch: Floats, class_index: int, replicas: ArrayLike, point: EnginePoint
    ) -> Callable[[Floats], Floats]:
        """P(time per step > t) over the requests of a class of a decode engine, t (N,) seconds."""
        load = self.loads[class_index]
        mean, ratio = self.marginal_s(batch)
        fixed = self.fixed_s(batch, point.step_s, mean)
        rho = np.clip(1.0 - (fixed + mean) / point.step_s, 0.0, 1.0 - 1e-9)
        some = np.flatnonzero(load.outputs > 1.0)
        if not len(some):
            return lambda time_s: np.asarray((point.step_s > time_s).astype(np.float64))
        whole = np.maximum(np.rint(load.outputs[some]) - 1.0, 1.0)
        steps = np.maximum(whole / self.accepted[:, None], 1.0)
        weight = load.output_weight[some]

        def tail(time_s: Floats) -> Floats:
            at = np.broadcast_to(time_s, point.step_s.shape)
            total = batch.sum(axis=-1)
            slope = ratio * self.clumps
            servers = self._servers(replicas)
            return tpot_tail(at, fixed, slope, mean, rho, total, steps, weight, servers)

        return tail

    def _decodes(self, class_index: int) -> bool:
        return bool(self.loads[class_index].outputs.max() > 1.0)

    def _tpot_arguments(self, class_index: int, replicas: ArrayLike) -> dict[str, Any]:
        load = self.loads[class_index]
        return {
            "outputs": (load.outputs - 1.0) / self.accepted[:, None],
            "weight": load.output_weight,
            "servers": self._servers(replicas),
            "ca2": self.ca2,
            "clump": self.clumps,
        }

    def _servers(self, replicas: ArrayLike) -> Floats:
        """Replicas that share one queue of prompts: all, if the router knows their queues."""
        return np.where(self.pooled, np.asarray(replicas, dtype=np.float64), 1.0)

    def first_token_s(
        self,
        batch: Floats,
        class_index: int,
        percentile: float | None,
        replicas: ArrayLike = 1,
        point: EnginePoint | None = None,
    ) -> Floats:
        """TTFT of one class in an aggregated pool of so many replicas, (N,): the step under way,
        the prompts ahead, the own chunks, and what passes until the first token shows.
        """
        queue = prompt_queue(self, batch, point or self.point(batch))
        arguments = self._ttft_arguments(queue, class_index, replicas)
        return aggregated_ttft_quantile(percentile, queue.load, **arguments)

    def keeps_ttft(
        self,
        class_index: int,
        percentile: float | None,
        limit_s: Floats,
        replicas: ArrayLike,
        queue: PromptQueue,
    ) -> NDArray[np.bool_]:
        """Whether `first_token_s` is within `limit_s` (N,); quicker than the quantile itself."""
        arguments = self._ttft_arguments(queue, class_index, replicas)
        if percentile is None:
            value = aggregated_ttft_quantile(None, queue.load, **arguments)
            return np.asarray(value <= limit_s)
        late = aggregated_ttft_tail(limit_s, queue.load, **arguments)
        return np.asarray(late <= 1.0 - percentile)

    def _ttft_arguments(
        self, queue: PromptQueue, class_index: int, replicas: ArrayLike
    ) -> dict[str, Any]:
        return {
            "stall_s": queue.stall_s[class_index],
            "full_chunks": queue.full_chunks[class_index],
            "weight": self.loads[class_index].weight,
            "servers": self._servers(replicas),
            "ca2": self.ca2,
            "clump": self.clumps,
            "fixed_s": queue.after_s[class_index],
        }

    def marginal_s(self, batch: Floats) -> tuple[Floats, Floats]:
        """E[X] and E[X^2] / E[X] of what one sequence more adds to a decode step, (N,)."""
        total = np.maximum(batch.sum(axis=-1), 1.0)
        share = batch / np.maximum(batch.sum(axis=-1), 1e-300)[:, None]
        slope = self._token_s(total + 1.0) - self._token_s(total)
        each = slope[:, None] + self.sequence_s
        mean = (share * each).sum(axis=-1)
        ratio = (share * (each**2 + self.sequence_std_s**2)).sum(axis=-1) / mean
        return np.asarray(mean), np.asarray(ratio)

    def fixed_s(self, batch: Floats, decode_s: Floats, mean_s: Floats) -> Floats:
        """t0 of a decode step that takes `decode_s` and grows by `mean_s` per sequence, (N,)."""
        # Expert coverage makes the step concave at small batches, where a tangent can leave no
        # fixed part; the gamma forms need one.
        total = np.maximum(batch.sum(axis=-1), 1.0)
        return np.asarray(np.maximum(decode_s - total * mean_s, SMALLEST_FIXED_SHARE * decode_s))

    def batch_spread(self, batch: Floats, point: EnginePoint) -> Floats:
        """Variance of the sequences in flight over that of a Poisson number, (N,):
        1 / (1 - rho), as a longer batch takes longer steps and so grows by itself, times that of
        arrivals in clumps.

        rho = 1 - (t0 + m) / step with the step linearised at the batch, the prompts' share of an
        aggregated step counted with the sequences that bring it. With attention data parallel
        each group fluctuates on its own: relative to the replica, its variance is `groups` times.
        """
        mean, _ = self.marginal_s(batch)
        alone_s = self.fixed_s(batch, point.decode_s, mean) + mean
        spread = point.step_s / np.minimum(alone_s, point.step_s)
        return np.asarray(self.groups * self.clumps * spread)

    def kv_bytes(self, batch: Floats) -> Floats:
        """Mean bytes of cache held on the fullest rank, (N,)."""
        return np.asarray((batch * self.sequence_bytes).sum(axis=-1))

    def kv_bytes_peak(self, batch: Floats, point: EnginePoint) -> Floats:
        """Bytes of cache on the fullest rank that 99 % of the time are not exceeded, (N,):

        B E[c] + z sqrt(B E[c^2] / (1 - rho)), c the cache of a sequence in flight.
        """
        square = self.sequence_bytes**2 + self.sequence_bytes_std**2
        spread = (batch * square).sum(axis=-1) * self.batch_spread(batch, point)
        return np.asarray(self.kv_bytes(batch) + PEAK_SIGMAS * np.sqrt(spread))

    def batch_peak(self, batch: Floats, point: EnginePoint) -> Floats:
        """Sequences in flight that 99 % of the time are not exceeded, (N,):

        B + z sqrt(B / (1 - rho)).
        """
        total = batch.sum(axis=-1)
        return np.asarray(total + PEAK_SIGMAS * np.sqrt(total * self.batch_spread(batch, point)))

    def batch_at(self, rate: Floats, step_s: Floats) -> Floats:
        """Little's law: sequences in flight at `rate` (N, K) requests/s and a mean step."""
        return np.asarray(rate * self.outputs * (step_s / self.accepted)[:, None])

    def rates(self, batch: Floats, step_s: Floats) -> Floats:
        """Little's law the other way: requests/s (N, K) that keep `batch` in flight."""
        return np.asarray(batch * self.accepted[:, None] / (self.outputs * step_s[:, None]))

    def operating_point(self, rate: Floats) -> tuple[Floats, EnginePoint]:
        """Batch and engine point that `rate` (N, K) requests/s per replica settles at.

        The mean step solves step = f(rate x outputs x step). A load with no solution below
        an hour per step is unstable; its step is `inf`.
        """
        low = self.point(np.zeros_like(rate) + 1e-12).step_s
        high = low.copy()
        limit = 3600.0
        for _ in range(120):
            above = self.point(self.batch_at(rate, high)).step_s > high
            if not above.any():
                break
            low = np.where(above, high, low)
            high = np.where(above, np.minimum(high * 1.25, limit), high)
        unstable = self.point(self.batch_at(rate, high)).step_s > high
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = self.point(self.batch_at(rate, middle)).step_s > middle
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        batch = self.batch_at(rate, high)
        point = self.point(batch)
        if unstable.any():
            infinite = np.where(unstable, np.inf, 0.0)
            point = EnginePoint(
                point.step_s + infinite,
                point.decode_s + infinite,
                point.full_step_s + infinite,
                point.prefill_tokens,
                point.prefill_utilization + infinite,
            )
        return batch, point
