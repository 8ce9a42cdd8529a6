"""Queueing formulas against closed forms, published values and an independent simulation."""

from __future__ import annotations

import heapq
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.queueing import (
    CapacityTable,
    CapacityTables,
    FirstTokenLimit,
    capacity_table,
    capacity_tables,
    combine,
    erlang_c,
    largest_load,
    mean_wait_if_waiting_s,
    thin_points,
    ttft_mean,
    ttft_quantile,
    ttft_tail,
    wait_probability,
)
from planner.queueing.prefill import FloatArray

ONE = np.array([1.0])


def even(count: int) -> FloatArray:
    return np.full(count, 1.0 / count)


def lognormal(seed: int, points: int = 400, sigma: float = 0.8) -> FloatArray:
    return np.sort(np.random.default_rng(seed).lognormal(-1.0, sigma, points))


def ratio_s(own_s: FloatArray) -> float:
    return float((own_s**2).mean() / own_s.mean())


def textbook_tail(
    servers: int, load: float, own: FloatArray, weight: FloatArray, limit: float, ratio: float
) -> float:
    """The formula again, written apart: Erlang B by recursion and a plain sum."""
    if load <= 0.0:
        return float(weight[own > limit].sum())
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    waits = blocked / (1.0 - load / servers * (1.0 - blocked))
    theta = ratio / (2.0 * (servers - load))
    late = sum(
        float(w) * (1.0 if s > limit else math.exp(-(limit - s) / theta))
        for s, w in zip(own, weight, strict=True)
    )
    return (1.0 - waits) * float(weight[own > limit].sum()) + waits * late


def simulate_waits(gaps_s: FloatArray, service_s: FloatArray, servers: int) -> FloatArray:
    """Waits of a first-come-first-served queue, one event at a time, without a warm-up tenth."""
    free = [0.0] * servers
    now = 0.0
    waits = np.empty(len(gaps_s))
    for index, (gap, service) in enumerate(zip(gaps_s.tolist(), service_s.tolist(), strict=True)):
        now += gap
        start = max(now, free[0])
        heapq.heapreplace(free, start + service)
        waits[index] = start - now
    return waits[len(waits) // 10 :]


# --- Erlang C ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "load", "expected"),
    [
        (1, 0.7, 0.7),  # M/M/1: the utilisation
        (2, 1.0, 1 / 3),  # 2 rho^2 / (1 + rho)
        (2, 1.5, 2 * 0.75**2 / 1.75),
        (3, 2.0, 4 / 9),  # B = 4/19 by hand, C = 12 / 27
        (5, 4.0, 512 / (412 + 512)),  # (4^5/5!) 5 = 512/12; the sum of 4^k/k!, k < 5, is 412/12
        (8, 0.0, 0.0),
        (8, 8.0, 1.0),
        (8, 9.0, 1.0),
    ],
)
def test_erlang_c_known_values(servers: int, load: float, expected: float) -> None:
    assert float(erlang_c(servers, load)) == pytest.approx(expected, rel=1e-12)


def test_erlang_c_equals_recursion_for_large_pools() -> None:
    for servers, load in ((64, 60.0), (512, 500.0), (4096, 4080.0)):
        blocked = 1.0
        for k in range(1, servers + 1):
            blocked = load * blocked / (k + load * blocked)
        expected = blocked / (1.0 - load / servers * (1.0 - blocked))
        assert float(erlang_c(servers, load)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("servers", "load"), [(0, 0.5), (2, -0.1), (1, math.nan)])
def test_erlang_c_refuses(servers: float, load: float) -> None:
    with pytest.raises(ValueError, match="erlang_c"):
        erlang_c(servers, load)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.floats(0.05, 30.0), st.floats(1.0, 8.0), st.integers(1, 2000))
def test_wait_probability_grows_at_fixed_spare(
    servers: int, spare: float, ca2: float, more: int
) -> None:
    """C(n, n - s) grows with n and with the clump size: what the spare form rests on."""
    small = float(wait_probability(servers, max(servers - spare, 0.0), 1.0))
    large = float(wait_probability(servers + more, max(servers + more - spare, 0.0), 1.0))
    assert small <= large + 1e-9
    assert small <= float(wait_probability(servers, max(servers - spare, 0.0), ca2)) + 1e-9


