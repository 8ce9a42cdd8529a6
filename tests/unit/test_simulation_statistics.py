"""Intervals cover as often as they say, and the books of a simulation balance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from scipy.stats import binom, norm

from planner.simulate import statistics, summary
from planner.simulate.accounts import account, requests_once, stays_s, tokens_once
from planner.simulate.disturbances import disturbances
from planner.simulate.latencies import class_latencies, estimate, good, within
from planner.simulate.over_time import counted_samples, over_time
from planner.simulate.records import ComponentRun, Outcome, PoolSeries, RequestLog
from planner.simulate.statistics import Estimate, Floats
from planner.simulate.summarise import in_percent, share_result, verdict
from planner.simulate.summary import Simulation
from planner.workload.classes import Slo, WorkloadClass
from planner.workload.mix import TokenMix

CHAT = WorkloadClass(
    name="chat",
    model="m",
    rate_per_s=(1.0,),
    mix=TokenMix.deterministic(100, 4),
    slos=(Slo("ttft", 4.0, 0.95),),
    ttft_limits=(),
    tpot_limits=(),
    weight_precisions=frozenset({"fp8"}),
    kv_precisions=frozenset({"fp8"}),
)

Draw = Callable[[np.random.Generator], Floats]


def independent(count: int) -> Draw:
    return lambda rng: np.asarray(rng.normal(size=count))


def autoregressive(count: int, phi: float, warmup: int = 500) -> Draw:
    """Normal observations, mean 0 and variance 1, each correlated with the one before by phi."""
    from scipy.signal import lfilter

    def draw(rng: np.random.Generator) -> Floats:
        noise = rng.normal(size=count + warmup) * math.sqrt(1 - phi**2)
        return np.asarray(lfilter([1.0], [1.0, -phi], noise)[warmup:])

    return draw


def queue(count: int, rho: float, warmup: int = 5_000) -> Draw:
    """Waiting times of M/M/1 with mean service 1, by Lindley's recursion."""

    def draw(rng: np.random.Generator) -> Floats:
        size = count + warmup
        walk = np.cumsum(rng.exponential(size=size) - rng.exponential(1 / rho, size=size))
        return np.asarray((walk - np.minimum(np.minimum.accumulate(walk), 0.0))[warmup:])

    return draw


def waiting_quantile(rho: float, fraction: float) -> float:
    """Of M/M/1: P(W > t) = rho exp(-(1 - rho) t), exact."""
    return math.log(rho / (1 - fraction)) / (1 - rho)


def coverage(draw: Draw, figure: Callable[[Floats], Estimate], truth: float) -> float:
    rng = np.random.default_rng(7)
    found = [figure(draw(rng)) for _ in range(200)]
    return float(np.mean([each.low <= truth <= each.high for each in found]))


def quantile(fraction: float) -> Callable[[Floats], Estimate]:
    return lambda values: statistics.percentile(values, fraction)


LEAST = 0.88
"""Of 200 intervals at 95 %; what dependence hides from 20 batches costs a few of them."""


