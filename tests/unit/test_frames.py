"""Plans as tables."""

from __future__ import annotations

from planner.frames import frames
from planner.plan import ClassPlan, Plan, SloPlan, TokenPrice


def test_promises_have_a_row_each_and_units_in_their_names() -> None:
    slos = tuple(
        SloPlan(
            metric=metric,  # type: ignore[arg-type]
            percentile=95.0,
            limit_ms=100.0,
            predicted_ms=80.0,
            low_ms=64.0,
            high_ms=104.0,
        )
        for metric in ("ttft", "tpot")
    )
    workload = ClassPlan(
        name="chat",
        model="llama-3.1-8b-instruct",
        requests_per_s=2.0,
        mean_requests_per_s=1.0,
        input_tokens_per_s=100.0,
        cached_input_tokens_per_s=0.0,
        output_tokens_per_s=50.0,
        slos=slos,
        served_by=(),
        cost_usd_per_hour=3.0,
        price=TokenPrice(input_usd_per_mtok=0.1, output_usd_per_mtok=0.4),
    )
    tables = frames(Plan(name="one", status="optimal", classes=(workload,)))
    assert list(tables["promises"]["metric"]) == ["ttft", "tpot"]
    assert tables["promises"]["predicted_ms"].max() == 80.0
    assert tables["classes"].loc[0, "price.output_usd_per_mtok"] == 0.4
    assert tables["pools"].empty
