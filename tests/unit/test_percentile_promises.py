"""Bursts, routing policies, margins and pool sizes in the program: what they may do to the cost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny

from planner import api
from planner.candidates.build import build_candidates
from planner.candidates.options import ROW_INDEX, PoolOption
from planner.candidates.promises import Margin, Promises, pool_kind
from planner.fleet.solve import solve_fleet
from planner.fleet.solver import SolveSettings

ROLES = [("aggregated",), ("prefill", "decode")]
POLICIES = (
    "shared_queue",
    "queued_tokens",
    "least_outstanding",
    "round_robin",
    "random",
    "prefix_affine",
)


def content(
    roles: tuple[str, ...], *, routing: str = "queued_tokens", rate: float = 150.0, **fields: object
) -> tiny.Document:
    slo = [tiny.ttft(1000, 99), tiny.tpot(30, 99)]
    return tiny.document(
        tiny.workload(requests_per_s=rate, **{"slo": slo, **fields}),
        roles=roles,
        engine={"chunk_budgets_tokens": [2048], "routing": routing},
        offers=[tiny.offer("l40s", 1.0)],
        max_gpus_per_replica=1,
    )


def options(document: tiny.Document, role: str, **arguments: object) -> tuple[PoolOption, ...]:
    request = tiny.problem(document).request(**arguments)  # type: ignore[arg-type]
    return tuple(each for each in build_candidates(request).options if each.role == role)


def most_per_replica(document: tiny.Document, role: str, **arguments: object) -> float:
    """Requests/s that the best single replica of a role carries."""
    row = ROW_INDEX["calibrated_step_1"]
    found = options(document, role, **arguments)
    return max(1 / float(each.coefficients[row, 0]) for each in found if each.least_replicas == 1)


class TestBursts:
    @pytest.mark.parametrize("roles", ROLES)
    def test_clumps_of_requests_never_lower_the_cost(self, roles: tuple[str, ...]) -> None:
        costs = [
            tiny.solve(content(roles, arrival_scv=scv)).cost_usd_per_hour for scv in (1.0, 2.0, 4.0)
        ]
        assert costs == sorted(costs, key=lambda each: each or math.inf)
        assert costs[0] < costs[-1]  # type: ignore[operator]

    @pytest.mark.parametrize("role", ["decode", "aggregated"])
    def test_a_replica_carries_less(self, role: str) -> None:
        roles = ROLES[0] if role == "aggregated" else ROLES[1]
        carried = [most_per_replica(content(roles, arrival_scv=s), role) for s in (1.0, 2.0, 4.0)]
        assert carried[0] > carried[1] > carried[2]

    def test_smooth_arrivals_are_planned_as_independent(self) -> None:
        smooth, poisson = (content(ROLES[1], arrival_scv=scv) for scv in (0.3, 1.0))
        assert tiny.solve(smooth).cost_usd_per_hour == tiny.solve(poisson).cost_usd_per_hour


class TestRouting:
    def test_the_less_a_router_knows_the_more_prefill_costs(self) -> None:
        spread = {"mean": 1500, "scv": 1.0, "max": 8000}
        slo = [tiny.ttft(900, 99), tiny.tpot(80)]
        fields = {"input_tokens": spread, "slo": slo, "rate": 60.0}
        costs = {
            policy: tiny.solve(content(ROLES[1], routing=policy, **fields)).cost_usd_per_hour  # type: ignore[arg-type]
            for policy in POLICIES
        }
        assert None not in costs.values()
        assert costs["shared_queue"] == costs["queued_tokens"]
        order = [costs[each] for each in ("queued_tokens", "least_outstanding", "random")]
        assert order == sorted(order, key=float)  # type: ignore[arg-type]
        assert order[0] < order[-1]  # type: ignore[operator]
        assert costs["least_outstanding"] <= costs["round_robin"] <= costs["random"]  # type: ignore[operator]
        assert costs["prefix_affine"] == costs["random"]

    def test_aggregated_pools_share_waits_only_with_a_router_that_sees_queues(self) -> None:
        sizes = {
            policy: {each.least_replicas for each in options(self.waiting(policy), "aggregated")}
            for policy in ("queued_tokens", "random")
        }
        assert sizes["random"] == {1}
        assert max(sizes["queued_tokens"]) > 1

    @staticmethod
    def waiting(policy: str) -> tiny.Document:
        return content(
            ROLES[0],
            routing=policy,
            input_tokens={"mean": 6000, "scv": 1.0, "max": 20000},
            slo=[tiny.ttft(3500), tiny.tpot(90)],
            rate=20.0,
        )

    @pytest.mark.parametrize("policy", POLICIES)
    def test_the_plan_says_which_router_it_needs(self, policy: str) -> None:
        document = content(ROLES[0], routing=policy, rate=20.0)
        plan = tiny.solve(document)
        assert {pool.routing for pool in plan.pools} == {policy}
        assert api.ROUTERS[policy] in plan.assumptions


class TestPoolSizes:
    def test_a_pool_below_the_least_size_is_never_bought(self) -> None:
        """One option only, for four replicas and more: a demand for one buys four."""
        document = TestRouting.waiting("queued_tokens")
        inputs = tiny.inputs(document)
        large = [each for each in inputs.options if each.least_replicas == 4]
        assert large
        one = replace(inputs, demand=((1.0,),)).with_options(large[:1])
        fleet = solve_fleet(one, SolveSettings(gap_fraction=0.0))
        assert list(fleet.replicas.values()) == [4]
        assert fleet.cost_usd_per_hour == pytest.approx(4 * 1.0)

    def test_names_tell_the_least_size(self) -> None:
        found = options(TestRouting.waiting("queued_tokens"), "aggregated")
        for each in found:
            assert (f"from{each.least_replicas}" in each.name) == (each.least_replicas > 1)


class TestMargins:
    def kinds(self, roles: tuple[str, ...]) -> dict[str, str]:
        """The kind of pool of each role."""
        table = build_candidates(tiny.problem(content(roles)).request())
        return {
            each.role: pool_kind(each.config, each.role, each.chunk_tokens)
            for each in table.options
        }

    @pytest.mark.parametrize(("ttft", "tpot"), [(0.99, 1.0), (1.0, 0.5), (math.nan, 1.0)])
    def test_no_margin_loosens_a_promise(self, ttft: float, tpot: float) -> None:
        with pytest.raises(ValueError, match="margins are 1 or more"):
            Margin(ttft, tpot)

    def test_a_margin_belongs_to_one_class_on_one_kind_of_pool(self) -> None:
        first, second = tiny.problem(tiny.document(tiny.workload("a"), tiny.workload("b"))).classes
        margins = {("a", "here"): Margin(1.5, 2.0)}
        found = Promises.of([first, second], ["here", "there"], margins)
        assert found.ttft_margin.tolist() == [[1.5, 1.0], [1.0, 1.0]]
        assert found.tpot_margin.tolist() == [[2.0, 1.0], [1.0, 1.0]]

    @pytest.mark.parametrize("roles", ROLES)
    def test_a_margin_is_a_tighter_limit(self, roles: tuple[str, ...]) -> None:
        """Options made with a margin of 1.25 are those of limits of 4/5."""
        margins = {("chat", kind): Margin(1.25, 1.25) for kind in self.kinds(roles).values()}
        tight = [tiny.ttft(1000 / 1.25, 99), tiny.tpot(30 / 1.25, 99)]
        for role in roles:
            kept = options(content(roles), role, margins=margins)
            tighter = options(content(roles, slo=tight), role)
            assert len(kept) == len(tighter) > 0
            for one, other in zip(kept, tighter, strict=True):
                row = ROW_INDEX["calibrated_step_1"]
                assert one.coefficients[row] == pytest.approx(other.coefficients[row], rel=1e-6)
                assert (one.capacity is None) == (other.capacity is None)
                if one.capacity is not None and other.capacity is not None:
                    # A tighter promise also asks for a faster receiver; a margin does not.
                    for kept_load, load in zip(
                        one.capacity.exact, other.capacity.exact, strict=True
                    ):
                        assert 0.9 * load < kept_load <= load * (1 + 1e-6)

    @pytest.mark.parametrize("roles", ROLES)
    def test_the_cost_never_falls_and_the_plan_keeps_the_margins(
        self, roles: tuple[str, ...]
    ) -> None:
        document = content(roles)
        costs = []
        for size in (1.0, 1.1, 1.4):
            margins = {("chat", kind): Margin(size, size) for kind in self.kinds(roles).values()}
            plan = api.solve(tiny.instance(document), gap_fraction=0.0, margins=margins)
            assert plan.status == "optimal"
            costs.append(plan.cost_usd_per_hour)
            assert tiny.verified(plan, document).sound
            for pool in plan.pools:
                assert pool.margins["chat"].ttft == pool.margins["chat"].tpot == size
            for slo in plan.classes[0].slos:
                assert slo.predicted_ms <= slo.limit_ms / size * (1 + 1e-6)
        assert costs == sorted(costs)  # type: ignore[type-var]
        assert costs[0] < costs[-1]  # type: ignore[operator]
