"""How requests arrive: rate, busiest minute, clumps, hours of the day, and the clock itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.traces.trace import Floats, Trace, frozen

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
FEWEST_MINUTES: Final = 3
"""Whole minutes below which nothing is said of the busiest one."""
WINDOW_REQUESTS: Final = 100
"""Requests that a window for the times between arrivals has on average, at least."""
FEWEST_GAPS: Final = 20
"""Times between arrivals below which nothing is said of their variation."""
COARSE: Final = 0.1
"""A clock is coarse where its tick is longer than this share of the mean time between arrivals."""
UNPLANNABLE: Final = 10.0
"""Requests of the busiest second over the mean beyond which a fleet that holds them would stand
idle nine tenths of the time."""
CHANCE: Final = 1e-9
"""Of a busiest second that Poisson arrivals at the rate of the busiest minute would explain."""
TICKS_S: Final = (60.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.2, 0.1, 0.05, 0.02, 0.01)
LARGEST_SCV: Final = 100.0
"""Most that an instance may give."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What is known of a stream of requests; None where it is too short to say."""

    requests: int
    rate_per_s: float
    busiest_minute: float | None
    """Requests of the busiest whole minute over those of the mean one, as counted."""
    burst_factor: float | None
    """The same without what chance adds: see `burst_factor`."""
    scv: float | None
    """Squared coefficient of variation of the times between arrivals: see `gap_scv`."""


def describe(arrival_s: Floats, span_s: float) -> Arrivals:
    """The stream of arrivals (R,) in a window of `span_s` seconds."""
    minutes = counts_in(arrival_s, span_s, MINUTE_S)
    busiest = None
    if len(minutes) >= FEWEST_MINUTES and minutes.mean() > 0:
        busiest = float(minutes.max() / minutes.mean())
    return Arrivals(
        requests=len(arrival_s),
        rate_per_s=len(arrival_s) / span_s,
        busiest_minute=busiest,
        burst_factor=None if busiest is None else burst_factor(minutes),
        scv=gap_scv(arrival_s, span_s),
    )


def counts_in(arrival_s: Floats, span_s: float, window_s: float) -> Floats:
    """Arrivals in each whole window of `window_s` seconds from 0 on."""
    whole = int(span_s / window_s)
    window = (arrival_s[arrival_s < whole * window_s] / window_s).astype(np.int64)
    return np.bincount(window, minlength=whole).astype(np.float64)


def burst_factor(counts: Floats, noise: float | None = None) -> float:
    """Load in the busiest window over the mean (W,), without the noise of counting.

    Counts of a steady Poisson stream vary by their mean, or by `noise` where they are sums of
    something else than requests. Of the variance seen, the share beyond that is due to the rate;
    the busiest window is drawn towards the mean by this share, the best linear estimate of its
    rate. Chance has its own place in the formulas of waiting, and weighs less in a larger fleet.
    """
    mean, variance = float(counts.mean()), float(counts.var())
    noise = mean if noise is None else noise
    if variance <= noise or mean <= 0:
        return 1.0
    return 1.0 + (float(counts.max()) / mean - 1.0) * (1.0 - noise / variance)


def shared_burst_factor(trace: Trace, arrival_s: Floats) -> float | None:
    """The largest of the burst factors of requests, input tokens and output tokens, of all
    classes together: what a fleet needs that serves them all. None for a short trace.

    `arrival_s` (R,) are the arrivals of the trace on a clock that may have been mended.
    """
    whole = int(float(arrival_s[-1]) / MINUTE_S)
    if whole < FEWEST_MINUTES:
        return None
    inside = arrival_s < whole * MINUTE_S
    minute = (arrival_s[inside] / MINUTE_S).astype(np.int64)
    found = []
    for tokens in (np.ones(trace.requests), trace.input_tokens, trace.output_tokens):
        weight = tokens[inside].astype(np.float64)
        sums: Floats = np.bincount(minute, weights=weight, minlength=whole).astype(np.float64)
        found.append(burst_factor(sums, float(weight @ weight) / whole))
    return max(found)


