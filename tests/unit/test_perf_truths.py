"""Published figures that anyone can check by hand, computed by the project's own functions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog import find_accelerator, find_model
from planner.catalog.cards import ComponentBytes, ModelCard
from planner.perf import Layout, PoolConfig, StepModel, engine_profile
from planner.perf.work import (
    attention_flops,
    critical_batch,
    forward_flops,
    gpu_seconds,
    prefill_replicas_per_decode,
    ridge_point,
)

VLLM = engine_profile("vllm")


def seventy_billion() -> ModelCard:
    """Llama-3.1-70B's shape with weights that come to 70e9 exactly, as round examples take it."""
    card = find_model("llama-3.1-70b-instruct")
    rest = card.attention_parameters + card.head_parameters
    return replace(card, dense_ffn_parameters_per_layer=(70e9 - rest) / card.dense_ffn_layers)


def bound(
    card: ModelCard, accelerator: str, gpus: int, bytes_per_weight: float, kv: str = "bf16"
) -> StepModel:
    each = ComponentBytes(*(bytes_per_weight for _ in range(6)))
    precision = "bf16" if bytes_per_weight == 2 else "int8"
    chip = find_accelerator(accelerator)
    config = PoolConfig(card, chip, Layout(gpus), precision, kv, VLLM)
    return StepModel([config], calibrated=False, component_bytes=[each])


def test_480b_a35b_million_input_tokens() -> None:
    flops = forward_flops(35e9, 1e6)
    assert flops == pytest.approx(7e16)
    seconds = gpu_seconds(flops, find_accelerator("h100").peak("fp8"), 0.5)
    assert seconds == pytest.approx(70.7, abs=0.05)
    assert seconds * 2 / 3600 == pytest.approx(0.04, abs=0.001)
    card = find_model("qwen3-coder-480b-a35b")
    assert forward_flops(card.parameters_active, 1e6) == pytest.approx(7e16, rel=0.02)


def test_h100_ridge_point() -> None:
    chip = find_accelerator("h100")
    assert ridge_point(chip.peak("bf16"), chip.hbm_bytes_per_s) == pytest.approx(295, abs=0.5)


@pytest.mark.parametrize(("bytes_per_weight", "tokens_per_s"), [(1.0, 47.9), (2.0, 23.9)])
def test_decode_ceiling_of_one_h100(bytes_per_weight: float, tokens_per_s: float) -> None:
    model = bound(seventy_billion(), "h100", 1, bytes_per_weight)
    assert 1 / model.decode_step_s(0, 1, 0) == pytest.approx(tokens_per_s, abs=0.05)
    assert model.weight_read_s(0) == pytest.approx(1 / tokens_per_s, rel=2e-3)


@pytest.mark.parametrize(("context", "gain"), [(512, 59), (8192, 29)])
def test_batching_multiplies_throughput_until_the_cache_weighs_in(context: int, gain: int) -> None:
    model = bound(seventy_billion(), "h100", 1, 2.0)
    ratio = 64 * model.decode_step_s(0, 1, context) / model.decode_step_s(0, 64, context)
    assert int(ratio) == gain


@pytest.mark.parametrize(
    ("name", "kv_bytes"), [("deepseek-v3", 70_272), ("llama-3.1-70b-instruct", 327_680)]
)
def test_cache_bytes_per_token(name: str, kv_bytes: int) -> None:
    card = find_model(name)
    config = PoolConfig(card, find_accelerator("h200"), Layout(8), "fp8", "bf16", VLLM)
    assert StepModel([config]).kv_transfer_bytes(0, 1) == pytest.approx(kv_bytes)


def test_scaling_book_decode_step_on_tpus() -> None:
    """How to Scale Your Model, "Serving LLaMA 3-70B on TPUs": int8 weights and cache, 8 chips."""
    model = bound(seventy_billion(), "tpu-v5e", 8, 1.0, kv="fp8")
    step = float(model.decode_step_s(0, 32, 8192))
    assert step * 1e3 == pytest.approx(17, abs=0.5)
    assert 32 * model.kv_transfer_bytes(0, 8192) == pytest.approx(42.9e9, rel=0.01)


def test_scaling_book_prefill_at_a_set_mfu() -> None:
    peak = 16 * find_accelerator("tpu-v5e").peak("bf16")
    weights = forward_flops(70e9, 8192)
    attention = attention_flops(seventy_billion(), 8192)
    assert gpu_seconds(weights, peak, 0.4) == pytest.approx(0.91, abs=0.005)
    assert gpu_seconds(weights + attention, peak, 0.4) == pytest.approx(0.98, abs=0.005)


@pytest.mark.parametrize(("bytes_per_weight", "tokens"), [(2.0, 240), (1.0, 120)])
def test_scaling_book_critical_batch(bytes_per_weight: float, tokens: int) -> None:
    chip = find_accelerator("tpu-v5e")
    batch = critical_batch(chip.peak("bf16"), chip.hbm_bytes_per_s, bytes_per_weight)
    assert batch == pytest.approx(tokens, rel=0.005)


def test_critical_batch_is_where_compute_meets_reading() -> None:
    model = bound(seventy_billion(), "tpu-v5e", 8, 2.0)
    batch = model.weight_read_s(0) / model.compute_s_per_token(0)
    assert batch == pytest.approx(240, rel=0.005)


def test_scaling_book_three_prefill_servers_to_one_decode_server() -> None:
    """8,192 tokens in, 512 out: prefill on 16 chips, decode of 32 sequences on 8."""
    peak = 16 * find_accelerator("tpu-v5e").peak("bf16")
    prefill = gpu_seconds(forward_flops(70e9, 8192), peak, 0.4)
    step = float(bound(seventy_billion(), "tpu-v5e", 8, 1.0, kv="fp8").decode_step_s(0, 32, 8192))
    assert round(prefill_replicas_per_decode(prefill, step, 32, 512)) == 3
    # With the step of a full HBM, 19 ms, the ratio is 3 to two figures.
    assert prefill_replicas_per_decode(0.91, 0.019, 32, 512) == pytest.approx(3.0, abs=0.05)
