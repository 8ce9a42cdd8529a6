"""The fit of a correction: a few measured points of one deployment against what was predicted.

A corrected step takes f t + d (`planner.perf.corrections`), and TPOT is linear in f and d. Both
are fitted on log error by robust least squares with a prior around no correction (f = 1, d = 0),
whose widths are those seen between measured deployments. The prior is what makes a fit on one
to three points safe: they move the level, and the overhead only as far as they insist. With
more points it fades. A fit on at least `ROBUST_POINTS` forgives single points that are off.

f and d stay where every step of the deployment takes at least its physical bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FACTOR_SPREAD: Final = 0.15
"""Standard deviation of log(measured / predicted) between deployments; see docs/calibration.md."""
OVERHEAD_SPREAD: Final = 0.3
"""The same of the overhead, as a share of the step of one sequence."""
POINT_SPREAD: Final = 0.05
"""Standard deviation of log(measured / corrected) inside a deployment."""
PREFILL_SPREAD: Final = 0.5
"""Standard deviation of the log of the factor on prefill between deployments."""
TTFT_POINT_SPREAD: Final = 0.2
"""Standard deviation of log(measured / corrected) of TTFT inside a deployment."""
ROBUST_POINTS: Final = 3

BAND_SPREAD: Final = 0.09
"""Held-out log error of a corrected deployment, before its own points are seen."""
TTFT_BAND_SPREAD: Final = 0.35
BAND_WEIGHT: Final = 4.0
"""Points that `BAND_SPREAD` weighs as much as."""

_LIMIT_SLACK: Final = 1e-3
"""Share of a step by which least squares may miss a limit; what it misses is then taken back."""


@dataclass(frozen=True, slots=True)
class StepTerms:
    """What the fit of the steps needs: arrays over N points, and K steps that have a bound.

    A corrected TPOT is `factor * predicted_s + overhead_s * steps`. `single_step_s` is the step
    of one sequence, the scale of an overhead.
    """

    measured_s: Floats
    predicted_s: Floats
    steps: Floats
    single_step_s: float
    limit_step_s: Floats
    limit_bound_s: Floats

    def without(self, index: int) -> StepTerms:
        """All points but one."""
        return replace(
            self,
            measured_s=np.delete(self.measured_s, index),
            predicted_s=np.delete(self.predicted_s, index),
            steps=np.delete(self.steps, index),
        )

    def corrected_s(self, factor: float, overhead_s: float) -> Floats:
        """TPOT of every point under a correction."""
        corrected: Floats = factor * self.predicted_s + overhead_s * self.steps
        return corrected


@dataclass(frozen=True, slots=True)
class StepFit:
    """Fitted values with jackknife standard errors (None for one point, which has none).

    `held_out` are logs of measured over predicted of each point by a fit without it. `limited`
    says that the physical bound held the values back.
    """

    factor: float
    overhead_s: float
    factor_error: float | None
    overhead_error_s: float | None
    held_out: Floats
    band: tuple[float, float]
    limited: bool


@dataclass(frozen=True, slots=True)
class PrefillFit:
    """The factor on prefill, as `StepFit` has those of the step."""

    factor: float
    factor_error: float | None
    held_out: Floats
    band: tuple[float, float]


def fit_steps(terms: StepTerms) -> StepFit:
    """Factor and overhead of a deployment's steps. At least one point."""
    factor, overhead, limited = solve_steps(terms)
    others = [solve_steps(terms.without(index)) for index in range(len(terms.measured_s))]
    held_out = np.array(
        [
            math.log(terms.measured_s[n] / (f * terms.predicted_s[n] + d * terms.steps[n]))
            for n, (f, d, _) in enumerate(others)
        ]
    )
    return StepFit(
        factor=factor,
        overhead_s=overhead,
        factor_error=_jackknife([f for f, _, _ in others]),
        overhead_error_s=_jackknife([d for _, d, _ in others]),
        held_out=held_out,
        band=_band(held_out, BAND_SPREAD),
        limited=limited,
    )


