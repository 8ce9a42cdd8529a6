"""What failures did: promises before them, until the fleet is back to normal, and after that.

Back to normal is told by what waits in each pool and by the number of requests in all of them,
which rises and falls with every latency (Little's law). It is normal again when the replicas that
return are back, no request is refused, and both have come down to what they were before the first
failure, and stay so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np

from planner.simulate.latencies import class_latencies, estimate, within
from planner.simulate.over_time import in_system
from planner.simulate.records import ComponentRun, Outcome
from planner.simulate.summarise import in_ms, in_percent, share_result
from planner.simulate.summary import Disturbance, FailureWindow, WindowSlo
from planner.workload.classes import WorkloadClass

When = Literal["before", "during", "after"]

WAITING_SLACK: Final = 1.25
IN_SYSTEM_SLACK: Final = 1.1
"""Factors on the largest sample before the failure up to which the numbers waiting in a pool, and
in all pools together, are normal: the largest of a few samples is not the largest there can be."""
STAYS: Final = 10
"""Samples in a row that must be normal: a queue takes a while to grow."""


def disturbances(
    components: Sequence[ComponentRun], classes: Sequence[WorkloadClass]
) -> tuple[Disturbance, ...]:
    """Of every component in which something failed during the counted time."""
    return tuple(
        _disturbance(part, [each for each in classes if each.name in part.classes])
        for part in components
        if any(time_s <= part.horizon_s for time_s, _ in part.events)
    )


def back_to_normal_s(part: ComponentRun) -> float:
    """When the disturbance that began with the first event was over; infinite where it was not.

    Not before the last replica that returns is back. Where nothing was sampled between warm-up
    and failure there is nothing to come back to.
    """
    times = [time_s for time_s, _ in part.events if time_s <= part.horizon_s]
    end_s = part.series[0].time_s
    before = (end_s > part.warmup_s) & (end_s <= min(times))
    if not before.any():
        return math.inf
    total = in_system(part)
    normal = total <= float(total[before].max()) * IN_SYSTEM_SLACK
    for series in part.series:
        usual = float(series.waiting[before].max()) * WAITING_SLACK + 1
        normal &= series.waiting <= usual
    # Where requests are refused nothing waits, and nothing is normal.
    refused = part.requests.arrival_s[part.requests.outcome == Outcome.REJECTED]
    normal &= np.histogram(refused, bins=np.concatenate([[0.0], end_s]))[0] == 0
    later = np.flatnonzero((end_s > max(times)) & (end_s <= part.horizon_s))
    for index in range(len(later) - STAYS + 1):
        if normal[later[index : index + STAYS]].all():
            # The first sample is normal as a whole, so it was over when it began.
            return float(end_s[later[index - 1]]) if index else max(times)
    return math.inf


def _disturbance(part: ComponentRun, classes: Sequence[WorkloadClass]) -> Disturbance:
    first_s = min(time_s for time_s, _ in part.events)
    normal_s = back_to_normal_s(part)
    return Disturbance(
        classes=part.classes,
        events=tuple(f"{time_s - part.warmup_s:,.0f} s: {text}" for time_s, text in part.events),
        first_s=first_s - part.warmup_s,
        normal_s=normal_s - part.warmup_s if math.isfinite(normal_s) else None,
        windows=tuple(
            window for workload in classes for window in _windows(part, workload, first_s, normal_s)
        ),
    )


def _windows(
    part: ComponentRun, workload: WorkloadClass, first_s: float, normal_s: float
) -> Iterator[FailureWindow]:
    """Requests by the time of their arrival. One that arrives before a failure may still be in
    work when it comes, and is counted as before.
    """
    found = class_latencies(part, workload.name)
    end_s = min(normal_s, part.horizon_s)
    spans: tuple[tuple[When, float, float], ...] = (
        ("before", part.warmup_s, first_s),
        ("during", first_s, end_s),
        ("after", end_s, part.horizon_s),
    )
    for when, start_s, stop_s in spans:
        if stop_s <= start_s:
            continue
        # Arrivals end at the horizon; the last window takes what is left.
        inside = (found.arrival_s >= start_s) & (found.arrival_s < stop_s)
        chosen = found.part(inside)
        yield FailureWindow(
            workload=workload.name,
            when=when,
            seconds=stop_s - start_s,
            requests=int(inside.sum()),
            rejected=int((chosen.outcome == Outcome.REJECTED).sum()),
            slos=tuple(
                WindowSlo(
                    metric=slo.metric,  # type: ignore[arg-type]  # one of the promised metrics
                    percentile=in_percent(slo.percentile),
                    limit_ms=slo.limit_s * 1e3,
                    value_ms=in_ms(estimate(chosen, slo.metric, slo.percentile).value),
                    within=share_result(within(chosen, slo)),
                )
                for slo in workload.slos
            ),
        )
