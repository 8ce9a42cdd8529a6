"""No plan breaks a promise, and the program alone finds such plans, without a second try."""

from __future__ import annotations

from unittest import mock

import pytest
import tiny
from hypothesis import given, settings
from tiny_strategies import documents

from planner import api


@settings(max_examples=20)
@given(documents())
def test_a_plan_keeps_every_promise_when_evaluated_again(content: tiny.Document) -> None:
    with mock.patch.object(api, "TIGHTENINGS", 0):
        plan = tiny.solve(content)
    assert plan.status in ("optimal", "infeasible")
    if plan.status == "infeasible":
        assert plan.conflicts
        return
    check = tiny.verified(plan, content)
    assert check.violations == ()
    assert check.cost_usd_per_hour == pytest.approx(plan.cost_usd_per_hour, rel=1e-12)
    promised = {each["name"]: each["slo"] for each in content["workloads"]}
    for served in plan.classes:
        assert len(served.slos) == len(promised[served.name])
        for slo in served.slos:
            assert slo.predicted_ms <= slo.limit_ms * (1 + 1e-9)
        shares = [each.share_fraction for each in served.served_by if each.phase != "decode"]
        assert sum(shares) == pytest.approx(1.0, rel=1e-9)


@settings(max_examples=10)
@given(documents())
def test_bound_gap_and_prices_add_up(content: tiny.Document) -> None:
    plan = tiny.solve(content)
    if plan.cost_usd_per_hour is None:
        return
    assert plan.bound_usd_per_hour is not None
    assert plan.bound_usd_per_hour <= plan.cost_usd_per_hour * (1 + 1e-9)
    assert plan.bound_usd_per_hour == pytest.approx(plan.cost_usd_per_hour, rel=1e-6)
    for parts in (plan.nodes, plan.pools, plan.classes):
        total = sum(part.cost_usd_per_hour for part in parts)
        assert total == pytest.approx(plan.cost_usd_per_hour, rel=1e-9)
