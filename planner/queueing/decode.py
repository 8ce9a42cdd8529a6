"""Time per output token of continuous batching, and the utilisation that keeps a limit on it.

A decode step takes t0 + the sum over its active sequences of x = t1 + t2 x context. With
m = E[x] and m_eff = E[x^2] / E[x] over decode tokens, and rho = tokens per second x m,

    mean TPOT       = (t0 + m) / (1 - rho)
    TPOT quantile p = t0 + G^-1(p),  G a gamma law of shape rho t0 / m_eff + 1
                                     and scale m_eff / (1 - rho)

The number of active sequences is close to negative binomial, which a gamma law follows in the
limit of many sequences; docs/queueing.md states the error. `tpot_tail` is the law that pools are
planned and verified by: it knows the request's own part, the lengths of answers and the router.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

BISECTION_STEPS = 48
"""Halvings of the unit interval: 2^-48 is below any accuracy the formula has."""


SMALLEST_SHAPE: Final = 1e-6
"""Gamma shape of a replica that hardly ever has a second sequence."""
_WAITED: Final = ((np.arange(4) + 0.5) / 4, np.full(4, 0.25))
"""Parts of a step, and their probabilities, that stand for a uniform wait."""


def tpot_quantile(
    percentile: ArrayLike | None,
    fixed_s: ArrayLike,
    slope_s: ArrayLike,
    mean_x_s: ArrayLike,
    utilisation: ArrayLike,
) -> FloatArray:
    """Seconds per output token that a share `percentile` of requests keeps; None gives the mean.

    fixed_s: t0, the step without sequences. slope_s: m_eff = E[x^2] / E[x]. mean_x_s: m = E[x].
    utilisation: rho; infinite from 1 on, and below 0 (a step shorter than a lone sequence's)
    valued as an idle replica. All shapes broadcast.

    Raises ValueError for a percentile outside (0, 1) or times that are not positive.
    """
    fixed, slope, mean = _checked(percentile, fixed_s, slope_s, mean_x_s)
    rho = np.maximum(np.asarray(utilisation, dtype=np.float64), 0.0)
    stable = rho < 1.0
    rho = np.where(stable, rho, 0.0)
    if percentile is None:
        value = (fixed + mean) / (1.0 - rho)
    else:
        from scipy.special import gammaincinv

        shape = rho * fixed / slope + 1.0
        value = fixed + gammaincinv(shape, np.asarray(percentile)) * slope / (1.0 - rho)
    result: FloatArray = np.where(stable, value, np.inf)
    return result


def tpot_tail(
    time_s: ArrayLike,
    fixed_s: FloatArray,
    slope_s: FloatArray,
    mean_x_s: FloatArray,
    utilisation: FloatArray,
    batch: FloatArray,
    steps: FloatArray,
    weight: FloatArray,
    servers: FloatArray | float = 1.0,
) -> FloatArray:
    """Share of requests whose time per token exceeds time_s (N,), (N,).

    A request makes its own part of the step, t0 + m, for certain; what the others add follows a
    gamma law of mean rho (t0 + m) / (1 - rho) and scale m_eff / (1 - rho). A router that evens out
    the batches of R replicas leaves each the fluctuation of all together: R times the shape and
    1/R of the scale. A request that finds a step under way joins the next one, so over n steps it
    takes (1 + U / n) times their mean, U uniform in (0, 1); that shows where answers are short.

    steps (N, Q), weight (Q,): decode steps of a request. batch (N,): mean sequences in flight on a
    replica; servers: R, 1 under routing that does not look. Other arguments (N,) as for
    `tpot_quantile`. 1 from full utilisation on.
    """
    from scipy.special import gammaincc

    place, share = _WAITED
    rho = np.clip(np.asarray(utilisation, dtype=np.float64), 0.0, None)
    stable = rho < 1.0
    rho = np.where(stable, rho, 0.0)
    own_s = fixed_s + mean_x_s
    shape = np.maximum(servers * rho * own_s / slope_s, SMALLEST_SHAPE)
    scale_s = slope_s / (servers * (1.0 - rho))
    time = np.asarray(time_s, dtype=np.float64)[:, None, None]

    def late(step_s: FloatArray) -> FloatArray:
        over = (step_s - own_s[:, None, None]) / scale_s[:, None, None]
        # A hair below the own step is round-off, not a miss.
        tail = gammaincc(shape[:, None, None], np.maximum(over, 0.0))
        return np.where(over < -SMALLEST_SHAPE, 1.0, tail)

    found = -np.expm1(-np.asarray(batch, dtype=np.float64))[:, None]
    waited = late(time / (1.0 + place / np.maximum(steps, 1e-300)[..., None])) @ share
    each = found * waited + (1.0 - found) * late(time)[..., 0]
    return np.where(stable, each @ (weight / weight.sum()), 1.0)


def utilisation_at_step(step_s: ArrayLike, fixed_s: ArrayLike, mean_x_s: ArrayLike) -> FloatArray:
    """Utilisation rho at a mean TPOT of `step_s`: 1 - (t0 + m) / step; negative if out of reach."""
    fixed = np.asarray(fixed_s, dtype=np.float64)
    alone = fixed + np.asarray(mean_x_s, dtype=np.float64)
    return np.asarray(1.0 - alone / np.asarray(step_s, dtype=np.float64), dtype=np.float64)


def largest_utilisation(
    percentile: ArrayLike | None,
    limit_s: ArrayLike,
    fixed_s: ArrayLike,
    slope_s: ArrayLike,
    mean_x_s: ArrayLike,
) -> FloatArray:
    """Largest rho in [0, 1) at which `tpot_quantile` keeps `limit_s`; nan if none does.

    The quantile grows with rho, so bisection finds it; the side that keeps the limit is returned.
    Raises ValueError as `tpot_quantile` does.
    """
    fixed, slope, mean = _checked(percentile, fixed_s, slope_s, mean_x_s)
    limit = np.asarray(limit_s, dtype=np.float64)
    idle = tpot_quantile(percentile, fixed, slope, mean, 0.0)
    shape = np.broadcast_shapes(idle.shape, limit.shape)
    low, high = np.zeros(shape), np.ones(shape)
    for _ in range(BISECTION_STEPS):
        middle = 0.5 * (low + high)
        kept = tpot_quantile(percentile, fixed, slope, mean, middle) <= limit
        low, high = np.where(kept, middle, low), np.where(kept, high, middle)
    result: FloatArray = np.where(idle <= limit, low, np.nan)
    return result


def _checked(
    percentile: ArrayLike | None, fixed_s: ArrayLike, slope_s: ArrayLike, mean_x_s: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    if percentile is not None:
        share = np.asarray(percentile, dtype=np.float64)
        if not np.all((share > 0.0) & (share < 1.0)):
            raise ValueError("percentile must lie between 0 and 1")
    fixed = np.asarray(fixed_s, dtype=np.float64)
    slope = np.asarray(slope_s, dtype=np.float64)
    mean = np.asarray(mean_x_s, dtype=np.float64)
    if not (np.all(fixed > 0.0) and np.all(slope > 0.0) and np.all(mean > 0.0)):
        raise ValueError("fixed_s, slope_s and mean_x_s must be positive")
    return fixed, slope, mean
