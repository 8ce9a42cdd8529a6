"""Aggregated engines: limits that must hold, monotonicity, and a step-exact simulation."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.queueing.aggregated import (
    AggregatedLoad,
    aggregated_tpot_quantile,
    aggregated_tpot_tail,
    aggregated_ttft_quantile,
    aggregated_ttft_tail,
    peakedness,
    stall_moments,
)
from planner.queueing.decode import tpot_quantile
from planner.queueing.prefill import FloatArray

ONE = np.array([1.0])
FIXED_S, PROMPT_TOKEN_S, CHUNK = 0.01, 5e-5, 2048.0


def at_rate(
    rate: FloatArray,
    prompts: FloatArray,
    outputs: FloatArray,
    *,
    mean_x_s: float = 1e-4,
    chunk: float = CHUNK,
) -> AggregatedLoad:
    """Operating point of equally likely prompts and outputs, with a linear step."""
    stall_s = np.tile(PROMPT_TOKEN_S * prompts, (len(rate), 1))
    even = np.full(len(prompts), 1.0 / len(prompts))
    held = rate * stall_s[0].mean()
    batch = rate * outputs.mean() * (FIXED_S + mean_x_s)
    batch = batch / (1.0 - held - rate * outputs.mean() * mean_x_s)
    ride_s = PROMPT_TOKEN_S * (chunk - batch)
    rows = np.ones_like(rate)
    return AggregatedLoad(
        rate,
        FIXED_S * rows,
        mean_x_s * rows,
        mean_x_s * rows,
        batch,
        ride_s,
        chunk * rows,
        *stall_moments(stall_s, even, ride_s),
        (outputs**2).mean() / (2.0 * outputs.mean()) * rows,
    )


def ttft(
    percentile: float | None, load: AggregatedLoad, prompts: FloatArray, **more: float
) -> FloatArray:
    count = len(load.fixed_s)
    room = load.full_ride_s / PROMPT_TOKEN_S
    return aggregated_ttft_quantile(
        percentile,
        load,
        stall_s=np.tile(PROMPT_TOKEN_S * prompts, (count, 1)),
        full_chunks=prompts / room[:, None],
        weight=np.full(len(prompts), 1.0 / len(prompts)),
        **more,
    )


def lognormal(seed: int, mean: float, variation: float, count: int = 200) -> FloatArray:
    sigma = np.sqrt(np.log1p(variation))
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.maximum(np.rint(drawn), 1.0)


def test_ttft_at_no_load_is_own_time_and_half_a_step() -> None:
    load = at_rate(np.array([1e-9]), np.array([3000.0]), np.array([50.0]), mean_x_s=1e-8)
    own = 2 * FIXED_S + 3000.0 * PROMPT_TOKEN_S
    assert ttft(None, load, np.array([3000.0]))[0] == pytest.approx(own + FIXED_S / 2, rel=1e-5)
    late = ttft(0.9, load, np.array([3000.0]))[0]
    assert late == pytest.approx(own + 0.9 * FIXED_S, rel=1e-5)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("utilisation", [0.2, 0.6, 0.85])
def test_tpot_without_prompt_work_is_the_decode_form(percentile: float, utilisation: float) -> None:
    mean_x_s, outputs = 2e-4, np.array([400.0])
    rate = np.array([utilisation / (400.0 * mean_x_s)])
    load = at_rate(rate, np.array([1e-3]), outputs, mean_x_s=mean_x_s)
    value = aggregated_tpot_quantile(percentile, load, outputs=np.array([1.0]), weight=ONE)
    expected = tpot_quantile(
        percentile, load.fixed_s, load.ratio_x_s, load.mean_x_s, load.decode_utilisation
    )
    assert value[0] == pytest.approx(expected[0], rel=0.03)


def test_tpot_of_endless_outputs_is_the_mean_step() -> None:
    prompts = lognormal(1, 1500.0, 1.0)
    load = at_rate(np.array([4.0]), prompts, np.array([100.0]))
    step_s = load.decode_s / (1.0 - load.prompt_time_share)
    for percentile in (0.01, 0.5, 0.99):
        value = aggregated_tpot_quantile(percentile, load, outputs=np.array([1e9]), weight=ONE)
        assert value == pytest.approx(step_s, rel=0.02)


def test_tpot_of_short_outputs_is_a_full_step_or_none() -> None:
    prompts = np.array([50_000.0])
    load = at_rate(np.array([0.2]), prompts, np.array([20.0]), mean_x_s=1e-8)
    full_s = load.decode_s + load.full_ride_s
    # About half of the requests start behind another prompt, which lasts 25 steps.
    assert 0.4 < load.queue_load[0] < 0.7
    short, weight = np.array([1.0]), ONE
    low = aggregated_tpot_quantile(0.2, load, outputs=short, weight=weight)
    high = aggregated_tpot_quantile(0.95, load, outputs=short, weight=weight)
    assert low == pytest.approx(load.decode_s, rel=0.02)
    assert high == pytest.approx(full_s, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    low=st.floats(0.05, 0.7),
    more=st.floats(1.05, 1.3),
    output=st.floats(5.0, 800.0),
    prompt=st.floats(200.0, 8000.0),
    percentile=st.sampled_from([0.5, 0.9, 0.99]),
    servers=st.sampled_from([1, 4]),
)
def test_both_grow_with_the_load(
    seed: int,
    low: float,
    more: float,
    output: float,
    prompt: float,
    percentile: float,
    servers: int,
) -> None:
    prompts, outputs = lognormal(seed, prompt, 1.0), lognormal(seed + 1, output, 0.5, 12)
    alone = at_rate(np.array([1e-6]), prompts, outputs)
    full_s = alone.decode_s + alone.full_ride_s
    top = 0.9 / (alone.stall_mean_s * full_s / alone.full_ride_s + outputs.mean() * 1e-4)
    load = at_rate(top * low * np.array([1.0, more]), prompts, outputs)
    assert load.stable.all()
    first = ttft(percentile, load, prompts, servers=servers)
    weight = np.full(len(outputs), 1.0 / len(outputs))
    token = aggregated_tpot_quantile(
        percentile, load, outputs=outputs, weight=weight, servers=servers
    )
    # The points that stand for the batch leave a ripple: at most 0.05 % of a TPOT and 0.8 % of a
    # pool's TTFT over a scan of loads.
    assert first[1] >= first[0] * (1.0 - (1e-9 if servers == 1 else 0.01))
    assert token[1] >= token[0] * (1.0 - 1e-3)


def test_quantiles_invert_the_tails_from_the_safe_side() -> None:
    prompts, outputs = lognormal(3, 2000.0, 2.0), lognormal(4, 150.0, 1.0, 12)
    load = at_rate(np.array([1.0, 3.0, 5.0]), prompts, outputs)
    weight = np.full(12, 1.0 / 12)
    for percentile in (0.5, 0.95, 0.99):
        token = aggregated_tpot_quantile(percentile, load, outputs=outputs, weight=weight)
        kept = aggregated_tpot_tail(token, load, outputs=outputs, weight=weight)
        before = aggregated_tpot_tail(token * (1 - 1e-6), load, outputs=outputs, weight=weight)
        assert np.all(kept <= 1.0 - percentile)
        assert np.all(before > 1.0 - percentile)
        first = ttft(percentile, load, prompts)
        tail = aggregated_ttft_tail(
            first,
            load,
            stall_s=np.tile(PROMPT_TOKEN_S * prompts, (3, 1)),
            full_chunks=prompts / (load.full_ride_s / PROMPT_TOKEN_S)[:, None],
            weight=np.full(200, 1.0 / 200),
        )
        assert np.all(tail <= 1.0 - percentile)


def test_rows_do_not_touch_each_other() -> None:
    prompts, outputs = lognormal(5, 1000.0, 1.0), lognormal(6, 80.0, 1.0, 12)
    rates = np.array([0.5, 4.0, 8.0])
    weight = np.full(12, 1.0 / 12)
    together = at_rate(rates, prompts, outputs)
    tokens = aggregated_tpot_quantile(0.9, together, outputs=outputs, weight=weight)
    firsts = ttft(0.9, together, prompts)
    for row, rate in enumerate(rates):
        load = at_rate(np.array([rate]), prompts, outputs)
        token = aggregated_tpot_quantile(0.9, load, outputs=outputs, weight=weight)
        assert token[0] == pytest.approx(tokens[row], rel=1e-6)
        assert ttft(0.9, load, prompts)[0] == pytest.approx(firsts[row], rel=1e-6)


def test_pools_wait_less_and_bursts_more() -> None:
    prompts, outputs = lognormal(7, 3000.0, 1.0), lognormal(8, 60.0, 1.0, 12)
    load = at_rate(np.array([3.0]), prompts, outputs)
    first = [ttft(0.99, load, prompts, servers=count)[0] for count in (1, 2, 4, 16)]
    assert first == sorted(first, reverse=True)
    weight = np.full(12, 1.0 / 12)
    token = [
        aggregated_tpot_quantile(0.9, load, outputs=outputs, weight=weight, servers=count)[0]
        for count in (1, 2, 4, 16)
    ]
    assert token == sorted(token, reverse=True)
    assert ttft(0.99, load, prompts, ca2=4.0)[0] > first[0]
    bursty = aggregated_tpot_quantile(0.9, load, outputs=outputs, weight=weight, ca2=4.0, clump=2.5)
    assert bursty[0] > token[0]


def test_unstable_replicas_are_late() -> None:
    prompts = np.array([4000.0])
    load = at_rate(np.array([1.0, 4.8]), prompts, np.array([20.0]))
    assert load.stable.tolist() == [True, False]
    assert np.isinf(ttft(0.9, load, prompts)).tolist() == [False, True]
    token = aggregated_tpot_quantile(None, load, outputs=np.array([20.0]), weight=ONE)
    assert np.isinf(token).tolist() == [False, True]
    late = aggregated_tpot_tail(np.full(2, 1e6), load, outputs=np.array([20.0]), weight=ONE)
    assert late.tolist() == pytest.approx([0.0, 1.0])


def test_peakedness_of_known_laws() -> None:
    assert peakedness(5.0, np.array([40.0]), ONE) == pytest.approx(5.0)
    exponential = -np.log1p(-(np.arange(4000) + 0.5) / 4000)
    even = np.full(4000, 1.0 / 4000)
    assert peakedness(5.0, exponential, even) == pytest.approx(3.0, rel=1e-3)
    assert peakedness(0.5, exponential, even) == 1.0


def test_values_are_checked() -> None:
    load = at_rate(np.array([1.0]), np.array([500.0]), np.array([20.0]))
    with pytest.raises(ValueError, match="percentile"):
        ttft(1.0, load, np.array([500.0]))
    with pytest.raises(ValueError, match="percentile"):
        aggregated_tpot_quantile(0.0, load, outputs=np.array([20.0]), weight=ONE)
    with pytest.raises(ValueError, match="no request"):
        aggregated_tpot_quantile(0.9, load, outputs=np.array([0.0]), weight=ONE)
    with pytest.raises(ValueError, match="positive"):
        replace(load, fixed_s=np.zeros(1))
    with pytest.raises(ValueError, match="negative"):
        replace(load, batch=-np.ones(1))


def simulate(
    arrivals_s: FloatArray, prompts: FloatArray, outputs: FloatArray, mean_x_s: float
) -> tuple[FloatArray, FloatArray]:
    """TTFT and TPOT of one replica, step by step: decode tokens first, then prompts in order."""
    count = len(arrivals_s)
    first_s, last_s = np.zeros(count), np.zeros(count)
    left = prompts.copy()
    queue: deque[int] = deque()
    ends: dict[int, list[int]] = {}
    now, step, batch, arrived, finished = 0.0, 0, 0, 0, 0
    while finished < count:
        if not queue and batch == 0:
            now = max(now, arrivals_s[arrived])
        while arrived < count and arrivals_s[arrived] <= now:
            queue.append(arrived)
            arrived += 1
        room = CHUNK - batch
        carried, done = 0.0, []
        while queue and carried < room:
            head = queue[0]
            piece = min(left[head], room - carried)
            left[head] -= piece
            carried += piece
            if left[head] == 0.0:
                done.append(queue.popleft())
        now += FIXED_S + mean_x_s * batch + PROMPT_TOKEN_S * carried
        step += 1
        for request in ends.pop(step, ()):
            last_s[request] = now
            batch -= 1
            finished += 1
        for request in done:
            first_s[request] = now
            ends.setdefault(step + int(outputs[request]), []).append(request)
            batch += 1
    return first_s - arrivals_s, (last_s - first_s) / outputs


@pytest.mark.parametrize(
    ("prompt", "output", "variation", "load_share"),
    [(800.0, 100.0, 1.0, 0.55), (4000.0, 60.0, 0.5, 0.5)],
)
def test_against_simulation(
    prompt: float, output: float, variation: float, load_share: float
) -> None:
    mean_x_s, count = 2e-4, 12_000
    prompts, outputs = lognormal(11, prompt, variation, 400), lognormal(12, output, 0.5, 400)
    rate = np.array([load_share / (PROMPT_TOKEN_S * prompts.mean() + mean_x_s * outputs.mean())])
    load = at_rate(rate, prompts, outputs, mean_x_s=mean_x_s)
    rng = np.random.default_rng(13)
    arrivals_s = np.cumsum(rng.exponential(1.0 / rate[0], count))
    first, token = simulate(
        arrivals_s, rng.choice(prompts, count), rng.choice(outputs, count), mean_x_s
    )
    weight = np.full(400, 1.0 / 400)
    for percentile in (0.5, 0.9, 0.95):
        expected = ttft(percentile, load, prompts)[0]
        assert expected == pytest.approx(np.quantile(first, percentile), rel=0.15)
        expected = aggregated_tpot_quantile(percentile, load, outputs=outputs, weight=weight)[0]
        assert expected == pytest.approx(np.quantile(token, percentile), rel=0.15)
    late = aggregated_tpot_quantile(0.99, load, outputs=outputs, weight=weight)[0]
    assert late == pytest.approx(np.quantile(token, 0.99), rel=0.2)
