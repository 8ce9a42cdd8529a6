"""Capacity of prefill pools: the largest load in erlangs that keeps every TTFT limit.

With s = n - a spare replicas out of n, the TTFT formula reads

    C(n, n - s) H(s) <= budget,   H(s)   = E[exp(-k s); own <= limit],
                                  budget = 1 - p - P(own > limit),

with k = 2 (limit - own) E[S] / E[S^2]. A limit on the mean has H(s) = 1 / s. H does not depend
on n, and C(n, n - s) grows with n towards 1 (docs/queueing.md proves it). So the spare that a
limit needs grows with n and never exceeds the root of H(s) = budget: the spare at the largest n
covers every smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.queueing.prefill import FloatArray, check_points, erlang_c

EXACT_SERVERS = 8
MAX_SERVERS = 4096
POINTS = 64
BUDGET_FLOOR = 1e-12
"""A tail budget below this is round-off of percentiles and weights: nothing is left for a wait."""
SPARE_TOLERANCE = 1e-9
"""Spare replicas are found to this share of n, and rounded towards more."""
SPARE_CEILING = 2.0**20
"""A limit that needs more spare replicas than this is taken as impossible."""
_ROUNDING = 1e-12
_CHUNK_EXPONENTIALS = 1 << 17
_MAX_STEPS = 120


@dataclass(frozen=True, slots=True)
class FirstTokenLimit:
    """A limit on the time to first token of one class in a pool.

    own_s, weight: (P,) seconds from the start of service to the first token, and probabilities.
    limit_s: seconds. percentile: in (0, 1), or None for a limit on the mean.
    """

    own_s: FloatArray
    weight: FloatArray
    limit_s: float
    percentile: float | None


@dataclass(frozen=True, slots=True)
class CapacityTable:
    """Largest safe load of a pool by its number of replicas.

    exact[n - 1] is the load in erlangs for n = 1..len(exact). Above that, slope n - spare is safe
    up to `max_servers` replicas (None: for any n); the slope is 1 where all replicas share one
    queue. `spare` is infinite where a limit can never be kept.
    """

    exact: tuple[float, ...]
    spare: float
    max_servers: int | None
    slope: float = 1.0

    @property
    def usable(self) -> bool:
        """Whether any number of replicas carries a load at all."""
        return math.isfinite(self.spare)

    def load(self, servers: ArrayLike) -> FloatArray:
        """Largest safe load in erlangs for each whole number of replicas, same shape.

        A larger pool carries at least what a smaller one does, so above the exact part this is
        the better of slope n - spare and the last exact value.
        Raises ValueError for a negative count or one above `max_servers`.
        """
        count = np.asarray(servers, dtype=np.int64)
        if np.any(count < 0):
            raise ValueError("the number of replicas must not be negative")
        if self.max_servers is not None and np.any(count > self.max_servers):
            raise ValueError(f"this table covers at most {self.max_servers} replicas")
        table = np.array((0.0, *self.exact))
        known = len(self.exact)
        listed = table[np.minimum(count, known)]
        above = np.maximum(listed, self.slope * count - self.spare)
        return np.asarray(np.where(count > known, above, listed), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class CapacityTables:
    """Many tables at once: exact (N, E), spare and slope (N,), one `max_servers`; see
    `CapacityTable`.
    """

    exact: FloatArray
    spare: FloatArray
    max_servers: int | None
    slope: FloatArray

    def __len__(self) -> int:
        return len(self.spare)

    def table(self, index: int) -> CapacityTable:
        """One row as a `CapacityTable`."""
        return CapacityTable(
            tuple(self.exact[index].tolist()),
            float(self.spare[index]),
            self.max_servers,
            float(self.slope[index]),
        )

    @classmethod
    def keeping_all(cls, parts: Sequence[CapacityTables]) -> CapacityTables:
        """Row by row the tables that keep the limits of all `parts`, which are of one size."""
        # The line with the largest spare and the least slope lies below all of theirs.
        return cls(
            np.min([part.exact for part in parts], axis=0),
            np.max([part.spare for part in parts], axis=0),
            parts[0].max_servers,
            np.min([part.slope for part in parts], axis=0),
        )


def combine(tables: Sequence[CapacityTable]) -> CapacityTable:
    """Merge tables into one that keeps the limits of all: least exact load, largest spare.

    Raises ValueError when there is none, or their sizes differ.
    """
    if len({(len(table.exact), table.max_servers) for table in tables}) != 1:
        raise ValueError("combine needs tables of one size")
    exact = tuple(map(min, zip(*(table.exact for table in tables), strict=True)))
    spare, slope = max(each.spare for each in tables), min(each.slope for each in tables)
    return CapacityTable(exact, spare, tables[0].max_servers, slope)


def thin_points(
    own_s: FloatArray, weight: FloatArray, points: int = POINTS
) -> tuple[FloatArray, FloatArray]:
    """Merge the P points of own_s (P,) or (N, P) into at most `points`, rounding own time up.

    Each group takes the largest own time of its members, so every tail and mean can only grow.
    The longest half of `points` stay single; the rest merge in bands, cut half by own time (what
    the waiting terms need) and half by rank (so that no band holds much probability). One
    grouping serves all rows: it is safe for any row and tight where rows rank the points alike
    and the limits lie at high percentiles.
    Returns own_s (..., Q) and weight (Q,).
    """
    if own_s.shape[-1] <= points:
        return own_s, weight
    rows = np.atleast_2d(own_s)
    reference = np.mean(rows / np.maximum(rows.max(axis=1, keepdims=True), 1e-300), axis=0)
    order = np.argsort(reference, kind="stable")
    ranked = reference[order]
    single = points // 2
    bulk = len(ranked) - single
    reach = max(float(ranked[bulk - 1] - ranked[0]), 1e-300)
    place = (ranked[:bulk] - ranked[0]) / reach + np.arange(bulk) / bulk
    bands = points - single
    band = np.minimum(0.5 * bands * place // 1.0, bands - 1.0)
    first = np.flatnonzero(np.diff(band, prepend=-1.0))
    starts = np.concatenate([first, np.arange(bulk, len(ranked))])
    merged = np.maximum.reduceat(own_s[..., order], starts, axis=-1)
    return merged, np.add.reduceat(weight[order], starts)


def capacity_tables(
    own_s: FloatArray,
    limit_s: FloatArray,
    percentile: FloatArray,
    second_over_first_s: FloatArray,
    weight: FloatArray,
    *,
    ca2: float = 1.0,
    mean_service_s: FloatArray | None = None,
    exact_servers: int = EXACT_SERVERS,
    max_servers: int | None = MAX_SERVERS,
    points: int = POINTS,
) -> CapacityTables:
    """Tabulate each row: a class's limit in a pool, or one of several to `combine`.

    own_s (N, P) with weight (P,), or (N, P) to give each row its own; limit_s (N,); percentile
    (N,), nan for a limit on the mean; second_over_first_s (N,) the E[S^2] / E[S] of the pool's
    worst class, which bounds that of every mix. For arrivals with ca2 > 1 also mean_service_s
    (N,), the largest E[S] in the pool. Shared weights are thinned to `points`.

    max_servers: the largest pool that `spare` must cover; a smaller bound gives a smaller spare,
    None covers any. Raises ValueError for shapes or values that do not fit.
    """
    exponent, probability, budget, is_mean, clump = _limit_rows(
        own_s, limit_s, percentile, second_over_first_s, weight, ca2, mean_service_s, points
    )
    if exact_servers < 1 or (max_servers is not None and max_servers < exact_servers):
        raise ValueError("1 <= exact_servers <= max_servers must hold")
    largest = np.inf if max_servers is None else float(max_servers)
    servers = np.append(np.arange(1.0, exact_servers + 1.0), largest)
    spare = needed_spare(exponent, probability, budget, is_mean, servers, clump)
    exact = np.maximum((servers[:-1] - spare[:, :-1]) * (1.0 - _ROUNDING), 0.0)
    slope = np.ones(len(exact))
    return CapacityTables(exact, spare[:, -1] * (1.0 + _ROUNDING), max_servers, slope)


def capacity_table(
    limits: Sequence[FirstTokenLimit],
    second_over_first_s: float,
    *,
    ca2: float = 1.0,
    mean_service_s: float | None = None,
    exact_servers: int = EXACT_SERVERS,
    max_servers: int | None = MAX_SERVERS,
    points: int = POINTS,
) -> CapacityTable:
    """Tabulate one pool that must keep all `limits`; arguments as for `capacity_tables`.

    Raises ValueError when `limits` is empty.
    """
    return combine(
        [
            capacity_tables(
                limit.own_s[np.newaxis, :],
                np.array([limit.limit_s]),
                np.array([np.nan if limit.percentile is None else limit.percentile]),
                np.array([second_over_first_s]),
                limit.weight,
                ca2=ca2,
                mean_service_s=None if mean_service_s is None else np.array([mean_service_s]),
                exact_servers=exact_servers,
                max_servers=max_servers,
                points=points,
            ).table(0)
            for limit in limits
        ]
    )


def largest_load(
    servers: ArrayLike,
    limits: Sequence[FirstTokenLimit],
    second_over_first_s: float,
    *,
    ca2: float = 1.0,
    mean_service_s: float | None = None,
) -> FloatArray:
    """Largest load in erlangs at which every limit holds, for each count in `servers`; no thinning.

    0 where none does. Same shape as `servers`, each at least 1; other arguments as for
    `capacity_tables`. Raises ValueError for values that do not fit.
    """
    count = np.asarray(servers, dtype=np.float64)
    if not np.all(count >= 1.0):
        raise ValueError("largest_load needs at least one server")
    best = count.copy()
    for limit in limits:
        exponent, probability, budget, is_mean, clump = _limit_rows(
            limit.own_s[np.newaxis, :],
            np.array([limit.limit_s]),
            np.array([np.nan if limit.percentile is None else limit.percentile]),
            np.array([second_over_first_s]),
            limit.weight,
            ca2,
            None if mean_service_s is None else np.array([mean_service_s]),
            points=limit.own_s.shape[-1],
        )
        spare = needed_spare(exponent, probability, budget, is_mean, count.ravel(), clump)
        load = np.maximum((count - spare.reshape(count.shape)) * (1.0 - _ROUNDING), 0.0)
        best = np.minimum(best, load)
    return best


def needed_spare(
    exponent: FloatArray,
    weight: FloatArray,
    budget: FloatArray,
    is_mean: NDArray[np.bool_],
    servers: FloatArray,
    clump: float = 1.0,
) -> FloatArray:
    """Least spare replicas s with C(n, n - s) H(s) <= budget, (N, M), rounded up.

    exponent (N, P): k of each point, per spare replica; weight (N, P), 0 for points late on their
    own; budget (N,), infinite spare where it is not above 0; servers (M,), which may hold inf
    (C = 1). Where `is_mean` H(s) = 1 / s. The bracket is narrowed by the Illinois variant of false
    position with every third step a bisection, and its safe end returned.
    """
    result = np.full((len(budget), len(servers)), np.inf)
    solvable = np.flatnonzero(budget > BUDGET_FLOOR)
    rows = max(1, _CHUNK_EXPONENTIALS // max(1, len(servers) * exponent.shape[1]))
    for start in range(0, len(solvable), rows):
        part = solvable[start : start + rows]
        result[part] = _solve_chunk(
            exponent[part], weight[part], budget[part], is_mean[part], servers, clump
        )
    return result


def _solve_chunk(
    exponent: FloatArray,
    weight: FloatArray,
    budget: FloatArray,
    is_mean: NDArray[np.bool_],
    servers: FloatArray,
    clump: float,
) -> FloatArray:
    """`needed_spare` for a few rows, all with a budget, so that temporaries stay in cache."""
    finite = np.isfinite(servers)
    log_budget = np.log(budget)[:, np.newaxis]
    buffer = np.empty((len(budget), len(servers), exponent.shape[1]))

    def excess(spare: FloatArray) -> FloatArray:
        np.multiply(exponent[:, np.newaxis, :], -spare[:, :, np.newaxis], out=buffer)
        np.exp(buffer, out=buffer)
        late = np.matmul(buffer, weight[:, :, np.newaxis])[:, :, 0]
        late[is_mean] = 1.0 / spare[is_mean]
        load = np.maximum(servers[finite] - spare[:, finite], 0.0)
        late[:, finite] *= erlang_c(servers[finite] / clump, load / clump)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(late) - log_budget, dtype=np.float64)

    return _safe_root(excess, np.tile(servers, (len(budget), 1)))


def _safe_root(excess: Callable[[FloatArray], FloatArray], servers: FloatArray) -> FloatArray:
    """Smallest s in (0, n] with excess(s) <= 0, for each n in `servers`, from the safe side.

    excess falls in s, is positive at 0 and not at n. Infinite where none is found below
    `SPARE_CEILING`.
    """
    low, high = np.zeros_like(servers), np.minimum(1.0, servers)
    at_low, at_high = np.full_like(servers, np.inf), excess(high)
    at_high[high == servers] = -np.inf
    while np.any((at_high > 0.0) & (high < SPARE_CEILING)):
        late = at_high > 0.0
        low, at_low = np.where(late, high, low), np.where(late, at_high, at_low)
        high = np.where(late, np.minimum(2.0 * high, servers), high)
        at_high = np.where(late, excess(high), at_high)
        at_high[high == servers] = -np.inf
    found = at_high <= 0.0
    tolerance = SPARE_TOLERANCE * np.where(np.isfinite(servers), servers, high)
    true_high = at_high
    for step in range(_MAX_STEPS):
        if np.all((high - low <= tolerance) | (true_high > -SPARE_TOLERANCE) | ~found):
            break
        middle = 0.5 * (low + high)
        if step % 3 < 2:
            with np.errstate(invalid="ignore"):
                secant = (low * at_high - high * at_low) / (at_high - at_low)
            middle = np.where((secant > low) & (secant < high), secant, middle)
        value = excess(middle)
        safe = value <= 0.0
        # Illinois: the end that stays gets half its value, so that it moves next time.
        at_low = np.where(safe, 0.5 * at_low, value)
        at_high = np.where(safe, value, 0.5 * at_high)
        true_high = np.where(safe, value, true_high)
        low, high = np.where(safe, low, middle), np.where(safe, middle, high)
    return np.where(found, high, np.inf)


def _limit_rows(
    own_s: FloatArray,
    limit_s: FloatArray,
    percentile: FloatArray,
    second_over_first_s: FloatArray,
    weight: FloatArray,
    ca2: float,
    mean_service_s: FloatArray | None,
    points: int,
) -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.bool_], float]:
    """Exponents, weights, budgets, which rows limit the mean, and the arrivals' clump size."""
    check_points(own_s, weight)
    options = len(own_s)
    if own_s.ndim != 2 or any(
        column.shape != (options,) for column in (limit_s, percentile, second_over_first_s)
    ):
        raise ValueError("own_s must be (N, P) and limits, percentiles and ratios (N,)")
    is_mean = np.isnan(percentile)
    if not np.all(is_mean | ((percentile > 0.0) & (percentile < 1.0))):
        raise ValueError("percentiles must lie between 0 and 1, or be nan for the mean")
    if not (np.all(limit_s > 0.0) and np.all(second_over_first_s > 0.0)):
        raise ValueError("limit_s and second_over_first_s must be positive")
    if ca2 < 1.0:
        raise ValueError("ca2 must be at least 1: plan smoother arrivals as Poisson")
    # Twice theta x spare: E[S^2] / E[S] + (ca2 - 1) E[S].
    patience_s = second_over_first_s
    if ca2 > 1.0:
        if mean_service_s is None:
            raise ValueError("ca2 above 1 needs mean_service_s")
        patience_s = second_over_first_s + (ca2 - 1.0) * mean_service_s
    if weight.ndim == 1:
        own_s, weight = thin_points(own_s, weight, points)
    slack_s = limit_s[:, np.newaxis] - own_s
    on_time = np.where(slack_s >= 0.0, weight, 0.0)
    exponent = 2.0 * np.maximum(slack_s, 0.0) / patience_s[:, np.newaxis]
    late_alone = np.where(slack_s < 0.0, weight, 0.0).sum(axis=1)
    mean_own_s = (own_s * weight).sum(axis=1)
    budget = np.where(
        is_mean,
        2.0 * (limit_s - mean_own_s) / patience_s,
        1.0 - np.where(is_mean, 0.0, percentile) - late_alone,
    )
    return exponent, on_time, budget, is_mean, ca2
