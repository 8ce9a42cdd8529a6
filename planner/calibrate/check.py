"""A plan beside measurements of its pools: each point inside the predicted range or not, and
whether the promises that were measured are kept.

A point is predicted at the load at which it was measured, not at the load that was planned, so
that a difference is one of the performance model. Promises are judged by measured percentiles,
unless the pool was loaded beyond the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from planner.calibrate.match import matched_pool
from planner.calibrate.measurement import Measurement
from planner.calibrate.points import Point, Predictions, usable_points
from planner.embedded import EmbeddedPlan
from planner.perf.corrections import NO_CORRECTION
from planner.perf.serving import DEFAULT_BUDGET_TOKENS
from planner.plan import ClassPlan, PoolPlan, SloPlan

Metric = Literal["tpot", "ttft", "output tokens/s"]
Verdict = Literal["inside", "above", "below"]

LOAD_TOLERANCE: Final = 0.02
"""Share by which a measured load may exceed the planned one and still count as planned."""
PERCENTILE_TOLERANCE: Final = 1e-6
MILLI: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity at one point. Milliseconds, or tokens per second of the replica."""

    file: str
    place: str
    pool: str
    metric: Metric
    concurrency: float
    measured: float
    predicted: float
    low: float
    high: float
    cause: str
    """Likely causes where it is outside the range."""

    @property
    def verdict(self) -> Verdict:
        """Where it lies."""
        if self.measured > self.high:
            return "above"
        return "below" if self.measured < self.low else "inside"

    @property
    def beyond_fraction(self) -> float:
        """How far outside the range, as a share of its nearer end; 0 inside."""
        if self.verdict == "above":
            return self.measured / self.high - 1
        return 1 - self.measured / self.low if self.verdict == "below" else 0.0


