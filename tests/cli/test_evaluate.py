"""What a given fleet costs and carries: routed as given, routed best, and what it breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from planner import api, cli
from planner.evaluation import Evaluation
from planner.plan import Plan
from planner.schema.load import load_instance

ROOT = Path(__file__).parents[2]
POOL: dict[str, Any] = {
    "model": tiny.LLAMA_8B,
    "role": "aggregated",
    "offer": "h100",
    "weight_precision": "fp8",
    "kv_precision": "fp8",
    "chunk_tokens": 2048,
    "replicas": 2,
}
SPLIT = ("prefill", "decode")


def document(requests_per_s: float = 12.0, **options: Any) -> tiny.Document:
    return tiny.document(tiny.workload(requests_per_s=requests_per_s), **options)


def fleet(*pools: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"format_version": 1, "pools": [dict(pool) for pool in pools or (POOL,)], **fields}


class Desk:
    """Writes an instance and fleets, and evaluates them on the command line."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys

    def write(self, name: str, content: object) -> str:
        path = self.folder / name
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path.write_text(text)
        return str(path)

    def plan(self, instance: tiny.Document) -> Plan:
        return api.solve(load_instance(self.write("instance.yaml", instance)))

    def run(self, instance: tiny.Document, given: object, *options: str) -> tuple[int, str, str]:
        name = "plan.json" if isinstance(given, str) else "fleet.yaml"
        files = [self.write("instance.yaml", instance), "--fleet", self.write(name, given)]
        code = cli.main(["evaluate", *files, *options])
        shown = self.capsys.readouterr()
        return code, shown.out, shown.err

    def evaluate(
        self, instance: tiny.Document, given: object, *options: str
    ) -> tuple[int, Evaluation]:
        code, out, err = self.run(instance, given, "--json", "--no-optimum", *options)
        assert out, err
        return code, Evaluation.model_validate(json.loads(out))


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


INSTANCES = {
    "one class": document(),
    "split": document(30.0, roles=SPLIT),
    "two classes": tiny.document(
        tiny.workload("chat", 20.0),
        tiny.workload("batch", 6.0, slo=[tiny.tpot(120)]),
        offers=[tiny.offer("l40s", 1.0), tiny.offer("h100", 2.5)],
    ),
}


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("options", [(), ("--reroute",)], ids=["as planned", "rerouted"])
def test_a_plan_meets_its_own_instance(desk: Desk, name: str, options: tuple[str, ...]) -> None:
    plan = desk.plan(INSTANCES[name])
    code, found = desk.evaluate(INSTANCES[name], plan.to_json(), *options)
    assert (code, found.status, found.violations) == (0, "meets", ())
    assert found.cost_usd_per_hour == pytest.approx(plan.cost_usd_per_hour, rel=1e-12)
    assert found.load_factor >= 1 - 1e-6
    assert found.routing == ("found" if options else "given")
    for workload in found.classes:
        assert workload.load_factor >= found.load_factor * (1 - 1e-6)
    if not options:
        assert [pool.id for pool in found.pools] == [pool.id for pool in plan.pools]
        for mine, planned in zip(found.classes, plan.classes, strict=True):
            assert mine.slos == planned.slos