# --- TTFT -------------------------------------------------------------------------------------


def test_mm1_sojourn_tail_is_exact() -> None:
    """M/M/1: P(T > t) = exp(-(mu - lambda) t). Service as 20,000 quantiles of an exponential."""
    count = 20_000
    service = -np.log1p(-(np.arange(count) + 0.5) / count)
    times = np.array([1.0, 3.0, 8.0])
    tail = ttft_tail(
        times, service, even(count),
        servers=1, load_erlangs=0.6, mean_service_s=1.0, second_moment_service_s2=2.0,
    )  # fmt: skip
    np.testing.assert_allclose(tail, np.exp(-0.4 * times), rtol=2e-3)


def test_mmc_wait_tail_is_exact() -> None:
    """M/M/c: P(W > t) = C exp(-(c - a) mu t), own time zero."""
    times = np.array([0.0, 0.2, 1.0, 4.0])
    tail = ttft_tail(
        times, np.zeros(1), ONE,
        servers=4, load_erlangs=3.2, mean_service_s=0.5, second_moment_service_s2=0.5,
    )  # fmt: skip
    expected = float(erlang_c(4, 3.2)) * np.exp(-(4 - 3.2) / 0.5 * times)
    np.testing.assert_allclose(tail, expected, rtol=1e-12)


def test_mg1_mean_is_pollaczek_khinchine() -> None:
    """M/D/1 at rho = 0.5, S = 2 s: wait rho S / (2 (1 - rho)) = 1 s, so TTFT 3 s."""
    mean = ttft_mean(
        np.array([2.0]), ONE,
        servers=1, load_erlangs=0.5, mean_service_s=2.0, second_moment_service_s2=4.0,
    )  # fmt: skip
    assert mean == pytest.approx(3.0)


def test_quantile_inverts_the_tail_and_rounds_up() -> None:
    """M/M/1 with own time zero: the p99 wait is ln(rho / 0.01) / (mu - lambda)."""

    def p99(own_s: float, load: float) -> float:
        return ttft_quantile(
            0.99, np.array([own_s]), ONE,
            servers=1, load_erlangs=load, mean_service_s=1.0, second_moment_service_s2=2.0,
        )  # fmt: skip

    assert p99(0.0, 0.5) == pytest.approx(math.log(50.0) / 0.5, rel=1e-8)
    tail = ttft_tail(
        p99(0.0, 0.5), np.zeros(1), ONE,
        servers=1, load_erlangs=0.5, mean_service_s=1.0, second_moment_service_s2=2.0,
    )  # fmt: skip
    assert float(tail) <= 0.01
    assert math.isinf(p99(0.0, 1.0))
    assert p99(3.0, 0.0) == pytest.approx(3.0, rel=1e-8)


def test_moments_and_points_are_checked() -> None:
    with pytest.raises(ValueError, match="second_moment"):
        mean_wait_if_waiting_s(1, 0.5, 2.0, 3.0)
    with pytest.raises(ValueError, match="mean_service_s"):
        mean_wait_if_waiting_s(1, 0.5, 0.0, 3.0)
    for own, weight in ((np.ones(2), ONE), (np.array([-1.0]), ONE), (np.ones(2), np.ones(2))):
        with pytest.raises(ValueError, match=r"own_s|weight"):
            capacity_table([FirstTokenLimit(own, weight, 1.0, 0.9)], 1.0)


@pytest.mark.parametrize(
    ("servers", "utilisation", "sigma"), [(4, 0.7, 0.8), (4, 0.9, 0.5), (16, 0.85, 1.0)]
)
def test_two_classes_against_simulation(servers: int, utilisation: float, sigma: float) -> None:
    """Each class's p99 TTFT within the stated 15 % of a simulated pool that serves both."""
    rng = np.random.default_rng(20240817)
    count = 250_000
    short = rng.random(count) < 0.7
    service = np.where(short, rng.lognormal(-1.5, sigma, count), rng.lognormal(-0.3, 0.4, count))
    load = utilisation * servers
    gaps = rng.exponential(float(service.mean()) / load, count)
    waits = simulate_waits(gaps, service, servers)
    kept = service[-len(waits) :]
    for member in (short, ~short):
        own = np.quantile(service[member], (np.arange(400) + 0.5) / 400)
        formula = ttft_quantile(
            0.99, own, even(400), servers=servers, load_erlangs=load,
            mean_service_s=float(service.mean()),
            second_moment_service_s2=float((service**2).mean()),
        )  # fmt: skip
        simulated = float(np.quantile((waits + kept)[member[-len(waits) :]], 0.99))
        assert formula == pytest.approx(simulated, rel=0.15)


