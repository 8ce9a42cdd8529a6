"""A trace as workload classes: everything that an instance can say of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from planner.errors import InputError, Problem
from planner.traces.arrivals import (
    FEWEST_MINUTES,
    LARGEST_SCV,
    Arrivals,
    busiest_second,
    counts_in,
    describe,
    hourly_profile,
    shared_burst_factor,
    spread_ticks,
    tick_of,
)
from planner.traces.clusters import by_clusters, by_grid
from planner.traces.lengths import Lengths, lengths_of, rank_correlation
from planner.traces.prefix import prefix_reuse
from planner.traces.trace import Flags, Floats, Ints, Trace

BINS: Final = 40
"""Bins of a histogram that people paste."""
DEPENDENT: Final = 0.3
"""Rank correlation of input and output from which they are not taken as independent in silence."""
BEYOND_CHANCE: Final = 3.0
"""Standard errors that a rank correlation must exceed, too, to be worth a word."""
MOST_BURST: Final = 100.0

Classes = Literal["auto", "grid"] | int


@dataclass(frozen=True, slots=True)
class ClassEstimate:
    """One workload class."""

    name: str
    share: float
    """Of the requests of its source."""
    rate_per_s: float
    busiest_minute: float | None
    burst_factor: float | None
    arrival_scv: float | None
    input: Lengths
    output: Lengths
    rank_correlation: float | None
    """Spearman's, of input and output; None where single requests are not known."""
    dependent: bool = False
    """Whether that correlation is strong, and no chance."""
    cached_fraction: float | None = None
    """Where the share found is known for the cache as it was, and for no other size."""
    cache_curve: tuple[tuple[float, float], ...] = ()
    """(cache_tokens, fraction of the input found), rising."""
    finding_share: float | None = None
    """Requests that find anything in the largest cache of the curve."""
    cached_request_fraction: float | None = None
    """The effective share of requests that find, see `PrefixReuse.request_shares`."""