@pytest.mark.parametrize("options", [(), ("--reroute",)], ids=["as planned", "rerouted"])
def test_half_the_replicas_fail(desk: Desk, options: tuple[str, ...]) -> None:
    instance = document(90.0)
    plan = desk.plan(instance)
    halved = plan.model_copy(
        update={
            "pools": tuple(
                pool.model_copy(update={"replicas": pool.replicas // 2}) for pool in plan.pools
            )
        }
    )
    assert sum(pool.replicas for pool in plan.pools) >= 2
    code, found = desk.evaluate(instance, halved.to_json(), *options)
    assert (code, found.status) == (1, "fails")
    assert found.load_factor < 1
    assert "the fleet carries only 0." in found.violations[0]
    assert found.binding is not None


def test_the_factor_halves_with_double_demand_and_doubles_with_the_replicas(desk: Desk) -> None:
    _, once = desk.evaluate(document(10.0), fleet())
    _, twice = desk.evaluate(document(20.0), fleet())
    _, more = desk.evaluate(document(10.0), fleet(POOL | {"replicas": 4}))
    assert twice.load_factor == pytest.approx(once.load_factor / 2, rel=1e-3)
    assert more.load_factor == pytest.approx(once.load_factor * 2, rel=1e-3)
    assert once.cost_usd_per_hour == pytest.approx(5.0)
    assert [(node.offer, node.nodes) for node in once.nodes] == [("h100", 2)]


def test_the_largest_load_is_the_edge(desk: Desk) -> None:
    _, found = desk.evaluate(document(10.0), fleet())
    below, _ = desk.evaluate(document(10.0 * found.load_factor * 0.999), fleet())
    above, _ = desk.evaluate(document(10.0 * found.load_factor * 1.001), fleet())
    assert (below, above) == (0, 1)


def test_a_routing_is_evaluated_as_given(desk: Desk) -> None:
    uneven = [
        POOL | {"name": name, "replicas": 1, "requests_per_s": {"chat": rate}}
        for name, rate in (("busy", 9.0), ("idle", 1.0))
    ]
    code, given = desk.evaluate(document(10.0), fleet(*uneven))
    _, best = desk.evaluate(document(10.0), fleet(*uneven), "--reroute")
    assert code == 0
    assert given.routing == "given"
    assert given.binding is not None
    assert given.binding.where == "busy"
    assert best.load_factor == pytest.approx(given.load_factor * 9 / 5, rel=0.01)
    short = [each | {"requests_per_s": {"chat": 2.5}} for each in uneven]
    code, found = desk.evaluate(document(10.0), fleet(*short))
    assert code == 1
    assert "chat: 5 of 10 requests/s are served" in found.violations


def test_margins_of_classes(desk: Desk) -> None:
    instance = tiny.document(tiny.workload("big", 10.0), tiny.workload("small", 1.0))
    _, found = desk.evaluate(instance, fleet())
    margin = {workload.name: workload.load_factor for workload in found.classes}
    assert margin["small"] > margin["big"] > found.load_factor > 1


def test_an_overloaded_fleet_is_shown_at_what_it_carries(desk: Desk) -> None:
    code, found = desk.evaluate(document(1000.0), fleet())
    assert (code, found.shown_at) == (1, "carried load")
    assert any("overloaded" in text for text in found.violations)
    assert not any(" inf" in text for text in found.violations)
    assert all(slo.predicted_ms <= slo.limit_ms * (1 + 1e-6) for slo in found.classes[0].slos)


def test_prefill_and_decode_pools(desk: Desk) -> None:
    pools = [
        POOL | {"role": "prefill", "replicas": 1},
        {key: value for key, value in POOL.items() if key != "chunk_tokens"} | {"role": "decode"},
    ]
    code, found = desk.evaluate(document(10.0, roles=SPLIT), fleet(*pools))
    assert (code, found.status) == (0, "meets")
    assert [pool.role for pool in found.pools] == ["prefill", "decode"]
    alone, found = desk.evaluate(document(10.0, roles=SPLIT), fleet(pools[0]))
    assert (alone, found.load_factor) == (1, 0.0)
    assert "it needs prefill and decode pools" in " ".join(found.violations)


@pytest.mark.parametrize(
    ("instance", "given", "told"),
    [
        (document(), fleet(nodes={"h100": 1}), "2 h100 in use at own/here in nodes of 1, 1 held"),
        (
            document(offers=[tiny.offer(available_nodes=1)]),
            fleet(),
            "2 nodes of h100, 1 available",
        ),
        (document(budget_usd_per_hour=3.0), fleet(), "the budget is $3.00"),
        (document(roles=SPLIT), fleet(), "the role aggregated is not allowed"),
        (document(), fleet(POOL | {"tensor_parallel": 2}), "is wider than a node of 1"),
        (
            document(offers=[tiny.offer(gpus_per_node=4)]),
            fleet(POOL | {"pipeline_parallel": 3}),
            "a replica of 3 GPUs neither divides a node of 4 nor fills nodes",
        ),
        (document(), fleet(POOL | {"attention_data_parallel": 2}), "is dense"),
        (
            document(),
            fleet(POOL | {"offer": "lambda/us:h100:on_demand:1x"}),
            "the instance does not allow this offer",
        ),
        (document(), fleet(POOL | {"kv_precision": "bf16"}), "precision not allowed"),
        (
            document(max_pool_kinds_per_model=1),
            fleet(POOL, POOL),
            f"{tiny.LLAMA_8B}: 2 kinds of pool, 1 allowed",
        ),
        (
            tiny.document(tiny.workload(slo=[tiny.tpot(1)])),
            fleet(),
            "tpot p95 <= 1 ms takes",
        ),
    ],
)
def test_what_a_fleet_breaks_is_told(
    desk: Desk, instance: tiny.Document, given: object, told: str
) -> None:
    code, found = desk.evaluate(instance, given)
    assert (code, found.status) == (1, "fails")
    assert told in " ".join(found.violations)


def test_a_model_without_a_pool(desk: Desk) -> None:
    instance = tiny.document(tiny.workload(), tiny.workload("moe", model=tiny.QWEN_MOE))
    code, found = desk.evaluate(instance, fleet())
    assert (code, found.load_factor) == (1, 0.0)
    assert f"moe: no pool of the fleet can serve it: none serves {tiny.QWEN_MOE}" in (
        found.violations
    )
    assert [workload.load_factor > 1 for workload in found.classes] == [True, False]


def test_the_optimum_stands_beside(desk: Desk) -> None:
    code, out, _ = desk.run(document(5.0), fleet(), "--json")
    found = Evaluation.model_validate(json.loads(out))
    assert code == 0
    assert found.optimum is not None
    assert found.optimum.saving_usd_per_hour == pytest.approx(2.5)
    assert found.optimum.cost_usd_per_hour == pytest.approx(2.5)
    assert out == found.to_json()


def test_the_report_and_its_files(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown, err = desk.run(document(5.0), fleet(name="ours"), "--out", str(out))
    assert code == 0
    assert shown.startswith("Fleet ours for tiny\nMeets every promise, and carries ")
    assert "$2.50/hour less" in shown
    assert "Largest load" in shown
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "evaluation.md"]
    assert (out / "evaluation.md").read_text().startswith("# Fleet ours for tiny\n")
    assert "evaluation.json" in err
    code, shown, _ = desk.run(document(500.0), fleet(), "--no-optimum")
    assert code == 1
    assert "Fails: carries 0." in shown
    assert "What it breaks" in shown


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{", "not JSON"),
        ('{"format_version": 1, "name": "x", "status": "infeasible"}', "holds no fleet"),
        ('{"format_version": 1, "name": "x"}', "status: Field required"),
    ],
)
def test_a_plan_that_is_none(desk: Desk, given: str, told: str) -> None:
    code, _, err = desk.run(document(), given)
    assert code == 2
    assert told in err
    assert "plan.json" in err


def test_a_plan_of_another_instance(desk: Desk) -> None:
    plan = desk.plan(document())
    other = tiny.document(tiny.workload("talk", 5.0))
    code, _, err = desk.run(other, plan.to_json())
    assert code == 2
    assert "pools[0].requests_per_s.chat: 'chat' is not one of the instance's workloads" in err


def test_files_are_needed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    instance = desk.write("instance.yaml", document())
    assert cli.main(["evaluate", instance]) == 2
    assert "--fleet" in capsys.readouterr().err
    assert cli.main(["evaluate", instance, "--fleet", "none.yaml"]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["single-model", "enterprise"])
def test_shipped_fleets(name: str) -> None:
    instance = api.load(ROOT / "instances" / f"{name}.yaml")
    given = api.load_fleet(ROOT / "instances" / "fleets" / f"{name}.yaml", instance)
    found = api.evaluate(instance, given, optimum=False)
    assert 0.5 < found.load_factor < 3
    assert found.cost_usd_per_hour > 0
