"""The re-evaluation finds each kind of mistake in a fleet that was sound before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import tiny

from planner.catalog.offers import Offer
from planner.fleet.inputs import Stock
from planner.plan import Plan
from planner.verify import FleetPool, FleetRules, Verification, verify

CONTENT = tiny.document(
    tiny.workload(requests_per_s=300, weight_precisions=["fp8"], kv_precisions=["fp8"]),
    roles=("prefill", "decode"),
)
MIXED = tiny.document(tiny.workload(requests_per_s=120))


class Fleet:
    """A plan taken apart, to be corrupted and verified."""

    def __init__(self, content: tiny.Document) -> None:
        self.content = content
        self.problem = tiny.problem(content)
        self.plan: Plan = tiny.solve(content)
        self.pools = tiny.pools(self.plan, content)
        self.nodes = tiny.nodes(self.plan)
        self.rules = tiny.rules(content)

    def pool(self, role: str) -> int:
        (index,) = (i for i, pool in enumerate(self.pools) if pool.role == role)
        return index

    def check(
        self,
        pools: list[FleetPool] | None = None,
        nodes: Mapping[str, int] | None = None,
        rules: FleetRules | None = None,
    ) -> Verification:
        return verify(
            self.problem.classes,
            self.pools if pools is None else pools,
            self.nodes if nodes is None else nodes,
            rules or self.rules,
        )

    def changed(self, role: str, **changes: object) -> Verification:
        """The verification with one pool changed."""
        pools = list(self.pools)
        index = self.pool(role)
        pools[index] = replace(pools[index], **changes)  # type: ignore[arg-type]
        return self.check(pools)


@pytest.fixture(scope="module")
def split() -> Fleet:
    return Fleet(CONTENT)


@pytest.fixture(scope="module")
def mixed() -> Fleet:
    return Fleet(MIXED)


def broken(check: Verification, text: str) -> None:
    assert not check.sound
    assert any(text in violation for violation in check.violations), check.violations


def test_the_plan_itself_is_sound(split: Fleet, mixed: Fleet) -> None:
    for fleet in (split, mixed):
        check = fleet.check()
        assert check.violations == ()
        assert check.cost_usd_per_hour == pytest.approx(fleet.plan.cost_usd_per_hour)
        for states in check.slos.values():
            assert all(state.kept for state in states)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_replica_fewer(split: Fleet, role: str) -> None:
    count = split.pools[split.pool(role)].replicas
    assert count > 1
    check = split.changed(role, replicas=count - 1)
    broken(check, f"{role}-1: ")


def test_an_aggregated_replica_fewer(mixed: Fleet) -> None:
    check = mixed.changed("aggregated", replicas=mixed.pools[0].replicas - 1)
    broken(check, "aggregated-1: ")
    broken(check, "is missed")


def test_far_too_few_replicas_have_no_operating_point(mixed: Fleet) -> None:
    check = mixed.changed("aggregated", requests_per_s={"chat": 1e5})
    broken(check, "overloaded")


def test_a_node_fewer(split: Fleet) -> None:
    nodes = {offer: count - 1 for offer, count in split.nodes.items()}
    broken(split.check(nodes=nodes), "h100 in use at own/here in nodes of 1,")


def test_nodes_of_another_size_do_not_host_the_pool(split: Fleet) -> None:
    check = split.changed("decode", gpus_per_node=8)
    broken(check, "in nodes of 8, 0 held")


def test_more_than_an_offer_or_a_stock_has(split: Fleet) -> None:
    count = split.nodes["h100"]
    offers: dict[str, Offer] = {
        name: replace(offer, available_nodes=count - 1)
        for name, offer in split.rules.offers.items()
    }
    broken(split.check(rules=replace(split.rules, offers=offers)), f"{count - 1} available")
    stocks = [Stock("h100", ("h100",), count - 1)]
    broken(split.check(rules=replace(split.rules, stocks=stocks)), f"{count - 1} available")


def test_over_budget(split: Fleet) -> None:
    cost = split.check().cost_usd_per_hour
    exact = replace(split.rules, budget_usd_per_hour=cost)
    assert split.check(rules=exact).sound
    broken(split.check(rules=replace(split.rules, budget_usd_per_hour=cost - 0.01)), "the budget")


def test_too_many_kinds_of_pool(split: Fleet) -> None:
    broken(
        split.check(rules=replace(split.rules, max_pool_kinds_per_model=1)),
        "2 kinds of pool, 1 allowed",
    )


def test_less_served_than_asked(split: Fleet, mixed: Fleet) -> None:
    broken(
        mixed.changed("aggregated", requests_per_s={"chat": 120 * (1 - 1e-6)}),
        "requests/s are served",
    )
    check = split.changed("prefill", requests_per_s={"chat": 299.0})
    broken(check, "299 of 300 requests/s are served")
    broken(check, "299 requests/s are prefilled but 300 decoded")


def test_rounding_is_no_violation(mixed: Fleet) -> None:
    assert mixed.changed("aggregated", requests_per_s={"chat": 120 * (1 - 1e-12)}).sound


def test_decoding_at_another_site_or_in_another_cache_precision(split: Fleet) -> None:
    broken(split.changed("decode", site="own/there"), "but 0 decoded")
    decode = split.pools[split.pool("decode")]
    other = replace(decode.config, kv_precision="bf16")
    check = split.changed("decode", config=other)
    broken(check, "but 0 decoded with KV cache in fp8")
    broken(check, "does not accept fp8 with KV bf16")


def test_a_precision_that_the_class_does_not_accept(split: Fleet) -> None:
    prefill = split.pools[split.pool("prefill")]
    check = split.changed("prefill", config=replace(prefill.config, weight_precision="bf16"))
    broken(check, "does not accept bf16")


def test_another_model(mixed: Fleet) -> None:
    other = tiny.problem(tiny.document(tiny.workload(model="qwen3-8b"))).models[0].card
    config = replace(mixed.pools[0].config, model=other)
    broken(mixed.changed("aggregated", config=config), "uses another model")


def test_a_role_or_a_size_that_is_not_allowed(split: Fleet) -> None:
    broken(
        split.check(rules=replace(split.rules, roles=frozenset({"aggregated"}))),
        "the role prefill is not allowed",
    )
    broken(split.check(rules=replace(split.rules, max_gpus_per_replica=0)), "are too many")


def test_a_request_that_does_not_fit(split: Fleet) -> None:
    short = tiny.document(
        tiny.workload(requests_per_s=300, input_tokens={"mean": 800, "scv": 1.0, "max": 100_000}),
        roles=("prefill", "decode"),
        offers=[tiny.offer("l4", 0.8)],
    )
    other = tiny.problem(short)
    pools = [
        replace(
            pool,
            config=replace(
                pool.config,
                accelerator=other.request().node_groups[0].accelerator,
                kv_precision="bf16",
            ),
        )
        for pool in split.pools
    ]
    check = verify(other.classes, pools, split.nodes, split.rules)
    broken(check, "does not fit in memory")


def test_a_promise_that_is_tighter_than_planned_for(split: Fleet) -> None:
    for metric in ("ttft", "tpot"):
        (state,) = (s for s in split.check().slos["chat"] if s.slo.metric == metric)
        limit = state.predicted_s * 1e3
        for factor, kept in ((1.001, True), (0.99, False)):
            other = tiny.ttft(limit * factor) if metric == "ttft" else tiny.tpot(limit * factor)
            workload = tiny.workload(requests_per_s=300, slo=[other])
            classes = tiny.problem(tiny.document(workload, roles=("prefill", "decode"))).classes
            check = verify(classes, split.pools, split.nodes, split.rules)
            assert check.sound is kept, (metric, check.violations)


def test_an_idle_pool_is_paid_for_and_harmless(split: Fleet) -> None:
    idle = replace(split.pools[0], id="idle", requests_per_s={})
    nodes = {"h100": split.nodes["h100"] + idle.gpus}
    check = split.check([*split.pools, idle], nodes)
    assert check.sound
    assert check.pools["idle"].binding == "idle"


def test_verification_reads_no_solver() -> None:
    """Imported alone, the verifier loads neither Pyomo nor HiGHS."""
    import subprocess
    import sys

    code = (
        "import sys, planner.verify; "
        "print([name for name in ('pyomo', 'highspy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