class TestCoverage:
    @pytest.mark.parametrize("fraction", [0.5, 0.95, 0.99])
    @pytest.mark.parametrize(
        "draw",
        [independent(2_000), autoregressive(10_000, 0.9), autoregressive(20_000, 0.97)],
        ids=["independent", "phi 0.9", "phi 0.97"],
    )
    def test_percentiles_of_normal_observations(self, draw: Draw, fraction: float) -> None:
        truth = float(norm.ppf(fraction))
        assert coverage(draw, quantile(fraction), truth) >= LEAST

    @pytest.mark.parametrize(
        ("rho", "fraction"), [(0.5, 0.9), (0.5, 0.99), (0.8, 0.5), (0.8, 0.95)]
    )
    def test_percentiles_of_waiting(self, rho: float, fraction: float) -> None:
        truth = waiting_quantile(rho, fraction)
        assert coverage(queue(40_000, rho), quantile(fraction), truth) >= LEAST

    def test_means_of_waiting(self) -> None:
        assert coverage(queue(40_000, 0.7), statistics.mean, 0.7 / 0.3) >= LEAST

    def test_shares_of_waiting(self) -> None:
        limit = waiting_quantile(0.7, 0.95)
        found = coverage(queue(40_000, 0.7), lambda values: statistics.share(values <= limit), 0.95)
        assert found >= LEAST

    def test_intervals_are_no_wider_than_they_must_be(self) -> None:
        # The median of independent normal observations has a standard error of
        # sqrt(pi / 2 / n); 2 x 1.96 of them is the least width, Student's quantile and the exact
        # binomial make it a fifth wider, and a variance from 20 batches scatters.
        rng = np.random.default_rng(5)
        draw, least = independent(5_000), 2 * 1.96 * math.sqrt(math.pi / 2 / 5_000)
        found = [statistics.percentile(draw(rng), 0.5) for _ in range(100)]
        widths = np.array([each.high - each.low for each in found])
        assert 1.0 < float(np.median(widths)) / least < 1.5

    def test_intervals_that_forget_the_dependence_would_fail(self) -> None:
        def naive(values: Floats) -> Estimate:
            half = 1.96 * values.std() / math.sqrt(values.size)
            centre = float(values.mean())
            return Estimate(centre, centre - half, centre + half, values.size)

        draw = autoregressive(10_000, 0.9)
        assert coverage(draw, naive, 0.0) < 0.6 < coverage(draw, statistics.mean, 0.0)


class TestIntervals:
    def test_independent_ones_are_the_order_statistics_of_the_binomial(self) -> None:
        # 95 % interval of the median of 100 in textbooks: ranks 40 and 61. Here the sample counts
        # for (1.96 / 2.09)^2 = 0.877 of itself, as its variance is estimated.
        assert binom.cdf(39, 100, 0.5) < 0.025 < binom.cdf(40, 100, 0.5)
        values = np.arange(1.0, 100.0)[np.random.default_rng(0).permutation(99)]
        found = statistics.percentile(values, 0.5)
        assert found.value == 50
        assert 36 <= found.low <= 41
        assert 59 <= found.high <= 64

    def test_too_few_to_bound_a_percentile(self) -> None:
        rng = np.random.default_rng(3)
        few = statistics.percentile(rng.exponential(size=150), 0.99)
        assert math.isinf(few.high)
        assert math.isfinite(few.low)
        many = statistics.percentile(rng.exponential(size=5_000), 0.99)
        assert many.low < many.value < many.high < math.inf

    def test_what_never_comes_is_in_the_percentiles_but_not_in_the_mean(self) -> None:
        values = np.ones(1_000)
        values[::10] = np.inf
        assert statistics.percentile(values, 0.9).value == 1.0
        assert math.isinf(statistics.percentile(values, 0.95).value)
        assert statistics.mean(values).value == 1.0

    def test_a_share_of_all_is_not_certain(self) -> None:
        found = statistics.share(np.ones(1_000, dtype=np.bool_))
        assert found.value == found.high == 1.0
        # The rule of three: about 3 / n.
        assert 1 - found.low == pytest.approx(3.7 / 877, rel=0.05)
        assert share_result(found).low_fraction == found.low

    def test_nothing_observed(self) -> None:
        empty = np.zeros(0)
        for found in (statistics.mean(empty), statistics.percentile(empty, 0.9)):
            assert math.isnan(found.value)
            assert verdict(found, 1.0) == "kept"
        nothing = share_result(statistics.share(empty > 0))
        assert (nothing.fraction, nothing.low_fraction, nothing.high_fraction) == (1.0, 0.0, 1.0)

    def test_percent_is_the_number_of_the_instance(self) -> None:
        assert [in_percent(each / 100) for each in (50, 95, 99, 99.9)] == [50, 95, 99, 99.9]
        assert in_percent(None) is None


# ---- a log by hand ----------------------------------------------------------------------------


