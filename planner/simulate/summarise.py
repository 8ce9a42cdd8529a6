"""From the log of a simulation to its result: every class, every pool, every account."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from planner.embedded import EmbeddedPlan
from planner.simulate import statistics
from planner.simulate.accounts import account
from planner.simulate.latencies import (
    Latencies,
    class_latencies,
    estimate,
    good,
    metrics,
    within,
)
from planner.simulate.over_time import counted_samples, over_time
from planner.simulate.predictions import Key, predictions_s
from planner.simulate.records import ComponentRun, Outcome, SimulationRun
from planner.simulate.statistics import Estimate
from planner.simulate.summary import (
    Account,
    ClassResult,
    LatencyResult,
    PoolResult,
    ShareResult,
    SloResult,
    Verdict,
)
from planner.verify import TOLERANCE
from planner.workload.classes import Slo, WorkloadClass

PERCENTILES: Final = (0.5, 0.9, 0.95, 0.99)
FIGURES: Final[tuple[float | None, ...]] = (None, *PERCENTILES)
"""Of every latency: its mean and these percentiles."""
MILLI: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Results:
    """What one run gave."""

    classes: tuple[ClassResult, ...]
    pools: tuple[PoolResult, ...]
    accounts: tuple[Account, ...]

    @property
    def slos(self) -> Iterator[SloResult]:
        """Every promise of every class."""
        for workload in self.classes:
            yield from workload.slos

    @property
    def status(self) -> Verdict:
        """Missed where any promise is."""
        return "missed" if any(slo.verdict == "missed" for slo in self.slos) else "kept"

    @property
    def certain(self) -> bool:
        """Whether the verdict on every promise is."""
        return all(slo.certain for slo in self.slos)


def results(run: SimulationRun, embedded: EmbeddedPlan, rate_factor: float = 1.0) -> Results:
    """The result of a run of the plan `embedded`."""
    predicted = predictions_s(embedded, [*_wanted(embedded)], rate_factor)
    where = {name: part for part in run.components for name in part.classes}
    return Results(
        classes=tuple(
            _class(workload, where[workload.name], predicted)
            for workload in embedded.classes
            if workload.name in where
        ),
        pools=_in_order(run, embedded),
        accounts=tuple(account(part) for part in run.components),
    )


def _wanted(embedded: EmbeddedPlan) -> Iterator[Key]:
    for workload in embedded.classes:
        for metric in metrics(workload):
            for fraction in FIGURES:
                yield workload.name, metric, fraction
        for slo in workload.slos:
            if slo.percentile not in FIGURES:
                yield workload.name, slo.metric, slo.percentile


# ---- classes ----------------------------------------------------------------------------------


def _class(
    workload: WorkloadClass, run: ComponentRun, predicted: Mapping[Key, float]
) -> ClassResult:
    log = run.requests
    mine = log.counted & (log.class_index == run.classes.index(workload.name))
    found = class_latencies(run, workload.name)
    seconds = max(run.horizon_s - run.warmup_s, 1e-300)
    is_good = good(found, workload.slos)
    inputs = int(log.input_tokens[mine].sum())
    outcomes = {each: int((found.outcome == each).sum()) for each in Outcome}
    return ClassResult(
        name=workload.name,
        model=workload.model,
        requests=int(mine.sum()),
        finished=outcomes[Outcome.FINISHED],
        rejected=outcomes[Outcome.REJECTED],
        unfinished=outcomes[Outcome.UNFINISHED],
        requests_per_s=int(mine.sum()) / seconds,
        goodput_requests_per_s=int(is_good.sum()) / seconds,
        good=share_result(statistics.share(is_good)),
        preemptions=int(log.preemptions[mine].sum()),
        restarts=int(log.restarts[mine].sum()),
        cached_input_fraction=int(log.cached_tokens[mine].sum()) / inputs if inputs else 0.0,
        slos=tuple(_slo(found, slo, workload.name, predicted) for slo in workload.slos),
        latencies=tuple(
            _latency(found, metric, fraction, predicted[workload.name, metric, fraction])
            for metric in metrics(workload)
            for fraction in FIGURES
        ),
    )


def _latency(
    found: Latencies, metric: str, fraction: float | None, predicted_s: float
) -> LatencyResult:
    seen = estimate(found, metric, fraction)
    return LatencyResult(
        metric=metric,  # type: ignore[arg-type]  # one of the names in `metrics`
        percentile=in_percent(fraction),
        value_ms=in_ms(seen.value),
        low_ms=in_ms(seen.low),
        high_ms=in_ms(seen.high),
        predicted_ms=in_ms(predicted_s),
    )


def _slo(found: Latencies, slo: Slo, name: str, predicted: Mapping[Key, float]) -> SloResult:
    key = (name, slo.metric, slo.percentile)
    figure = _latency(found, slo.metric, slo.percentile, predicted[key])
    kept = within(found, slo)
    if slo.percentile is None:
        seen = estimate(found, slo.metric, None)
        open_question = seen.low <= slo.limit_s < seen.high
    else:
        open_question = kept.low <= slo.percentile < kept.high
    return SloResult(
        **figure.model_dump(),
        limit_ms=slo.limit_s / MILLI,
        within=share_result(kept),
        verdict=verdict(estimate(found, slo.metric, slo.percentile), slo.limit_s),
        certain=not open_question,
    )


def verdict(seen: Estimate, limit_s: float) -> Verdict:
    """Kept where the value is not above the limit, or nothing was asked of the class."""
    if math.isnan(seen.value):
        return "kept"
    return "kept" if seen.value <= limit_s * (1 + TOLERANCE) else "missed"


def share_result(seen: Estimate) -> ShareResult:
    """A share as it is told; 1 of no requests at all."""
    value = 1.0 if math.isnan(seen.value) else seen.value
    return ShareResult(fraction=value, low_fraction=seen.low, high_fraction=seen.high)


def in_ms(seconds: float) -> float | None:
    """Milliseconds, or None for what is infinite or unknown."""
    return seconds / MILLI if math.isfinite(seconds) else None


def in_percent(fraction: float | None) -> float | None:
    """95.0 for 0.95; rounded, so that it is the number of the instance again."""
    return None if fraction is None else round(100 * fraction, 9)


# ---- pools ------------------------------------------------------------------------------------


def _in_order(run: SimulationRun, embedded: EmbeddedPlan) -> tuple[PoolResult, ...]:
    order = [pool.id for pool in embedded.plan.pools]
    return tuple(sorted(_pools(run, embedded), key=lambda pool: order.index(pool.id)))


def _pools(run: SimulationRun, embedded: EmbeddedPlan) -> Iterator[PoolResult]:
    plans = {pool.id: pool for pool in embedded.plan.pools}
    for part in run.components:
        log = part.requests
        for index, series in enumerate(part.series):
            plan = plans[series.pool]
            counted = counted_samples(part, series)
            evicted = log.preemptions[log.counted & (log.decode_pool == index)]
            yield PoolResult(
                id=plan.id,
                role=plan.role,
                replicas=round(float(series.replicas_up.max(initial=0.0))),
                waiting_mean=over_time(series.waiting, series, counted),
                waiting_max=float(series.waiting[counted].max(initial=0.0)),
                running_mean=over_time(series.running, series, counted),
                running_max=float(series.running[counted].max(initial=0.0)),
                planned_batch=plan.batch,
                busy_fraction=over_time(series.busy_fraction, series, counted),
                kv_fraction=over_time(series.kv_fraction, series, counted),
                kv_max_fraction=float(series.kv_fraction[counted].max(initial=0.0)),
                preemptions=int(evicted.sum()),
            )
