"""Prompts of aggregated engines: how they fall into chunks, what they add, how they wait."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from planner.perf.backend import StepTimes
from planner.pools.loads import ClassLoad
from planner.queueing.aggregated import AggregatedLoad, peakedness, stall_moments

if TYPE_CHECKING:
    from planner.pools.decode import Engine, EnginePoint

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALL: Final = slice(None)
"""Every configuration of a step model, (N,)."""
EACH: Final = (slice(None), None)
"""Every configuration as a column, (N, 1), against prompt points (P,)."""
STEP_UNDER_WAY: Final = 0.5
"""Part of a decode step that a prompt waits for on average before it can join one. It is among the
measured steps that pass before a first token shows."""


@dataclass(frozen=True, slots=True)
class ChunkProfile:
    """How the prompts of one class fall into prefill chunks of at most `chunk_tokens` (N,).

    The budget holds for one attention group; a replica steps with `lanes` (N,) of them at
    once. `attention_s` (N, P) is the time of a prompt's attention core. A request has
    `full_chunks` whole chunks on average and, with probability `remainder_share`, one more of
    `remainder_tokens`. `straggling` is the longest attention core among groups that all work on
    prompts, over the mean one.
    """

    chunk_tokens: Floats
    lanes: Floats
    attention_s: Floats
    attention_mean_s: Floats
    straggling: Floats
    full_chunks: Floats
    remainder_tokens: Floats
    remainder_share: Floats

    def take(self, keep: Ints) -> ChunkProfile:
        """The same profile on a subset of its configurations."""
        return ChunkProfile(*(getattr(self, each.name)[keep] for each in fields(self)))

    def core_factor(self, busy: Floats) -> Floats:
        """Time of a lane's attention core over the replica's share of it, where each of the other
        lanes has a prompt with probability `busy` (N,) and the longest is waited for, (N,).
        """
        return np.asarray(self.lanes * (1.0 + (self.straggling - 1.0) * busy))


def chunk_profile(step: StepTimes, load: ClassLoad, chunk_tokens: Floats) -> ChunkProfile:
    """Profile of one class on every configuration of `step`, each with its budget (N,)."""
    factor = step.prefill_time_factor(EACH)
    chunk = chunk_tokens[:, None]
    busy_s = step.prefill_time_s(EACH, load.uncached, load.cached, chunk)
    tokens_s = chunks_token_s(step, load, chunk_tokens)
    full = np.floor(load.uncached / chunk)
    remainder = load.uncached - full * chunk
    share = (remainder > 0) @ load.weight
    attention_s = np.maximum(busy_s / factor - tokens_s, 0.0)
    longest_s, mean_s = longest_of_groups_s(step, load, chunk_tokens, attention_s)
    return ChunkProfile(
        chunk_tokens=chunk_tokens,
        lanes=step.prompt_lanes(ALL),
        attention_s=attention_s,
        attention_mean_s=attention_s @ load.weight,
        straggling=longest_s / np.maximum(mean_s, 1e-300),
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


def attention_groups(step: StepTimes) -> Floats:
    """Groups of a replica that attend to sequences of their own, (N,)."""
    return np.array([float(each.layout.attention_data_parallel) for each in step.configs])


def longest_of_groups_s(
    step: StepTimes, load: ClassLoad, chunk_tokens: Floats, attention_s: Floats
) -> tuple[Floats, Floats]:
    """The longest attention core of a chunk among the attention groups of a replica, which step
    together, and the mean one, both (N,) seconds of the replica's time share.

    attention_s (N, P) is the core of each whole prompt. The groups' chunks are taken as drawn
    independently from those of the class: E[max] = sum_i c_i (F_i^g - F_(i-1)^g).
    """
    groups = attention_groups(step)
    chunks = np.maximum(np.ceil(load.uncached / chunk_tokens[:, None]), 1.0)
    each_s = attention_s / chunks
    share = chunks * load.weight
    share = share / share.sum(axis=-1, keepdims=True)
    order = np.argsort(each_s, axis=-1)
    ranked = np.take_along_axis(each_s, order, axis=-1)
    below = np.minimum(np.cumsum(np.take_along_axis(share, order, axis=-1), axis=-1), 1.0)
    largest = np.diff(below ** groups[:, None], prepend=0.0, axis=-1)
    return (ranked * largest).sum(axis=-1), (each_s * share).sum(axis=-1)


@dataclass(frozen=True, slots=True)
class PromptQueue:
    """The prompts of an aggregated engine at an operating point, as its waiting law sees them.

    Per class (N, P): `stall_s`, what a prompt adds to the replica's steps; `full_chunks`, its
    tokens over those of a full chunk; `after_s`, from the end of its prefill to the first token
    that shows.
    """

    load: AggregatedLoad
    stall_s: tuple[Floats, ...]
    full_chunks: tuple[Floats, ...]
    after_s: tuple[Floats, ...]


def prompt_queue(engine: Engine, batch: Floats, point: EnginePoint) -> PromptQueue:
    """The queue of prompts at a batch composition (N, K) of an aggregated engine."""
    assert engine.profiles is not None
    room = engine.chunk_room_tokens(batch)
    lanes = engine.profiles[0].lanes[:, None]
    full_ride_s = engine.ride_s(batch, room)
    per_step = engine.requests_per_step(batch)
    alone, busy = engine.lane_share(per_step, room)
    stall_s, chunks, after_s = [], [], []
    for profile, load in zip(engine.profiles, engine.loads, strict=True):
        lane_room = room[:, None] / lanes
        whole = np.floor(load.uncached / lane_room)
        rest = (load.uncached - whole * lane_room) * lanes
        ride_s = whole * full_ride_s[:, None] + engine.ride_each_s(batch, rest)
        cores_s = profile.attention_s * profile.core_factor(busy)[:, None]
        each_s = (ride_s + cores_s) * alone[:, None]
        stall_s.append(each_s)
        chunks.append(load.uncached / lane_room)
        shown_s = np.maximum(engine.step.ttft_decode_steps(EACH) - STEP_UNDER_WAY, 0.0)
        after_s.append(
            engine.step.ttft_fixed_s(EACH, load.prompt)
            + shown_s * point.decode_s[:, None]
            # The queue counts a prompt's share of steps that several lanes use.
            + (1.0 / alone[:, None] - 1.0) * each_s
        )
    share = per_step / np.maximum(per_step.sum(axis=-1, keepdims=True), 1e-300)
    mixed_s = np.concatenate(stall_s, axis=-1)
    weight = np.concatenate(
        [share[:, k : k + 1] * load.weight for k, load in enumerate(engine.loads)], axis=-1
    )
    first, second, third, capped = stall_moments(mixed_s, weight, full_ride_s)
    mean_x_s, ratio_x_s = engine.marginal_s(batch)
    total = batch.sum(axis=-1)
    steps = engine.outputs / engine.accepted[:, None]
    residual = (share * engine.output_second / engine.accepted[:, None] ** 2).sum(axis=-1)
    at_point = AggregatedLoad(
        arrivals_per_s=per_step.sum(axis=-1) / point.step_s,
        fixed_s=engine.fixed_s(batch, point.decode_s, mean_x_s),
        mean_x_s=mean_x_s,
        ratio_x_s=ratio_x_s,
        batch=total,
        full_ride_s=full_ride_s,
        budget_tokens=engine.chunk_capacity_tokens() / engine.verified,
        stall_mean_s=first,
        stall_second_s2=second,
        stall_third_s3=third,
        stall_capped_s2=capped,
        residual_tokens=residual / (2.0 * (share * steps).sum(axis=-1)),
    )
    return PromptQueue(at_point, tuple(stall_s), tuple(chunks), tuple(after_s))


def batch_clumps(loads: tuple[ClassLoad, ...]) -> float:
    """Factor on the variance of the batch for arrivals in clumps; the worst class's."""
    return max(peakedness(load.arrival_scv, load.outputs, load.output_weight) for load in loads)
