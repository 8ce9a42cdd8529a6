"""TPOT of an aggregated engine: the decode step, and the prompt work that rides with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from planner.queueing.aggregated.load import (
    TINY,
    AggregatedLoad,
    BatchNodes,
    batch_nodes,
    check_percentile,
    dispersed,
    pooling,
    quantile,
)
from planner.queueing.prefill import FloatArray, check_points, erlang_c

SMALLEST_SHAPE: Final = 1e-4
"""Gamma shape of a batch that hardly ever has another sequence."""
KERNEL_SHARE: Final = 0.36
"""Share of the batch's variance kept off the points, so that the law has no stairs between them."""
KERNEL_REACH: Final = 2.0
"""How far below its mean the kernel starts, in its standard deviations (a gamma law of shape 4)."""
LARGEST_SHARE: Final = 0.995


def aggregated_tpot_tail(
    time_s: FloatArray,
    load: AggregatedLoad,
    *,
    outputs: FloatArray,
    weight: FloatArray,
    servers: ArrayLike = 1.0,
    ca2: float = 1.0,
    clump: ArrayLike = 1.0,
) -> FloatArray:
    """P(TPOT > time_s) over the requests of one class, (N,); `time_s` is (N,) s per step.

    outputs (Q,) or (N, Q): decode steps of a request, the tokens after its first over those a step
    yields; points without a step have no TPOT and are left out. weight (Q,). servers, ca2,
    clump: as for `aggregated_ttft_tail`.

    1 where the replica is unstable. Raises ValueError where points and weights do not match, or
    no request decodes.
    """
    law = _PerToken.at(load, outputs, weight, servers, ca2, clump)
    return np.where(load.stable, law.tail(np.asarray(time_s, dtype=np.float64)), 1.0)


def aggregated_tpot_quantile(
    percentile: float | None,
    load: AggregatedLoad,
    *,
    outputs: FloatArray,
    weight: FloatArray,
    servers: ArrayLike = 1.0,
    ca2: float = 1.0,
    clump: ArrayLike = 1.0,
) -> FloatArray:
    """Seconds per step that a share `percentile` of one class's requests keeps on average, (N,).

    None gives the mean over requests. Arguments as for `aggregated_tpot_tail`; infinite where
    the replica is unstable. Grows with the load but for a ripple below 0.1 %, so a bisection must
    return the end that keeps the limit. Raises ValueError for a percentile outside (0, 1).
    """
    law = _PerToken.at(load, outputs, weight, servers, ca2, clump)
    if percentile is None:
        value = law.mean()
    else:
        check_percentile(percentile)
        value = quantile(percentile, law.tail, np.max(load.decode_s + load.full_ride_s))
    return np.where(load.stable, value, np.inf)


