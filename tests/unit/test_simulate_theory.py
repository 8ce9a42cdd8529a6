"""The simulation against exact queueing theory, through the engine code that plans run on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.queueing import erlang_c
from planner.simulate.component import ComponentModel, Outage, simulate_component
from planner.simulate.pool import PoolModel
from planner.simulate.records import ComponentRun, Outcome, RequestLog
from planner.simulate.requests import Arrivals
from planner.simulate.tables import Curve, Growth, StepTables

Floats = NDArray[np.float64]

TOKEN_S = 1e-3
LONGEST = 40_000
ROOM = 3000
GROUP = ("here", "maker", "bf16")


def curve(slope: float, fixed: float = 0.0) -> Curve:
    return Curve(lambda count: fixed + slope * count, 2 * LONGEST)


def tables(
    *,
    chunk: int = 1,
    prompt_token_s: float = TOKEN_S,
    step_s: float = 0.0,
    sequence_s: float = 0.0,
    context_s: float = 0.0,
    room_tokens: float = 1e9,
    **changes: Any,
) -> StepTables:
    """One lane; a step takes step_s, sequence_s for each sequence, context_s for each token of
    its context and prompt_token_s for each prompt token. A token holds one byte of cache."""
    context = np.arange(LONGEST, dtype=np.float64)
    base = StepTables(
        lanes=1,
        stages=1,
        chunk_tokens=chunk,
        verified=1,
        accepted=1.0,
        shared_s=curve(prompt_token_s),
        experts_s=curve(0.0),
        head_s=curve(0.0),
        draft_s=curve(0.0),
        decode_s=curve(0.0, step_s),
        attention_s=[0.0] * LONGEST,
        prefill_factor=1.0,
        growth=Growth(sequence_s + context_s * context, context),
        room_bytes=room_tokens,
        longest_bytes=room_tokens,
        max_sequences=100_000,
        first_token_steps=0.0,
        launch_s=0.0,
        launch_per_token_s=0.0,
        transfer_bytes=curve(0.0),
    )
    return replace(base, **changes)


def pool(role: str, each: StepTables, replicas: int = 1, **changes: Any) -> PoolModel:
    made = PoolModel(
        id=role,
        role=role,
        replicas=replicas,
        routing="shared_queue",
        kv_group=GROUP,
        requests_per_s={"all": 1.0},
        tables=each,
        transfer_bytes_per_s={"all": 1.0},
    )
    return replace(made, **changes)


def requests(
    arrival_s: Floats, inputs: Any, outputs: Any = 1, warmup_s: float = 0.0, **changes: Any
) -> Arrivals:
    count = len(arrival_s)
    whole = np.zeros(count, dtype=np.int64)
    made = Arrivals(
        class_index=whole,
        arrival_s=arrival_s,
        input_tokens=whole + inputs,
        cached_tokens=whole,
        output_tokens=whole + outputs,
        hidden_tokens=whole,
        counted=arrival_s >= warmup_s,
    )
    return replace(made, **changes)


def run(pools: list[PoolModel], arrivals: Arrivals, **options: Any) -> ComponentRun:
    options = {"horizon_s": float(arrivals.arrival_s[-1]), "warmup_s": 0.0, **options}
    return simulate_component(ComponentModel(("all",), tuple(pools)), arrivals, **options)


def prefill_pools(replicas: int, **changes: Any) -> list[PoolModel]:
    """A prefill pool with a decode pool behind it that requests of one output token never see."""
    return [pool("prefill", tables(), replicas, **changes), pool("decode", tables())]


def waits_s(log: RequestLog) -> Floats:
    return np.asarray(log.prefill_start_s - log.arrival_s)


def even_shares(count: int, draw: np.random.Generator) -> Floats:
    """Numbers in (0, 1), one in each of `count` equal parts, shuffled: a sample whose mean is
    right, so that its utilisation is the one that theory is asked for."""
    shares = (np.arange(count) + draw.random(count)) / count
    return np.asarray(draw.permutation(shares))


def exponential(mean: float, count: int, draw: np.random.Generator) -> Floats:
    return np.asarray(-mean * np.log1p(-even_shares(count, draw)))


def geometric(mean: float, count: int, seed: int) -> NDArray[np.int64]:
    return np.ceil(exponential(mean, count, np.random.default_rng(seed))).astype(np.int64)


def queue_of(
    replicas: int, utilisation: float, service_tokens: NDArray[np.int64], seed: int
) -> tuple[ComponentRun, Arrivals]:
    draw = np.random.default_rng(seed)
    gap_s = float(service_tokens.mean()) * TOKEN_S / (utilisation * replicas)
    arrivals = requests(np.cumsum(exponential(gap_s, len(service_tokens), draw)), service_tokens)
    return run(prefill_pools(replicas), arrivals), arrivals


def first_come_waits_s(arrivals: Arrivals, replicas: int) -> Floats:
    """Kiefer and Wolfowitz: each request takes the replica that is free first."""
    free = np.zeros(replicas)
    waits = np.empty(len(arrivals))
    services = arrivals.input_tokens * TOKEN_S
    for index, (at_s, service_s) in enumerate(
        zip(arrivals.arrival_s.tolist(), services.tolist(), strict=True)
    ):
        first = int(free.argmin())
        waits[index] = max(free[first] - at_s, 0.0)
        free[first] = at_s + waits[index] + service_s
    return waits


@pytest.mark.parametrize("replicas", [1, 3, 8])
def test_each_wait_is_that_of_a_shared_queue(replicas: int) -> None:
    tokens = geometric(1000, 10_000, seed=replicas)
    found, arrivals = queue_of(replicas, 0.9, tokens, seed=replicas)
    expected = first_come_waits_s(arrivals, replicas)
    assert np.allclose(waits_s(found.requests), expected, atol=1e-6)
    assert expected.mean() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "utilisation"), [(1, 0.6), (4, 0.7), (8, 0.7)])
def test_waiting_of_many_servers(replicas: int, utilisation: float) -> None:
    # Erlang: P(W > t) = C exp(-(c - a) t / E[S]); mean C E[S] / (c - a).
    tokens = geometric(1000, 800_000, seed=7)
    found, _ = queue_of(replicas, utilisation, tokens, seed=11)
    waits = waits_s(found.requests)
    service_s, busy = float(tokens.mean()) * TOKEN_S, utilisation * replicas
    late = float(erlang_c(np.array([float(replicas)]), np.array([busy]))[0])
    theta_s = service_s / (replicas - busy)
    assert waits.mean() == pytest.approx(late * theta_s, rel=0.02)
    assert np.quantile(waits, 0.99) == pytest.approx(theta_s * math.log(late / 0.01), rel=0.02)


def test_mean_wait_of_one_server_by_pollaczek_and_khinchine() -> None:
    # E[W] = rho E[S^2] / (2 E[S] (1 - rho)): prompts of 200 tokens, one in ten of 3,000.
    tokens = np.where(even_shares(100_000, np.random.default_rng(5)) < 0.1, 3000, 200)
    found, _ = queue_of(1, 0.5, tokens, seed=3)
    seconds = tokens * TOKEN_S
    mean_s = 0.5 * float((seconds**2).mean()) / (2 * float(seconds.mean()) * 0.5)
    assert waits_s(found.requests).mean() == pytest.approx(mean_s, rel=0.02)


def decoded(rate: float, outputs: int, count: int, each: StepTables) -> ComponentRun:
    draw = np.random.default_rng(1)
    arrival_s = np.cumsum(draw.exponential(1 / rate, count))
    prompts = tables(chunk=100, prompt_token_s=1e-9)
    lengths = draw.geometric(1 / outputs, count)
    arrivals = requests(arrival_s, 10, lengths, warmup_s=float(arrival_s[count // 20]))
    return run([pool("prefill", prompts), pool("decode", each)], arrivals)


def test_mean_step_of_continuous_batching() -> None:
    # Processor sharing with a fixed part: (t0 + m) / (1 - rho), rho = rate x outputs x m.
    found = decoded(1.0, 500, 20_000, tables(step_s=0.01, sequence_s=0.001))
    log = found.requests
    time_s = (log.finish_s - log.first_token_s)[log.counted].sum()
    tokens = (log.output_tokens - 1)[log.counted].sum()
    assert time_s / tokens == pytest.approx((0.01 + 0.001) / (1 - 0.5), rel=0.02)


def test_one_sequence_takes_the_sum_of_its_steps() -> None:
    # Step k of 99 has a context of 10 + k: t0 + t1 + t2 (10 + k).
    each = tables(step_s=0.01, sequence_s=0.002, context_s=1e-5)
    found = run(
        [pool("prefill", tables(chunk=100)), pool("decode", each)],
        requests(np.array([1.0]), 10, 100),
    )
    log = found.requests
    expected = 99 * 0.012 + 1e-5 * sum(10 + k for k in range(1, 100))
    assert log.first_token_s[0] == pytest.approx(1.0 + 10 * TOKEN_S)
    assert log.finish_s[0] - log.first_token_s[0] == pytest.approx(expected, rel=1e-9)


def test_leaps_take_as_long_as_single_steps() -> None:
    # Two sequences, the second joins at the boundary after its arrival: by hand, step by step.
    each = tables(step_s=0.01, sequence_s=0.001, context_s=1e-4)
    arrivals = requests(np.array([0.0, 0.5]), 10, np.array([200, 50]))
    prompts = tables(chunk=100, prompt_token_s=0.0)
    log = run([pool("prefill", prompts), pool("decode", each)], arrivals).requests
    now_s, batch, left, ends_s = 0.0, {0: 11}, {0: 199, 1: 49}, {}
    while left:
        if now_s >= 0.5 and 1 in left and 1 not in batch:
            batch[1] = 11
        now_s += 0.01 + sum(0.001 + 1e-4 * context for context in batch.values())
        for index in list(batch):
            batch[index] += 1
            left[index] -= 1
            if left[index] == 0:
                ends_s[index] = now_s
                del batch[index], left[index]
    assert log.finish_s.tolist() == pytest.approx([ends_s[0], ends_s[1]], rel=1e-9)


def test_straight_pieces_follow_a_window() -> None:
    # A window of 128: the step grows up to there and no further.
    context = np.arange(LONGEST, dtype=np.float64)
    seen = np.minimum(context, 128.0)
    each = tables(step_s=0.01, growth=Growth(1e-4 * seen, context))
    found = run(
        [pool("prefill", tables(chunk=100)), pool("decode", each)],
        requests(np.array([0.0]), 100, 101),
    )
    log = found.requests
    expected = 100 * 0.01 + 1e-4 * sum(min(100 + k, 128) for k in range(1, 101))
    assert log.finish_s[0] - log.first_token_s[0] == pytest.approx(expected, rel=1e-9)


def test_a_step_waits_for_the_fullest_lane() -> None:
    # Two lanes, 1 ms a token in dense layers (both wait for the longer prompt), 2 ms in experts
    # (all tokens together), attention of 5 ms for the first 100 tokens of each prompt.
    attention = np.minimum(np.arange(LONGEST), 100) * 5e-5
    each = tables(
        chunk=400,
        lanes=2,
        prompt_token_s=1e-3,
        experts_s=curve(2e-3),
        attention_s=attention.tolist(),
    )
    pools = [pool("prefill", each), pool("decode", tables())]
    log = run(pools, requests(np.zeros(2), np.array([300, 100]), warmup_s=-1.0)).requests
    alone_s = 2 * 300 * 1e-3 + 300 * 2e-3 + 0.005
    assert log.engine_first_token_s[0] == pytest.approx(alone_s)
    # The second came while the first was under way and has the next step to itself.
    assert log.engine_first_token_s[1] == pytest.approx(alone_s + 2 * 0.1 + 0.2 + 0.005)
    three = run(pools, requests(np.array([0.0, 0.1, 0.1]), np.array([100, 300, 100]))).requests
    together_s = 2 * 300 * 1e-3 + 400 * 2e-3 + 0.005
    assert np.ptp(three.engine_first_token_s[1:]) == 0.0
    waited_s = three.engine_first_token_s[0]
    assert three.engine_first_token_s[1] == pytest.approx(waited_s + together_s)


def test_chunks_leave_room_for_decoding_and_slow_it_down() -> None:
    # A budget of 100: one sequence decodes, so 99 prompt tokens ride in each step.
    each = tables(chunk=100, prompt_token_s=1e-3, step_s=0.01, head_s=curve(0.0, 0.005))
    arrivals = requests(np.array([0.0, 0.2]), np.array([50, 297]), np.array([100, 2]))
    log = run([pool("aggregated", each)], arrivals).requests
    begin_s = log.prefill_start_s[1]
    assert 0.2 <= begin_s < 0.2 + 0.01
    # Three steps of 99 + 1 tokens with the output head.
    assert log.engine_first_token_s[1] == pytest.approx(begin_s + 3 * (0.1 + 0.005))


def test_speculation_gains_its_tokens_each_step() -> None:
    each = tables(step_s=0.02, context_s=1e-5, accepted=2.5, verified=4)
    log = run(
        [pool("prefill", tables(chunk=100)), pool("decode", each)],
        requests(np.zeros(1), 10, 101),
    ).requests
    expected = 40 * 0.02 + 1e-5 * sum(11 + 2.5 * step for step in range(40))
    assert log.finish_s[0] - log.first_token_s[0] == pytest.approx(expected)


def test_the_first_visible_token_follows_the_hidden_ones() -> None:
    each = tables(step_s=0.02)
    arrivals = requests(np.zeros(1), 10, 50, hidden_tokens=np.array([30]), counted=np.array([True]))
    log = run([pool("prefill", tables(chunk=100)), pool("decode", each)], arrivals).requests
    assert log.visible_first_token_s[0] - log.first_token_s[0] == pytest.approx(30 * 0.02)
    assert log.finish_s[0] - log.first_token_s[0] == pytest.approx(49 * 0.02)


def aggregated(count: int, seed: int, room_tokens: float = 1e9) -> ComponentRun:
    draw = np.random.default_rng(seed)
    arrival_s = np.cumsum(draw.exponential(1 / 3.0, count))
    each = tables(
        chunk=256,
        prompt_token_s=1e-4,
        step_s=0.01,
        sequence_s=0.0005,
        room_tokens=room_tokens,
    )
    arrivals = requests(arrival_s, draw.geometric(1 / 800, count), draw.geometric(1 / 100, count))
    return run([pool("aggregated", each, 2, routing="queued_tokens")], arrivals)


def test_every_request_and_token_is_there_once() -> None:
    log = aggregated(3000, seed=2).requests
    assert (log.outcome == Outcome.FINISHED).all()
    assert np.array_equal(log.generated_tokens, log.output_tokens)
    assert (log.prefill_start_s >= log.arrival_s).all()
    assert (log.first_token_s > log.prefill_start_s).all()
    assert (log.finish_s >= log.first_token_s).all()
    assert not log.preemptions.any()


def test_littles_law() -> None:
    found = aggregated(12_000, seed=4)
    log, series = found.requests, found.series[0]
    present = series.waiting + series.running * series.replicas_up
    stays_s = np.minimum(log.finish_s, found.horizon_s) - log.arrival_s
    assert present.mean() == pytest.approx(stays_s.sum() / found.horizon_s, rel=0.01)


def test_preemption_keeps_tokens_right() -> None:
    roomy, tight = aggregated(2000, seed=6), aggregated(2000, seed=6, room_tokens=ROOM)
    log = tight.requests
    assert log.preemptions.sum() > 50
    fits = log.input_tokens + log.output_tokens <= ROOM
    assert (log.outcome[fits] == Outcome.FINISHED).all()
    assert np.array_equal(log.generated_tokens[fits], log.output_tokens[fits])
    assert log.finish_s[fits].mean() > roomy.requests.finish_s[fits].mean()
    assert tight.series[0].kv_fraction.max() <= 1.0 + 1e-9


def test_a_request_that_fits_nowhere_is_refused() -> None:
    each = tables(chunk=256, prompt_token_s=1e-4, step_s=0.01, room_tokens=1000)
    arrivals = requests(np.array([0.0, 0.1]), np.array([500, 900]), np.array([10, 200]))
    log = run([pool("aggregated", each)], arrivals).requests
    assert log.outcome.tolist() == [Outcome.FINISHED, Outcome.REJECTED]
    assert np.isnan(log.finish_s[1])


def test_what_a_dead_replica_held_is_finished_elsewhere() -> None:
    draw = np.random.default_rng(8)
    arrival_s = np.cumsum(draw.exponential(0.1, 600))
    each = tables(chunk=256, prompt_token_s=1e-4, step_s=0.01, sequence_s=0.0005)
    arrivals = requests(arrival_s, 300, 80)
    outage = Outage(pool=0, replica=1, at_s=20.0, down_s=None, text="one dies")
    found = run(
        [pool("aggregated", each, 2, routing="least_outstanding")], arrivals, outages=(outage,)
    )
    log = found.requests
    assert (log.outcome == Outcome.FINISHED).all()
    assert log.restarts.sum() > 0
    late = log.arrival_s > 20.0
    assert set(log.decode_replica[late].tolist()) == {0}
    assert set(log.decode_replica[log.restarts > 0].tolist()) == {0}
    assert (log.finish_s[log.restarts > 0] > 20.0).all()
    assert found.series[0].replicas_up[-1] == pytest.approx(1.0)
    assert found.events == ((20.0, "one dies"),)


def test_requests_wait_for_the_only_replica_to_return() -> None:
    each = tables(chunk=256, prompt_token_s=1e-4, step_s=0.01)
    arrivals = requests(np.array([0.0, 5.0, 30.0]), 100, 10)
    outage = Outage(pool=0, replica=0, at_s=1.0, down_s=9.0, text="it dies")
    log = run([pool("aggregated", each)], arrivals, outages=(outage,)).requests
    assert log.prefill_start_s[1] == pytest.approx(10.0)
    gone = Outage(pool=0, replica=0, at_s=1.0, down_s=None, text="it dies")
    log = run([pool("aggregated", each)], arrivals, outages=(gone,)).requests
    assert log.outcome.tolist() == [Outcome.FINISHED, Outcome.REJECTED, Outcome.REJECTED]


def test_prefix_cache_by_hand() -> None:
    # Blocks of 10 tokens, room for 4: 1-2-3 | 1-2-4 finds 20 tokens | 5-6 pushes out 3 (oldest
    # after 4, 2 and 1 were used) and 1 | 1-2 finds nothing, for its first block is gone | 5-6-7
    # was used last but one and is found: 20.
    blocks = ((1, 2, 3), (1, 2, 4), (5, 6), (1, 2), (5, 6, 7))
    arrivals = requests(
        np.arange(5.0) * 10,
        np.array([35, 35, 25, 25, 35]),
        1,
        block_ids=blocks,
        block_tokens=10,
    )
    pools = prefill_pools(1)
    pools[0] = replace(pools[0], tables=tables(room_tokens=40))
    log = run(pools, arrivals).requests
    assert log.cached_tokens.tolist() == [0, 20, 0, 0, 20]


@pytest.mark.parametrize(
    "routing", ["queued_tokens", "least_outstanding", "round_robin", "random", "prefix_affine"]
)
def test_waits_grow_as_routing_knows_less(routing: str) -> None:
    tokens = geometric(1000, 10_000, seed=1)
    gaps_s = exponential(1 / 6.4, len(tokens), np.random.default_rng(2))
    arrivals = requests(np.cumsum(gaps_s), tokens)
    shared = run(prefill_pools(8), arrivals).requests
    other = run(prefill_pools(8, routing=routing), arrivals).requests
    ratio = np.quantile(waits_s(other), 0.99) / np.quantile(waits_s(shared), 0.99)
    # docs/queueing.md: routing by queued work is nearly as good, blind routing many times worse.
    least, most = {
        "queued_tokens": (1.0, 1.15),
        "least_outstanding": (1.0, 2.5),
        "round_robin": (2.5, 8.0),
        "random": (5.0, 20.0),
        "prefix_affine": (5.0, 20.0),
    }[routing]
    assert least <= ratio <= most


def test_the_same_seed_gives_the_same_run() -> None:
    draw = np.random.default_rng(3)
    arrivals = requests(np.cumsum(draw.exponential(0.2, 2000)), 500)
    pools = prefill_pools(3, routing="random")
    first, second = (run(pools, arrivals, seed=5).requests for _ in range(2))
    other = run(pools, arrivals, seed=6).requests
    assert np.array_equal(first.finish_s, second.finish_s)
    assert not np.array_equal(first.finish_s, other.finish_s)
