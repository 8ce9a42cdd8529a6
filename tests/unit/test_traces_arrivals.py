"""Streams whose rate, bursts and clumps are known."""

from __future__ import annotations

import numpy as np
import pytest

from planner.traces.arrivals import (
    burst_factor,
    busiest_second,
    counts_in,
    describe,
    gap_scv,
    hourly_profile,
    shared_burst_factor,
    spread_ticks,
    tick_of,
)
from planner.traces.trace import Floats, Trace, sorted_trace


def gamma(rate_per_s: float, scv: float, span_s: float, seed: int = 0) -> Floats:
    """Arrivals with gamma gaps of a given SCV."""
    rng = np.random.default_rng(seed)
    number = int(rate_per_s * span_s * 1.2)
    times = np.cumsum(rng.gamma(1 / scv, scv / rate_per_s, number))
    assert times[-1] > span_s
    return times[times < span_s]


def trace_of(times: Floats, start_hour: float | None = None) -> Trace:
    ones = np.ones(len(times), dtype=np.int64)
    return sorted_trace(times, ones, ones, source="made", start_hour=start_hour)


@pytest.mark.parametrize("scv", [0.3, 1.0, 4.0])
def test_the_variation_of_gaps(scv: float) -> None:
    found = gap_scv(gamma(5, scv, 7200), 7200)
    assert found == pytest.approx(scv, rel=0.08)


def test_a_drifting_rate_is_no_variation_of_gaps() -> None:
    # The rate rises fivefold within the hour; over all gaps the SCV would be near 1.5.
    rng = np.random.default_rng(1)
    steady = np.sort(rng.random(20_000))
    times = 3600 * (np.sqrt(1 + 24 * steady) - 1) / 4
    gaps = np.diff(times)
    assert gaps.var() / gaps.mean() ** 2 > 1.2
    assert gap_scv(times, 3600) == pytest.approx(1.0, abs=0.05)


def test_too_few_gaps_say_nothing() -> None:
    assert gap_scv(np.arange(20.0), 20.0) is None


def test_a_steady_stream_has_no_burst_but_a_busiest_minute() -> None:
    arrivals = describe(gamma(1, 1.0, 36_000), 36_000)
    assert arrivals.busiest_minute is not None
    assert arrivals.burst_factor is not None
    assert arrivals.busiest_minute > 1.25
    assert arrivals.burst_factor == pytest.approx(1.0, abs=0.06)
    assert arrivals.rate_per_s == pytest.approx(1, rel=0.02)


def test_a_burst_is_found_under_the_noise() -> None:
    # One minute in ten has twice the rate of the others: 20 / 11 of the mean.
    rng = np.random.default_rng(2)
    rates = np.where(np.arange(600) % 10 == 0, 2.0, 1.0) * 100
    counts = rng.poisson(rates).astype(np.float64)
    counted = counts.max() / counts.mean()
    assert counted > 2.05
    assert 20 / 11 < burst_factor(counts) < counted - 0.1


def test_classes_that_peak_apart_share_a_smaller_burst() -> None:
    # Two classes, each busy in one half of the time: each has a burst of 2, together none.
    minutes = np.repeat(np.arange(20), 400)
    times = minutes * 60 + np.tile(np.arange(400) * 0.15, 20)
    lengths = np.where(minutes < 10, 100, 101)
    trace = sorted_trace(times, lengths, lengths, source="made")
    first = describe(times[minutes < 10], 1200)
    assert first.burst_factor == pytest.approx(2, abs=0.05)
    assert shared_burst_factor(trace, trace.arrival_s) == pytest.approx(1, abs=0.02)


def test_the_shared_burst_covers_tokens_that_peak_without_requests() -> None:
    minutes = np.repeat(np.arange(20), 400)
    times = minutes * 60 + np.tile(np.arange(400) * 0.15, 20)
    outputs = np.where(minutes == 7, 300, 100)
    trace = sorted_trace(times, np.full(len(times), 50), outputs, source="made")
    assert shared_burst_factor(trace, trace.arrival_s) == pytest.approx(3 / 1.1, abs=0.05)
    assert shared_burst_factor(trace.select(times < 100), times[times < 100]) is None


def test_counts_leave_out_the_broken_window() -> None:
    assert counts_in(np.array([0, 59.9, 60, 130]), 130.0, 60.0).tolist() == [2, 1]


def test_the_hours_of_the_day() -> None:
    # Three days and a half; twice the rate from 12:00 to 13:00, the file starts at 06:00.
    minutes = np.arange(0, 84 * 60)
    hour = (6 + minutes // 60) % 24
    times = np.repeat(minutes * 60.0, np.where(hour == 12, 2, 1))
    profile = hourly_profile(trace_of(times, start_hour=6.0))
    assert profile is not None
    assert len(profile) == 24
    assert np.mean(profile) == pytest.approx(1)
    assert profile[12] == pytest.approx(2 / (25 / 24), rel=0.01)
    assert profile[11] == pytest.approx(1 / (25 / 24), rel=0.02)
    assert hourly_profile(trace_of(times[times < 20 * 3600])) is None


@pytest.mark.parametrize("tick", [1.0, 3.0])
def test_a_coarse_clock_is_noticed_and_mended(tick: float) -> None:
    real = gamma(5, 1.0, 3600)
    stamps = np.floor(real / tick) * tick
    assert tick_of(stamps) == tick
    spread = spread_ticks(stamps, tick)
    assert np.all(np.diff(spread) >= 0)
    assert np.abs(spread - (real - real[0])).max() <= 2 * tick
    assert gap_scv(stamps, 3600) > 3  # type: ignore[operator]
    assert gap_scv(spread, 3600) == pytest.approx(1, abs=0.1)
    assert np.array_equal(spread, spread_ticks(stamps, tick))


def test_heaps_at_about_equal_distances_are_ticks() -> None:
    rng = np.random.default_rng(3)
    heaps = np.cumsum(3 + rng.integers(-3, 4, 500) / 1000)
    times = np.repeat(heaps, rng.integers(1, 20, 500))
    assert tick_of(times - times[0]) == pytest.approx(3, abs=0.001)


@pytest.mark.parametrize("times", [gamma(5, 1.0, 600), np.zeros(50), np.arange(5.0)])
def test_a_fine_clock_is_left_alone(times: Floats) -> None:
    assert tick_of(times - times[0]) is None


def test_a_burst_within_a_second_cannot_be_planned_for() -> None:
    calm = gamma(2, 1.0, 3600)
    peak = busiest_second(calm, 3600)
    assert not peak.unplannable
    heap = np.sort(np.concatenate([calm, np.full(60, 1800.0)]))
    peak = busiest_second(heap, 3600)
    assert peak.unplannable
    assert peak.over_mean > 28


def test_a_slow_stream_is_not_bursty_by_chance() -> None:
    # At one request in 50 s, two within a second are a hundred times the mean.
    peak = busiest_second(gamma(0.02, 1.0, 200_000), 200_000)
    assert peak.over_mean >= 100
    assert not peak.unplannable