def log(count: int = 4, **changes: Any) -> RequestLog:
    """Requests a second apart, 2 s of prompt, 3 s for 4 tokens; the first one of the warm-up."""
    arrival = np.arange(float(count))
    whole = np.zeros(count, dtype=np.int64)
    fields: dict[str, Any] = {
        "class_index": whole,
        "arrival_s": arrival,
        "prefill_start_s": arrival + 1,
        "engine_first_token_s": arrival + 2,
        "first_token_s": arrival + 2.5,
        "visible_first_token_s": arrival + 3.5,
        "finish_s": arrival + 5.5,
        "input_tokens": whole + 100,
        "cached_tokens": whole + 20,
        "output_tokens": whole + 4,
        "hidden_tokens": whole + 1,
        "generated_tokens": whole + 4,
        "prefill_pool": whole,
        "prefill_replica": whole,
        "decode_pool": whole,
        "decode_replica": whole,
        "preemptions": whole,
        "restarts": whole,
        "outcome": whole,
        "counted": arrival >= 1,
    }
    return RequestLog(**{**fields, **changes})


def component(
    requests: RequestLog, series: PoolSeries | None = None, **changes: Any
) -> ComponentRun:
    run = ComponentRun(
        classes=("chat",),
        pools=("p",),
        horizon_s=4.0,
        warmup_s=1.0,
        requests=requests,
        series=(series or samples(np.full(4, 1.0)),),
        steps=10,
        events=(),
    )
    return replace(run, **changes)


def samples(waiting: Floats, every_s: float = 1.0) -> PoolSeries:
    ones = np.ones(waiting.size)
    return PoolSeries(
        pool="p",
        time_s=every_s * np.arange(1.0, waiting.size + 1),
        replicas_up=2 * ones,
        waiting=waiting,
        running=2 * ones,
        kv_fraction=0.5 * ones,
        busy_fraction=ones,
    )


class TestLatencies:
    def test_by_hand(self) -> None:
        found = class_latencies(component(log()), "chat")
        assert found.arrival_s.tolist() == [1, 2, 3]
        assert found.ttft_s.tolist() == [3.5] * 3
        assert found.first_token_s.tolist() == [2.5] * 3
        assert found.tpot_s.tolist() == [1.0] * 3
        assert found.e2e_s.tolist() == [5.5] * 3

    def test_one_token_has_no_tpot_and_misses_none(self) -> None:
        one = np.array([4, 1, 4, 4])
        found = class_latencies(component(log(output_tokens=one)), "chat")
        assert np.isnan(found.tpot_s).tolist() == [True, False, False]
        assert found.of("tpot").size == 2
        kept = good(found, (Slo("tpot", 0.5, 0.95), Slo("ttft", 4.0, 0.95)))
        assert kept.tolist() == [True, False, False]

    def test_a_rejected_request_keeps_nothing(self) -> None:
        nan = np.array([2.5, np.nan, 4.5, 5.5])
        outcome = np.array([0, Outcome.REJECTED, 0, 0])
        rejected = log(
            first_token_s=nan, visible_first_token_s=nan + 1, finish_s=nan + 3, outcome=outcome
        )
        found = class_latencies(component(rejected), "chat")
        assert np.isinf(found.ttft_s).tolist() == [True, False, False]
        assert np.isinf(found.tpot_s).tolist() == [True, False, False]
        slo = Slo("ttft", 10.0, 0.95)
        assert within(found, slo).value == pytest.approx(2 / 3)
        assert good(found, (slo,)).tolist() == [False, True, True]
        assert verdict(estimate(found, "ttft", 0.95), 10.0) == "missed"

    def test_a_mean_promises_nothing_about_one_request(self) -> None:
        found = class_latencies(component(log()), "chat")
        assert good(found, (Slo("ttft", 1.0, None),)).all()
        assert not good(found, (Slo("ttft", 1.0, 0.5),)).any()


