"""AIConfigurator as a backend: names, the split, the bound, and what falls back to the roofline.

A stand-in for the compiled estimator shows the logic without the package; what needs its tables
is skipped where it is absent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.api import evaluate, load, solve
from planner.catalog import find_accelerator, find_model
from planner.errors import InputError
from planner.perf import Layout, PoolConfig, Speculative, StepModel, aic_engine, engine_profile
from planner.perf import backend as registry
from planner.perf.aic_backend import BAND, AicBackend
from planner.perf.aic_engine import EngineHandle, NotCoveredError, reason_of
from planner.perf.aic_names import CHECKPOINTS, SYSTEMS, Checkpoint, Setup, on_system, setup_of
from planner.perf.aic_tables import BATCHES, interpolate, nearest_rising, rising, smooth
from planner.perf.backend import RooflineBackend, find_backend
from planner.pools.decode import Engine
from planner.pools.loads import class_load
from planner.problem import build_problem

needs_package = pytest.mark.skipif(
    not aic_engine.installed(), reason="needs aiconfigurator-core, of the extra aiconfigurator"
)


ONE = Layout(1)


def config(
    model: str = "llama-3.1-8b-instruct",
    accelerator: str = "h100",
    layout: Layout = ONE,
    weights: str = "bf16",
    kv: str = "bf16",
    engine: str = "vllm",
) -> PoolConfig:
    return PoolConfig(
        find_model(model),
        find_accelerator(accelerator),
        layout,
        weights,
        kv,
        engine_profile(engine),
    )


class Additive:
    """Steps that split exactly; milliseconds, as the package answers."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def decode_ms(self, batch: float, context: float) -> float:
        return self.scale * (20.0 + 0.1 * batch + 5e-5 * batch * context)

    def predict_decode_latency(self, bs: int, isl: int, osl: int = 2) -> float:
        return self.decode_ms(bs, isl)

    def predict_prefill_latency(self, bs: int, isl: int, prefix: int = 0) -> float:
        new = isl - prefix
        return self.scale * (20.0 + 0.1 * bs * new + 1e-6 * bs * new * (prefix + new / 2))


class Uneven(Additive):
    """As measured tables are: more work is sometimes faster."""

    def decode_ms(self, batch: float, context: float) -> float:
        dip = 1 - 0.3 * (int(batch) % 3 == 0) - 0.1 * (int(np.log2(context)) % 2)
        return super().decode_ms(batch, context) * dip

    def predict_prefill_latency(self, bs: int, isl: int, prefix: int = 0) -> float:
        dip = 1 - 0.3 * (int(np.log2(isl)) % 2)
        return super().predict_prefill_latency(bs, isl, prefix) * dip


def backend(handle: EngineHandle | Callable[[Setup], EngineHandle] | None = None) -> AicBackend:
    given = handle or Additive()
    return AicBackend(given if callable(given) else lambda _: given, version="0")


# ---- names --------------------------------------------------------------------------------


def test_a_setup_has_the_names_and_widths_of_the_package() -> None:
    experts = config("deepseek-r1", "b200", Layout(2, 1, 4, 8), "fp4", "fp8", "sglang")
    assert setup_of(experts) == Setup(
        Checkpoint("nvidia/DeepSeek-V3.1-NVFP4"), "b200_sxm", "sglang", "fp8", 2, 1, 4, 1, 8
    )
    cut = setup_of(config("gpt-oss-120b", "h200", Layout(4), "fp4", engine="tensorrt-llm"))
    assert isinstance(cut, Setup)
    assert (cut.engine, cut.moe_tensor_parallel, cut.moe_expert_parallel) == ("trtllm", 4, 1)


def test_gpt_oss_multiplies_mxfp8_only_on_blackwell_under_tensorrt_llm() -> None:
    checkpoint = Checkpoint("openai/gpt-oss-120b")
    assert on_system(checkpoint, "b200_sxm", "trtllm").moe == "w4a8_mxfp4_mxfp8"
    assert on_system(checkpoint, "h200_sxm", "trtllm") == checkpoint
    assert on_system(checkpoint, "b200_sxm", "vllm") == checkpoint


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (config(accelerator="mi300x"), "was not measured"),
        (config("mistral-7b-v0.1"), "mistral-7b-v0.1 is not among the models"),
        (config(weights="int8"), "llama-3.1-8b-instruct in int8 is not in the tables"),
        (
            replace(config(), speculative=Speculative(3, 2.0, 1e9)),
            "speculative decoding is not in the tables",
        ),
    ],
)
def test_what_has_no_name_there_falls_back_with_the_reason(
    changed: PoolConfig, reason: str
) -> None:
    def never(_: Setup) -> EngineHandle:
        raise AssertionError("compiled although it has no name")

    told = backend(never).source_of(changed)
    assert told.startswith("roofline, global constants (not in the kernel tables: ")
    assert reason in told