@dataclass(frozen=True, slots=True)
class _Range:
    """A prediction and the band about it."""

    predicted: float
    low: float
    high: float

    @classmethod
    def of(cls, predicted: float, band: tuple[float, float]) -> _Range:
        return cls(predicted, predicted * band[0], predicted * band[1])

    def scaled(self, factor: float) -> _Range:
        return _Range(self.predicted * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class PromiseCheck:
    """One promise beside what was measured of it."""

    file: str
    place: str
    pool: str
    workload: str
    metric: str
    percentile: float | None
    limit_ms: float
    measured_ms: float
    load_fraction: float | None
    """Measured requests in flight on a replica over the planned ones."""

    @property
    def kept(self) -> bool:
        """Whether the measured latency is within the limit."""
        return self.measured_ms <= self.limit_ms

    @property
    def counts(self) -> bool:
        """Whether the plan promised anything at this load."""
        return self.load_fraction is None or self.load_fraction <= 1 + LOAD_TOLERANCE


@dataclass(frozen=True, slots=True)
class OtherPercentiles:
    """A promise of whose metric other percentiles were measured than the one promised."""

    file: str
    place: str
    pool: str
    workload: str
    metric: str
    percentile: float
    measured_percentiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """A plan beside its measurements."""

    comparisons: tuple[Comparison, ...]
    promises: tuple[PromiseCheck, ...]
    not_compared: tuple[OtherPercentiles, ...]
    skipped: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every point is inside its range and no promise is missed at a planned load."""
        inside = all(each.verdict == "inside" for each in self.comparisons)
        return inside and all(each.kept or not each.counts for each in self.promises)


def check_plan(
    embedded: EmbeddedPlan,
    measurements: Sequence[Measurement],
    pool: str | None = None,
    replicas: int | None = None,
) -> Check:
    """Compare measurements with the plan. `pool` says of which pool they are where the files do
    not; `replicas` how many replicas took the load where they do not (1 otherwise).

    Raises InputError where a measurement is of no pool, of several, or none can be used.
    """
    points, skipped = usable_points(measurements, replicas)
    by_pool: dict[str, list[Point]] = {}
    for point in points:
        by_pool.setdefault(matched_pool(embedded, point.measurement, pool), []).append(point)
    comparisons: list[Comparison] = []
    promises: list[PromiseCheck] = []
    others: list[OtherPercentiles] = []
    for plan in embedded.plan.pools:
        mine = by_pool.get(plan.id, [])
        if mine and plan.role == "prefill":
            skipped += [
                f"{each.place}: {plan.id} prefills only; its waiting times are not predicted at "
                "a closed-loop load, and its promises are compared below"
                for each in mine
            ]
        elif mine:
            comparisons += _compared(embedded, plan, mine)
        for point in mine:
            promises += _promises(embedded.plan.classes, plan, point)
            others += _not_compared(embedded.plan.classes, plan, point)
    return Check(tuple(comparisons), tuple(promises), tuple(others), tuple(skipped))


def _compared(
    embedded: EmbeddedPlan, plan: PoolPlan, points: Sequence[Point]
) -> Iterator[Comparison]:
    config, backend = embedded.configs[plan.id], embedded.backend
    correction = backend.corrections.find(config) or NO_CORRECTION
    budget = plan.chunk_tokens or DEFAULT_BUDGET_TOKENS
    predictions = Predictions(config, points, backend.constants, budget_tokens=budget)
    served = predictions.serving(correction)
    decode = plan.role == "decode"
    tpot = predictions.decode_tpot_s(correction) if decode else served.tpot_s
    bound = predictions.bound_step_s()
    band, ttft_band = backend.band(config), backend.ttft_band(config)
    for n, point in enumerate(points):
        waits = bool(served.capacity[n] < point.concurrency)
        token = _Range.of(float(tpot[n]), band)
        cause = _tpot_cause(point, token.predicted, float(bound[n]), waits)
        yield _comparison(plan, point, "tpot", point.tpot_s / MILLI, token.scaled(1 / MILLI), cause)
        if decode or point.ttft_s is None:
            continue
        first = _Range.of(float(served.ttft_s[n]), ttft_band)
        cause = _ttft_cause(point, first.predicted, waits)
        yield _comparison(plan, point, "ttft", point.ttft_s / MILLI, first.scaled(1 / MILLI), cause)
        rate = point.measurement.output_tokens_per_s
        if rate is not None:
            tokens_per_s = _throughput(point, first, token)
            cause = "TPOT and TTFT above make it; else the load was not steady (ramp, few requests)"
            yield _comparison(
                plan, point, "output tokens/s", rate / point.replicas, tokens_per_s, cause
            )


def _comparison(
    plan: PoolPlan, point: Point, metric: Metric, measured: float, expected: _Range, cause: str
) -> Comparison:
    return Comparison(
        file=point.measurement.file,
        place=point.measurement.place,
        pool=plan.id,
        metric=metric,
        concurrency=point.concurrency,
        measured=measured,
        predicted=expected.predicted,
        low=expected.low,
        high=expected.high,
        cause=cause,
    )


def _throughput(point: Point, first: _Range, token: _Range) -> _Range:
    """Output tokens per second of a replica whose clients wait `first` and read at `token`: each
    gets all its tokens once in an end-to-end time.
    """
    tokens = point.concurrency * point.measurement.output_tokens
    rest = max(point.measurement.output_tokens - 1, 0)
    return _Range(
        predicted=tokens / (first.predicted + rest * token.predicted),
        low=tokens / (first.high + rest * token.high),
        high=tokens / (first.low + rest * token.low),
    )


def _tpot_cause(point: Point, predicted_s: float, bound_s: float, waits: bool) -> str:
    if point.tpot_s < bound_s:
        return (
            "faster than the hardware allows: another GPU or layout, speculative decoding, or a "
            "TPOT that counts the first token"
        )
    if point.tpot_s < predicted_s:
        return "lighter load than recorded, or better kernels: `planner calibrate` takes it in"
    if waits:
        return (
            "by the model not all requests fit at once: preemptions, or a smaller memory setting "
            "than planned"
        )
    return (
        "settings (CUDA graphs off, a profiler, chunk budget), a throttled or shared GPU, or "
        "slower kernels: `planner calibrate` takes the last in"
    )


def _ttft_cause(point: Point, predicted_s: float, waits: bool) -> str:
    assert point.ttft_s is not None
    if point.ttft_s < predicted_s:
        return "prompts found in the prefix cache, or arrivals more even than a closed loop's"
    if waits:
        return "waiting for a place in the batch: fewer fit than the model says"
    return "bursts of arrivals (ramp, no warm-up), or a tokenizer or router that adds time"


def _promises(classes: Sequence[ClassPlan], plan: PoolPlan, point: Point) -> Iterator[PromiseCheck]:
    for workload, slo in _promised(classes, plan):
        measured_s = _measured(slo, point)
        if measured_s is None:
            continue
        yield PromiseCheck(
            file=point.measurement.file,
            place=point.measurement.place,
            pool=plan.id,
            workload=workload.name,
            metric=slo.metric,
            percentile=slo.percentile,
            limit_ms=slo.limit_ms,
            measured_ms=measured_s / MILLI,
            load_fraction=point.concurrency / plan.batch if plan.batch else None,
        )


def _not_compared(
    classes: Sequence[ClassPlan], plan: PoolPlan, point: Point
) -> Iterator[OtherPercentiles]:
    for workload, slo in _promised(classes, plan):
        measured = _percentiles(slo, point)
        if slo.percentile is None or not measured or _measured(slo, point) is not None:
            continue
        yield OtherPercentiles(
            file=point.measurement.file,
            place=point.measurement.place,
            pool=plan.id,
            workload=workload.name,
            metric=slo.metric,
            percentile=slo.percentile,
            measured_percentiles=tuple(round(100 * each, 6) for each in sorted(measured)),
        )


def _promised(classes: Sequence[ClassPlan], plan: PoolPlan) -> Iterator[tuple[ClassPlan, SloPlan]]:
    """The promises that measurements of a pool can tell something of."""
    untold = {"decode": ("ttft", "e2e"), "prefill": ("tpot", "e2e")}.get(plan.role, ("e2e",))
    for workload in classes:
        if any(share.pool == plan.id for share in workload.served_by):
            yield from ((workload, slo) for slo in workload.slos if slo.metric not in untold)


def _percentiles(slo: SloPlan, point: Point) -> Mapping[float, float]:
    """Measured percentiles of a promise's metric, seconds by fraction."""
    measurement = point.measurement
    return (
        measurement.ttft_percentiles_s if slo.metric == "ttft" else measurement.tpot_percentiles_s
    )


def _measured(slo: SloPlan, point: Point) -> float | None:
    """The measured latency of a promise's metric and percentile, if there is one."""
    if slo.percentile is None:
        return point.ttft_s if slo.metric == "ttft" else point.tpot_s
    for fraction, seconds in _percentiles(slo, point).items():
        if np.isclose(fraction * 100, slo.percentile, atol=PERCENTILE_TOLERANCE):
            return seconds
    return None
