"""A plan beside measurements: inside or not, promises kept or not, and what cannot be told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from planner import cli
from planner.calibrate.check import check_plan
from planner.calibrate.measurement import Measurement
from planner.calibrate.points import Predictions, point_of
from planner.embedded import EmbeddedPlan, embedded_plan
from planner.errors import InputError
from planner.perf.corrections import Correction
from planner.plan import Plan
from planner.verify import FleetPool

HEADER = "concurrency,input_tokens,output_tokens,tpot_ms,ttft_ms,tpot_p95_ms,ttft_p95_ms\n"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return tiny.document(tiny.workload(requests_per_s=20.0), max_gpus_per_replica=1)


@pytest.fixture(scope="module")
def plan(content: dict[str, Any]) -> Plan:
    found = tiny.solve(content)
    assert len(found.pools) == 1
    return found


@pytest.fixture(scope="module")
def split() -> Plan:
    """A plan with a prefill and a decode pool."""
    found = tiny.solve(tiny.document(tiny.workload(), roles=("prefill", "decode")))
    assert {pool.role for pool in found.pools} == {"prefill", "decode"}
    return found


def measured(
    embedded: EmbeddedPlan, clients: float = 8.0, tpot: float = 1.0, ttft: float = 1.0
) -> Measurement:
    """A point at this load, at these multiples of what the plan predicts for its first pool."""
    pool = embedded.plan.pools[0]
    config = embedded.configs[pool.id]
    probe = Measurement(
        *("r.json", "run 1", "made", 1000.0, 200.0, clients),
        *(None, None, None, None, 1.0, None, None),
    )
    correction = embedded.backend.corrections.find(config) or Correction()
    served = Predictions(
        config,
        [point_of(probe)],
        embedded.backend.constants,
        budget_tokens=float(pool.chunk_tokens or 8192),
    ).serving(correction)
    tpot_s, ttft_s = tpot * float(served.tpot_s[0]), ttft * float(served.ttft_s[0])
    rate = clients * 200 / (ttft_s + 199 * tpot_s)
    return replace(probe, tpot_s=tpot_s, ttft_s=ttft_s, output_tokens_per_s=rate)


class TestPredictions:
    def test_what_is_as_predicted_is_inside(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        check = check_plan(embedded, [measured(embedded)])
        assert [each.metric for each in check.comparisons] == ["tpot", "ttft", "output tokens/s"]
        for each in check.comparisons:
            assert each.verdict == "inside"
            assert each.beyond_fraction == 0
            assert each.measured == pytest.approx(each.predicted)
            assert each.low < each.predicted < each.high
        assert check.holds

    @pytest.mark.parametrize(("factor", "verdict"), [(1.9, "above"), (0.7, "below")])
    def test_what_is_outside_is_told_with_its_distance(
        self, plan: Plan, factor: float, verdict: str
    ) -> None:
        embedded = embedded_plan(plan, "plan.json")
        first = check_plan(embedded, [measured(embedded, tpot=factor)]).comparisons[0]
        low, high = plan.pools[0].band_fraction
        assert first.verdict == verdict
        beyond = factor / high - 1 if verdict == "above" else 1 - factor / low
        assert first.beyond_fraction == pytest.approx(beyond)

    def test_faster_than_the_hardware_has_its_own_cause(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        check = check_plan(embedded, [measured(embedded, tpot=0.2)])
        assert check.comparisons[0].cause.startswith("faster than the hardware allows")
        slow = check_plan(embedded, [measured(embedded, tpot=3.0)])
        assert "settings" in slow.comparisons[0].cause

    def test_replicas_share_the_load(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        one = measured(embedded, clients=8)
        rate = one.output_tokens_per_s
        assert rate is not None
        four = replace(one, concurrency=32, output_tokens_per_s=4 * rate)
        check = check_plan(embedded, [four], replicas=4)
        assert check.holds
        assert check.comparisons[0].concurrency == 8

    def test_a_decode_pool_is_predicted_without_prompts(self, split: Plan) -> None:
        embedded = embedded_plan(split, "plan.json")
        decode = next(pool for pool in split.pools if pool.role == "decode")
        each = replace(measured(embedded, clients=16), ttft_s=0.05)
        check = check_plan(embedded, [each], pool=decode.id)
        assert [found.metric for found in check.comparisons] == ["tpot"]
        aggregated = measured(embedded, clients=16).tpot_s
        assert aggregated is not None
        assert check.comparisons[0].predicted < aggregated * 1e3

    def test_a_prefill_pool_is_only_held_to_its_promises(self, split: Plan) -> None:
        embedded = embedded_plan(split, "plan.json")
        prefill = next(pool for pool in split.pools if pool.role == "prefill")
        each = replace(measured(embedded), ttft_percentiles_s={0.95: 3.0})
        check = check_plan(embedded, [each], pool=prefill.id)
        assert check.comparisons == ()
        assert "prefills only" in check.skipped[0]
        assert [found.metric for found in check.promises] == ["ttft"]
        assert not check.holds


class TestPromises:
    def test_percentiles_are_held_against_the_limits(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        each = replace(
            measured(embedded),
            tpot_percentiles_s={0.5: 0.001, 0.95: 0.049},
            ttft_percentiles_s={0.95: 2.1, 0.99: 9.0},
        )
        check = check_plan(embedded, [each])
        found = {promise.metric: promise for promise in check.promises}
        assert found["tpot"].kept
        assert found["tpot"].limit_ms == 50
        assert not found["ttft"].kept
        assert found["ttft"].measured_ms == pytest.approx(2100)
        assert not check.holds

    def test_beyond_the_planned_load_nothing_was_promised(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        batch = plan.pools[0].batch
        assert batch is not None
        over = replace(measured(embedded, clients=1.5 * batch), tpot_percentiles_s={0.95: 0.06})
        check = check_plan(embedded, [over])
        assert check.promises[0].load_fraction == pytest.approx(1.5)
        assert not check.promises[0].kept
        assert not check.promises[0].counts
        assert check.holds

    def test_a_percentile_that_was_not_promised_is_not_judged(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        each = replace(measured(embedded), tpot_percentiles_s={0.5: 9.0, 0.99: 9.0})
        check = check_plan(embedded, [each])
        assert check.promises == ()
        (other,) = check.not_compared
        assert (other.metric, other.percentile) == ("tpot", 95)
        assert other.measured_percentiles == (50, 99)


class TestMatching:
    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"accelerator": "H200"}, "accelerator H200 instead of h100"),
            ({"tensor_parallel": 2}, "tensor parallel 2 instead of 1"),
            ({"weight_precision": "bf16"}, "weights bf16 instead of fp8"),
            ({"engine": "sglang"}, "engine sglang instead of vllm"),
            ({"model": "Qwen/Qwen3-32B"}, "model Qwen/Qwen3-32B instead of"),
        ],
    )
    def test_another_deployment_is_of_no_pool(
        self, plan: Plan, changes: dict[str, Any], text: str
    ) -> None:
        embedded = embedded_plan(plan, "plan.json")
        each = measured(embedded)
        other = replace(each, recorded=replace(each.recorded, **changes))
        with pytest.raises(InputError, match=text):
            check_plan(embedded, [other])
        with pytest.raises(InputError, match=text):
            check_plan(embedded, [other], pool=plan.pools[0].id)

    def test_names_nobody_knows_tell_nothing(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        each = measured(embedded)
        served = replace(
            each, recorded=replace(each.recorded, model="my-model", kv_precision="auto")
        )
        assert check_plan(embedded, [served]).holds

    def test_one_of_several_pools_must_be_chosen(self, split: Plan) -> None:
        embedded = embedded_plan(split, "plan.json")
        with pytest.raises(InputError, match=r"could be of .*choose one with --pool"):
            check_plan(embedded, [measured(embedded)])

    def test_a_pool_that_is_not_there(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        with pytest.raises(InputError, match="has no pool 'x'; it has"):
            check_plan(embedded, [measured(embedded)], pool="x")


class TestEmbedded:
    def test_configurations_come_back_as_they_were(
        self, plan: Plan, content: dict[str, Any]
    ) -> None:
        again = Plan.from_json(plan.to_json())
        embedded = embedded_plan(again, "plan.json")
        pools: list[FleetPool] = tiny.pools(plan, content)
        assert embedded.configs == {pool.id: pool.config for pool in pools}

    def test_drafts_and_engine_settings_come_back(self) -> None:
        model = {
            "model": tiny.LLAMA_8B,
            "weight_precisions": ["fp8"],
            "kv_precisions": ["fp8"],
            "speculative": {
                "draft_tokens": 3,
                "accepted_tokens_per_step": 2.0,
                "draft_parameters_billion": 0.5,
            },
            "engine": {"memory_utilization_fraction": 0.8},
        }
        content = tiny.document(models=[model], max_gpus_per_replica=1)
        plan = tiny.solve(content)
        embedded = embedded_plan(Plan.from_json(plan.to_json()), "plan.json")
        pools = tiny.pools(plan, content)
        assert embedded.configs == {pool.id: pool.config for pool in pools}
        assert any(config.speculative for config in embedded.configs.values())

    def test_corrections_of_the_plan_are_those_of_the_check(self, plan: Plan) -> None:
        pool = plan.pools[0]
        assert plan.provenance is not None
        deployment = {
            "model": pool.model,
            "accelerator": pool.accelerator,
            "engine": pool.engine,
            "weight_precision": pool.weight_precision,
            "kv_precision": pool.kv_precision,
            **pool.layout.model_dump(exclude={"label"}),
            "draft_tokens": 0,
        }
        correction = {
            "step_time_factor": 1.5,
            "step_overhead_s": 0.0,
            "prefill_time_factor": 1.0,
            "band": [0.9, 1.1],
            "ttft_band": None,
            "source": "corrected by 3 measured points (a.yaml, 2026-11-01)",
        }
        entry = {"deployment": deployment, "correction": correction}
        provenance = plan.provenance.model_copy(update={"corrections": (entry,)})
        corrected = embedded_plan(plan.model_copy(update={"provenance": provenance}), "p")
        plain = embedded_plan(plan, "p")
        each = measured(plain)
        before = check_plan(plain, [each]).comparisons[0]
        after = check_plan(corrected, [each]).comparisons[0]
        assert after.predicted == pytest.approx(1.5 * before.predicted)
        assert after.low == pytest.approx(0.9 * after.predicted)

    @pytest.mark.parametrize(
        ("spoil", "text"),
        [
            (lambda plan: plan.provenance.constants.pop("layer_overhead_s"), "layer_overhead_s"),
            (lambda plan: plan.provenance.models.clear(), tiny.LLAMA_8B),
        ],
    )
    def test_what_another_version_embedded_is_refused(
        self, plan: Plan, spoil: Callable[[Plan], object], text: str
    ) -> None:
        spoilt = Plan.from_json(plan.to_json())
        spoil(spoilt)
        with pytest.raises(InputError, match=f"cannot be understood .*{text}.*solve the instance"):
            embedded_plan(spoilt, "plan.json")

    def test_step_times_of_another_source_cannot_be_repeated(self, plan: Plan) -> None:
        pool = plan.pools[0].model_copy(update={"step_time_source": "NVIDIA kernel tables"})
        with pytest.raises(InputError, match="another source than the roofline: NVIDIA"):
            embedded_plan(plan.model_copy(update={"pools": (pool,)}), "plan.json")


class TestCommand:
    def run(
        self, folder: Path, capsys: pytest.CaptureFixture[str], plan: Plan, rows: str, *args: str
    ) -> tuple[int, str, str]:
        (folder / "plan.json").write_text(plan.to_json())
        (folder / "r.csv").write_text(HEADER + rows)
        code = cli.main(["check", str(folder / "plan.json"), str(folder / "r.csv"), *args])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    def row(self, plan: Plan, tpot: float = 1.0, p95_ms: float = 30.0) -> str:
        each = measured(embedded_plan(plan, "plan.json"), tpot=tpot)
        assert each.tpot_s is not None
        assert each.ttft_s is not None
        tpot_ms, ttft_ms = each.tpot_s * 1e3, each.ttft_s * 1e3
        return f"8,1000,200,{tpot_ms:.6g},{ttft_ms:.6g},{p95_ms:g},{2 * ttft_ms:.6g}\n"

    def test_all_inside_is_0(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: Plan
    ) -> None:
        code, out, _ = self.run(tmp_path, capsys, plan, self.row(plan))
        assert code == 0
        assert "2 of 2 measured values inside the predicted range." in out
        assert "2 of 2 promises kept as measured." in out
        assert "Where they part" not in out

    def test_outside_is_1_and_says_where(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: Plan
    ) -> None:
        rows = self.row(plan) + self.row(plan, tpot=2.0, p95_ms=70.0)
        code, out, _ = self.run(tmp_path, capsys, plan, rows)
        assert code == 1
        assert "3 of 4 measured values inside" in out
        assert "tpot above its range at 1 point" in " ".join(out.split())
        assert "missed" in out

    def test_json_holds_the_same(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: Plan
    ) -> None:
        code, out, _ = self.run(tmp_path, capsys, plan, self.row(plan, tpot=2.0), "--json")
        found = json.loads(out)
        assert code == 1
        assert found["holds"] is False
        assert [each["verdict"] for each in found["comparisons"]] == ["above", "inside"]
        assert all(each["kept"] for each in found["promises"])

    def test_json_has_a_cause_only_outside(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: Plan
    ) -> None:
        _, out, _ = self.run(tmp_path, capsys, plan, self.row(plan, tpot=2.0), "--json")
        above, inside = json.loads(out)["comparisons"]
        assert above["cause"]
        assert "cause" not in inside

    def test_other_percentiles_are_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: Plan
    ) -> None:
        (tmp_path / "plan.json").write_text(plan.to_json())
        rows = HEADER.replace("p95", "p99") + self.row(plan)
        (tmp_path / "r.csv").write_text(rows)
        (tmp_path / "again.csv").write_text(rows)
        files = [str(tmp_path / name) for name in ("plan.json", "r.csv", "again.csv")]
        assert cli.main(["check", *files]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "Promises" in out
        assert "p99 measured, promised is p95: not compared" in out
        assert "again.csv: the same bytes as" in out

    @pytest.mark.parametrize("text", ["name: mine\n", "[1]", '{"format_version": 1}', ""])
    def test_what_is_no_plan(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
    ) -> None:
        path = tmp_path / "measured.yaml"
        path.write_text(text)
        assert cli.main(["check", str(path), str(path)]) == 2
        error = capsys.readouterr().err
        assert "is not a plan; give the plan.json that `planner solve --out` writes" in error

    def test_bad_input_is_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: Plan
    ) -> None:
        code, out, error = self.run(tmp_path, capsys, plan, "8,1000,200,-1,5,1,1\n")
        assert (code, out) == (2, "")
        assert "r.csv" in error
        empty = plan.model_copy(update={"pools": (), "status": "infeasible"})
        code, _, error = self.run(tmp_path, capsys, empty, self.row(plan))
        assert code == 2
        assert "holds no fleet: its status is infeasible" in error