def test_every_system_and_checkpoint_belongs_to_the_catalogue() -> None:
    for accelerator in SYSTEMS:
        assert find_accelerator(accelerator).id == accelerator
    for model, by_precision in CHECKPOINTS.items():
        assert set(by_precision) <= set(find_model(model).weight_precisions)


# ---- the split ----------------------------------------------------------------------------


def test_an_additive_step_is_reproduced_at_every_batch_and_context() -> None:
    step = backend().compile([config()])
    fake = Additive()
    for batch in (1, 2, 7, 64, 300, 1024):
        for context in (16, 200, 1000, 5000, 100_000):
            expected = fake.decode_ms(batch, context) / 1e3
            # Prompts cost a little less per token than sequences, so g bends at 1,024 tokens.
            found = float(step.decode_step_s(0, batch, context))
            assert found == pytest.approx(expected, rel=1e-4)


def test_a_prompt_takes_what_its_prefill_takes() -> None:
    step = backend().compile([config()])
    for new, cached in ((1024, 0), (4096, 1024), (2048, 16384)):
        expected = Additive().predict_prefill_latency(1, new + cached, cached) / 1e3
        found = float(step.prefill_time_s(0, new, cached, 8192))
        assert found == pytest.approx(expected, rel=0.002)
    assert float(step.prefill_time_s(0, 0.0, 4096, 8192)) == 0.0
    assert float(step.prefill_time_factor(0)) == 1.0


def test_a_replica_spreads_over_its_groups_and_stages() -> None:
    plain = config("deepseek-r1", "h200", Layout(1, 1, 8, 8), "fp8")
    step = backend(Additive(scale=5.0)).compile([plain])
    fake = Additive(scale=5.0)
    expected = fake.decode_ms(16, 2048) / 1e3
    assert float(step.decode_step_s(0, 8 * 16, 2048)) == pytest.approx(expected, rel=1e-4)
    staged = backend().compile([config(layout=Layout(1, 2))])
    own = Additive().predict_prefill_latency(1, 2048) / 1e3
    assert float(staged.prefill_time_s(0, 2048, 0, 8192, alone=True)) == pytest.approx(
        own, rel=0.01
    )
    assert float(staged.prefill_time_s(0, 2048, 0, 8192)) == pytest.approx(own / 2, rel=0.01)


def test_uneven_tables_become_increasing_times() -> None:
    step = backend(Uneven()).compile([config()])
    counts = np.geomspace(1, 2e5, 400)
    for times in (
        step.token_time_s(0, counts),
        step.sequence_time_s(0, counts),
        step.prefill_time_s(0, counts, 0.0, 1e6),
        step.prefill_time_s(0, 512.0, counts, 8192),
        step.decode_step_s(0, counts, 1000.0),
    ):
        assert (np.diff(times) >= -1e-12 * times[1:]).all()
    assert "within 0 %" in backend(Additive()).source_of(config())
    assert "within 0 %" not in backend(Uneven()).source_of(config())


def test_smoothing_keeps_lines_and_halves_jumps() -> None:
    line = 3.0 + 0.5 * BATCHES
    assert smooth(BATCHES, line) == pytest.approx(line)
    jump = np.where(BATCHES > 64, 2.0, 1.0)
    smoothed = smooth(BATCHES, jump)
    largest = np.max(smoothed[1:] / smoothed[:-1])
    assert 1.0 < largest < 1.5


def test_the_tail_of_tpot_rises_with_the_batch_across_a_jump(tmp_path: Path) -> None:
    class Tile(Additive):
        def decode_ms(self, batch: float, context: float) -> float:
            return super().decode_ms(batch, context) + (8.0 if batch > 64 else 0.0)

    step = backend(Tile()).compile([config()])
    workload = build_problem(
        load(written(tmp_path, INSTANCE.replace("perf: aiconfigurator\n", "")))
    ).classes[0]
    engine = Engine(step, [class_load(workload.mix)])
    tail = np.array(
        [engine.tpot_s(np.full((1, 1), b), 0, 0.95)[0] for b in np.geomspace(1, 800, 80)]
    )
    assert (tail >= 0.9 * np.maximum.accumulate(tail)).all()


def test_the_nearest_rising_sequence() -> None:
    values = np.array([8.0, 2.0, 4.0, 16.0])
    assert nearest_rising(values) == pytest.approx([4.0, 4.0, 4.0, 16.0])
    assert rising(values) == pytest.approx([8.0, 8.0, 8.0, 16.0])