@dataclass(frozen=True, slots=True)
class _PerToken:
    """Law of TPOT given output length and batch: low_s + width_s x beta(alpha, beta).

    Arrays (N, Q, J); weight (N, Q, J) sums to 1 over the last two.
    """

    low_s: FloatArray
    width_s: FloatArray
    alpha: FloatArray
    beta: FloatArray
    weight: FloatArray

    @classmethod
    def at(
        cls,
        load: AggregatedLoad,
        outputs: FloatArray,
        weight: FloatArray,
        servers: ArrayLike,
        ca2: float,
        clump: ArrayLike,
    ) -> _PerToken:
        """The law at an operating point; arguments of `aggregated_tpot_tail`."""
        check_points(outputs, weight)
        decodes = outputs > 0.0
        share = np.where(decodes, weight, 0.0)
        total = share.sum(axis=-1, keepdims=True)
        if not np.all(total > 0.0):
            raise ValueError("no request has a decode step")
        count = len(load.fixed_s)
        steps = np.broadcast_to(np.maximum(outputs, TINY), (count, outputs.shape[-1]))
        share = np.broadcast_to(share / total, steps.shape)

        usage = np.clip(load.decode_utilisation, 0.0, 1.0 - 1e-9)
        spare = (1.0 - np.minimum(load.prompt_time_share, 0.99)) * (1.0 - usage)
        # With idle replicas to go to, prompts arrive only while this one has none: its prompt work
        # is compound Poisson in the time that is left, and varies less by (1 - rho)^2.
        queued = pooling(load, servers, ca2)
        seen = replace(load, arrivals_per_s=load.arrivals_per_s * _met(load, servers))
        rho = np.minimum(seen.prompt_time_share, 0.99)
        calm = (1.0 - rho) ** 2
        dispersed_s2 = dispersed(seen, ca2) * (calm + queued * (1.0 - calm))
        # Its own part of the step a request makes for certain; only the others' fluctuates.
        own = replace(load, fixed_s=load.fixed_s + load.mean_x_s)
        slope_s = load.ratio_x_s * np.asarray(clump)
        held = 1.0 - np.minimum(seen.prompt_time_share, 0.99)
        wide = 1.0 + seen.arrivals_per_s**2 * dispersed_s2 / (2.0 * held**2)
        shape = np.maximum(usage * own.fixed_s / slope_s, SMALLEST_SHAPE) / wide
        scale_s = slope_s / (1.0 - usage) * wide
        averaged = _averaging(load, steps, shape, scale_s, rho, spare)
        batch_var_s2 = shape[:, None] * scale_s[:, None] ** 2 * averaged
        nodes = batch_nodes(
            own,
            shape[:, None] / averaged,
            scale_s[:, None] * averaged,
            kept=1.0 - KERNEL_SHARE,
        )
        mean_s, var_s2 = _prompt_part(
            seen, nodes, steps, dispersed_s2, queued, servers, ca2, rho, spare
        )
        # The share of the batch's variance that its points leave out starts below the decode step.
        # A step of t0 alone is the least there is.
        stretched_s2 = KERNEL_SHARE * batch_var_s2[..., None] / (1.0 - rho[:, None, None]) ** 2
        reach_s = KERNEL_REACH * np.sqrt(stretched_s2)
        width_s = nodes.ride_s + reach_s
        middle = np.clip((mean_s + reach_s) / width_s, TINY, LARGEST_SHARE)
        spread = middle * (1.0 - middle)
        part = np.clip((var_s2 + stretched_s2) / width_s**2 / spread, 1e-9, 1.0 - 1e-6)
        total_shape = 1.0 / part - 1.0
        return cls(
            low_s=nodes.decode_s - reach_s,
            width_s=width_s,
            alpha=middle * total_shape,
            beta=(1.0 - middle) * total_shape,
            weight=share[..., None] * nodes.weight,
        )

    def tail(self, time_s: FloatArray) -> FloatArray:
        """P(TPOT > time_s), (N,)."""
        from scipy.special import betainc

        place = np.clip((time_s[:, None, None] - self.low_s) / self.width_s, 0.0, 1.0)
        kept = betainc(self.alpha, self.beta, place)
        return np.asarray(1.0 - (kept * self.weight).sum(axis=(-2, -1)))

    def mean(self) -> FloatArray:
        """Mean over requests, (N,) seconds per step."""
        each = self.low_s + self.width_s * self.alpha / (self.alpha + self.beta)
        return np.asarray((each * self.weight).sum(axis=(-2, -1)))


def _met(load: AggregatedLoad, servers: ArrayLike) -> FloatArray:
    """Share of the arrivals that come to a replica while it decodes, (N,): fewer where a router
    has idle replicas to send them to, ErlangC(R, R a) / a for replicas that are busy for a.
    """
    count = np.asarray(servers, dtype=np.float64) + np.zeros_like(load.fixed_s)
    busy = np.clip(load.batch + load.prompt_time_share, 1e-9, 1.0 - 1e-6)
    met = np.minimum(erlang_c(count, count * busy) / busy, 1.0)
    return np.asarray(np.where(load.batch >= 1.0, 1.0, met))


