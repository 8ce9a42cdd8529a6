from __future__ import annotations

import math
from dataclasses import replace

import pyomo.environ as pyo
import pytest
import tiny

from planner.candidates.options import PROGRAM_MARGIN, ROW_INDEX
from planner.fleet.inputs import FleetInputs
from planner.fleet.model import build_model
from planner.fleet.solve import solve_fleet
from planner.fleet.solver import SolveSettings

EXACT = SolveSettings(gap_fraction=0.0)


def split(requests_per_s: float = 300.0) -> FleetInputs:
    return tiny.inputs(
        tiny.document(tiny.workload(requests_per_s=requests_per_s), roles=("prefill", "decode"))
    )


class TestVariables:
    def test_counts_of_a_program_by_hand(self) -> None:
        """One aggregated option, one class, one period: a pool, a flow, nodes of one offer."""
        inputs = tiny.inputs(tiny.document())
        assert len(inputs.options) == 1
        model = build_model(inputs)
        assert len(model.replicas) == len(model.flow) == len(model.nodes) == 1
        assert not len(model.count)

    def test_only_pairs_that_exist_have_a_flow(self) -> None:
        inputs = tiny.inputs(
            tiny.document(tiny.workload("a"), tiny.workload("b", model=tiny.QWEN_MOE))
        )
        model = build_model(inputs)
        for k, p in model.flows:
            assert inputs.by_name[p].model == inputs.class_models[k]

    def test_offers_that_host_nothing_are_left_out(self) -> None:
        content = tiny.document(
            tiny.workload(weight_precisions=["bf16"]),
            models=[{"model": tiny.LLAMA_8B, "weight_precisions": ["bf16"]}],
            offers=[tiny.offer(), tiny.offer("l4", 0.1)],
            max_gpus_per_replica=1,
        )
        inputs = tiny.inputs(content)
        hosts = {option.config.accelerator.id for option in inputs.options}
        assert set(inputs.used_offers) == hosts

    def test_an_unknown_slack_family_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no such slack family: nonsense"):
            build_model(tiny.inputs(tiny.document()), relaxed=("nonsense",))


class TestRows:
    def test_coefficients_carry_the_margin(self) -> None:
        """The dedicated option's calibrated row: one over the requests/s of a full replica."""
        inputs = tiny.inputs(tiny.document(tiny.workload(requests_per_s=1000)))
        option = inputs.options[0]
        per_request = float(option.coefficients[ROW_INDEX["calibrated_step_1"], 0])
        fleet = solve_fleet(inputs, EXACT)
        assert sum(fleet.replicas.values()) == math.ceil(1000 * per_request)
        assert PROGRAM_MARGIN == 1e-6

    def test_a_prefill_pool_never_exceeds_its_capacity_table(self) -> None:
        for rate in (1.0, 20.0, 100.0, 300.0, 1000.0):
            inputs = split(rate)
            fleet = solve_fleet(inputs, EXACT)
            for name, count in fleet.replicas.items():
                option = inputs.by_name[name]
                if option.capacity is None:
                    continue
                assert option.service_s is not None
                load = fleet.flow[0, name] * float(option.service_s[0])
                assert load <= float(option.capacity.load(count)) * (1 + 1e-9)

    def test_replicas_are_the_fewest_that_the_rows_allow(self) -> None:
        """A single option in each phase: counts follow from the rows and the table by hand."""
        inputs = split(300.0)
        fleet = solve_fleet(inputs, EXACT)
        for name, count in fleet.replicas.items():
            option = inputs.by_name[name]
            use = float(option.coefficients[:, 0].max()) * fleet.flow[0, name]
            if option.capacity is None:
                assert count == math.ceil(use - 1e-9)
            else:
                assert option.service_s is not None
                load = fleet.flow[0, name] * float(option.service_s[0])
                fewer = float(option.capacity.load(count - 1))
                assert load > fewer or use > count - 1

    def test_every_flow_is_decoded_where_its_cache_is(self) -> None:
        inputs = tiny.inputs(
            tiny.document(
                tiny.workload(requests_per_s=200),
                roles=("prefill", "decode"),
                offers=[tiny.offer(), tiny.offer("mi300x", 2.4), tiny.offer("l40s", 1.1, 2)],
            )
        )
        fleet = solve_fleet(inputs, EXACT)
        balance: dict[tuple[str, str, str], float] = {}
        for (_, name), rate in fleet.flow.items():
            option = inputs.by_name[name]
            sign = 1 if option.role == "prefill" else -1
            balance[option.kv_group] = balance.get(option.kv_group, 0.0) + sign * rate
        assert all(abs(each) <= 200 * 1e-9 for each in balance.values())


