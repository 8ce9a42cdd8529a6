"""Memory of one GPU, against what vLLM printed at start-up and against hand calculations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog import find_accelerator, find_model
from planner.perf import (
    Layout,
    PoolConfig,
    Speculative,
    StepModel,
    config_problem,
    engine_profile,
    load_constants,
)
from planner.perf.bill import operating_point
from planner.units import GIB

VLLM = engine_profile("vllm")
relaxed = settings(deadline=None, max_examples=50)


def config(
    model: str, accelerator: str, layout: Layout, weights: str, kv: str = "bf16"
) -> PoolConfig:
    return PoolConfig(find_model(model), find_accelerator(accelerator), layout, weights, kv, VLLM)


def as_in_pull_10511(tensor_parallel: int) -> StepModel:
    """Llama-3-8B (3.1 has its shape) on an H100 of 79.22 GiB at 0.90 and 256 sequences."""
    base = config("llama-3.1-8b-instruct", "h100", Layout(tensor_parallel), "bf16")
    engine = replace(VLLM, memory_utilization_fraction=0.90, max_num_seqs=256)
    return StepModel([replace(base, engine=engine)])


def test_bill_reproduces_vllm_memory_profile() -> None:
    """vllm-project/vllm pull request 10511: weights 14.96 GiB, cache 53.29 GiB."""
    model = as_in_pull_10511(1)
    assert model.weight_bytes_per_rank(0) / GIB == pytest.approx(14.96, abs=0.005)
    assert model.kv_room_bytes(0, 8192) / GIB == pytest.approx(53.29, rel=0.02)


def test_bill_reproduces_vllm_memory_profile_over_two_gpus() -> None:
    """The same on two GPUs: weights 7.48 GiB, non-torch memory 3.58, activations 1.26."""
    model = as_in_pull_10511(2)
    assert model.weight_bytes_per_rank(0) / GIB == pytest.approx(7.48, abs=0.005)
    room = 0.9 * 79.22 - 7.48 - 3.58 - 1.26
    assert model.kv_room_bytes(0, 8192) / GIB == pytest.approx(room, rel=0.01)


def test_bill_near_vllm_maximum_concurrency_line() -> None:
    """vllm-project/vllm pull request 12569: Llama-3.1-70B in INT8 on one H100 at 0.98 takes
    67.7229 GiB of weights and prints 10.79x for 2,048 tokens, from 1,381 blocks of 16."""
    base = config("llama-3.1-70b-instruct", "h100", Layout(1), "int8")
    engine = replace(VLLM, memory_utilization_fraction=0.98, max_num_seqs=256)
    model = StepModel([replace(base, engine=engine)])
    assert model.weight_bytes_per_rank(0) / GIB == pytest.approx(67.7229, rel=2e-3)
    request = model.kv_bytes_per_sequence(0, 2048) * VLLM.page_efficiency_fraction
    assert 1381 * 16 / 2048 * request == pytest.approx(1381 * 16 * 327_680)
    # The room is a small difference of large numbers here: 1 % of HBM is 12 % of it.
    assert model.kv_room_bytes(0, 2048) / request == pytest.approx(10.79, rel=0.03)


def test_bill_near_vllm_cache_size_of_a_mixture_of_experts() -> None:
    """vllm-project/vllm issue 21348: Qwen3-235B-A22B in FP8 on four H100 at 0.9 prints
    8.11 GiB and 178,880 tokens of cache."""
    base = config("qwen3-235b-a22b", "h100", Layout(4), "fp8")
    engine = replace(VLLM, memory_utilization_fraction=0.90)
    model = StepModel([replace(base, engine=engine)])
    room = model.kv_room_bytes(0, 8192)
    assert room / GIB == pytest.approx(8.11, rel=0.03)
    token = model.kv_bytes_per_sequence(0, 1) * VLLM.page_efficiency_fraction
    assert room / token == pytest.approx(178_880, rel=0.03)


def test_small_gpus_admit_fewer_sequences() -> None:
    small, large = (config("llama-3.1-8b-instruct", n, Layout(1), "bf16") for n in ("l40s", "h100"))
    model = StepModel([small, large])
    assert model.max_num_seqs(np.array([0, 1])).tolist() == [256, 1024]


def test_latent_cache_is_replicated_and_key_value_heads_are_split() -> None:
    latent = [config("deepseek-v3", "h200", Layout(n), "fp8") for n in (1, 8)]
    grouped = [config("llama-3.1-70b-instruct", "h200", Layout(n), "fp8") for n in (1, 8, 16)]
    model = StepModel([*latent, *grouped])
    each = model.kv_bytes_per_sequence(np.arange(5), 4096)
    assert each[0] == pytest.approx(each[1])
    assert each[2] == pytest.approx(8 * each[3])
    # Eight key/value heads over sixteen ranks: every head is kept twice.
    assert each[3] == pytest.approx(each[4])


def test_attention_data_parallel_splits_sequences_not_weights() -> None:
    wide = config("deepseek-v3", "h200", Layout(1, 1, 8, 8), "fp8")
    narrow = config("deepseek-v3", "h200", Layout(8, 1, 1, 8), "fp8")
    model = StepModel([wide, narrow])
    sequence = model.kv_bytes_per_sequence(np.array([0, 1]), 4096)
    assert sequence[0] == pytest.approx(sequence[1] / 8)
    assert model.weight_bytes_per_rank(0) > model.weight_bytes_per_rank(1)


def test_windows_and_states_stop_growing() -> None:
    sliding = config("gpt-oss-120b", "h100", Layout(1), find_model("gpt-oss-120b").native_precision)
    model = StepModel([sliding])
    card = sliding.model
    for tokens in (64, 128, 4096, 100_000):
        whole = card.kv_bytes_per_sequence(float(tokens), "bf16")
        assert model.kv_transfer_bytes(0, tokens) == pytest.approx(whole)
        assert model.kv_bytes_per_sequence(0, tokens) == pytest.approx(whole / 0.96)


def test_pipeline_stages_divide_weights_and_cache() -> None:
    one = config("llama-3.1-70b-instruct", "l40s", Layout(1), "fp8")
    four = config("llama-3.1-70b-instruct", "l40s", Layout(1, 4), "fp8")
    model = StepModel([one, four])
    each = model.kv_bytes_per_sequence(np.array([0, 1]), 4096)
    assert each[0] == pytest.approx(4 * each[1])
    assert model.weight_bytes_per_rank(1) < 0.3 * model.weight_bytes_per_rank(0)


def test_draft_model_takes_memory() -> None:
    plain = config("llama-3.1-70b-instruct", "h100", Layout(4), "fp8")
    guess = replace(plain, speculative=Speculative(3, 2.3, 1e9))
    model = StepModel([plain, guess])
    assert model.weight_bytes_per_rank(1) - model.weight_bytes_per_rank(0) == pytest.approx(5e8)
    assert model.kv_bytes_per_sequence(1, 100) > model.kv_bytes_per_sequence(0, 100)


@relaxed
@given(tokens=st.floats(1, 2e5), more=st.floats(1, 1e5), batched=st.floats(64, 16384))
def test_memory_is_monotone(tokens: float, more: float, batched: float) -> None:
    names = ("llama-3.1-70b-instruct", "deepseek-v3.2", "gpt-oss-120b", "qwen3.5-397b-a17b")
    model = StepModel(
        [config(name, "b200", Layout(8), find_model(name).native_precision) for name in names]
    )
    i = np.arange(len(names))
    larger = tokens + more
    assert (model.kv_bytes_per_sequence(i, larger) >= model.kv_bytes_per_sequence(i, tokens)).all()
    assert (model.activation_bytes(i, batched + more) > model.activation_bytes(i, batched)).all()
    assert (model.kv_room_bytes(i, batched + more) < model.kv_room_bytes(i, batched)).all()
    fits = model.longest_fits(i, tokens)
    assert (fits | ~model.longest_fits(i, larger)).all()


def test_memory_base_of_each_engine() -> None:
    base = config("llama-3.1-8b-instruct", "h100", Layout(1), "bf16")
    hbm = base.accelerator.hbm_bytes - load_constants().driver_reserve_bytes
    total, static, free = (
        StepModel([replace(base, engine=engine_profile(name))])
        for name in ("vllm", "sglang", "trtllm")
    )
    weights = float(total.weight_bytes_per_rank(0))
    reserve, less = (float(model.activation_bytes(0, 8192)) for model in (total, free))
    assert less < reserve
    assert total.kv_room_bytes(0, 8192) == pytest.approx(0.92 * hbm - weights - reserve)
    assert static.kv_room_bytes(0, 8192) == pytest.approx(0.88 * hbm - weights)
    assert free.kv_room_bytes(0, 8192) == pytest.approx(0.9 * (hbm - weights - less))
    large = replace(base, engine=engine_profile("sglang"), accelerator=find_accelerator("b300"))
    left = large.accelerator.hbm_bytes - load_constants().driver_reserve_bytes
    room = float(StepModel([large]).kv_room_bytes(0, 8192))
    assert room == pytest.approx(left - weights - 14 * GIB)


def test_config_problem_says_what_is_wrong() -> None:
    good = config("llama-3.1-70b-instruct", "h100", Layout(2), "fp8")
    assert config_problem(good) is None
    cases = {
        "wider than the scale-up domain": replace(good, layout=Layout(16)),
        "leave no room": replace(good, layout=Layout(1), weight_precision="bf16"),
        "is dense": replace(good, layout=Layout(2, expert_parallel=2)),
        "not deployed in": replace(good, weight_precision="fp16"),
        "no int8 arithmetic": replace(
            good,
            weight_precision="int8",
            accelerator=replace(good.accelerator, peak_flops={"bf16": 989e12}),
        ),
        "accepted tokens": replace(good, speculative=Speculative(2, 3.5, 1e9)),
        "exceeds 80 layers": replace(good, layout=Layout(1, 128)),
        "does not divide 64": replace(good, layout=Layout(3)),
    }
    for words, wrong in cases.items():
        assert words in (config_problem(wrong) or "")


def test_bill_adds_up() -> None:
    bill = operating_point(config("qwen3-235b-a22b", "h200", Layout(8), "fp8"), 2000, 500, 32)
    memory = bill.memory
    parts = memory.weights_bytes + memory.reserve_bytes + memory.kv_room_bytes
    assert parts + memory.outside_bytes == pytest.approx(memory.hbm_bytes)
    for step in (bill.decode, bill.prefill):
        assert sum(step.terms_s.values()) == pytest.approx(step.total_s)
        assert max(step.resources_s.values()) <= step.bound_s * (1 + 1e-9)
        assert step.bound_s <= step.total_s
    assert bill.decode.binds == "hbm"
    dense = operating_point(config("llama-3.1-70b-instruct", "h200", Layout(2), "fp8"), 4000, 500)
    assert dense.prefill.binds == "compute"
