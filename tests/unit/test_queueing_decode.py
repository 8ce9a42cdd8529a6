"""TPOT of continuous batching against worked values and a step-by-step simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.queueing import largest_utilisation, tpot_quantile, utilisation_at_step


@pytest.mark.parametrize(
    ("m_over_t0", "cx2", "limits", "expected"),
    [  # Worked values at p99, t0 = 1: chat, code and long-context mixes.
        (0.0077, 0.10, (1.25, 1.5, 2.0, 3.0, 5.0), (0.122, 0.248, 0.420, 0.604, 0.758)),
        (0.0170, 0.71, (1.25, 1.5, 2.0, 3.0, 5.0), (0.054, 0.169, 0.344, 0.543, 0.717)),
        (0.0481, 1.36, (2.0, 3.0, 5.0), (0.160, 0.390, 0.612)),
        (0.0976, 1.54, (3.0, 5.0), (0.211, 0.484)),
    ],
)
def test_largest_utilisation_worked_values(
    m_over_t0: float, cx2: float, limits: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    slope = m_over_t0 * (1.0 + cx2)
    rho = largest_utilisation(0.99, limits, 1.0, slope, m_over_t0)
    np.testing.assert_allclose(rho, expected, atol=1e-3)
    np.testing.assert_allclose(tpot_quantile(0.99, 1.0, slope, m_over_t0, rho), limits, rtol=1e-9)


def test_tpot_by_hand() -> None:
    """Idle: t0 + an exponential. Mean (t0 + m) / (1 - rho) and back."""
    assert float(tpot_quantile(0.9, 0.01, 0.002, 0.001, 0.0)) == pytest.approx(
        0.01 + 0.002 * math.log(10.0)
    )
    assert float(tpot_quantile(None, 0.01, 0.002, 0.002, 0.5)) == pytest.approx(0.024)
    assert float(utilisation_at_step(0.024, 0.01, 0.002)) == pytest.approx(0.5)
    assert float(largest_utilisation(None, 0.024, 0.01, 0.002, 0.002)) == pytest.approx(0.5)
    assert math.isnan(float(largest_utilisation(0.99, 0.0101, 0.01, 0.002, 0.002)))
    np.testing.assert_array_equal(
        tpot_quantile(0.9, 0.01, 0.002, 0.002, [-0.5, 1.0, 2.0]),
        [float(tpot_quantile(0.9, 0.01, 0.002, 0.002, 0.0)), math.inf, math.inf],
    )
    with pytest.raises(ValueError, match="percentile"):
        tpot_quantile(1.0, 0.01, 0.002, 0.002, 0.5)
    with pytest.raises(ValueError, match="positive"):
        tpot_quantile(0.9, 0.01, 0.0, 0.002, 0.5)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(0.5, 0.999), st.floats(1e-3, 0.2), st.floats(0.0, 3.0), st.floats(0.0, 0.9),
    st.floats(0.001, 0.09),
)  # fmt: skip
def test_tpot_grows_with_utilisation_and_percentile(
    percentile: float, mean: float, cx2: float, rho: float, step: float
) -> None:
    slope = mean * (1.0 + cx2)
    base = tpot_quantile(percentile, 1.0, slope, mean, rho)
    assert base < tpot_quantile(percentile, 1.0, slope, mean, rho + step)
    assert base < tpot_quantile(min(percentile + step, 0.9999), 1.0, slope, mean, rho) + 1e-12


def test_tpot_against_simulation() -> None:
    """Continuous batching step by step: mean within 5 %, per-request p99 within -10 to +20 %."""
    rng = np.random.default_rng(99)
    fixed, steps, rho = 1.0, 120_000, 0.5
    outputs = rng.geometric(1.0 / 60.0, 200_000)
    costs = rng.gamma(2.0, 0.015, 200_000)  # x of a sequence: mean 0.03, squared variation 0.5
    mean, slope = 0.03, 0.03 * 1.5
    rate = rho / (60.0 * mean)
    leaving = np.zeros(steps + int(outputs.max()) + 2)
    clock = np.zeros(steps + 1)
    joined: list[tuple[int, int]] = []
    active, backlog, ticket = 0.0, 0.0, 0
    next_arrival = float(rng.exponential(1.0 / rate))
    gaps = rng.exponential(1.0 / rate, 200_000)
    for step in range(steps):
        active -= leaving[step]
        while next_arrival <= backlog:
            active += costs[ticket]
            leaving[step + outputs[ticket]] += costs[ticket]
            joined.append((step, int(outputs[ticket])))
            next_arrival += gaps[ticket]
            ticket += 1
        backlog += fixed + active
        clock[step + 1] = backlog
    seen = [(s, o) for s, o in joined if s > steps // 20 and s + o <= steps]
    per_token = np.array([(clock[s + o] - clock[s]) / o for s, o in seen])
    lengths = np.array([o for _, o in seen])
    simulated_mean = float((per_token * lengths).sum() / lengths.sum())
    assert float(tpot_quantile(None, fixed, slope, mean, rho)) == pytest.approx(
        simulated_mean, rel=0.05
    )
    p99 = float(tpot_quantile(0.99, fixed, slope, mean, rho))
    assert 0.9 <= p99 / float(np.quantile(per_token, 0.99)) <= 1.2
