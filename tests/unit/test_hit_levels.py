"""Hits in a prefix cache that hang on its size: counted only where a pool has room for them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny

from planner.candidates.build import build_candidates
from planner.candidates.options import PoolOption
from planner.perf.coefficients import StepModel
from planner.pools.cache import CACHE_SHARE, least_replicas_of_cache, prefill_cache_share
from planner.pools.loads import class_load
from planner.verify import verify

CURVE = [
    {"cache_tokens": 2e5, "fraction": 0.3},
    {"cache_tokens": 3e6, "fraction": 0.6},
]
ROLES = [("aggregated",), ("prefill", "decode")]


def content(
    roles: tuple[str, ...] = ("aggregated",),
    routing: str = "prefix_affine",
    rate: float = 60.0,
    **fields: object,
) -> tiny.Document:
    return tiny.document(
        tiny.workload(
            requests_per_s=rate,
            input_tokens={"mean": 4000, "scv": 0.5, "max": 16000},
            slo=[tiny.ttft(3000), tiny.tpot(60)],
            **fields,
        ),
        roles=roles,
        engine={"chunk_budgets_tokens": [2048], "routing": routing},
        max_gpus_per_replica=1,
    )


def front(document: tiny.Document) -> list[PoolOption]:
    """Options that prefill."""
    table = build_candidates(tiny.problem(document).request())
    return [each for each in table.options if each.role != "decode"]


class TestCurve:
    def test_levels_are_mixes_by_rising_size(self) -> None:
        (workload,) = tiny.problem(content(cached_input_by_cache_size=CURVE)).classes
        assert workload.mix.mean_cached == 0
        assert [level.cache_tokens for level in workload.hit_levels] == [2e5, 3e6]
        for level, point in zip(workload.hit_levels, CURVE, strict=True):
            share = level.mix.mean_cached / level.mix.mean_prompt
            assert share == pytest.approx(point["fraction"])
            assert level.mix.mean_prompt == pytest.approx(workload.mix.mean_prompt)

    def test_some_requests_find_much_and_the_others_nothing(self) -> None:
        """30 % of all input in half of the requests: 60 % of each of those."""
        (workload,) = tiny.problem(
            content(cached_input_fraction=0.3, cached_request_fraction=0.5)
        ).classes
        mix = workload.mix
        share = mix.cached_tokens / mix.prompt_tokens
        assert set(np.round(share, 12)) == {0.0, 0.6}
        assert float(mix.prompt_weight[share > 0].sum()) == pytest.approx(0.5)
        assert mix.mean_cached == pytest.approx(0.3 * mix.mean_prompt)

    @pytest.mark.parametrize("routing", ["queued_tokens", "round_robin"])
    def test_no_hits_are_counted_on_where_nobody_sends_them_to_their_prefix(
        self, routing: str
    ) -> None:
        problem = tiny.problem(content(routing=routing, cached_input_by_cache_size=CURVE))
        assert problem.classes[0].hit_levels == ()
        assert any("no hits in the prefix cache are counted on" in a for a in problem.assumptions)
        with_curve = tiny.solve(content(routing=routing, cached_input_by_cache_size=CURVE))
        without = tiny.solve(content(routing=routing))
        assert with_curve.cost_usd_per_hour == without.cost_usd_per_hour


class TestRoom:
    def test_replicas_by_hand(self) -> None:
        document = content(cached_input_by_cache_size=CURVE)
        config = front(document)[0].config
        step, load = StepModel([config]), class_load(tiny.problem(document).classes[0].mix)
        batched = np.array([2048.0])
        room = float(step.kv_room_bytes(0, 2048.0))
        token = float(step.kv_bytes_per_sequence(0, 4000.0)) / 4000.0
        mean = float(load.prompt @ load.weight)
        assert mean == pytest.approx(4000, rel=0.02)
        for tokens in (1.0, 2e5, 3e6, 2e7):
            least = least_replicas_of_cache(step, batched, load, tokens)
            expected = max(math.ceil(tokens * token / (CACHE_SHARE * room) * (1 - 1e-3)), 1)
            assert least[0] in (expected, math.ceil(tokens * token / (CACHE_SHARE * room) * 1.001))
        assert np.isinf(least_replicas_of_cache(step, batched, load, 1e15))
        free = prefill_cache_share(step, batched, load)
        longest = float(step.kv_bytes_per_sequence(0, load.longest_tokens))
        assert free[0] == pytest.approx(1 - longest * float(step.prompt_lanes(0)) / room)

    @pytest.mark.parametrize("roles", ROLES)
    def test_larger_caches_ask_for_larger_pools(self, roles: tuple[str, ...]) -> None:
        plain = {each.least_replicas for each in front(content(roles, "prefix_affine"))}
        found = front(content(roles, cached_input_by_cache_size=CURVE))
        assert plain == {1}
        assert max(each.least_replicas for each in found) > 1

    def test_shared_pools_count_on_no_hits(self) -> None:
        one = tiny.workload("one", 20.0, cached_input_by_cache_size=CURVE)
        document = tiny.document(
            one, tiny.workload("two", 20.0), engine={"routing": "prefix_affine"}
        )
        table = build_candidates(tiny.problem(document).request())
        shared = [each for each in table.options if len(each.classes) == 2]
        assert shared
        assert {each.least_replicas for each in shared} == {1}


class TestPlan:
    @pytest.mark.parametrize("roles", ROLES)
    def test_hits_lower_the_cost_and_hold_when_evaluated_again(
        self, roles: tuple[str, ...]
    ) -> None:
        document = content(roles, cached_input_by_cache_size=CURVE)
        plan = tiny.solve(document)
        without = tiny.solve(content(roles))
        assert plan.cost_usd_per_hour < without.cost_usd_per_hour  # type: ignore[operator]
        check = tiny.verified(plan, document)
        assert check.sound
        mean = tiny.problem(document).classes[0].mix.mean_prompt
        found = [
            state.cached_tokens["chat"] / mean
            for name, state in check.pools.items()
            if "decode" not in name
        ]
        assert found
        for share in found:
            assert any(share == pytest.approx(level, rel=1e-2) for level in (0.0, 0.3, 0.6))
        assert max(found) > 0.2

    def test_a_pool_too_small_for_the_cache_finds_less(self) -> None:
        document = content(rate=2.0, cached_input_by_cache_size=CURVE)
        table = build_candidates(tiny.problem(document).request())
        option = max(table.options, key=lambda each: each.least_replicas)
        assert option.least_replicas > 1
        plan = tiny.solve(document)
        pools = tiny.pools(plan, document)
        mean = tiny.problem(document).classes[0].mix.mean_prompt
        shares = []
        for replicas in (1, option.least_replicas - 1, option.least_replicas):
            pool = replace(pools[0], config=option.config, replicas=replicas)
            check = verify(
                tiny.problem(document).classes, [pool], {"h100": replicas}, tiny.rules(document)
            )
            shares.append(check.pools[pool.id].cached_tokens["chat"] / mean)
        assert shares == [
            pytest.approx(0.3, rel=1e-2),
            pytest.approx(0.3, rel=1e-2),
            pytest.approx(0.6, rel=1e-2),
        ]
