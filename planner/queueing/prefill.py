"""Time to first token of a prefill pool: the wait in one shared queue, then the prefill itself.

A pool of c replicas serves first come, first served. With S the time a request keeps a replica
busy over the pool's mix, load a = arrival rate x E[S] (erlangs) and C the probability of a wait,

    theta       = (E[S^2] + (ca2 - 1) E[S]^2) / (2 E[S] (c - a))
    P(TTFT > t) = (1 - C) P(own > t) + C E[exp(-max(t - own, 0) / theta)]

where `own` is the time from the start of service to the first token of the class asked about.
The exponential wait with the mean of Lee and Longton (1959) is exact for M/M/c and an
approximation otherwise; docs/queueing.md states its error.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def erlang_c(servers: ArrayLike, load_erlangs: ArrayLike) -> FloatArray:
    """Probability that an arrival waits in M/M/c (Erlang's second formula), shapes broadcast.

    `servers` may be any positive real number; integers give the textbook value. 0 at no load and
    1 from a load of `servers` on. The blocking probability is the Poisson ratio
    pmf(c; a) / P(X <= c), which for real c is a^c e^-a / Gamma(c + 1, a) (Jagers and van Doorn
    1986); unlike sums of factorials it does not overflow.

    Raises ValueError for servers <= 0 or a negative load.
    """
    from scipy.special import gammaincc, gammaln

    count = np.asarray(servers, dtype=np.float64)
    load = np.asarray(load_erlangs, dtype=np.float64)
    if not np.all(count > 0.0):
        raise ValueError("erlang_c: servers must be positive")
    if not np.all(load >= 0.0):
        raise ValueError("erlang_c: the load must not be negative")
    usable = (load > 0.0) & (load < count)
    inside = np.where(usable, load, 0.5 * count)
    log_pmf = count * np.log(inside) - inside - gammaln(count + 1.0)
    blocked = np.exp(log_pmf) / gammaincc(count + 1.0, inside)
    waits = blocked / (blocked + (1.0 - blocked) * (1.0 - inside / count))
    result: FloatArray = np.where(usable, waits, np.where(load > 0.0, 1.0, 0.0))
    return result


def wait_probability(servers: ArrayLike, load_erlangs: ArrayLike, ca2: float) -> FloatArray:
    """Probability of a wait when arrivals have squared coefficient of variation `ca2`.

    Arrivals burstier than Poisson come in clumps, as if fewer and larger servers took the load:
    Erlang C at (c / z, a / z). z = ca2 is the largest z that the clump argument allows, and C
    grows with z (docs/queueing.md), so the value errs towards waiting. Smoother arrivals keep
    the Poisson value.
    """
    clump = max(1.0, ca2)
    return erlang_c(np.asarray(servers, dtype=np.float64) / clump, np.asarray(load_erlangs) / clump)


def mean_wait_if_waiting_s(
    servers: float,
    load_erlangs: float,
    mean_service_s: float,
    second_moment_service_s2: float,
    ca2: float = 1.0,
) -> float:
    """theta: mean wait in seconds of the requests that wait at all; infinite at full load.

    Raises ValueError for a mean that is not positive or moments no distribution can have.
    """
    if mean_service_s <= 0.0:
        raise ValueError("mean_service_s must be positive")
    if second_moment_service_s2 < mean_service_s**2 * (1.0 - 1e-9):
        raise ValueError("second_moment_service_s2 lies below the square of the mean")
    if load_erlangs >= servers:
        return math.inf
    variation_s2 = second_moment_service_s2 + (ca2 - 1.0) * mean_service_s**2
    return max(variation_s2, 0.0) / (2.0 * mean_service_s * (servers - load_erlangs))


def ttft_tail(
    time_s: ArrayLike,
    own_s: FloatArray,
    weight: FloatArray,
    *,
    servers: int,
    load_erlangs: float,
    mean_service_s: float,
    second_moment_service_s2: float,
    ca2: float = 1.0,
) -> FloatArray:
    """P(TTFT > time_s), with the shape of `time_s`.

    own_s, weight: (P,) seconds from the start of service to this class's first token, prefill,
    fixed and transfer times included, and the probability of each (sums to 1). The two moments
    are of the time a replica is busy per request, over the mix of the whole pool.

    Raises ValueError where shapes or moments are impossible.
    """
    check_points(own_s, weight)
    theta = mean_wait_if_waiting_s(
        servers, load_erlangs, mean_service_s, second_moment_service_s2, ca2
    )
    time = np.asarray(time_s, dtype=np.float64)
    if math.isinf(theta):
        return np.ones_like(time)
    slack = time[..., np.newaxis] - own_s
    late_alone = np.matmul((slack < 0.0).astype(np.float64), weight)
    if load_erlangs == 0.0 or theta == 0.0:
        return np.asarray(late_alone, dtype=np.float64)
    waits = wait_probability(servers, load_erlangs, ca2)
    late_waiting = np.matmul(np.exp(-np.maximum(slack, 0.0) / theta), weight)
    return np.asarray((1.0 - waits) * late_alone + waits * late_waiting, dtype=np.float64)


def ttft_mean(
    own_s: FloatArray,
    weight: FloatArray,
    *,
    servers: int,
    load_erlangs: float,
    mean_service_s: float,
    second_moment_service_s2: float,
    ca2: float = 1.0,
) -> float:
    """Mean TTFT in seconds: E[own] + C theta, infinite at full load; see `ttft_tail`."""
    check_points(own_s, weight)
    theta = mean_wait_if_waiting_s(
        servers, load_erlangs, mean_service_s, second_moment_service_s2, ca2
    )
    if math.isinf(theta):
        return math.inf
    return float(own_s @ weight) + float(wait_probability(servers, load_erlangs, ca2)) * theta


def ttft_quantile(
    percentile: float | None,
    own_s: FloatArray,
    weight: FloatArray,
    *,
    servers: int,
    load_erlangs: float,
    mean_service_s: float,
    second_moment_service_s2: float,
    ca2: float = 1.0,
) -> float:
    """Smallest time in seconds that a share `percentile` of requests keeps; None gives the mean.

    Found by bisection to 1e-9 of itself and rounded up, so the tail at the result never exceeds
    1 - percentile. Infinite when the load reaches the number of servers.

    Raises ValueError for a percentile outside (0, 1) and as `ttft_tail` does.
    """
    if percentile is None:
        return ttft_mean(
            own_s,
            weight,
            servers=servers,
            load_erlangs=load_erlangs,
            mean_service_s=mean_service_s,
            second_moment_service_s2=second_moment_service_s2,
            ca2=ca2,
        )
    if not 0.0 < percentile < 1.0:
        raise ValueError(f"percentile must lie between 0 and 1, not {percentile}")
    check_points(own_s, weight)
    theta = mean_wait_if_waiting_s(
        servers, load_erlangs, mean_service_s, second_moment_service_s2, ca2
    )
    if math.isinf(theta):
        return math.inf

    def kept(time_s: float) -> bool:
        tail = ttft_tail(
            time_s,
            own_s,
            weight,
            servers=servers,
            load_erlangs=load_erlangs,
            mean_service_s=mean_service_s,
            second_moment_service_s2=second_moment_service_s2,
            ca2=ca2,
        )
        return float(tail) <= 1.0 - percentile

    # Even if every request waited, exp(-(t - max own) / theta) <= 1 - p holds from here on.
    low = 0.0
    high = (float(own_s.max()) - theta * math.log1p(-percentile)) * (1.0 + 1e-9)
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high


def check_points(own_s: FloatArray, weight: FloatArray) -> None:
    """Raise ValueError unless own_s (..., P) and weight (P,) or (..., P) form a distribution."""
    if own_s.ndim == 0 or weight.ndim == 0 or own_s.shape[-1] != weight.shape[-1]:
        raise ValueError(f"own_s {own_s.shape} and weight {weight.shape} do not match")
    if not np.all(own_s >= 0.0):
        raise ValueError("own_s must not be negative")
    if not np.all(weight >= 0.0) or not np.allclose(weight.sum(axis=-1), 1.0, atol=1e-6):
        raise ValueError("weight must be probabilities that sum to 1")
