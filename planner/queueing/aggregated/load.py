"""An aggregated replica at its operating point, and the law of its fluctuating batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.queueing.prefill import FloatArray, check_points, erlang_c

BATCH_NODES: Final = 7
"""Points at which the batch is sampled; the mass between them is spread by `KERNEL_SHARE`."""
LARGEST_QUEUE_LOAD: Final = 0.9
"""Load of the prompt queue while the batch is at one of its points. A large batch can push it past
1 for a while; it does not last long enough for the queue to settle there."""
SMALLEST_ROOM: Final = 0.05
"""A batch above its mean leaves at least this part of the mean batch's room for prompts."""
QUANTILE_STEPS: Final = 90
LONGEST_S: Final = 1e9
"""A quantile beyond this is told as this: nothing waits so long."""
QUANTILE_PRECISION: Final = 1e-11
"""Quantiles are found to this share of themselves and rounded up."""
SHAPES: Final = (0.05, 1e6)
"""Gamma shapes between which quantiles are interpolated, to 1e-4 of themselves."""
TABLE_SHAPES: Final = 600
TINY: Final = 1e-300


@dataclass(frozen=True, slots=True)
class AggregatedLoad:
    """One aggregated replica of each configuration at its operating point, all (N,).

    `arrivals_per_s`: requests per second of one replica, over all classes. `fixed_s`: t0;
    `mean_x_s`, `ratio_x_s`: E[x] and E[x^2] / E[x] over decode tokens; `batch`: mean number
    of decoding sequences. `full_ride_s`: time that a full chunk adds to the step.
    `budget_tokens`: tokens of a step if decode tokens count against it, else infinite.

    Over the requests of all classes: `stall_mean_s`, `stall_second_s2`, `stall_third_s3` are
    E[s], E[s^2] and E[s^3]; `stall_capped_s2` is E[s min(s, full_ride_s)] (`stall_moments`).
    `residual_tokens` is E[o^2] / (2 E[o]) for outputs of o tokens.

    Raises ValueError for values that are not positive.
    """

    arrivals_per_s: FloatArray
    fixed_s: FloatArray
    mean_x_s: FloatArray
    ratio_x_s: FloatArray
    batch: FloatArray
    full_ride_s: FloatArray
    budget_tokens: FloatArray
    stall_mean_s: FloatArray
    stall_second_s2: FloatArray
    stall_third_s3: FloatArray
    stall_capped_s2: FloatArray
    residual_tokens: FloatArray

    def __post_init__(self) -> None:
        positive = (
            self.fixed_s,
            self.mean_x_s,
            self.ratio_x_s,
            self.full_ride_s,
            self.budget_tokens,
            self.stall_mean_s,
            self.residual_tokens,
        )
        if not all(np.all(each > 0.0) for each in positive):
            raise ValueError("times and token counts of an aggregated load must be positive")
        if not (np.all(self.arrivals_per_s >= 0.0) and np.all(self.batch >= 0.0)):
            raise ValueError("arrivals_per_s and batch must not be negative")

    def take(self, rows: NDArray[np.intp]) -> AggregatedLoad:
        """The loads of some configurations."""
        return AggregatedLoad(*(getattr(self, each.name)[rows] for each in fields(self)))

    @property
    def decode_s(self) -> FloatArray:
        """Step without prompt work at the mean batch, at least one sequence in it."""
        return self.fixed_s + self.mean_x_s * np.maximum(self.batch, 1.0)

    @property
    def prompt_time_share(self) -> FloatArray:
        """rho_s: share of the time that goes to prompts."""
        return self.arrivals_per_s * self.stall_mean_s

    @property
    def queue_load(self) -> FloatArray:
        """rho_p: load of the prompt queue at the mean batch. From 1 on the replica is unstable."""
        full_s = self.decode_s + self.full_ride_s
        return np.asarray(self.prompt_time_share * full_s / self.full_ride_s)

    @property
    def decode_utilisation(self) -> FloatArray:
        """Utilisation of the batch in the time that prompts leave: 1 - (t0 + E[x]) / t_d."""
        return np.asarray(1.0 - (self.fixed_s + self.mean_x_s) / self.decode_s)

    @property
    def stable(self) -> NDArray[np.bool_]:
        """Where the operating point can last."""
        return np.asarray((self.queue_load < 1.0) & (self.prompt_time_share < 1.0))


