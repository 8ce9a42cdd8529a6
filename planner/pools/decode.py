"""Decode and aggregated engines: the mean step, its tail, and the operating point of a load.

Batches are real numbers, in sequences per replica; arrays are (N,) over configurations or
(N, K) over configurations and classes. Below one sequence in flight an engine alternates
between idling and stepping with one sequence, so a step never has less than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.perf.backend import StepTimes
from planner.pools.loads import ClassLoad, upper_quantile
from planner.queueing import tpot_quantile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALL: Final = slice(None)
"""Every configuration of a step model, (N,)."""
SMALLEST_FIXED_SHARE: Final = 1e-6
EACH: Final = (slice(None), None)
"""Every configuration as a column, (N, 1), against prompt points (P,)."""


@dataclass(frozen=True, slots=True)
class ChunkProfile:
    """How the prompts of one class fall into prefill chunks of at most `chunk_tokens` (N,).

    The budget holds for one attention group; a replica steps with `lanes` (N,) of them at
    once. `attention_s` (N,) is the expected time of a request's attention core; `prompt_s` (N, P)
    is the time until a prompt's last chunk is through. A request has `full_chunks` whole
    chunks on average and, with probability `remainder_share`, one more of
    `remainder_tokens`.
    """

    chunk_tokens: Floats
    lanes: Floats
    attention_s: Floats
    prompt_s: Floats
    full_chunks: Floats
    remainder_tokens: Floats
    remainder_share: Floats

    def take(self, keep: Ints) -> ChunkProfile:
        """The same profile on a subset of its configurations."""
        return ChunkProfile(*(getattr(self, each.name)[keep] for each in fields(self)))


def chunk_profile(step: StepTimes, load: ClassLoad, chunk_tokens: Floats) -> ChunkProfile:
    """Profile of one class on every configuration of `step`, each with its budget (N,)."""
    factor = step.prefill_time_factor(EACH)
    chunk = chunk_tokens[:, None]
    busy_s = step.prefill_time_s(EACH, load.uncached, load.cached, chunk)
    tokens_s = chunks_token_s(step, load, chunk_tokens)
    full = np.floor(load.uncached / chunk)
    remainder = load.uncached - full * chunk
    share = (remainder > 0) @ load.weight
    return ChunkProfile(
        chunk_tokens=chunk_tokens,
        lanes=step.prompt_lanes(ALL),
        attention_s=np.maximum(busy_s / factor - tokens_s, 0.0) @ load.weight,
        prompt_s=step.prefill_time_s(EACH, load.uncached, load.cached, chunk, alone=True),
        full_chunks=full @ load.weight,
        remainder_tokens=remainder @ load.weight / np.maximum(share, 1e-300),
        remainder_share=share,
    )


def chunks_token_s(step: StepTimes, load: ClassLoad, chunk_tokens: Floats) -> Floats:
    """Replica time of each prompt's chunks run as steps of their own, attention core left out.

    (N, P) seconds, without the prefill factor of a measured deployment. Every lane of the replica
    carries a chunk of another prompt, so a prompt takes its share of such a step.
    """
    lanes = step.prompt_lanes(EACH)
    chunk = chunk_tokens[:, None]
    full = np.floor(load.uncached / chunk)
    remainder = load.uncached - full * chunk
    whole_s = step.token_time_s(EACH, chunk * lanes, 0.0)
    rest_s = step.token_time_s(EACH, remainder * lanes, 0.0)
    return np.asarray((full * whole_s + np.where(remainder > 0, rest_s, 0.0)) / lanes)


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
    """Decode (`profiles` None) or aggregated replicas of the configurations of `step` (N,)."""

    def __init__(
        self,
        step: StepTimes,
        loads: Sequence[ClassLoad],
        profiles: Sequence[ChunkProfile] | None = None,
    ) -> None:
        self.step = step
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
        self.outputs = np.array([load.output_mean for load in self.loads])
        self.uncached = np.array([load.uncached_mean for load in self.loads])
        if self.profiles is not None:
            self.worst_attention_per_token_s = np.max(
                [
                    profile.attention_s / load.uncached_mean
                    for profile, load in zip(self.profiles, self.loads, strict=True)
                ],
                axis=0,
            )

    def select(self, keep: Ints) -> Engine:
        """The same engine on a subset of its configurations."""
        profiles = self.profiles and [profile.take(keep) for profile in self.profiles]
        return Engine(self.step.take(keep), self.loads, profiles)

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
        chunk = self.chunk_capacity_tokens()
        attention = sum(
            per_step[:, k] * profile.attention_s for k, profile in enumerate(self.profiles)
        )
        attention_per_token = attention / np.maximum(tokens, 1e-300)
        full_ride_s = self._ride_s(batch, chunk, base_s)
        alone = (per_step * self._stall_per_request_s(batch, base_s, full_ride_s)).sum(axis=-1)
        carried = np.minimum(tokens, chunk)
        packed = self._ride_s(batch, carried, base_s) + carried * attention_per_token
        step_s = decode_s + np.minimum(alone, packed)
        full_step_s = decode_s + full_ride_s + chunk * self.worst_attention_per_token_s
        busy = per_step @ self.uncached / step_s / chunk
        return EnginePoint(
            step_s, decode_s, np.maximum(full_step_s, step_s), tokens, busy * full_step_s
        )

    def requests_per_step(self, batch: Floats) -> Floats:
        """Requests of each class that finish, and so arrive, per step (Little's law)."""
        return np.asarray(batch * self.accepted[:, None] / self.outputs)

    def stall_per_request_s(self, batch: Floats) -> Floats:
        """Time that one request's own chunks add to the engine, (N, K).

        A chunk rides in a decode step and costs the difference of the two steps (performance
        model, aggregated).
        """
        base_s = self._base_s(batch)
        full_ride_s = self._ride_s(batch, self.chunk_capacity_tokens(), base_s)
        return self._stall_per_request_s(batch, base_s, full_ride_s)

    def chunk_capacity_tokens(self) -> Floats:
        """Prompt tokens that one step of a replica can carry at most, (N,)."""
        assert self.profiles is not None
        return self.profiles[0].chunk_tokens * self.profiles[0].lanes

    def _stall_per_request_s(self, batch: Floats, base_s: Floats, full_ride_s: Floats) -> Floats:
        assert self.profiles is not None
        columns = []
        for profile in self.profiles:
            rest_ride_s = self._ride_s(batch, profile.remainder_tokens * profile.lanes, base_s)
            ride_s = profile.full_chunks * full_ride_s + profile.remainder_share * rest_ride_s
            columns.append(ride_s / profile.lanes + profile.attention_s)
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

    def _token_s(self, sequences: Floats) -> Floats:
        return self.step.token_time_s(ALL, sequences * self.verified) + self.step.draft_time_s(
            ALL, sequences
        )

    def tpot_s(
        self, batch: Floats, percentile: float | None, point: EnginePoint | None = None
    ) -> Floats:
        """TPOT of the requests in this batch at a percentile (None: the mean), (N,).

        Decode engines: the gamma form of `planner.queueing` with the step linearised at the
        batch. Aggregated engines: a step with a full chunk, which bounds every gap.
        """
        if percentile is None or self.profiles is not None:
            point = point or self.point(batch)
            chosen = point.step_s if percentile is None else point.full_step_s
            return np.asarray(chosen / self.accepted)
        total = np.maximum(batch.sum(axis=-1), 1.0)
        share = batch / np.maximum(batch.sum(axis=-1), 1e-300)[:, None]
        step_s = self.decode_s(batch)
        slope = self._token_s(total + 1.0) - self._token_s(total)
        each = slope[:, None] + self.sequence_s
        mean = (share * each).sum(axis=-1)
        ratio = (share * (each**2 + self.sequence_std_s**2)).sum(axis=-1) / mean
        return np.asarray(tail_tpot_s(step_s, total, mean, ratio, percentile) / self.accepted)

    def kv_bytes(self, batch: Floats) -> Floats:
        """Mean bytes of cache held on the fullest rank, (N,)."""
        each = [self.step.kv_bytes_per_sequence(ALL, load.context_mean) for load in self.loads]
        return np.asarray((batch * np.stack(each, axis=-1)).sum(axis=-1))

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

    def first_token_s(
        self, point: EnginePoint, class_index: int, percentile: float | None
    ) -> Floats:
        """TTFT of an aggregated engine without waiting for other prompts, (N,).

        First the step under way, a full one, or the decode steps that pass before a first token
        shows where those take longer; then the longer of the calibrated prefill time and one full
        step per chunk, at the percentile of the prompt lengths. Waiting behind other prompts is
        not in it: the utilisation cap stands in for it until queueing does.
        """
        assert self.profiles is not None
        load, profile = self.loads[class_index], self.profiles[class_index]
        before = np.maximum(point.full_step_s, self.step.ttft_decode_steps(ALL) * point.decode_s)
        chunks = np.maximum(np.ceil(load.uncached / profile.chunk_tokens[:, None]), 1.0)
        own = np.maximum(profile.prompt_s, chunks * point.full_step_s[:, None])
        own = own + self.step.ttft_fixed_s(EACH, load.prompt)
        return np.asarray(before + upper_quantile(own, load.weight, percentile))


def tail_tpot_s(
    step_s: Floats, sequences: Floats, mean_s: Floats, ratio_s: Floats, percentile: float
) -> Floats:
    """Quantile of the step of a decode engine whose mean step is `step_s`.

    The step is t0 + the sum of X over active sequences, with E[X] = `mean_s` and
    E[X^2]/E[X] = `ratio_s`; the utilisation follows from the mean:
    rho = 1 - (t0 + E[X]) / step, t0 = step - sequences E[X].
    """
    # Expert coverage makes the step concave at small batches, where a tangent can leave no fixed
    # part; the gamma form needs one.
    fixed = np.maximum(step_s - sequences * mean_s, SMALLEST_FIXED_SHARE * step_s)
    rho = np.clip(1.0 - (fixed + mean_s) / step_s, 0.0, 1.0 - 1e-9)
    tail = tpot_quantile(percentile, fixed, ratio_s, mean_s, rho)
    # One sequence has no neighbours to fluctuate; the gamma form starts at the mean there.
    return np.asarray(np.maximum(tail, step_s))