def _averaging(
    load: AggregatedLoad,
    steps: FloatArray,
    shape: FloatArray,
    scale_s: FloatArray,
    rho: FloatArray,
    spare: FloatArray,
) -> FloatArray:
    """Variance of the batch averaged over `steps` (N, Q) as a share of its variance, (N, Q).

    Over few steps the batch stands still. Over many, all work that arrives meanwhile counts once:
    the variance per step of the decode work of a replica is that of a busy period.
    """
    x = load.mean_x_s
    long_run_s2 = load.batch * 2.0 * x * (load.residual_tokens * x + load.stall_mean_s) / spare**2
    still_s2 = shape * (scale_s / (1.0 - rho)) ** 2
    memory = long_run_s2 / np.maximum(still_s2, TINY)
    return np.asarray(memory[:, None] / (memory[:, None] + steps))


def _prompt_part(
    load: AggregatedLoad,
    nodes: BatchNodes,
    steps: FloatArray,
    dispersed_s2: FloatArray,
    queued: FloatArray,
    servers: ArrayLike,
    ca2: float,
    rho: FloatArray,
    spare: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Mean and variance of the prompt work per step over `steps` (N, Q) steps, (N, Q, J) s, s^2."""
    rate, first = load.arrivals_per_s[:, None, None], load.stall_mean_s[:, None, None]
    second, third = dispersed_s2[:, None, None], load.stall_third_s3[:, None, None]
    queued = queued[:, None, None]
    share = (np.asarray(servers, dtype=np.float64) + np.zeros_like(load.fixed_s))[:, None, None]
    rho, spare, count = rho[:, None, None], spare[:, None, None], steps[..., None]
    decode_s, ride_s, queue, stretch = (
        nodes.decode_s,
        nodes.ride_s,
        nodes.queue_load,
        nodes.stretch,
    )
    step_s = decode_s / (1.0 - rho)
    usual_s = np.minimum(rho * step_s, 0.99 * ride_s)
    # The step in which the own prefill ends, and the prompts that arrive in it.
    seen_s = np.minimum(decode_s + ride_s, step_s + rate * second / (1.0 - rho**2))
    own_s = np.minimum(decode_s + ride_s, decode_s + first + rho * seen_s)
    # A renewal process brings (ca2 - 1) / 2 arrivals more after one than at a random time; their
    # number is taken as geometric.
    behind = 0.5 * max(ca2 - 1.0, 0.0)
    burst_s = np.minimum(behind / (1.0 + behind) * ride_s, behind * first)
    start_s = np.clip(rho * own_s + burst_s, usual_s, 0.99 * ride_s)
    surplus_s = queued * (start_s - usual_s)
    # Prompt work waiting at a random time (Pollaczek-Khinchine, and its second moment), and what
    # arrives while a prompt waits and is served, less what a random step would find.
    wait_s = rate * second * stretch / (2.0 * (1.0 - queue)) / share
    wait_s2 = 2.0 * wait_s**2 + rate * third * stretch / (3.0 * (1.0 - queue)) / share**2
    burst_s2 = behind * load.stall_second_s2[:, None, None] + (behind * first) ** 2
    found_s2 = queued * (wait_s2 - wait_s**2 + burst_s2)
    left_s = rho * stretch * (wait_s + first) + behind * first
    ahead_s = queued * np.maximum(left_s - usual_s / ride_s / np.maximum(queue, TINY) * wait_s, 0.0)
    # Work that a request finds delays it by itself, by the prompts that arrive meanwhile, and by
    # the larger batch that those leave.
    delay = 1.0 / spare
    fade = count * surplus_s / np.maximum(ahead_s * delay, 0.5 * surplus_s + TINY)
    mean_s = usual_s + surplus_s * -np.expm1(-fade) / np.maximum(fade, TINY)
    mean_s = np.minimum(mean_s, LARGEST_SHARE * ride_s)
    long_s2 = delay**2 * (found_s2 + count * step_s * rate * second)
    # In one step: pieces of the prompts that arrive in a step, and at most a full chunk or none.
    piece_s2 = rate * (step_s + queued * (own_s - step_s)) * load.stall_capped_s2[:, None, None]
    short_s2 = np.minimum(piece_s2, mean_s * (ride_s - mean_s)) * count**2
    var_s2 = long_s2 * short_s2 / np.maximum(long_s2 + short_s2, TINY) / count**2
    return mean_s, var_s2
