"""TTFT of an aggregated engine: the step under way, the prompts ahead, the own chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.queueing.aggregated.load import (
    LARGEST_QUEUE_LOAD,
    TINY,
    AggregatedLoad,
    BatchNodes,
    batch_law,
    batch_nodes,
    check_percentile,
    dispersed,
    quantile,
)
from planner.queueing.prefill import FloatArray, check_points, erlang_c


def aggregated_ttft_tail(
    time_s: FloatArray,
    load: AggregatedLoad,
    *,
    stall_s: FloatArray,
    full_chunks: FloatArray,
    weight: FloatArray,
    servers: ArrayLike = 1.0,
    ca2: float = 1.0,
    clump: ArrayLike = 1.0,
    fixed_s: ArrayLike = 0.0,
) -> FloatArray:
    """P(TTFT > time_s) of one class, (N,); `time_s` is (N,).

    stall_s (N, P): what a prompt adds to the steps it rides in. full_chunks (N, P): its tokens
    over those of a full chunk at the mean batch. weight (P,) or (N, P). servers: replicas that
    share the arrivals of the pool by queued tokens, 1 where each replica gets its own (random
    routing). ca2, clump: squared variation of the times between arrivals, and its `peakedness`.
    fixed_s (N,) or (N, P): further time until the first token shows.

    1 where the replica is unstable. Raises ValueError where points and weights do not match.
    """
    law = _FirstToken.at(load, stall_s, full_chunks, weight, servers, ca2, clump, fixed_s)
    return np.where(load.stable, law.tail(np.asarray(time_s, dtype=np.float64)), 1.0)


def aggregated_ttft_quantile(
    percentile: float | None,
    load: AggregatedLoad,
    *,
    stall_s: FloatArray,
    full_chunks: FloatArray,
    weight: FloatArray,
    servers: ArrayLike = 1.0,
    ca2: float = 1.0,
    clump: ArrayLike = 1.0,
    fixed_s: ArrayLike = 0.0,
) -> FloatArray:
    """TTFT in seconds that a share `percentile` of one class keeps, (N,); None gives the mean.

    Arguments as for `aggregated_ttft_tail`; infinite where the replica is unstable. Raises
    ValueError for a percentile outside (0, 1).
    """
    law = _FirstToken.at(load, stall_s, full_chunks, weight, servers, ca2, clump, fixed_s)
    if percentile is None:
        value = law.mean()
    else:
        check_percentile(percentile)
        value = quantile(percentile, law.tail, np.max(load.decode_s + load.full_ride_s))
    return np.where(load.stable, value, np.inf)


@dataclass(frozen=True, slots=True)
class _FirstToken:
    """Law of one class's TTFT given the batch at its points: arrays (N, J), own_s (N, J, P)."""

    own_s: FloatArray
    weight: FloatArray
    nodes: BatchNodes
    wait_share: FloatArray
    joint_share: FloatArray
    wait_mean_s: FloatArray
    wait_shape: FloatArray
    under_way_s: FloatArray

    @classmethod
    def at(
        cls,
        load: AggregatedLoad,
        stall_s: FloatArray,
        full_chunks: FloatArray,
        weight: FloatArray,
        servers: ArrayLike,
        ca2: float,
        clump: ArrayLike,
        fixed_s: ArrayLike,
    ) -> _FirstToken:
        """The law at an operating point; arguments of `aggregated_ttft_tail`."""
        check_points(stall_s, weight)
        nodes = batch_nodes(load, *batch_law(load, dispersed(load, ca2), clump), kept=1.0)
        count = np.broadcast_to(np.asarray(servers, dtype=np.float64), load.fixed_s.shape)[:, None]
        clumps = max(ca2, 1.0)
        queue, stretch = nodes.queue_load, nodes.stretch
        spare = count * (1.0 - queue)
        shape = load.stall_third_s3[:, None]
        first, second = load.stall_mean_s[:, None], dispersed(load, ca2)[:, None]
        # Prompts of the mix as service times of the queue: s x stretch.
        mean_s = second * stretch / np.maximum(2.0 * first * spare, TINY)
        # One queue per replica keeps the tail of its prompts: the wait's second moment is that
        # of M/G/1 (Takacs), with a gamma law. Many servers smooth it to an exponential.
        ratio = 2.0 * queue + (1.0 - queue) * 4.0 * shape * first / (3.0 * second**2)
        lone = np.clip(1.0 / np.maximum(ratio - 1.0, TINY), 0.15, 1.5)
        # The part of the step under way that other prompts fill. With a large chunk and short
        # prompts a step carries all that arrived in the step before, and is never full.
        rho = np.minimum(load.prompt_time_share, 0.99)[:, None]
        carried_s = load.arrivals_per_s[:, None] * second / (1.0 - rho**2)
        busy_s = np.minimum(
            nodes.decode_s + nodes.ride_s, 3.0 * nodes.decode_s / (1.0 - rho) + carried_s
        )
        # A pool of many replicas rarely queues, but with short prompts every replica may have some
        # for its next step: each holds one for half a step and its own.
        rate = load.arrivals_per_s[:, None]
        held = np.minimum(rate * (1.5 * nodes.decode_s + first), LARGEST_QUEUE_LOAD)
        waits = erlang_c(count / clumps, count * queue / clumps)
        shares = erlang_c(count / clumps, count * held / clumps)
        room = nodes.ride_s / load.full_ride_s[:, None]
        chunks = np.maximum(np.ceil(full_chunks[:, None, :] / room[..., None] - 1e-9), 1.0)
        own_s = chunks * nodes.decode_s[..., None] + stall_s[:, None, :]
        fixed = np.asarray(fixed_s, dtype=np.float64)
        own_s = own_s + (fixed[:, None, :] if fixed.ndim == 2 else fixed[..., None, None])
        return cls(
            own_s=own_s,
            weight=np.broadcast_to(weight, stall_s.shape)[:, None, :],
            nodes=nodes,
            wait_share=waits,
            joint_share=np.where(count == 1.0, 0.0, np.maximum(shares - waits, 0.0)),
            wait_mean_s=mean_s,
            wait_shape=np.where(count == 1.0, lone, 1.0),
            under_way_s=0.5 * busy_s,
        )

    def tail(self, time_s: FloatArray) -> FloatArray:
        """P(TTFT > time_s), (N,)."""
        from scipy.special import gammaincc

        slack = time_s[:, None, None] - self.own_s
        idle = np.clip(1.0 - slack / self.nodes.decode_s[..., None], 0.0, 1.0)
        waited = np.maximum(slack - self.under_way_s[..., None], 0.0)
        shape = self.wait_shape[..., None]
        busy = gammaincc(shape, waited * shape / self.wait_mean_s[..., None])
        busy = np.where(slack > 0.0, busy, 1.0)
        joint = np.clip(1.0 - 0.5 * slack / self.under_way_s[..., None], 0.0, 1.0)
        share, shared = self.wait_share[..., None], self.joint_share[..., None]
        late = (1.0 - share - shared) * idle + share * busy + shared * joint
        late = late * self.weight
        return np.asarray(late.sum(axis=-1) @ self.nodes.weight)

    def mean(self) -> FloatArray:
        """Mean TTFT, (N,) seconds."""
        own = (self.own_s * self.weight).sum(axis=-1)
        idle = 0.5 * self.nodes.decode_s
        wait = self.under_way_s + self.wait_mean_s
        alone = 1.0 - self.wait_share - self.joint_share
        each = own + alone * idle + self.wait_share * wait + self.joint_share * self.under_way_s
        return np.asarray(each @ self.nodes.weight)
