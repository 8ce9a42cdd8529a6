"""A plan simulated: what one request gets, spans and seeds, traces, nodes that die."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny

from planner.embedded import EmbeddedPlan, embedded_plan
from planner.errors import InputError
from planner.pools.loads import class_load
from planner.pools.prefill import prefill_service
from planner.simulate.build import components
from planner.simulate.component import simulate_component
from planner.simulate.draw import drawn_arrivals, drawn_tokens, renewal_times_s
from planner.simulate.placement import placed
from planner.simulate.records import (
    ComponentRun,
    Failure,
    Outcome,
    RequestLog,
    SimulationRun,
    SimulationSettings,
)
from planner.simulate.replay import classes_of, replayed_arrivals
from planner.simulate.requests import Arrivals
from planner.simulate.run import simulate_plan
from planner.traces.trace import sorted_trace
from planner.workload.distribution import Distribution
from planner.workload.mix import NO_TOKENS, TokenMix

MIX = TokenMix.of(
    Distribution.deterministic(100.0), Distribution.deterministic(9.0), NO_TOKENS, 0.2, 0.5
)
ROLES: Mapping[str, tuple[str, ...]] = {
    "aggregated": ("aggregated",),
    "apart": ("prefill", "decode"),
}


@cache
def solved(kind: str) -> EmbeddedPlan:
    """A plan of two models, so of two components, on nodes of two GPUs."""
    content = tiny.document(
        tiny.workload(requests_per_s=40.0),
        tiny.workload(
            "code", 4.0, model=tiny.QWEN_MOE, hidden_output_tokens={"mean": 50, "max": 400}
        ),
        offers=[tiny.offer(gpus_per_node=2)],
        roles=ROLES[kind],
    )
    return embedded_plan(tiny.solve(content, gap_fraction=0.05), "plan.json")


def simulated(kind: str, **settings: object) -> SimulationRun:
    asked = SimulationSettings(**{"requests_per_class": 800, "workers": 1, **settings})  # type: ignore[arg-type]
    return simulate_plan(solved(kind), asked)


def run_of(run: SimulationRun, name: str) -> ComponentRun:
    return next(each for each in run.components if name in each.classes)


def alone(kind: str, inputs: int, outputs: int) -> RequestLog:
    """One request of the first class on an idle fleet."""
    part = next(
        each
        for each in components(solved(kind), SimulationSettings())
        if "chat" in each.model.classes
    )
    whole = np.zeros(1, dtype=np.int64)
    arrivals = Arrivals(
        whole, np.zeros(1), whole + inputs, whole, whole + outputs, whole, whole == 0
    )
    return simulate_component(part.model, arrivals, horizon_s=1.0, warmup_s=0.0).requests


# ---- the physics of the plan ------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [100, 2048, 5000])
def test_a_lone_prompt_takes_its_prefill_time(inputs: int) -> None:
    embedded = solved("apart")
    sender = next(
        each for each in embedded.plan.pools if each.id.startswith(f"{tiny.LLAMA_8B}/pre")
    )
    step = embedded.backend.compile([embedded.configs[sender.id]])
    load = class_load(TokenMix.deterministic(inputs, 10))
    nic = np.minimum(step.nic_bytes_per_s(0), np.inf)[None]
    assert sender.chunk_tokens is not None
    service, _ = prefill_service(step, load, np.array([float(sender.chunk_tokens)]), nic)
    log = alone("apart", inputs, 10)
    assert log.first_token_s[0] == pytest.approx(float(service.own_s[0, 0]), rel=1e-6)


def test_a_lone_prompt_of_an_aggregated_engine() -> None:
    embedded = solved("aggregated")
    pool = next(each for each in embedded.plan.pools if each.model == tiny.LLAMA_8B)
    step = embedded.backend.compile([embedded.configs[pool.id]])
    assert pool.chunk_tokens is not None
    own_s = float(step.prefill_time_s(0, 1000.0, 0.0, float(pool.chunk_tokens), alone=True))
    decode_s = float(step.decode_step_s(0, 1.0, 0.0) - step.sequence_time_s(0, 0.0))
    late_s = (float(step.ttft_decode_steps(0)) - 0.5) * decode_s
    log = alone("aggregated", 1000, 10)
    assert log.engine_first_token_s[0] == pytest.approx(own_s, rel=1e-6)
    shown_s = own_s + late_s + float(step.ttft_fixed_s(0, 1000.0))
    assert log.first_token_s[0] == pytest.approx(shown_s, rel=1e-6)


@pytest.mark.parametrize("kind", ["apart", "aggregated"])
def test_a_lone_answer_takes_its_decode_steps(kind: str) -> None:
    embedded = solved(kind)
    role = "decode" if kind == "apart" else "aggregated"
    pool = next(
        each for each in embedded.plan.pools if each.model == tiny.LLAMA_8B and each.role == role
    )
    step = embedded.backend.compile([embedded.configs[pool.id]])
    contexts = 1000.0 + np.arange(1, 200)
    expected = float(step.decode_step_s(0, np.ones(199), contexts).sum())
    log = alone(kind, 1000, 200)
    assert log.finish_s[0] - log.first_token_s[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["apart", "aggregated"])
def test_time_per_token_is_near_the_prediction(kind: str) -> None:
    embedded = solved(kind)
    role = "decode" if kind == "apart" else "aggregated"
    pool = next(
        each for each in embedded.plan.pools if each.model == tiny.LLAMA_8B and each.role == role
    )
    assert pool.step_ms is not None
    log = run_of(simulated(kind, requests_per_class=15_000), "chat").requests
    time_s = (log.finish_s - log.first_token_s)[log.counted].sum()
    tokens = (log.output_tokens - 1)[log.counted].sum()
    assert time_s / tokens == pytest.approx(pool.step_ms / 1e3, rel=0.1)


# ---- a run as a whole -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["apart", "aggregated"])
def test_every_counted_request_is_done(kind: str) -> None:
    run = simulated(kind)
    assert {name for each in run.components for name in each.classes} == {"chat", "code"}
    for each in run.components:
        log = each.requests
        assert log.counted.sum() >= 800
        assert (log.outcome[log.counted] == Outcome.FINISHED).all()
        assert np.array_equal(log.generated_tokens[log.counted], log.output_tokens[log.counted])
        assert (log.arrival_s[log.counted] >= each.warmup_s).all()
        assert (log.arrival_s[log.counted] < each.horizon_s).all()
        assert (log.visible_first_token_s >= log.first_token_s)[log.counted].all()
        for series in each.series:
            assert (series.busy_fraction <= 1 + 1e-9).all()
            assert (series.kv_fraction <= 1 + 1e-9).all()
    hidden = run_of(run, "code").requests
    seen = hidden.counted & (hidden.hidden_tokens > 0)
    assert seen.sum() > 500
    assert (hidden.visible_first_token_s > hidden.first_token_s)[seen].all()
    assert (hidden.visible_first_token_s <= hidden.finish_s)[seen].all()


def test_the_number_of_workers_changes_nothing() -> None:
    one, two = simulated("apart"), simulated("apart", workers=2)
    for first, second in zip(one.components, two.components, strict=True):
        assert np.array_equal(first.requests.finish_s, second.requests.finish_s, equal_nan=True)


def test_progress_rises_to_the_end() -> None:
    seen: list[float] = []
    settings = SimulationSettings(requests_per_class=3000, workers=1)
    simulate_plan(solved("aggregated"), settings, lambda fraction, what: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[0] == 0.0
    assert 0.5 < seen[-1] <= 1.0


def test_more_load_is_slower() -> None:
    usual = run_of(simulated("aggregated"), "chat").requests
    heavy = run_of(simulated("aggregated", rate_factor=1.3), "chat").requests
    assert np.nanmean(heavy.first_token_s - heavy.arrival_s) > np.nanmean(
        usual.first_token_s - usual.arrival_s
    )


# ---- failures ---------------------------------------------------------------------------------


def test_a_node_takes_its_replicas_along() -> None:
    embedded = solved("aggregated")
    pool = next(each for each in embedded.plan.pools if each.model == tiny.LLAMA_8B)
    failure = Failure("node", pool.id, at_s=5.0)
    run = run_of(simulated("aggregated", failures=(failure,)), "chat")
    assert len(run.events) == 1
    at_s, text = run.events[0]
    assert at_s == pytest.approx(run.warmup_s + 5.0)
    assert pool.id in text
    up = next(each for each in run.series if each.pool == pool.id).replicas_up
    on_node = max(
        sum(name == pool.id for name, _ in node.replicas) for node in placed(embedded.plan, {})
    )
    assert up[0] == pytest.approx(pool.replicas)
    assert up[-1] == pytest.approx(pool.replicas - on_node)
    log = run.requests
    done = log.outcome[log.counted]
    assert ((done == Outcome.FINISHED) | (done == Outcome.REJECTED)).all()


def test_spare_replicas_stand_in() -> None:
    pool = next(each for each in solved("apart").plan.pools if each.role == "decode")
    failure = Failure("replica", pool.id, at_s=5.0)
    run = simulated("apart", failures=(failure,), spare_replicas=2)
    series = next(each for part in run.components for each in part.series if each.pool == pool.id)
    assert series.replicas_up[0] == pytest.approx(pool.replicas + 2)
    assert series.replicas_up[-1] == pytest.approx(pool.replicas + 1)


def test_a_replica_comes_back() -> None:
    pool = next(each for each in solved("apart").plan.pools if each.role == "prefill")
    failure = Failure("replica", pool.id, at_s=3.0, down_s=4.0)
    run = simulated("apart", failures=(failure,))
    part = next(each for each in run.components if pool.id in each.pools)
    assert [at_s - part.warmup_s for at_s, _ in part.events] == pytest.approx([3.0, 7.0])
    assert (part.requests.outcome[part.requests.counted] == Outcome.FINISHED).all()


def test_a_pool_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no pool 'nowhere'"):
        simulated("apart", failures=(Failure("node", "nowhere", 1.0),))


def test_a_trace_must_have_a_span_and_a_class_of_the_plan() -> None:
    once = sorted_trace(np.zeros(3), np.full(3, 10), np.full(3, 10), source="made up")
    with pytest.raises(InputError, match="arrive at once"):
        simulated("apart", trace=once)
    with pytest.raises(InputError, match="no class 'chta'"):
        simulated("apart", trace=bursty_trace(), trace_class="chta")


def test_rates_too_far_apart_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.simulate.build.MOST_IN_COMPONENT", 300)
    run = simulated("apart")
    assert all(each.requests.counted.sum() < 400 for each in run.components)
    assert any("fewer requests than asked" in each for each in run.assumptions)


# ---- what arrives -----------------------------------------------------------------------------


@pytest.mark.parametrize("scv", [0.0, 0.5, 1.0, 4.0])
def test_gaps_between_arrivals(scv: float) -> None:
    times = renewal_times_s(5.0, scv, 20_000.0, np.random.default_rng(1))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(100_000, rel=0.03)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(scv, rel=0.05, abs=1e-9)


def test_drawn_tokens_have_the_distribution_of_the_class() -> None:
    prompt = Distribution.lognormal(900.0, 1.5, 16_000.0)
    visible, hidden = (Distribution.lognormal(mean, 0.8, 8000.0) for mean in (300.0, 700.0))
    mix = TokenMix.of(prompt, visible, hidden, 0.4, 0.5)
    inputs, cached, outputs, hid = drawn_tokens(mix, 200_000, np.random.default_rng(2))
    assert inputs.mean() == pytest.approx(mix.mean_prompt, rel=0.02)
    assert cached.mean() == pytest.approx(mix.mean_cached, rel=0.03)
    assert outputs.mean() == pytest.approx(mix.mean_output, rel=0.02)
    assert hid.mean() == pytest.approx(mix.hidden_tokens_mean, rel=0.02)
    assert (hid < outputs).all()
    assert (cached < inputs).all()


def bursty_trace(requests: int = 2000, tick_s: float = 0.0, blocks: bool = False):  # type: ignore[no-untyped-def]
    """Ten requests at once, then a pause: 2,000 in 2,000 s."""
    at_s = np.repeat(np.arange(requests / 10) * 10.0, 10) + np.tile(
        np.arange(10) * 0.01 * (tick_s == 0), requests // 10
    )
    ids = [(index % 7, 100 + index) for index in range(requests)] if blocks else None
    return sorted_trace(
        at_s,
        np.full(requests, 600),
        np.full(requests, 100),
        source="made up",
        block_ids=ids,
        block_tokens=400,
    )


@pytest.mark.parametrize("rate", [0.3, 1.0, 1.4, 7.0])
def test_a_replay_has_the_rate_asked_for_and_keeps_bursts(rate: float) -> None:
    trace = bursty_trace()
    rows = np.arange(trace.requests)
    found = replayed_arrivals(trace, rows, trace.span_s, 0, rate, 20_000.0, seed=1, mix=MIX)
    assert len(found) / 20_000.0 == pytest.approx(rate, rel=0.05)
    assert (np.diff(found.arrival_s) >= 0).all()
    # Half of the prompts find 40 % of themselves.
    assert set(found.cached_tokens.tolist()) == {0, 240}
    assert found.cached_tokens.mean() == pytest.approx(120, rel=0.1)
    # Bursts come from copies, each as long as in the trace: most gaps are still 10 ms or less.
    assert np.median(np.diff(found.arrival_s)) <= (0.011 if rate >= 1 else 0.1)


def test_copies_of_a_trace_share_no_blocks() -> None:
    trace = bursty_trace(blocks=True)
    found = replayed_arrivals(trace, np.arange(2000), trace.span_s, 0, 3.0, 1000.0, seed=1, mix=MIX)
    assert found.block_ids is not None
    first = {blocks[0] for blocks in found.block_ids}
    assert 3 * 7 <= len(first) <= 2 * 3 * 7


def test_requests_of_a_coarse_clock_are_spread() -> None:
    trace = bursty_trace(tick_s=10.0)
    found = replayed_arrivals(trace, np.arange(2000), trace.span_s, 0, 1.0, 1000.0, seed=1, mix=MIX)
    assert np.quantile(np.diff(found.arrival_s), 0.9) < 5.0
    assert (np.diff(found.arrival_s) > 0).mean() > 0.99


def test_a_trace_is_shared_by_likeness() -> None:
    classes = [
        replace(each, mix=TokenMix.deterministic(tokens, 50))
        for each, tokens in zip(solved("apart").classes, (200, 9000), strict=True)
    ]
    trace = sorted_trace(
        np.arange(4.0), np.array([210, 8000, 150, 12_000]), np.full(4, 50), source="made up"
    )
    assert classes_of(trace, classes).tolist() == [0, 1, 0, 1]


def test_a_replay_through_a_plan_finds_shared_blocks() -> None:
    run = simulated("aggregated", trace=bursty_trace(blocks=True), trace_class="chat", hours=0.02)
    log = run_of(run, "chat").requests
    assert (log.input_tokens == 600).all()
    assert set(log.cached_tokens[log.counted].tolist()) <= {0, 400}
    assert (log.cached_tokens[log.counted] == 400).mean() > 0.5
    assert not (run_of(run, "code").requests.input_tokens == 600).all()


def test_the_same_class_draws_the_same_requests_in_any_company() -> None:
    workload = solved("apart").classes[0]
    first = drawn_arrivals(workload, 0, 5.0, 100.0, seed=3)
    second = drawn_arrivals(workload, 4, 5.0, 100.0, seed=3)
    assert np.array_equal(first.arrival_s, second.arrival_s)
    assert np.array_equal(first.input_tokens, second.input_tokens)