class TestAccount:
    def test_books_that_balance(self) -> None:
        found = account(component(log()))
        assert found.every_request_once
        assert found.every_token_once
        # 1 waits and 2 replicas work on 2 each; 3 requests in 3 s stay 2 s and 3 s.
        assert found.in_system_mean == pytest.approx(5.0)
        assert found.arrivals_times_stay == pytest.approx(5.0)
        assert found.little_difference_fraction == pytest.approx(0.0)

    @pytest.mark.parametrize(
        "changes",
        [
            {"finish_s": np.array([5.5, np.nan, 7.5, 8.5])},
            {"outcome": np.array([0, 3, 0, 0])},
            {"outcome": np.array([0, Outcome.REJECTED, 0, 0])},
            {"engine_first_token_s": np.array([2.0, 1.5, 4.0, 5.0])},
            {"decode_pool": np.array([0, -1, 0, 0])},
        ],
        ids=["no end", "unknown end", "two ends", "before its start", "nowhere"],
    )
    def test_a_request_that_is_lost_is_noticed(self, changes: dict[str, Any]) -> None:
        assert requests_once(log(**changes)).tolist() == [True, False, True, True]

    @pytest.mark.parametrize("made", [3, 5])
    def test_a_token_that_is_lost_or_made_twice_is_noticed(self, made: int) -> None:
        tokens = np.array([4, made, 4, 4])
        assert tokens_once(log(generated_tokens=tokens)).tolist() == [True, False, True, True]

    def test_what_lies_between_pools_is_no_stay(self) -> None:
        assert stays_s(log()).tolist() == [5.0] * 4

    def test_samples_of_the_warm_up_and_the_end_do_not_count(self) -> None:
        run = component(log(), samples(np.array([9.0, 1, 2, 3, 9, 9])))
        series = run.series[0]
        chosen = counted_samples(run, series)
        assert chosen.tolist() == [False, True, True, True, False, False]
        assert over_time(series.waiting, series, chosen) == pytest.approx(2.0)


class TestDisturbances:
    def run(self, waiting: Floats, *events: tuple[float, str]) -> ComponentRun:
        requests = log(100, counted=np.arange(100) >= 10)
        return component(requests, samples(waiting), horizon_s=100.0, warmup_s=10.0, events=events)

    def windows(self, run: ComponentRun) -> list[tuple[str, float, int]]:
        (found,) = disturbances([run], [CHAT])
        return [(each.when, each.seconds, each.requests) for each in found.windows]

    def test_a_queue_that_grows_and_is_worked_off(self) -> None:
        waiting = np.ones(100)
        waiting[40:60] = 50
        run = self.run(waiting, (40.0, "dies"), (45.0, "dies: back"))
        assert self.windows(run) == [("before", 30, 30), ("during", 20, 20), ("after", 40, 40)]

    def test_one_that_stays(self) -> None:
        waiting = np.ones(100)
        waiting[40:] = 50
        run = self.run(waiting, (40.0, "dies"))
        assert self.windows(run) == [("before", 30, 30), ("during", 60, 60)]
        (found,) = disturbances([run], [CHAT])
        assert found.normal_s is None
        assert found.first_s == 30
        assert found.events == ("30 s: dies",)

    def test_it_lasts_until_the_replica_is_back(self) -> None:
        run = self.run(np.ones(100), (40.0, "dies"), (70.0, "dies: back"))
        assert self.windows(run) == [("before", 30, 30), ("during", 30, 30), ("after", 30, 30)]

    def test_empty_pools_that_refuse_requests_are_not_normal(self) -> None:
        run = self.run(np.ones(100), (40.0, "dies"))
        outcome = np.where(np.arange(100) >= 40, Outcome.REJECTED, Outcome.FINISHED)
        refusing = replace(run, requests=replace(run.requests, outcome=outcome))
        assert self.windows(refusing) == [("before", 30, 30), ("during", 60, 60)]

    def test_nothing_that_happens_after_the_end_is_told(self) -> None:
        run = self.run(np.ones(100), (140.0, "dies"))
        assert disturbances([run], [CHAT]) == ()


def test_every_key_of_the_result_is_on_its_page() -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    table = text.split("## simulation.json")[1]
    parts = [each for each in vars(summary).values() if isinstance(each, type)]
    models = [each for each in parts if issubclass(each, BaseModel) and each is not BaseModel]
    keys = {name for model in models for name in model.model_fields}
    assert len(keys) > 50
    assert not [key for key in sorted(keys) if f"`{key}`" not in table]


def test_a_result_survives_json() -> None:
    result = Simulation(
        name="n",
        status="kept",
        certain=True,
        asked={
            "seed": 1,
            "hours": None,
            "requests_per_class": 5,
            "rate_factor": 1.0,
            "trace": None,
            "failures": (),
            "spare_replicas": 0,
            "spot_interruptions_per_hour": 0.0,
        },
        classes=(),
        pools=(),
        accounts=(account(component(log())),),
        every_request_accounted_for=True,
        elapsed_s=0.5,
    )
    assert Simulation.from_json(result.to_json()) == result