def gap_scv(arrival_s: Floats, span_s: float) -> float | None:
    """Squared coefficient of variation of the times between arrivals, within windows so short
    that a drifting rate does not count: of a minute, or of 100 requests where that is longer.

    Each window is compared with its own mean; windows count by their number of gaps. None with
    fewer than 20 gaps.
    """
    if len(arrival_s) <= FEWEST_GAPS:
        return None
    window_s = max(MINUTE_S, WINDOW_REQUESTS * span_s / len(arrival_s))
    window = (arrival_s / window_s).astype(np.int64)
    gaps = np.diff(arrival_s)
    inside = window[1:] == window[:-1]
    gaps, window = gaps[inside], window[1:][inside]
    number = np.bincount(window)
    total = np.bincount(window, weights=gaps)
    square = np.bincount(window, weights=gaps**2)
    used = (number >= FEWEST_GAPS) & (total > 0)
    if not used.any():
        return None
    number, mean = number[used], total[used] / number[used]
    variance = np.maximum(square[used] - number * mean**2, 0.0) / (number - 1)
    return float(np.average(variance / mean**2, weights=number))


def hourly_profile(trace: Trace) -> tuple[float, ...] | None:
    """Rate in each hour of the day over the mean of the 24; None for less than a day.

    Hours are those of the file's clock, or counted from the first arrival where it has no dates.
    """
    return profile_of(trace.arrival_s, trace.span_s, trace.start_hour or 0.0)


def profile_of(
    arrival_s: Floats, span_s: float, start_hour: float, weight: Floats | None = None
) -> tuple[float, ...] | None:
    """As `hourly_profile`, for arrivals (R,) on a clock whose 0 is at `start_hour` of a day;
    `weight` (R,) counts those of each time, 1 where None.
    """
    if span_s < 24 * HOUR_S - MINUTE_S:
        return None
    hour = ((arrival_s / HOUR_S + start_hour) % 24).astype(np.int64) % 24
    requests = np.bincount(hour, weights=weight, minlength=24)
    # Minutes of the span that lie in each hour of the day: days need not be whole.
    minutes = np.arange(0.5, max(span_s / MINUTE_S, 1.0))
    seen = np.bincount(((minutes / 60 + start_hour) % 24).astype(np.int64) % 24, minlength=24)
    rates = requests / np.maximum(seen, 1)
    return tuple(float(rate) for rate in rates / rates.mean())


def tick_of(arrival_s: Floats) -> float | None:
    """Seconds between two ticks of a clock too coarse for the rate; None for a fine one.

    Either all times are multiples of the tick, or the requests stand in heaps at about equal
    distances, as in Mooncake's traces.
    """
    if len(arrival_s) <= FEWEST_GAPS or arrival_s[-1] <= 0:
        return None
    mean_gap_s = float(arrival_s[-1]) / (len(arrival_s) - 1)
    stamps = np.unique(arrival_s)
    steps = np.diff(stamps)
    middle = float(np.median(steps))
    heaps = len(arrival_s) >= 2 * len(stamps) and float(steps.min()) > middle / 2
    if heaps and middle > COARSE * mean_gap_s:
        return middle
    for tick in TICKS_S:
        if tick <= COARSE * mean_gap_s:
            break
        ticks = arrival_s / tick
        if np.abs(ticks - np.round(ticks)).max() < 1e-4:
            return tick
    return None


def spread_ticks(arrival_s: Floats, tick_s: float, seed: int = 0) -> Floats:
    """Arrivals (R,) moved by chance to places within their tick, in the same order, from 0 on."""
    shift = np.random.default_rng(seed).random(len(arrival_s)) * tick_s
    moved = np.sort(arrival_s + shift)
    return frozen(moved - moved[0])


@dataclass(frozen=True, slots=True)
class Peak:
    """The busiest second of a stream."""

    requests: int
    over_mean: float
    """Requests in it over those of the mean second."""
    unplannable: bool
    """More than ten times the mean, and more than chance makes of the busiest minute's rate."""


def busiest_second(arrival_s: Floats, span_s: float) -> Peak:
    """The second, beginning at any arrival, with the most arrivals."""
    inside = np.searchsorted(arrival_s, arrival_s + 1.0, side="left") - np.arange(len(arrival_s))
    most = int(inside.max())
    rate = len(arrival_s) / span_s
    minutes = counts_in(arrival_s, span_s, MINUTE_S)
    rate_of_busiest = float(minutes.max()) / MINUTE_S if len(minutes) else rate
    by_chance = _poisson_tail(most, max(rate_of_busiest, rate))
    over = most / max(rate, 1e-12)
    return Peak(most, over, over > UNPLANNABLE and by_chance < CHANCE)


def _poisson_tail(count: int, mean: float) -> float:
    """An upper bound on the chance that a Poisson number of this mean reaches `count`.

    Chernoff: exp(-mean) (e mean / count)^count for count above the mean.
    """
    if count <= mean:
        return 1.0
    return float(np.exp(count - mean - count * np.log(count / mean)))