def stall_moments(
    stall_s: FloatArray, weight: FloatArray, full_ride_s: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """E[s], E[s^2], E[s^3] and E[s min(s, full_ride_s)], each (N,), for `AggregatedLoad`.

    stall_s (N, P) seconds that a prompt adds to the replica's steps, over the whole mix; weight
    (P,) or (N, P); full_ride_s (N,). Raises ValueError where points and weights do not match.
    """
    check_points(stall_s, weight)
    capped = stall_s * np.minimum(stall_s, full_ride_s[:, None])
    return (
        np.asarray((stall_s * weight).sum(axis=-1)),
        np.asarray((stall_s**2 * weight).sum(axis=-1)),
        np.asarray((stall_s**3 * weight).sum(axis=-1)),
        np.asarray((capped * weight).sum(axis=-1)),
    )


def peakedness(ca2: float, tokens: FloatArray, weight: FloatArray) -> float:
    """Factor on the variance of the batch when arrivals have squared variation `ca2`.

    1 + (ca2 - 1) E[min(o1, o2)] / E[o], o1 and o2 the outputs of two requests: those of one clump
    are in flight together for the shorter of the two. Exact for Poisson clumps and unlimited
    servers. tokens (Q,) with weight (Q,); 1 for ca2 <= 1.
    """
    check_points(tokens, weight)
    order = np.argsort(tokens)
    above = np.cumsum(weight[order][::-1])[::-1]
    steps = np.diff(tokens[order], prepend=0.0)
    shared = float(steps @ above**2) / float(steps @ above)
    return 1.0 + max(ca2 - 1.0, 0.0) * shared


@dataclass(frozen=True, slots=True)
class BatchNodes:
    """The batch at a few points: decode step, chunk time and prompt queue there, (N, ..., J)."""

    decode_s: FloatArray
    ride_s: FloatArray
    queue_load: FloatArray
    weight: FloatArray

    @property
    def stretch(self) -> FloatArray:
        """Time of a full step per second of prompt work in it."""
        return (self.decode_s + self.ride_s) / self.ride_s


@cache
def _gauss_table() -> tuple[FloatArray, FloatArray, tuple[FloatArray, ...]]:
    """Weights (J,) of Gauss points of a normal law, logarithms of `TABLE_SHAPES` gamma shapes, and
    for each point the gamma quantile at its probability over the mean, at each shape.

    Inverting the gamma law anew for every batch would take most of the time of all.
    """
    from numpy.polynomial.hermite_e import hermegauss
    from scipy.special import gammaincinv, ndtr

    point, weight = hermegauss(BATCH_NODES)
    shapes = np.geomspace(*SHAPES, TABLE_SHAPES)
    quantiles = tuple(gammaincinv(shapes, p) / shapes for p in ndtr(point))
    return weight / weight.sum(), np.log(shapes), quantiles


def batch_nodes(
    load: AggregatedLoad, shape: FloatArray, scale_s: FloatArray, kept: float
) -> BatchNodes:
    """Gauss points of a gamma law of Y, shape and scale (N, ...), `kept` of its variance."""
    weight, log_shapes, quantiles = _gauss_table()
    place = np.log(np.clip(shape / kept, *SHAPES))
    ratio = np.stack([np.interp(place, log_shapes, each) for each in quantiles], axis=-1)
    batch_s = ratio * (shape * scale_s)[..., None]
    column = (slice(None),) + (None,) * (batch_s.ndim - 1)
    sequences = batch_s / load.mean_x_s[column]
    budget = load.budget_tokens[column]
    room = (1.0 - sequences / budget) / np.maximum(1.0 - load.batch[column] / budget, SMALLEST_ROOM)
    ride_s = load.full_ride_s[column] * np.maximum(room, SMALLEST_ROOM)
    decode_s = load.fixed_s[column] + batch_s
    queue = load.prompt_time_share[column] * (decode_s + ride_s) / ride_s
    return BatchNodes(decode_s, ride_s, np.minimum(queue, LARGEST_QUEUE_LOAD), weight)


def batch_law(
    load: AggregatedLoad, dispersed_s2: FloatArray, clump: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Shape and scale (N,) of the gamma law of Y, the batch's part of a step.

    The law of `planner.queueing.decode`, widened by prompts: while they hold up decode tokens, the
    batch fills (a linear noise model of the batch). In clumps of arrivals a request also sees the
    others of its own.
    """
    rho = np.clip(load.decode_utilisation, 0.0, 1.0 - 1e-9)
    slope_s = load.ratio_x_s * np.asarray(clump)
    held = 1.0 - np.minimum(load.prompt_time_share, 0.99)
    wide = 1.0 + load.arrivals_per_s**2 * dispersed_s2 / (2.0 * held**2)
    shape = rho * load.fixed_s / slope_s + 1.0
    return shape / wide, slope_s / (1.0 - rho) * wide


def pooling(load: AggregatedLoad, servers: ArrayLike, ca2: float) -> FloatArray:
    """How often a prompt queues on one of `servers` replicas, over that on one alone, (N,).

    A router by queued tokens sends a busy replica nothing while another is idle, so prompts queue
    only when all are busy. 1 for one replica, towards 0 for many.
    """
    count = np.asarray(servers, dtype=np.float64) + np.zeros_like(load.fixed_s)
    queue = np.minimum(load.queue_load, LARGEST_QUEUE_LOAD)
    clumps = max(ca2, 1.0)
    waits = erlang_c(count / clumps, count * queue / clumps)
    alone = erlang_c(1.0 / clumps, queue / clumps)
    return np.asarray(np.where(queue > 0.0, waits / np.maximum(alone, TINY), 1.0))


def dispersed(load: AggregatedLoad, ca2: float) -> FloatArray:
    """Variance of the prompt work per arrival, (N,) s^2: E[s^2] for Poisson arrivals."""
    return load.stall_second_s2 + max(ca2 - 1.0, 0.0) * load.stall_mean_s**2


def check_percentile(percentile: float) -> None:
    """Raise ValueError unless the percentile lies in (0, 1)."""
    if not 0.0 < percentile < 1.0:
        raise ValueError(f"percentile must lie between 0 and 1, not {percentile}")


def quantile(
    percentile: float, tail: Callable[[FloatArray], FloatArray], start_s: float
) -> FloatArray:
    """Smallest time with tail(time) <= 1 - percentile for each row, from the safe side, (N,).

    The bracket is narrowed by the Illinois variant of false position on the logarithm of the
    tail, with every third step a bisection.
    """
    spare = 1.0 - percentile

    def excess(time_s: FloatArray) -> FloatArray:
        return np.asarray(np.log(np.maximum(tail(time_s), TINY) / spare))

    at_high = excess(np.array([start_s]))
    high = np.full(len(at_high), start_s)
    while np.any((at_high > 0.0) & (high < LONGEST_S)):
        high = np.where(at_high > 0.0, 2.0 * high, high)
        at_high = excess(high)
    low, at_low = np.zeros_like(high), np.full_like(high, np.log(1.0 / spare))
    for step in range(QUANTILE_STEPS):
        if np.all(high - low <= QUANTILE_PRECISION * high):
            break
        middle = 0.5 * (low + high)
        if step % 3 < 2:
            with np.errstate(invalid="ignore", divide="ignore"):
                secant = (low * at_high - high * at_low) / (at_high - at_low)
            inside = (secant > low) & (secant < high)
            middle = np.where(inside, secant, middle)
        value = excess(middle)
        kept = value <= 0.0
        at_low = np.where(kept, 0.5 * at_low, value)
        at_high = np.where(kept, value, 0.5 * at_high)
        low, high = np.where(kept, low, middle), np.where(kept, middle, high)
    return high
