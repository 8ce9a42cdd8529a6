from __future__ import annotations

import json
import math
from typing import Any

import pytest
import tiny
from pydantic import ValidationError

from planner.errors import InputError
from planner.plan import Plan, SloPlan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return tiny.solve(
        tiny.document(
            tiny.workload("chat", 70),
            tiny.workload("summaries", 10, input_tokens=3000),
            roles=("aggregated", "prefill", "decode"),
            offers=[tiny.offer(), tiny.offer("l40s", 1.1, 2)],
        )
    )


def changed(plan: Plan, **fields: Any) -> str:
    return json.dumps({**json.loads(plan.to_json()), **fields})


def test_round_trip(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_an_infeasible_plan_round_trips_too() -> None:
    plan = tiny.solve(tiny.document(tiny.workload(requests_per_s=120), budget_usd_per_hour=1.0))
    assert plan.status == "infeasible"
    assert not plan.has_fleet
    assert Plan.from_json(plan.to_json()) == plan


def test_json_has_sorted_keys_units_and_no_nan(plan: Plan) -> None:
    text = plan.to_json()
    data = json.loads(text, parse_constant=pytest.fail)
    assert text.endswith("}\n")
    assert list(data) == sorted(data)
    assert data["format_version"] == 1
    assert {"cost_usd_per_hour", "bound_usd_per_hour", "gap_fraction"} <= data.keys()


def test_the_same_instance_gives_the_same_bytes_but_for_times() -> None:
    def timeless() -> str:
        data = json.loads(tiny.solve(tiny.document()).to_json())
        data["search"].pop("enumeration_s")
        data["search"].pop("solve_s")
        return json.dumps(data)

    assert timeless() == timeless()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(plan: Plan, value: float) -> None:
    with pytest.raises(ValidationError):
        SloPlan(
            metric="ttft",
            percentile=95,
            limit_ms=value,
            predicted_ms=1.0,
            low_ms=1.0,
            high_ms=1.0,
        )
    with pytest.raises(InputError, match=r"plan\.json: cost_usd_per_hour: .*finite"):
        Plan.from_json(changed(plan, cost_usd_per_hour=value), "plan.json")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(plan: Plan, version: object) -> None:
    with pytest.raises(InputError, match=r"format_version: .* is not supported"):
        Plan.from_json(changed(plan, format_version=version))


def test_no_version_is_refused() -> None:
    with pytest.raises(InputError, match="format_version: None is not supported"):
        Plan.from_json("{}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "not a list"), ("", "not JSON"), ("3", "not a int")],
)
def test_what_is_no_plan(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan.from_json(text, "x.json")


def test_every_unknown_or_wrong_field_is_named(plan: Plan) -> None:
    with pytest.raises(InputError) as caught:
        Plan.from_json(changed(plan, colour="red", status="fine"), "x.json")
    text = str(caught.value)
    assert "x.json: colour: " in text
    assert "x.json: status: " in text


def test_a_plan_cannot_be_changed(plan: Plan) -> None:
    with pytest.raises(ValidationError):
        plan.status = "optimal"