def test_bursty_arrivals_against_simulation() -> None:
    """Hyperexponential gaps, ca2 = 4: the clump form does not understate p99 by more than 10 %."""
    rng = np.random.default_rng(7)
    count, servers, load, ca2 = 250_000, 8, 6.0, 4.0
    high = 0.5 * (1.0 + math.sqrt((ca2 - 1.0) / (ca2 + 1.0)))
    fast = rng.random(count) < high
    gaps = rng.exponential(1.0, count) / np.where(fast, 2.0 * high, 2.0 * (1.0 - high)) / load
    service = rng.gamma(2.0, 0.5, count)
    waits = simulate_waits(gaps, service, servers)
    own = np.quantile(service, (np.arange(400) + 0.5) / 400)
    formula = ttft_quantile(
        0.99, own, even(400), servers=servers, load_erlangs=load,
        mean_service_s=1.0, second_moment_service_s2=1.5, ca2=ca2,
    )  # fmt: skip
    simulated = float(np.quantile(waits + service[-len(waits) :], 0.99))
    assert 0.9 * simulated <= formula <= 1.4 * simulated


# --- capacity tables --------------------------------------------------------------------------


def test_largest_load_by_hand() -> None:
    """One replica, own time 0: a exp(-2 (1 - a) t / r) = 0.01; at a = 0.5, t / r = ln 50."""
    limit = FirstTokenLimit(np.zeros(1), ONE, math.log(50.0), 0.99)
    assert float(largest_load(1, [limit], 1.0)) == pytest.approx(0.5, abs=1e-7)
    # M/D/1 mean wait a S / (2 (1 - a)) = 1 s with S = 2 s at a = 0.5.
    mean = FirstTokenLimit(np.array([2.0]), ONE, 3.0, None)
    assert float(largest_load(1, [mean], 2.0)) == pytest.approx(0.5, abs=1e-7)
    # Both together: the tighter one rules.
    assert float(largest_load(1, [limit, mean], 2.0)) < 0.5
    # Any n, limit on the mean: theta <= 1 s, so spare = r / 2 = 1 replica.
    assert capacity_table([mean], 2.0, max_servers=None).spare == pytest.approx(1.0, rel=1e-8)


def test_spare_of_any_pool_by_hand() -> None:
    """With C = 1 and own time 0, exp(-2 s t / r) = 1 - p: s = r ln(100) / (2 t)."""
    limit = FirstTokenLimit(np.zeros(1), ONE, 3.0, 0.99)
    table = capacity_table([limit], 1.2, max_servers=None)
    assert table.spare == pytest.approx(1.2 * math.log(100.0) / 6.0, rel=1e-8)
    assert float(table.load(10_000)) == pytest.approx(10_000 - table.spare)


def test_impossible_limit_carries_nothing() -> None:
    own = lognormal(1)
    table = capacity_table([FirstTokenLimit(own, even(400), float(np.median(own)), 0.99)], 1.0)
    assert not table.usable
    assert table.exact == (0.0,) * 8
    np.testing.assert_array_equal(table.load([0, 1, 8, 9, 4096]), 0.0)


def test_table_load_covers_zero_and_refuses_beyond() -> None:
    table = CapacityTable((0.5, 1.4), 1.5, 10)
    np.testing.assert_allclose(table.load([0, 1, 2, 3, 10]), [0.0, 0.5, 1.4, 1.5, 8.5])
    # Three replicas carry at least what two do, however large the spare.
    assert float(CapacityTable((0.5, 1.4), 2.5, 10).load(3)) == 1.4
    with pytest.raises(ValueError, match="at most 10"):
        table.load(11)
    with pytest.raises(ValueError, match="negative"):
        table.load(-1)


