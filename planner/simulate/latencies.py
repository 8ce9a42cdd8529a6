"""A log of requests as latencies of one class, and what its promises make of them.

A request that is never served counts as infinitely late: it is in every percentile, and keeps no
limit. Means are of those that were served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.simulate import statistics
from planner.simulate.records import ComponentRun, Outcome
from planner.simulate.statistics import Bools, Estimate, Floats
from planner.workload.classes import Slo, WorkloadClass


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """Counted requests of one class in order of arrival, arrays (R,), in seconds."""

    arrival_s: Floats
    ttft_s: Floats
    """To the first token after the hidden ones."""
    first_token_s: Floats
    """To the first token, hidden or not."""
    tpot_s: Floats
    """Mean time per output token after the first; nan for requests of one token."""
    e2e_s: Floats
    outcome: NDArray[np.int64]

    def of(self, metric: str) -> Floats:
        """The latencies of a metric (R,), without the requests that have none."""
        values = self.all_of(metric)
        return values[~np.isnan(values)]

    def all_of(self, metric: str) -> Floats:
        """The latencies of a metric (R,); nan where a request has none."""
        found = {
            "ttft": self.ttft_s,
            "first_token": self.first_token_s,
            "tpot": self.tpot_s,
            "e2e": self.e2e_s,
        }
        return found[metric]

    def part(self, chosen: Bools) -> Latencies:
        """Those of some of the requests; `chosen` (R,)."""
        return Latencies(
            self.arrival_s[chosen],
            self.ttft_s[chosen],
            self.first_token_s[chosen],
            self.tpot_s[chosen],
            self.e2e_s[chosen],
            self.outcome[chosen],
        )


def class_latencies(run: ComponentRun, name: str) -> Latencies:
    """The counted requests of the class `name` of a component."""
    log = run.requests
    mine = log.counted & (log.class_index == run.classes.index(name))
    arrival = log.arrival_s[mine]
    outcome = log.outcome[mine]
    output = log.output_tokens[mine]
    finished = outcome == Outcome.FINISHED
    first = _never_is_infinite(log.first_token_s[mine])
    finish = np.where(finished, log.finish_s[mine], np.inf)
    # Tokens that decoding makes; the first one comes with the prompt.
    decoded = np.maximum(output - 1, 1)
    with np.errstate(invalid="ignore"):
        each = np.where(np.isinf(first), np.inf, (finish - first) / decoded)
    return Latencies(
        arrival_s=arrival,
        ttft_s=_never_is_infinite(log.visible_first_token_s[mine]) - arrival,
        first_token_s=first - arrival,
        tpot_s=np.where(output > 1, each, np.nan),
        e2e_s=finish - arrival,
        outcome=outcome,
    )


def _never_is_infinite(time_s: Floats) -> Floats:
    return np.where(np.isnan(time_s), np.inf, time_s)


def estimate(latencies: Latencies, metric: str, fraction: float | None) -> Estimate:
    """A percentile of a metric, or its mean where `fraction` is None; seconds."""
    values = latencies.of(metric)
    if fraction is None:
        return statistics.mean(values)
    return statistics.percentile(values, fraction)


def within(latencies: Latencies, slo: Slo) -> Estimate:
    """Share of the requests that the limit of a promise was kept for."""
    return statistics.share(latencies.of(slo.metric) <= slo.limit_s)


def good(latencies: Latencies, slos: Sequence[Slo]) -> Bools:
    """Which requests (R,) finished and kept the limit of every percentile in `slos`.

    A mean promises nothing about one request. A request of one token has no TPOT to miss.
    """
    kept: Bools = latencies.outcome == Outcome.FINISHED
    for slo in slos:
        if slo.percentile is not None:
            kept &= ~(latencies.all_of(slo.metric) > slo.limit_s)
    return kept


def metrics(workload: WorkloadClass) -> tuple[str, ...]:
    """The metrics worth telling of a class; the first hidden token where it has hidden ones."""
    hidden = workload.mix.max_hidden_tokens > 0
    return ("ttft", "first_token", "tpot", "e2e") if hidden else ("ttft", "tpot", "e2e")
