"""A number of tokens as weighted points: deterministic, lognormal, percentiles, histogram.

400 points of equal probability carry the first three moments and the tail up to the 99.9th
percentile, which is what the latency and queueing formulas ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POINTS: Final = 400
_WIDEST_SIGMA: Final = 8.0


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """Points (tokens, rising) and their weights (sum to 1); `longest` is the largest possible."""

    points: Floats
    weight: Floats
    longest: float
    assumption: str = ""
    """What was assumed to get here, as the end of a sentence; empty if nothing was."""

    @classmethod
    def deterministic(cls, tokens: float) -> Distribution:
        """Every request alike."""
        return cls(_frozen([tokens]), _frozen([1.0]), float(tokens))

    @classmethod
    def lognormal(
        cls, mean: float, scv: float, longest: float, assumption: str = ""
    ) -> Distribution:
        """A lognormal cut to [1, longest], by 400 equal-probability points at mid quantiles.

        Scale and width are solved so that the points have exactly this mean, and this squared
        coefficient of variation where a cut lognormal can have it (else the nearest).
        """
        if scv == 0 or mean >= longest or mean <= 1:
            return cls(_frozen([mean]), _frozen([1.0]), max(float(mean), longest), assumption)
        return cls(_lognormal_points(mean, scv, longest), _equal_weights(), longest, assumption)

    @classmethod
    def percentiles(
        cls,
        given: Sequence[tuple[float, float]],
        longest: float,
        shortest: float | None = None,
        assumption: str = "",
    ) -> Distribution:
        """Through (probability, tokens) pairs, the logarithm linear in the probability between.

        Below the lowest pair: down to `shortest`, or flat where that is None (safe).
        """
        probabilities = [0.0, *(p for p, _ in given), 1.0]
        tokens = [given[0][1] if shortest is None else shortest, *(t for _, t in given), longest]
        middles = (np.arange(POINTS) + 0.5) / POINTS
        points = np.exp(np.interp(middles, probabilities, np.log(tokens)))
        return cls(_frozen(points), _equal_weights(), longest, assumption)

    @classmethod
    def histogram(cls, edges: Sequence[float], shares: Sequence[float]) -> Distribution:
        """Every request as long as the upper edge of its bin, which is safe."""
        held = [(edge, share) for edge, share in zip(edges, shares, strict=True) if share > 0]
        weight = np.array([share for _, share in held])
        return cls(
            _frozen([edge for edge, _ in held]),
            _frozen(weight / weight.sum()),
            float(held[-1][0]),
            "those of the upper edge of each bin, which is safe",
        )

    def plus(self, other: Distribution) -> Distribution:
        """The sum of two independent numbers of tokens."""
        values = (self.points[:, None] + other.points[None, :]).ravel()
        weights = (self.weight[:, None] * other.weight[None, :]).ravel()
        order = np.argsort(values, kind="stable")
        values, weights = values[order], weights[order]
        if len(values) > POINTS:
            values, weights = equal_probability_points(values, weights)
        return Distribution(_frozen(values), _frozen(weights), self.longest + other.longest)

    @property
    def mean(self) -> float:
        """Mean tokens."""
        return self.moment(1)

    @property
    def scv(self) -> float:
        """Squared coefficient of variation."""
        return max(self.moment(2) / self.mean**2 - 1, 0.0) if self.mean else 0.0

    def moment(self, order: int) -> float:
        """Mean of tokens to the power `order`."""
        return float(self.weight @ self.points**order)

    def quantile(self, p: float) -> float:
        """Smallest point that at least a share p of requests does not exceed; tail: `longest`."""
        return quantile(self.points, self.weight, p, self.longest)


def quantile(points: Floats, weight: Floats, p: float, longest: float) -> float:
    """The p-quantile of rising points. Beyond the middle of the last point's share: `longest`."""
    if p > 1 - weight[-1] / 2:
        return float(longest)
    index = int(np.searchsorted(np.cumsum(weight), p - 1e-9))
    return float(points[min(index, len(points) - 1)])


def equal_probability_points(
    values: Floats, weights: Floats, count: int = POINTS
) -> tuple[Floats, Floats]:
    """Rising weighted values as `count` equal shares, each at its own mean: the mean is kept."""
    reached = np.concatenate([[0.0], np.cumsum(weights)])
    total = np.concatenate([[0.0], np.cumsum(weights * values)])
    cuts = np.linspace(0.0, reached[-1], count + 1)
    return np.diff(np.interp(cuts, reached, total)) * count / reached[-1], _equal_weights(count)


@lru_cache(maxsize=1)
def _normal_quantiles() -> Floats:
    """Standard normal quantiles in the middle of 400 equal shares."""
    normal = NormalDist()
    return _frozen([normal.inv_cdf((index + 0.5) / POINTS) for index in range(POINTS)])


@lru_cache(maxsize=256)
def _lognormal_points(mean: float, scv: float, longest: float) -> Floats:
    """Points of a cut lognormal with this mean, and this SCV or the largest below it."""
    normal = _normal_quantiles()

    def points(sigma: float) -> Floats:
        return _scaled_to_mean(np.exp(sigma * normal), mean, longest)

    def excess(sigma: float) -> float:
        return float(np.var(points(sigma))) / mean**2 - scv

    sigma = _WIDEST_SIGMA if excess(_WIDEST_SIGMA) <= 0 else _root(excess, 0.0, _WIDEST_SIGMA)
    return _frozen(points(sigma))


def _scaled_to_mean(shape: Floats, mean: float, longest: float) -> Floats:
    """`shape` times a factor, cut to [1, longest], so that the mean is `mean`."""

    def cut(factor: float) -> Floats:
        return np.clip(shape * factor, 1.0, longest)

    low = 1.0 / float(shape.max())  # everything at 1
    high = longest / float(shape.min())  # everything at `longest`
    logarithm = _root(
        lambda log_factor: float(cut(np.exp(log_factor)).mean()) - mean,
        float(np.log(low)),
        float(np.log(high)),
    )
    points = cut(float(np.exp(logarithm)))
    # What rounding in the search leaves, spread over the points that are not cut.
    free = (points > 1.0) & (points < longest)
    if free.any():
        points[free] *= 1 + (mean - points.mean()) * len(points) / points[free].sum()
    return points


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses zero between two bounds (Illinois false position)."""
    at_low, at_high = function(low), function(high)
    if at_low >= 0:
        return low
    if at_high <= 0:
        return high
    side = 0
    middle = low
    for step in range(200):
        # Every third step halves the bracket: false position alone is slow on flat tails.
        if step % 3 == 2:
            middle = (low + high) / 2
        else:
            middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = function(middle)
        if value == 0 or high - low <= 1e-13 * max(1.0, abs(low), abs(high)):
            return middle
        if value > 0:
            high, at_high = middle, value
            if side == 1:
                at_low /= 2
            side = 1
        else:
            low, at_low = middle, value
            if side == -1:
                at_high /= 2
            side = -1
    return middle


def _equal_weights(count: int = POINTS) -> Floats:
    return _frozen(np.full(count, 1.0 / count))


def _frozen(values: Floats | Sequence[float]) -> Floats:
    """A float array that cannot be written to."""
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array