def solve_steps(terms: StepTerms) -> tuple[float, float, bool]:
    """Factor, overhead in seconds, and whether a limit holds them back."""
    from scipy.optimize import least_squares

    if not len(terms.measured_s):
        return 1.0, 0.0, False
    unit = terms.single_step_s
    wanted = np.log(terms.measured_s)
    step, bound = terms.limit_step_s, terms.limit_bound_s

    def misfit(x: Floats) -> Floats:
        factor, overhead = math.exp(x[0]), x[1] * unit
        corrected = np.maximum(terms.corrected_s(factor, overhead), 1e-3 * terms.predicted_s)
        short = np.maximum(bound - (factor * step + overhead), 0.0) / step
        parts = (
            (np.log(corrected) - wanted) / POINT_SPREAD,
            [x[0] / FACTOR_SPREAD, x[1] / OVERHEAD_SPREAD],
            short / _LIMIT_SLACK,
        )
        return np.concatenate(parts)

    found = least_squares(misfit, np.zeros(2), loss=_loss(len(wanted))).x
    factor, overhead = math.exp(found[0]), float(found[1]) * unit
    # No correction keeps every limit, so the way from there to the fit does up to some share.
    change = (factor - 1) * step + overhead
    falling = change < 0
    share = np.min(np.append((step - bound)[falling] / -change[falling], 1.0))
    share = max(float(share), 0.0)
    tight = np.min(np.append((factor * step + overhead - bound) / step, np.inf))
    limited = share < 1 or bool(tight < 2 * _LIMIT_SLACK)
    return 1 + share * (factor - 1), share * overhead, limited


def fit_prefill(
    measured_s: Floats, prefill_s: Floats, rest_s: Floats, least_factor: float = 0.0
) -> PrefillFit:
    """The factor on prefill from measured TTFT (N,), of which `prefill_s` is multiplied and
    `rest_s` is not. At least one point. Below `least_factor` a prompt would break its bound.
    """

    def solve(keep: NDArray[np.bool_]) -> float:
        solved = _solve_prefill(measured_s[keep], prefill_s[keep], rest_s[keep])
        return max(solved, least_factor)

    count = len(measured_s)
    factor = solve(np.ones(count, dtype=np.bool_))
    others = [solve(np.arange(count) != index) for index in range(count)]
    held_out = np.log(measured_s / (np.array(others) * prefill_s + rest_s))
    return PrefillFit(factor, _jackknife(others), held_out, _band(held_out, TTFT_BAND_SPREAD))


def _solve_prefill(measured_s: Floats, prefill_s: Floats, rest_s: Floats) -> float:
    from scipy.optimize import least_squares

    if not len(measured_s):
        return 1.0

    def misfit(x: Floats) -> Floats:
        errors = np.log((math.exp(x[0]) * prefill_s + rest_s) / measured_s)
        return np.append(errors / TTFT_POINT_SPREAD, x[0] / PREFILL_SPREAD)

    return math.exp(least_squares(misfit, np.zeros(1), loss=_loss(len(measured_s))).x[0])


def _loss(points: int) -> Literal["linear", "soft_l1"]:
    return "soft_l1" if points >= ROBUST_POINTS else "linear"


def _jackknife(values: list[float]) -> float | None:
    """Standard error of an estimate from those without one point each; None for one point."""
    count = len(values)
    if count < 2:
        return None
    return float(np.sqrt((count - 1) * np.var(values)))


def _band(held_out: Floats, spread: float) -> tuple[float, float]:
    """Factors between which 80 % of measurements are expected: Student's t around the held-out
    errors, `spread` counting as `BAND_WEIGHT` points before them.
    """
    from scipy.stats import t as student

    freedom = BAND_WEIGHT + len(held_out)
    scale = math.sqrt((BAND_WEIGHT * spread**2 + float(np.sum(held_out**2))) / freedom)
    reach = float(student.ppf(0.9, freedom)) * scale
    return math.exp(-reach), math.exp(reach)
