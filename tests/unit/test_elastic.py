"""A change that is reported is enough, and less of it is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny

from planner.plan import Conflict, Plan


def busy(**fleet: Any) -> tiny.Document:
    """Needs three H100 at 2.50 USD each."""
    return tiny.document(tiny.workload(requests_per_s=120), **fleet)


def conflict(plan: Plan, requirement: str) -> Conflict:
    (found,) = (each for each in plan.conflicts if each.requirement == requirement)
    return found


def feasible(content: tiny.Document) -> bool:
    return tiny.solve(content).status == "optimal"


def test_the_instance_itself_is_feasible() -> None:
    assert tiny.solve(busy()).cost_usd_per_hour == pytest.approx(7.5)


@pytest.mark.parametrize("limit", [{"accelerator": "h100"}, {"offer": "h100"}])
def test_stock(limit: tiny.Document) -> None:
    content = busy(availability=[{**limit, "nodes": 1}])
    found = conflict(tiny.solve(content), "stock")
    assert found.amount == 2
    assert found.unit == "nodes"
    assert found.change == "have 2 more nodes of h100"
    for extra, enough in ((2, True), (1, False)):
        content["fleet"]["availability"][0]["nodes"] = 1 + extra
        assert feasible(content) is enough


def test_availability_of_an_own_offer() -> None:
    content = busy(offers=[tiny.offer(available_nodes=1)])
    found = conflict(tiny.solve(content), "stock")
    assert found.amount == 2
    content["fleet"]["offers"][0]["available_nodes"] = 3
    assert feasible(content)


def test_budget() -> None:
    content = busy(budget_usd_per_hour=3.0)
    found = conflict(tiny.solve(content), "budget")
    assert found.amount == pytest.approx(4.5)
    assert found.change == "raise the budget by $4.50/hour"
    for extra, enough in ((4.5, True), (4.49, False)):
        content["fleet"]["budget_usd_per_hour"] = 3.0 + extra
        assert feasible(content) is enough


def test_pool_kinds() -> None:
    content = tiny.document(
        tiny.workload("a", 2, weight_precisions=["bf16"]),
        tiny.workload("b", 2, weight_precisions=["int4"]),
        models=[{"model": tiny.LLAMA_8B, "weight_precisions": ["bf16", "int4"]}],
        max_pool_kinds_per_model=1,
    )
    assert conflict(tiny.solve(content), "pool_kinds").amount == 1
    content["fleet"]["max_pool_kinds_per_model"] = 2
    assert feasible(content)


def test_demand() -> None:
    content = busy(budget_usd_per_hour=3.0)
    found = conflict(tiny.solve(content), "demand")
    assert 0.5 < found.amount < 0.7
    for share, enough in ((found.amount * 1.001, True), (found.amount * 0.98, False)):
        less = copy.deepcopy(content)
        less["workloads"][0]["demand"]["requests_per_s"] *= 1 - share
        assert feasible(less) is enough


def test_two_limits_that_conflict_only_together() -> None:
    content = busy(budget_usd_per_hour=3.0, availability=[{"accelerator": "h100", "nodes": 1}])
    plan = tiny.solve(content)
    assert conflict(plan, "stock").change.endswith("(together)")
    assert conflict(plan, "budget").change.endswith("(together)")
    content["fleet"]["availability"][0]["nodes"] = 1 + int(conflict(plan, "stock").amount)
    assert not feasible(content)
    content["fleet"]["budget_usd_per_hour"] = 3.0 + conflict(plan, "budget").amount
    assert feasible(content)


class TestWithoutOptions:
    def test_an_impossible_promise_names_the_factor_that_helps(self) -> None:
        content = tiny.document(tiny.workload(slo=[tiny.tpot(0.5)]))
        found = conflict(tiny.solve(content), "slo")
        assert found.unit == "factor"
        for factor, enough in ((found.amount, True), (found.amount * 0.9, False)):
            content["workloads"][0]["slo"] = [tiny.tpot(0.5 * factor)]
            assert feasible(content) is enough

    def test_only_the_workload_in_the_way_is_named(self) -> None:
        content = tiny.document(
            tiny.workload("fine"), tiny.workload("hurried", slo=[tiny.tpot(0.5)])
        )
        plan = tiny.solve(content)
        assert [each.requirement for each in plan.conflicts] == ["slo"]
        assert plan.conflicts[0].change.startswith("hurried: ")

    def test_a_limit_far_from_possible_is_still_what_is_in_the_way(self) -> None:
        """1 ms where hundreds are needed, say seconds typed as milliseconds: not the memory."""
        content = tiny.document(tiny.workload(slo=[tiny.ttft(1.0)]))
        assert [each.requirement for each in tiny.solve(content).conflicts] == ["slo"]

    def test_a_model_that_fits_nowhere(self) -> None:
        content = tiny.document(
            tiny.workload(model="llama-3.1-405b-instruct"), max_gpus_per_replica=1
        )
        found = conflict(tiny.solve(content), "hardware")
        assert "weights do not fit in memory" in found.change
        assert "fits on none of the hardware allowed" in found.change

    def test_a_request_too_long_for_memory(self) -> None:
        content = tiny.document(
            tiny.workload(input_tokens={"mean": 60000, "scv": 0.1, "max": 120000}, slo=[]),
            offers=[tiny.offer("l4", 0.7)],
            models=[
                {
                    "model": tiny.LLAMA_8B,
                    "weight_precisions": ["bf16"],
                    "kv_precisions": ["bf16"],
                }
            ],
            max_gpus_per_replica=1,
        )
        found = conflict(tiny.solve(content), "hardware")
        assert "fit in memory" in found.change