limits_in_s99 = st.floats(1.02, 6.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), limits_in_s99, st.sampled_from([0.9, 0.95, 0.99]))
def test_table_is_safe_at_every_size(seed: int, stretch: float, percentile: float) -> None:
    """The untouched formula, at the table's own load, keeps the limit at every n up to 64."""
    own = lognormal(seed, sigma=0.3 + seed % 10 / 10)
    limit = stretch * float(np.quantile(own, percentile + 0.5 * (1.0 - percentile)))
    ratio = ratio_s(own)
    table = capacity_table([FirstTokenLimit(own, even(400), limit, percentile)], ratio)
    for n in range(1, 65):
        tail = textbook_tail(n, float(table.load(n)), own, even(400), limit, ratio)
        assert tail <= (1.0 - percentile) * (1.0 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), limits_in_s99)
def test_spare_grows_with_the_pool_and_is_covered(seed: int, stretch: float) -> None:
    """n - cap(n) never falls, cap is convex, and the table's spare covers 512 and 4,096."""
    own = lognormal(seed)
    limit = FirstTokenLimit(own, even(400), stretch * float(np.quantile(own, 0.995)), 0.99)
    servers = np.concatenate([np.arange(1, 513), [1000, 2048, 4096]])
    cap = largest_load(servers, [limit], ratio_s(own))
    spare = servers - cap
    assert np.all(np.diff(spare) >= -1e-5)
    assert np.all(np.diff(cap[:512], n=2) >= -1e-5)
    for largest in (64, 512, 4096, None):
        table = capacity_table([limit], ratio_s(own), max_servers=largest)
        covered = servers <= (largest or 4096)
        assert np.all(table.spare >= spare[covered] - 1e-9)
        assert np.all(table.load(servers[covered]) <= cap[covered] + 1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), limits_in_s99, st.floats(1.0, 2.0), st.floats(1.0, 1.5))
def test_table_is_monotone(seed: int, stretch: float, looser: float, worse: float) -> None:
    """A looser limit never carries less, a worse second moment never more."""
    own = lognormal(seed)
    limit = stretch * float(np.quantile(own, 0.995))
    ratio = ratio_s(own)
    tables = [
        capacity_table([FirstTokenLimit(own, even(400), limit * k, 0.99)], ratio * r)
        for k, r in ((1.0, 1.0), (looser, 1.0), (1.0, worse))
    ]
    base, loose, bad = (np.array(t.exact) for t in tables)
    assert np.all(loose >= base - 1e-7)
    assert np.all(bad <= base + 1e-7)
    assert tables[1].spare <= tables[0].spare + 1e-5 <= tables[2].spare + 2e-5
    assert np.all(np.diff(base) >= 0.0)


