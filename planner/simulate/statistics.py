"""Means, percentiles and shares of a run of correlated observations, each with an interval.

Requests that wait in one queue are not independent: who comes after a long wait waits long too.
So the variance of a share is taken from batch means over time, and turned into the number of
independent requests that would tell as much. With that number, shares get the exact binomial
interval and percentiles the order statistics that belong to it.

- Batch means, 20 of them: Schmeiser, Batch size effects in the analysis of simulation output,
  Operations Research 30 (1982) 556.
- What correlation is left between neighbouring batches widens the variance by (1 + r) / (1 - r):
  Tafazzoli, Steiger and Wilson, N-Skart, IEEE Transactions on Automatic Control 56 (2011) 254.
- The effective number and the exact interval with it: Korn and Graubard, Confidence intervals for
  proportions with small expected number of positive counts, Survey Methodology 24 (1998) 193.
- Percentiles by inverting the interval of a share: Woodruff, Confidence intervals for medians and
  other position measures, Journal of the American Statistical Association 47 (1952) 635.

An observation may be infinite: a request that is never served. Its share of the percentiles is
kept; means are of what is finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CONFIDENCE: Final = 0.95
BATCHES: Final = 20
LEAST_IN_BATCH: Final = 5
NORMAL_QUANTILE: Final = 1.959964
"""97.5 % point of the normal law."""
STUDENT_QUANTILE: Final = 2.093024
"""97.5 % point of Student's law with BATCHES - 1 degrees of freedom."""
LARGEST_CORRELATION: Final = 0.9
"""Of neighbouring batches; beyond it the run is too short for its own dependence to be seen."""
HALVINGS: Final = 60


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of a sample and the interval that holds the true one with CONFIDENCE.

    The value is nan where there is no observation, infinite where that many are. An end that the
    sample is too small to tell is infinite.
    """

    value: float
    low: float
    high: float
    count: int
    """Observations."""


def mean(values: Floats) -> Estimate:
    """Mean of the finite ones of `values` (R,), in order of time, by batch means."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Estimate(math.nan, -math.inf, math.inf, 0)
    centre = float(finite.mean())
    half = STUDENT_QUANTILE * math.sqrt(_variance_of_mean(finite))
    return Estimate(centre, centre - half, centre + half, finite.size)


def share(hits: Bools) -> Estimate:
    """Share of the observations `hits` (R,), in order of time, that are true."""
    if not hits.size:
        return Estimate(math.nan, 0.0, 1.0, 0)
    from scipy.special import betaincinv

    value = float(hits.mean())
    size = _effective(hits)
    count = value * size
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if count <= 0 else float(betaincinv(count, size - count + 1, tail))
    high = 1.0 if count >= size else float(betaincinv(count + 1, size - count, 1 - tail))
    return Estimate(value, low, high, hits.size)


def percentile(values: Floats, fraction: float) -> Estimate:
    """The value that `fraction` (in (0, 1)) of `values` (R,), in order of time, do not exceed."""
    if not values.size:
        return Estimate(math.nan, -math.inf, math.inf, 0)
    ordered = np.sort(values)
    value = _ranked(ordered, fraction * ordered.size)
    size = _effective(values <= value)
    low, high = _order_statistics(fraction, size)
    scale = (ordered.size + 1) / (size + 1)
    return Estimate(
        value=value,
        low=-math.inf if low is None else _ranked(ordered, math.floor(low * scale)),
        high=math.inf if high is None else _ranked(ordered, math.ceil(high * scale)),
        count=ordered.size,
    )


def _ranked(ordered: Floats, rank: float) -> float:
    """The smallest observation of at least this rank, counted from 1."""
    return float(ordered[min(max(math.ceil(rank - 1e-9), 1), ordered.size) - 1])


def _order_statistics(fraction: float, size: float) -> tuple[float | None, float | None]:
    """Ranks, of `size` independent observations, that lie on both sides of the true percentile.

    The k-th of n uniform observations has the law Beta(k, n + 1 - k); k may be any positive
    number. None where not even the smallest, or the largest, lies beyond it often enough.
    """
    from scipy.special import betainc

    tail = (1 - CONFIDENCE) / 2

    def below(rank: float) -> float:
        """Probability that the observation of this rank lies below the percentile."""
        return float(betainc(rank, size + 1 - rank, fraction))

    # Falls as the rank grows.
    low = None if below(1.0) < 1 - tail else _crossing(below, 1 - tail, size)
    high = None if below(size) > tail else _crossing(below, tail, size)
    return low, high


def _crossing(falling: Callable[[float], float], level: float, last: float) -> float:
    """Where a falling function of the ranks 1 to `last` passes a level between its ends."""
    first = 1.0
    for _ in range(HALVINGS):
        middle = (first + last) / 2
        first, last = (middle, last) if falling(middle) >= level else (first, middle)
    return last


def _effective(hits: Bools) -> float:
    """Independent observations that tell as much of a share as these, at least 1.

    Never more than there are. Fewer where batches vary more than chance has it, and by the ratio
    of the normal and Student's quantiles, because the variance is estimated.
    """
    value = float(hits.mean())
    independent = value * (1 - value)
    known = (NORMAL_QUANTILE / STUDENT_QUANTILE) ** 2
    if hits.size < BATCHES * LEAST_IN_BATCH or independent == 0.0:
        return max(hits.size * known, 1.0)
    variance = _variance_of_mean(hits.astype(np.float64))
    size = hits.size if variance <= 0 else min(independent / variance, hits.size)
    return max(size * known, 1.0)


def _variance_of_mean(values: Floats) -> float:
    """Variance of the mean of correlated observations (R,), by batch means.

    Of few observations by their own variance: batches would hold too little.
    """
    if values.size < 2:
        return math.inf
    if values.size < BATCHES * LEAST_IN_BATCH:
        return float(values.var(ddof=1)) / values.size
    length = values.size // BATCHES
    means = values[: length * BATCHES].reshape(BATCHES, length).mean(axis=1)
    deviations = means - means.mean()
    squares = float(deviations @ deviations)
    if squares == 0.0:
        return 0.0
    neighbours = float(deviations[1:] @ deviations[:-1]) / squares
    correlation = min(max(neighbours, 0.0), LARGEST_CORRELATION)
    widened = (1 + correlation) / (1 - correlation)
    return squares / (BATCHES - 1) / BATCHES * widened
