from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

from planner.pricing.attribution import class_costs, pool_costs
from planner.verify import PoolState

ROLES = ("prefill", "decode", "aggregated")


def idle_gpus() -> tiny.Document:
    """Nodes of 8 for a fleet that needs fewer: idle GPUs have to be paid by someone."""
    return tiny.document(
        tiny.workload("chat", 20, cached_input_fraction=0.5),
        tiny.workload("summaries", 5, input_tokens=3000),
        offers=[tiny.offer(gpus_per_node=8)],
    )


@pytest.mark.parametrize(
    "content",
    [
        idle_gpus(),
        tiny.document(tiny.workload(requests_per_s=300), roles=("prefill", "decode")),
        tiny.document(
            tiny.workload("a", 70), tiny.workload("b", 9, model=tiny.QWEN_MOE), roles=ROLES
        ),
    ],
)
def test_parts_sum_to_the_fleet(content: tiny.Document) -> None:
    plan = tiny.solve(content)
    total = plan.cost_usd_per_hour
    assert total is not None
    assert sum(each.cost_usd_per_hour for each in plan.nodes) == pytest.approx(total, rel=1e-12)
    assert sum(each.cost_usd_per_hour for each in plan.pools) == pytest.approx(total, rel=1e-12)
    assert sum(each.cost_usd_per_hour for each in plan.classes) == pytest.approx(total, rel=1e-12)


def test_prices_times_tokens_are_the_cost_of_a_class() -> None:
    content = idle_gpus()
    plan = tiny.solve(content)
    for each in plan.classes:
        paid = (
            each.input_tokens_per_s * each.price.input_usd_per_mtok
            + each.cached_input_tokens_per_s * (each.price.cached_input_usd_per_mtok or 0.0)
            + each.output_tokens_per_s * each.price.output_usd_per_mtok
        )
        assert paid * 3600 / 1e6 == pytest.approx(each.cost_usd_per_hour, rel=1e-9)
    chat = plan.classes[0]
    # 20 requests/s of 800 tokens, half of them cached, and 200 out.
    assert chat.input_tokens_per_s == pytest.approx(20 * 400, rel=1e-6)
    assert chat.cached_input_tokens_per_s == pytest.approx(20 * 400, rel=1e-6)
    assert chat.output_tokens_per_s == pytest.approx(20 * 200, rel=1e-6)
    assert chat.price.cached_input_usd_per_mtok is not None
    assert 0 < chat.price.cached_input_usd_per_mtok < chat.price.input_usd_per_mtok


def test_a_class_without_a_cache_has_no_cached_price() -> None:
    plan = tiny.solve(tiny.document())
    assert plan.classes[0].price.cached_input_usd_per_mtok is None


def test_bursts_are_paid_by_the_mean_traffic() -> None:
    plain = tiny.solve(tiny.document(tiny.workload(requests_per_s=40)))
    bursty = tiny.solve(tiny.document(tiny.workload(requests_per_s=20, burst_factor=2.0)))
    assert bursty.cost_usd_per_hour == plain.cost_usd_per_hour
    assert bursty.classes[0].price.output_usd_per_mtok == pytest.approx(
        2 * plain.classes[0].price.output_usd_per_mtok
    )


def test_pools_share_a_node_by_their_gpus() -> None:
    """By hand: 2 nodes of 4 at 3 USD per GPU; pools of 2 and 4 GPUs pay 8 and 16 of 24 USD."""
    content = tiny.document(offers=[tiny.offer("h100", 3.0, 4)])
    (pool,) = tiny.pools(tiny.solve(content), content)
    first = replace(pool, id="first", replicas=2)
    second = replace(pool, id="second", replicas=4)
    assert pool.config.layout.gpus == 1
    offers = tiny.rules(content).offers
    costs = pool_costs([first, second], {"h100": 2}, offers)
    assert costs == pytest.approx({"first": 8.0, "second": 16.0})


def test_classes_share_a_pool_by_their_seconds() -> None:
    """By hand: 12 USD; seconds 1 (a, of which 0.25 cached) + 2 (a) + 3 (b) of 6."""
    content = tiny.document(tiny.workload("a", 10), tiny.workload("b", 10))
    classes = tiny.problem(content).classes
    (pool, *_) = tiny.pools(tiny.solve(content), content)
    state = PoolState({}, {"x": 1.0}, None, None, {"a": 1.0}, {"a": 0.25}, {"a": 2.0, "b": 3.0})
    spent = class_costs(classes, [pool], {pool.id: state}, {pool.id: 12.0})
    assert spent["a"].input_usd_per_hour == pytest.approx(1.5)
    assert spent["a"].cached_usd_per_hour == pytest.approx(0.5)
    assert spent["a"].output_usd_per_hour == pytest.approx(4.0)
    assert spent["b"].usd_per_hour == pytest.approx(6.0)
    assert spent["b"].usd_per_mtok("cached") is None