def test_interpolation_is_linear_between_nodes_and_beyond_the_last() -> None:
    nodes, values = np.array([1.0, 2.0, 4.0]), np.array([[1.0, 3.0, 5.0]])
    rows = np.zeros(1, dtype=np.int64)
    at = np.array([0.5, 1.0, 1.5, 3.0, 4.0, 6.0])
    assert interpolate(nodes, values, rows, at) == pytest.approx([1.0, 1.0, 2.0, 4.0, 5.0, 7.0])


# ---- bound and fallback -------------------------------------------------------------------


def test_nothing_is_faster_than_the_physical_bound_and_the_plan_says_so() -> None:
    tables = backend(Additive(scale=0.01))
    step = tables.compile([config()])
    bound = StepModel([config()], calibrated=False)
    counts = np.geomspace(1, 1e5, 60)
    assert (step.token_time_s(0, counts) >= bound.token_time_s(0, counts)).all()
    assert (step.sequence_time_s(0, counts) >= bound.sequence_time_s(0, counts)).all()
    for context in (100.0, 8000.0):
        whole = step.decode_step_s(0, counts, context)
        assert (whole >= bound.decode_step_s(0, counts, context)).all()
    prompts = step.prefill_time_s(0, counts, 1000.0, 2048)
    assert (prompts >= bound.prefill_time_s(0, counts, 1000.0, 2048)).all()
    assert "raised to the physical bound at 100 % of the steps" in tables.source_of(config())
    assert "raised" not in backend(Additive(scale=20.0)).source_of(config())


def test_what_the_tables_lack_is_the_rooflines_time_beside_what_they_have() -> None:
    covered, other = config(), config(accelerator="mi300x")
    step = backend().compile([other, covered])
    roofline = RooflineBackend().compile([other, covered])
    both = np.arange(2)
    for mixed, plain in (
        (step.token_time_s(both, 100.0), roofline.token_time_s(both, 100.0)),
        (step.sequence_time_s(both, 5e4), roofline.sequence_time_s(both, 5e4)),
        (
            step.prefill_time_s(both, 3000.0, 100.0, 2048),
            roofline.prefill_time_s(both, 3000.0, 100.0, 2048),
        ),
        (
            step.mixed_step_s(both, 8.0, 900.0, 256.0, 9e4),
            roofline.mixed_step_s(both, 8.0, 900.0, 256.0, 9e4),
        ),
    ):
        assert mixed[0] == plain[0]
        assert mixed[1] != plain[1]
    assert backend().band(other) == RooflineBackend().band(other)
    assert backend().band(covered) == BAND


def test_a_table_with_a_hole_falls_back_and_says_what_is_missing() -> None:
    class Hole(Additive):
        def predict_prefill_latency(self, bs: int, isl: int, prefix: int = 0) -> float:
            if isl > 4096:
                raise RuntimeError("perf database error: GEMM data missing for GemmKey { m: 3 }")
            return super().predict_prefill_latency(bs, isl, prefix)

    def refused(_: Setup) -> EngineHandle:
        raise NotCoveredError("no tables of vllm on h100_sxm")

    assert "(not in the kernel tables: GEMM data missing)" in backend(Hole()).source_of(config())
    assert "no tables of vllm on h100_sxm" in backend(refused).source_of(config())
    plain = RooflineBackend().compile([config()])
    step = backend(Hole()).compile([config()])
    assert step.decode_step_s(0, 32, 1000) == plain.decode_step_s(0, 32, 1000)


def test_a_time_that_is_no_time_is_not_used() -> None:
    assert "not a positive number" in backend(Additive(scale=0.0)).source_of(config())


def test_setups_are_compiled_once_and_shared_by_what_they_have_in_common() -> None:
    asked: list[Setup] = []

    def count(setup: Setup) -> EngineHandle:
        asked.append(setup)
        return Additive()

    tables = backend(count)
    for _ in range(3):
        tables.compile([config(), config("llama-3.3-70b-instruct", layout=Layout(8))])
        tables.compile([config("llama-3.1-70b-instruct", layout=Layout(8))])
    assert len(asked) == 2