def test_bursts_and_mean_service_reduce_capacity() -> None:
    own = lognormal(3)
    limit = FirstTokenLimit(own, even(400), 2.0 * float(np.quantile(own, 0.99)), 0.99)
    smooth = capacity_table([limit], ratio_s(own))
    bursty = capacity_table([limit], ratio_s(own), ca2=3.0, mean_service_s=float(own.mean()))
    assert all(b < s for b, s in zip(bursty.exact, smooth.exact, strict=True))
    assert bursty.spare > smooth.spare
    moments = (float(own.mean()), float((own**2).mean()))
    tail = ttft_tail(
        limit.limit_s, own, limit.weight, servers=6, load_erlangs=bursty.exact[5],
        mean_service_s=moments[0], second_moment_service_s2=moments[1], ca2=3.0,
    )  # fmt: skip
    assert float(tail) <= 0.01 * (1.0 + 1e-9)
    with pytest.raises(ValueError, match="mean_service_s"):
        capacity_table([limit], 1.0, ca2=2.0)
    with pytest.raises(ValueError, match="ca2"):
        capacity_table([limit], 1.0, ca2=0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_worst_class_bounds_every_mix(seed: int, share: float) -> None:
    """E[S^2] / E[S] of a mix never exceeds the worst class's, so its table is safe for all."""
    first, second = lognormal(seed), 3.0 * lognormal(seed + 1, sigma=0.4)
    es = share * first.mean() + (1.0 - share) * second.mean()
    es2 = share * (first**2).mean() + (1.0 - share) * (second**2).mean()
    worst = max(ratio_s(first), ratio_s(second))
    limit = 2.0 * float(np.quantile(second, 0.99))
    table = capacity_table([FirstTokenLimit(first, even(400), limit, 0.99)], worst)
    tail = ttft_tail(
        limit, first, even(400), servers=5, load_erlangs=table.exact[4],
        mean_service_s=float(es), second_moment_service_s2=float(es2),
    )  # fmt: skip
    assert float(tail) <= 0.01 * (1.0 + 1e-9)


def test_batch_equals_single_tables_and_combines() -> None:
    own = np.stack([lognormal(5) * scale for scale in (0.5, 1.0, 2.0, 1.0)])
    limit = 1.5 * np.quantile(own, 0.99, axis=1)
    percentile = np.array([0.99, 0.95, 0.99, np.nan])
    ratio = (own**2).mean(axis=1) / own.mean(axis=1)
    batch = capacity_tables(own, limit, percentile, ratio, even(400), exact_servers=4)
    singles = [
        capacity_table(
            [FirstTokenLimit(o, even(400), float(t), None if math.isnan(p) else float(p))],
            float(r), exact_servers=4,
        )
        for o, t, p, r in zip(own, limit, percentile, ratio, strict=True)
    ]  # fmt: skip
    assert len(batch) == 4
    for index, single in enumerate(singles):
        assert batch.table(index).exact == pytest.approx(single.exact, abs=1e-7)
        assert batch.table(index).spare == pytest.approx(single.spare, abs=1e-5)
    looser = capacity_tables(own, 2 * limit, percentile, ratio, even(400), exact_servers=4)
    merged = CapacityTables.keeping_all([batch, looser])
    for index, single in enumerate(singles):
        assert merged.table(index) == combine([batch.table(index), looser.table(index)])
        assert merged.table(index).exact == pytest.approx(single.exact, abs=1e-7)
    with pytest.raises(ValueError, match="one size"):
        combine([])
    with pytest.raises(ValueError, match="exact_servers"):
        capacity_tables(own, limit, percentile, ratio, even(400), max_servers=4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 64))
def test_thinning_only_rounds_up(seed: int, points: int) -> None:
    own = np.random.default_rng(seed).lognormal(0.0, 1.0, (3, 200))
    weight = np.random.default_rng(seed + 1).dirichlet(np.ones(200))
    thin, thin_weight = thin_points(own, weight, points)
    assert thin.shape[1] == len(thin_weight) <= points
    assert thin_weight.sum() == pytest.approx(1.0)
    for row, thinned in zip(own, thin, strict=True):
        for time_s in np.quantile(row, [0.0, 0.3, 0.9, 0.99]):
            late = weight[row > time_s].sum()
            assert thin_weight[thinned > time_s].sum() >= late - 1e-12


def test_thinning_costs_under_two_percent() -> None:
    own = lognormal(11)
    for percentile, stretch in ((0.99, 1.1), (0.99, 3.0), (0.95, 1.25), (0.9, 1.5)):
        time_s = stretch * float(np.quantile(own, 0.5 * (1.0 + percentile)))
        limit = FirstTokenLimit(own, even(400), time_s, percentile)
        thin = capacity_table([limit], ratio_s(own))
        full = capacity_table([limit], ratio_s(own), points=400)
        assert 1.0 <= thin.spare / full.spare < 1.02
        assert thin.exact[3] > 0.98 * full.exact[3]


def test_batch_is_fast() -> None:
    """2,000 tables a second on an idle core; the test asks a quarter of that of a busy one."""
    own = lognormal(2, points=64) * np.random.default_rng(0).uniform(0.5, 2.0, (1000, 1))
    limit = np.random.default_rng(1).uniform(1.05, 5.0, 1000) * np.quantile(own, 0.99, axis=1)
    ratio = (own**2).mean(axis=1) / own.mean(axis=1)
    start = time.process_time()
    capacity_tables(own, limit, np.full(1000, 0.95), ratio, even(64))
    assert time.process_time() - start < 2.0