class TestLimits:
    def test_nodes_are_whole(self) -> None:
        """Three replicas of one GPU on nodes of two: two nodes."""
        content = tiny.document(
            tiny.workload(requests_per_s=120), offers=[tiny.offer(gpus_per_node=2)]
        )
        inputs = tiny.inputs(content)
        inputs = inputs.with_options([o for o in inputs.options if o.gpus == 1])
        fleet = solve_fleet(inputs, EXACT)
        assert sum(fleet.replicas.values()) == 3
        assert fleet.nodes == {"h100": 2}
        assert fleet.cost_usd_per_hour == pytest.approx(2 * 2 * 2.5)

    def test_stock_moves_the_rest_to_the_dearer_offer(self) -> None:
        content = tiny.document(
            tiny.workload(requests_per_s=120),
            offers=[
                tiny.offer(id="cheap", available_nodes=1),
                tiny.offer(id="dear", usd_per_gpu_hour=4.0),
            ],
        )
        fleet = solve_fleet(tiny.inputs(content), EXACT)
        assert fleet.nodes == {"cheap": 1, "dear": 2}
        assert fleet.cost_usd_per_hour == pytest.approx(2.5 + 2 * 4.0)

    @pytest.mark.parametrize(("budget", "status"), [(7.5, "optimal"), (7.49, "infeasible")])
    def test_budget(self, budget: float, status: str) -> None:
        content = tiny.document(tiny.workload(requests_per_s=120), budget_usd_per_hour=budget)
        assert solve_fleet(tiny.inputs(content), EXACT).status == status

    def test_pool_kinds_limit_costs_money_or_nothing(self) -> None:
        content = tiny.document(
            tiny.workload("a", 100, slo=[tiny.tpot(12)]),
            tiny.workload("b", 100, slo=[tiny.tpot(200)], input_tokens=3000),
            offers=[tiny.offer(), tiny.offer("l40s", 1.1)],
        )
        free = solve_fleet(tiny.inputs(content), EXACT)
        content["fleet"]["max_pool_kinds_per_model"] = 1
        limited = solve_fleet(tiny.inputs(content), EXACT)
        assert limited.cost_usd_per_hour >= free.cost_usd_per_hour
        assert len(limited.replicas) <= 1 or limited.status == "infeasible"

    def test_a_class_without_options_is_infeasible_not_a_crash(self) -> None:
        inputs = tiny.inputs(tiny.document()).with_options([])
        assert solve_fleet(inputs, EXACT).status == "infeasible"

    def test_a_large_pool_is_not_called_impossible(self) -> None:
        """Ten thousand replicas are many, but no proof that there is no fleet."""
        inputs = tiny.inputs(tiny.document(tiny.workload(requests_per_s=5e5)))
        assert solve_fleet(inputs, SolveSettings(gap_fraction=0.01)).status == "optimal"

    @pytest.mark.parametrize("rate", [1e-2, 1e-4, 1e-6])
    @pytest.mark.parametrize("roles", [("aggregated",), ("prefill", "decode")])
    def test_a_request_now_and_then_still_needs_a_replica(
        self, rate: float, roles: tuple[str, ...]
    ) -> None:
        plan = tiny.solve(tiny.document(tiny.workload(requests_per_s=rate), roles=roles))
        assert plan.cost_usd_per_hour == pytest.approx(2.5 * len(roles))

    @pytest.mark.parametrize("rate", [1e-3, 1e-4, 1e-5])
    @pytest.mark.parametrize("roles", [("aggregated",), ("prefill", "decode")])
    def test_a_rare_class_beside_a_busy_one(self, rate: float, roles: tuple[str, ...]) -> None:
        """Ten requests a day that need weights of their own: less load than a solver tolerates."""
        rare = tiny.workload(
            "rare", rate, input_tokens=200, output_tokens=20, weight_precisions=["int4"]
        )
        content = tiny.document(
            tiny.workload("busy", 60, weight_precisions=["fp8"]),
            rare,
            roles=roles,
            models=[
                {
                    "model": tiny.LLAMA_8B,
                    "weight_precisions": ["fp8", "int4"],
                    "kv_precisions": ["fp8"],
                }
            ],
        )
        plan = tiny.solve(content)
        assert plan.status == "optimal"
        assert tiny.verified(plan, content).sound


class TestPeriods:
    def test_nodes_are_held_for_the_dearest_period(self) -> None:
        """Replicas follow the demand of each period; the nodes are those of the largest."""
        inputs = tiny.inputs(tiny.document(tiny.workload(requests_per_s=120)))
        half = replace(inputs.periods[0], weight=0.5)
        quiet = replace(inputs, demand=((120.0, 30.0),), periods=(half, half))
        model = build_model(quiet)
        outcome = pyo.SolverFactory("highs").solve(model)
        assert outcome.solver.termination_condition == pyo.TerminationCondition.optimal
        assert pyo.value(model.cost) == pytest.approx(7.5)