@dataclass(frozen=True, slots=True)
class WorkloadEstimate:
    """What one source of data says."""

    source: str
    kind: str
    """`trace`, or the engine whose metrics these are."""
    requests: int
    span_s: float
    rate_per_s: float
    busiest_minute: float | None
    busiest_second: float | None
    """Over the mean; None where no single arrivals are known."""
    unplannable: bool
    tick_s: float | None
    hourly_profile: tuple[float, ...] | None
    has_hours: bool
    """Whether the profile is on the clock of a day, and not counted from the start."""
    classes: tuple[ClassEstimate, ...]
    rates_per_s: tuple[float, ...]
    """Requests per second in each interval of `interval_s`."""
    interval_s: float
    cache_curve: tuple[tuple[float, float], ...] = ()
    """(cache_tokens, fraction found) of the input of all classes together."""
    scale: float = 1.0
    """Rates and cache sizes given here over those of the source."""
    shared_burst_factor: float | None = None
    """Of all classes together, in requests, input or output tokens, whichever peaks highest;
    None where it is not known."""
    notes: tuple[str, ...] = ()

    def scaled(self, factor: float) -> WorkloadEstimate:
        """The same stream from `factor` times as many users of the same kind.

        They reuse the same prefixes after the same time, in which more others have come: sizes
        of the cache grow as the rates do.
        """
        return replace(
            self,
            rate_per_s=self.rate_per_s * factor,
            classes=tuple(
                replace(
                    each,
                    rate_per_s=each.rate_per_s * factor,
                    cache_curve=tuple((size * factor, share) for size, share in each.cache_curve),
                )
                for each in self.classes
            ),
            rates_per_s=tuple(rate * factor for rate in self.rates_per_s),
            cache_curve=tuple((size * factor, share) for size, share in self.cache_curve),
            scale=self.scale * factor,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TraceEstimate:
    """The estimate, with the class (R,) of each request of the trace."""

    estimate: WorkloadEstimate
    trace: Trace
    label: Ints


def estimate_trace(trace: Trace, classes: Classes = "auto", *, bins: int = BINS) -> TraceEstimate:
    """The classes of a trace, with histograms of at most `bins` bins.

    Raises InputError for a trace without two times, which has no rate.
    """
    if trace.span_s <= 0:
        hint = "give a trace with requests at two times at least"
        raise InputError([Problem("has no span of time, and so no rate", hint, file=trace.source)])
    notes = list(trace.notes)
    if trace.model is not None and len(models := sorted(set(trace.model))) > 1:
        notes.append(f"requests of {len(models)} models are taken together: {', '.join(models)}")
    label = by_grid(trace) if classes == "grid" else _clusters(trace, classes)
    tick_s = tick_of(trace.arrival_s)
    clock: Floats = trace.arrival_s
    if tick_s is not None:
        notes.append(
            f"the clock ticks every {tick_s:.3g} s: arrivals are spread by chance within a tick, "
            "so what happens inside it, arrival_scv above all, is not known"
        )
        clock = spread_ticks(trace.arrival_s, tick_s)
    span_s = float(clock[-1])
    shared = shared_burst_factor(trace, clock)
    whole = describe(clock, span_s)
    if whole.busiest_minute is None:
        notes.append(f"the trace has fewer than {FEWEST_MINUTES} whole minutes, too few for a peak")
    peak = busiest_second(clock, span_s)
    reuse = prefix_reuse(trace)
    found: list[ClassEstimate] = []
    stem = stem_of(trace.source)
    for each in range(int(label.max()) + 1):
        rows: Flags = label == each
        arrivals = describe(np.sort(clock[rows]), span_s)
        inputs = lengths_of(trace.input_tokens[rows], bins)
        outputs = lengths_of(trace.output_tokens[rows], bins)
        rank = rank_correlation(trace.input_tokens[rows], trace.output_tokens[rows])
        curve = [] if reuse is None else reuse.curve(rows)
        finding = effective = None
        if reuse is not None and curve:
            finding, effective = reuse.request_shares(curve[-1][0], rows)
        found.append(
            ClassEstimate(
                name=f"{stem}-in{inputs.median}-out{outputs.median}",
                share=float(rows.mean()),
                rate_per_s=trace.rate_per_s * float(rows.mean()),
                busiest_minute=arrivals.busiest_minute,
                burst_factor=_burst(arrivals),
                arrival_scv=None if arrivals.scv is None else min(arrivals.scv, LARGEST_SCV),
                input=inputs,
                output=outputs,
                rank_correlation=rank,
                dependent=abs(rank) >= max(DEPENDENT, BEYOND_CHANCE / float(rows.sum()) ** 0.5),
                cache_curve=tuple(curve),
                finding_share=finding,
                cached_request_fraction=effective,
            )
        )
    interval_s = 60.0 if span_s >= 180.0 else max(span_s / 20, 1e-9)
    estimate = WorkloadEstimate(
        source=trace.source,
        kind="trace",
        requests=trace.requests,
        span_s=trace.span_s,
        rate_per_s=trace.rate_per_s,
        busiest_minute=whole.busiest_minute,
        busiest_second=peak.over_mean,
        unplannable=peak.unplannable,
        tick_s=tick_s,
        hourly_profile=hourly_profile(trace),
        has_hours=trace.start_hour is not None,
        classes=tuple(found),
        rates_per_s=tuple(float(n) for n in counts_in(clock, span_s, interval_s) / interval_s),
        interval_s=interval_s,
        cache_curve=() if reuse is None else tuple(reuse.curve()),
        shared_burst_factor=None if shared is None else min(shared, MOST_BURST),
        notes=tuple(notes),
    )
    return TraceEstimate(estimate, trace, label)


def stem_of(source: str) -> str:
    """The name of a file without its folder and endings, fit for the name of a workload."""
    name = re.sub(r"(\.(csv|jsonl?|txt|gz))+$", "", Path(source).name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "trace"


def _clusters(trace: Trace, classes: int | Literal["auto"]) -> Ints:
    return by_clusters(trace, None if classes == "auto" else classes)


def _burst(arrivals: Arrivals) -> float | None:
    return None if arrivals.burst_factor is None else min(arrivals.burst_factor, MOST_BURST)


def scaled_to(
    estimates: Sequence[WorkloadEstimate], rate_per_s: float | None
) -> list[WorkloadEstimate]:
    """The estimates of all sources, no name twice, scaled to a total rate where one is given."""
    factor = 1.0 if rate_per_s is None else rate_per_s / sum(e.rate_per_s for e in estimates)
    taken: set[str] = set()
    found = []
    for estimate in estimates:
        classes = []
        for each in estimate.classes:
            name, number = each.name, 2
            while name in taken:
                name, number = f"{each.name}-{number}", number + 1
            taken.add(name)
            classes.append(replace(each, name=name))
        named = replace(estimate, classes=tuple(classes))
        found.append(named if factor == 1.0 else named.scaled(factor))
    return found