def test_taking_some_configurations_keeps_their_times() -> None:
    configs = [config(), config(accelerator="mi300x"), config(layout=Layout(2))]
    step = backend().compile(configs)
    part = step.take(np.array([2, 1]))
    assert [each.layout for each in part.configs] == [Layout(2), Layout(1)]
    for method, args in (
        ("token_time_s", (700.0,)),
        ("sequence_time_s", (4000.0,)),
        ("prefill_time_s", (900.0, 100.0, 512)),
        ("prefill_time_factor", ()),
    ):
        whole = getattr(step, method)(np.array([2, 1]), *args)
        assert getattr(part, method)(slice(None), *args) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("perf database error: MoE data missing for MoeKey { quant: 1 }", "MoE data missing"),
        ("GEMM perf data missing for quant 'int4_wo' at /x/y. Hint", "GEMM perf data missing"),
        ("no queryable versions for vllm on l4; cannot", "no queryable versions for vllm on l4"),
        ("", "ValueError"),
    ],
)
def test_reasons_are_short(message: str, reason: str) -> None:
    assert reason_of(ValueError(message)).startswith(reason)
    assert "/" not in reason_of(ValueError(message))


# ---- in a plan ----------------------------------------------------------------------------

INSTANCE = """\
format_version: 1
name: tables
perf: aiconfigurator
models:
  - {model: llama-3.1-8b-instruct, weight_precisions: [bf16]}
workloads:
  - name: chat
    model: llama-3.1-8b-instruct
    demand: {requests_per_s: 20}
    input_tokens: {mean: 900, scv: 1.2, max: 8000}
    output_tokens: {mean: 250, scv: 1.0, max: 2048}
    slo:
      - {metric: ttft, percentile: 95, limit_ms: 2000}
      - {metric: tpot, percentile: 95, limit_ms: 100}
fleet: {accelerators: [h100, l4]}
"""


def written(folder: Path, text: str = INSTANCE) -> Path:
    path = folder / "tables.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("handle", [Additive(scale=0.5), Uneven(scale=0.5)])
def test_a_plan_rests_on_the_tables_and_says_so(
    handle: Additive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._REGISTRY, "aiconfigurator", backend(handle))
    path = written(tmp_path)
    plan = solve(load(path))
    assert plan.status == "optimal"
    (tmp_path / "plan.json").write_text(plan.to_json())
    again = evaluate(load(path), tmp_path / "plan.json", optimum=False)
    assert again.status == "meets", again.violations
    assert again.load_factor >= 1
    assert again.cost_usd_per_hour == pytest.approx(plan.cost_usd_per_hour)
    assert plan.pools
    assert all(pool.step_time_source.startswith("NVIDIA kernel tables") for pool in plan.pools)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry._REGISTRY, "aiconfigurator", raising=False)
    monkeypatch.delitem(__import__("sys").modules, "planner.perf.aic", raising=False)
    monkeypatch.setattr(aic_engine, "installed", lambda: False)
    with pytest.raises(InputError) as caught:
        find_backend("aiconfigurator")
    problem = caught.value.problems[0]
    assert "aiconfigurator_core" in problem.message
    assert "pip install 'llm-fleet-planner[aiconfigurator]'" in (problem.hint or "")


# ---- with the package ---------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@needs_package
@pytest.mark.usefixtures("no_network")
def test_shapes_of_the_checkpoints_are_those_of_the_cards() -> None:
    from importlib import import_module

    configs = import_module("aiconfigurator_core.sdk.utils").get_model_config_from_model_path
    for model, by_precision in CHECKPOINTS.items():
        card = find_model(model)
        for checkpoint in by_precision.values():
            shipped = configs(checkpoint.path)
            found = (shipped["layers"], shipped["hidden_size"], shipped["vocab"])
            assert found == (card.layers, card.hidden, card.vocabulary), checkpoint.path


@needs_package
@pytest.mark.usefixtures("no_network")
def test_a_covered_step_is_what_the_package_says() -> None:
    tables = AicBackend()
    each = config("qwen3-32b", "h200", Layout(2), engine="tensorrt-llm")
    setup = setup_of(each)
    assert isinstance(setup, Setup)
    handle = aic_engine.handle(setup)
    step = tables.compile([each])
    assert "NVIDIA kernel tables" in tables.source_of(each)
    for batch, context in ((1, 1024), (64, 4500), (128, 2048)):
        expected = handle.predict_decode_latency(batch, context) / 1e3
        assert float(step.decode_step_s(0, batch, context)) == pytest.approx(expected, rel=0.1)
    expected = handle.predict_prefill_latency(1, 4000) / 1e3
    assert float(step.prefill_time_s(0, 4000, 0, 8192)) == pytest.approx(expected, rel=0.1)


@needs_package
@pytest.mark.usefixtures("no_network")
def test_a_checkpoint_that_the_package_lacks_is_not_fetched() -> None:
    setup = Setup(Checkpoint("nobody/no-such-model"), "h100_sxm", "vllm", "bfloat16", 1)
    with pytest.raises(NotCoveredError, match="no config of nobody/no-such-model"):
        aic_engine.load(setup)
