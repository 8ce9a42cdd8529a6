"""Properties of the step model, and one step worked by hand."""

from __future__ import annotations

import math
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
    engine_profile,
    enumerate_layouts,
    load_constants,
)
from planner.perf.work import causal_pairs

VLLM = engine_profile("vllm")
relaxed = settings(deadline=None, max_examples=50)


def config(model: str, accelerator: str, layout: Layout, kv: str = "bf16") -> PoolConfig:
    card = find_model(model)
    chip = find_accelerator(accelerator)
    return PoolConfig(card, chip, layout, card.native_precision, kv, VLLM)


CONFIGS = (
    config("llama-3.1-70b-instruct", "h100", Layout(8)),
    config("llama-3.1-70b-instruct", "l40s", Layout(1, 4)),
    config("qwen3-235b-a22b", "h200", Layout(8, expert_parallel=8), "fp8"),
    config("deepseek-v3", "h200", Layout(1, 1, 8, 8)),
    config("deepseek-v3.2", "gb200", Layout(2, 1, 8, 16), "fp8"),
    config("gpt-oss-120b", "b200", Layout(2)),
    config("qwen3.5-397b-a17b", "b200", Layout(4)),
    replace(
        config("llama-3.3-70b-instruct", "h100", Layout(4)),
        speculative=Speculative(3, 2.3, 1e9),
    ),
    config("llama-3.1-405b-instruct", "h100", Layout(8, 2)),
)
ALL = np.arange(len(CONFIGS))
MODEL = StepModel(CONFIGS)
BOUND = StepModel(CONFIGS, calibrated=False)
QUERIES = np.array([4.0 if c.speculative else 1.0 for c in CONFIGS])

batches = st.floats(1, 2000)
contexts = st.floats(1, 120_000)
tokens_ = st.floats(1, 60_000)


@relaxed
@given(batches, contexts)
def test_split_into_tokens_and_sequences_is_exact(batch: float, context: float) -> None:
    whole = MODEL.decode_step_s(ALL, batch, context)
    parts = (
        MODEL.token_time_s(ALL, batch * QUERIES)
        + batch * MODEL.sequence_time_s(ALL, context)
        + MODEL.draft_time_s(ALL, batch)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-12)
    named = sum(MODEL.terms(ALL, batch, context).values())
    np.testing.assert_allclose(whole, named, rtol=1e-12)


@relaxed
@given(tokens_, tokens_, st.floats(0, 1), tokens_)
def test_token_time_is_convex_and_increasing_at_fixed_coverage(
    low: float, high: float, share: float, coverage: float
) -> None:
    def g(tokens: float) -> np.ndarray:
        return MODEL.token_time_s(ALL, tokens, coverage_tokens=coverage)

    middle = g(share * low + (1 - share) * high)
    chord = share * g(low) + (1 - share) * g(high)
    assert (middle <= chord * (1 + 1e-12)).all()
    first, second = sorted((low, high))
    assert (g(first) <= g(second) * (1 + 1e-12)).all()


@relaxed
@given(batches, contexts, st.floats(0.1, 500), st.floats(1, 10_000))
def test_step_is_monotone(batch: float, context: float, more: float, longer: float) -> None:
    for model in (MODEL, BOUND):
        step = model.decode_step_s(ALL, batch, context)
        assert (model.decode_step_s(ALL, batch + more, context) >= step * (1 - 1e-12)).all()
        assert (model.decode_step_s(ALL, batch, context + longer) >= step * (1 - 1e-12)).all()


@relaxed
@given(batches, contexts, tokens_, contexts)
def test_bound_never_exceeds_the_prediction(
    batch: float, context: float, prompt: float, cached: float
) -> None:
    slack = 1 + 1e-9
    assert (
        BOUND.decode_step_s(ALL, batch, context) <= MODEL.decode_step_s(ALL, batch, context) * slack
    ).all()
    assert (BOUND.token_time_s(ALL, prompt) <= MODEL.token_time_s(ALL, prompt) * slack).all()
    assert (BOUND.sequence_time_s(ALL, context) <= MODEL.sequence_time_s(ALL, context)).all()
    pairs = prompt * (cached + prompt / 2)
    assert (
        BOUND.prefill_step_s(ALL, prompt, pairs) <= MODEL.prefill_step_s(ALL, prompt, pairs) * slack
    ).all()
    mixed = (ALL, batch, context, prompt, pairs)
    assert (BOUND.mixed_step_s(*mixed) <= MODEL.mixed_step_s(*mixed) * slack).all()
    for alone in (False, True):
        whole = (ALL, prompt, cached, 2048.0, alone)
        assert (BOUND.prefill_time_s(*whole) <= MODEL.prefill_time_s(*whole) * slack).all()


@relaxed
@given(st.floats(1, 40_000), st.floats(0, 40_000), st.sampled_from([512.0, 2048.0, 8192.0]))
def test_prefill_time_is_the_sum_of_its_chunks(new: float, old: float, chunk: float) -> None:
    """On one attention group and one stage, up to windows (exact here, mean in a step) and the
    output head (once here, in every step there)."""
    i = np.array([0, 2])
    total = np.zeros(2)
    done = 0.0
    while done < new:
        size = min(chunk, new - done)
        total += MODEL.prefill_step_s(i, size, size * (old + done + size / 2))
        total -= MODEL.token_terms(i, size, 1.0)["head"] * (done + size < new)
        done += size
    np.testing.assert_allclose(MODEL.prefill_time_s(i, new, old, chunk), total, rtol=0.02)


def test_no_uncached_token_takes_no_time() -> None:
    assert (MODEL.prefill_time_s(ALL, 0, 5000, 2048) == 0).all()
    assert (MODEL.prefill_time_s(ALL, 0, 5000, 2048, alone=True) == 0).all()


@relaxed
@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(1, 1e5))
def test_causal_pairs_against_quadrature(new: float, old: float, cap: float) -> None:
    edges = np.linspace(0, new, 2001)
    middles = (edges[1:] + edges[:-1]) / 2
    area = np.minimum(old + middles, cap).sum() * new / 2000
    assert causal_pairs(new, old, cap) == pytest.approx(area, rel=1e-3)
    assert causal_pairs(new, old, math.inf) == pytest.approx(new * (old + new / 2))


def test_dense_step_by_hand() -> None:
    """Llama-3.1-8B in bf16 on one H100, 16 sequences at 1,000 tokens."""
    c = load_constants()
    model = StepModel([config("llama-3.1-8b-instruct", "h100", Layout(1))])
    peak, bandwidth = 989e12, 3.35e12

    def roof(parameters: float) -> float:
        compute = 2 * parameters * 16 / (peak * c.compute_efficiency_fraction)
        memory = 2 * parameters / (bandwidth * c.weight_bandwidth_fraction)
        return math.hypot(compute, memory)

    attention = 32 * (4096 * (32 + 2 * 8) * 128 + 4096 * 4096)
    feed_forward = 32 * 3 * 4096 * 14336
    expected = roof(attention) + roof(feed_forward) + roof(4096 * 128256)
    # Four queries share a key/value head and take the time of a whole tile of rows.
    padded = 32 * 4 * 32 * 128 * 1000 * c.attention_tile_rows / 4
    flops = padded / (peak * c.attention_compute_fraction)
    reads = 32 * 2 * 8 * 128 * 2 * 1000 / (bandwidth * c.kv_bandwidth_fraction)
    expected += 16 * (math.hypot(flops, reads) + 32 * c.sequence_layer_overhead_s)
    moved = c.activation_traffic_factor * 32 * 16 * 2 * 4096
    expected += moved / (bandwidth * c.weight_bandwidth_fraction)
    expected += 32 * (c.layer_overhead_s + c.engine("vllm").layer_overhead_s)
    assert model.decode_step_s(0, 16, 1000) == pytest.approx(expected, rel=1e-9)


def test_speculation_fills_the_tile_by_hand() -> None:
    """Llama-3.3-70B on four H100: eight queries share a head, four times that are verified."""
    c = load_constants()
    peak, bandwidth = 989e12, 3.35e12
    computed = 80 * 4 * 64 / 4 * 128 * 1000 * 4 * c.attention_tile_rows / 32
    flops = computed / (peak * c.attention_compute_fraction)
    reads = 80 * 2 * 8 / 4 * 128 * 2 * 1000 / (bandwidth * c.kv_bandwidth_fraction)
    expected = math.hypot(flops, reads) + 80 * c.sequence_layer_overhead_s
    assert MODEL.sequence_time_s(7, 1000) == pytest.approx(expected, rel=1e-9)


def test_a_full_tile_is_not_padded() -> None:
    """DeepSeek-V3's 128 heads all ask the one latent cache of their rank."""
    c = load_constants()
    peak, bandwidth = 989e12, 4.8e12
    flops = 61 * 2 * 128 * (512 + 512 + 64) * 1000 / (peak * c.attention_compute_fraction)
    reads = 61 * (512 + 64) * 2 * 1000 / (bandwidth * c.kv_bandwidth_fraction)
    expected = (math.hypot(flops, reads) + 61 * c.sequence_layer_overhead_s) / 8
    assert MODEL.sequence_time_s(3, 1000) == pytest.approx(expected, rel=1e-9)


def test_overhead_by_hand() -> None:
    """DeepSeek-V3: 61 layers with latents, 58 of them with experts in FP8. V3.2: the same, and a
    sparse indexer in every layer."""
    c = load_constants()
    layers = 61 * (c.layer_overhead_s + c.engine("vllm").layer_overhead_s)
    experts = 58 * c.fp8_expert_layer_overhead_s
    dense, sparse = MODEL.token_terms(3, 64)["overhead"], MODEL.token_terms(4, 64)["overhead"]
    assert dense == pytest.approx(layers + experts + 61 * c.mixer_extra_overhead_s)
    assert sparse == pytest.approx(layers + experts + 122 * c.mixer_extra_overhead_s)


def test_expert_exchange_by_hand() -> None:
    """DeepSeek-V3, eight experts a token: 7,168 bytes out and twice as many back, once to every
    other GPU that holds one of them; to the other of two nodes once, over a network port a GPU."""
    c = load_constants()
    one, two = (config("deepseek-v3", "h200", Layout(1, 1, n, n)) for n in (8, 16))
    model = StepModel([one, two])
    volume = 58 * 3 * 7168
    copies = 7 * (1 - (7 / 8) ** 8)
    inside = 8 * volume * copies / (450e9 * c.exchange_link_fraction)
    inside += 2 * 58 * 3 * c.collective_latency_s
    assert model.token_terms(0, 64)["communication"] == pytest.approx(inside)
    remote = 8 * volume * (1 - (1 / 2) ** 8) / (50e9 * c.scale_out_link_fraction)
    remote += 2 * 58 * 4 * c.collective_latency_s
    assert model.token_terms(1, 128)["communication"] == pytest.approx(remote)


def test_first_token_overhead_by_hand() -> None:
    c = load_constants()
    sglang = replace(CONFIGS[3], engine=engine_profile("sglang"))
    model = StepModel([CONFIGS[3], sglang])
    read = 5000 * c.ttft_token_s
    assert model.ttft_fixed_s(0, 5000) == pytest.approx(read + 119 * c.engine("vllm").ttft_launch_s)
    launches = 119 * c.engine("sglang").ttft_launch_s
    assert launches > 0
    assert model.ttft_fixed_s(1, 5000) == pytest.approx(read + launches)
    assert BOUND.ttft_fixed_s(3, 5000) == 0


def test_distinct_experts_read() -> None:
    """One token of Qwen3-235B reads 8 of 128 experts, a thousand read all of them."""
    bound = StepModel([CONFIGS[2]], calibrated=False)
    experts = bound.weight_read_s(0) - bound.weight_read_s(0, 0)
    assert (bound.weight_read_s(0, 1) - bound.weight_read_s(0, 0)) / experts == pytest.approx(
        8 / 128
    )
    assert bound.weight_read_s(0, 1000) == pytest.approx(float(bound.weight_read_s(0)), rel=1e-9)


def test_latent_attention_does_not_speed_up_with_tensor_parallel() -> None:
    one, eight = Layout(1, 1, 8, 8), Layout(8, 1, 1, 8)
    model = StepModel([config("deepseek-v3", "h200", layout) for layout in (one, eight)])
    reads = model.kv_read_s(np.array([0, 1]), 8192)
    # Data parallel ranks hold different sequences; tensor parallel ranks hold copies.
    assert reads[1] == pytest.approx(8 * reads[0])


def test_pipeline_lanes() -> None:
    """T tokens in two lanes cost what T/2 tokens cost on one stage, and the hand-overs."""
    c = load_constants()
    single, double = (config("llama-3.1-405b-instruct", "h100", Layout(8, n)) for n in (1, 2))
    model = StepModel([single, double])
    hops = model.token_terms(1, 256)["communication"] - model.token_terms(0, 128)["communication"]
    assert hops >= 2 * c.pipeline_hop_latency_s
    assert model.token_time_s(1, 256) == pytest.approx(float(model.token_time_s(0, 128) + hops))
    alone = model.prefill_time_s(1, 4096, 0, 4096, alone=True)
    assert alone == pytest.approx(2 * float(model.prefill_time_s(1, 4096, 0, 4096)))


@pytest.mark.parametrize("prompt", [1000.0, 4096.0, 5000.0, 20_000.0])
def test_chunks_follow_each_other_through_the_stages(prompt: float) -> None:
    """Against the schedule itself: a stage begins a chunk once it is free and the chunk there."""
    stages, chunk = 4, 2048.0
    model = StepModel([config("llama-3.1-405b-instruct", "h100", Layout(8, stages))])
    ends = [*np.arange(chunk, prompt, chunk), prompt]
    # What each chunk adds to the time of one lane; the head, counted from the start, comes last.
    until = np.array([0.0, *(stages * model.prefill_time_s(0, end, 300.0, chunk) for end in ends)])
    head = float(model.token_terms(0, stages, stages)["head"])
    lane_s = np.diff(until)
    lane_s[0] -= head
    free = np.zeros(stages)
    for each in lane_s:
        there = 0.0
        for stage in range(stages):
            there = free[stage] = max(there, free[stage]) + each / stages
    alone = float(model.prefill_time_s(0, prompt, 300.0, chunk, alone=True))
    # Attention's compute and memory join over the whole prompt, and so not quite chunk by chunk.
    assert alone == pytest.approx(free[-1] + head, rel=1e-6)


def test_speculation_pays_at_small_batches_and_less_at_large_ones() -> None:
    plain = replace(CONFIGS[7], speculative=None)
    model = StepModel([plain, CONFIGS[7]])
    assert model.accepted_per_step(1) == 2.3

    def gain(batch: float) -> float:
        before = model.decode_step_s(0, batch, 2000)
        after = model.decode_step_s(1, batch, 2000) / model.accepted_per_step(1)
        return float(before / after)

    assert gain(2) > 1.4
    assert gain(2) > gain(64) > gain(512)


def test_own_prediction_layers_draft_cheaply() -> None:
    """DeepSeek-V3's MTP layer holds 256 experts of which a token uses 8, at one byte each."""
    plain = config("deepseek-v3", "h200", Layout(8))
    own = plain.model.mtp_parameters
    drafts = [
        replace(plain, speculative=Speculative(1, 1.8, parameters)) for parameters in (own, own + 1)
    ]
    model = StepModel(drafts)
    i = np.array([0, 1])
    own_s, other_s = model.draft_time_s(i, 512)
    assert own_s < 0.5 * other_s
    weights = model.weight_bytes_per_rank(i) - StepModel([plain]).weight_bytes_per_rank(0)
    np.testing.assert_allclose(weights, [own / 8, 2 * own / 8], rtol=1e-6)


def test_faster_hardware_is_never_slower() -> None:
    for card, layout in (("llama-3.1-70b-instruct", Layout(4)), ("deepseek-v3", Layout(8))):
        slow, fast = (config(card, name, layout) for name in ("h100", "h200"))
        model = StepModel([slow, fast])
        assert model.decode_step_s(1, 32, 4000) < model.decode_step_s(0, 32, 4000)


def test_broadcasting_shapes() -> None:
    grid = MODEL.decode_step_s(ALL[:, None], np.array([1.0, 8.0, 64.0]), 1000.0)
    assert grid.shape == (len(CONFIGS), 3)
    assert grid[0, 1] == pytest.approx(float(MODEL.decode_step_s(0, 8, 1000)))


@relaxed
@given(
    st.sampled_from(["llama-3.1-70b-instruct", "deepseek-v3", "gpt-oss-120b"]),
    st.sampled_from(["h100", "l40s", "gb200", "b200", "tpu-v5e"]),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
    st.sampled_from([1, 4, 8]),
)
def test_layouts(model: str, accelerator: str, most: int, node: int) -> None:
    card, chip = find_model(model), find_accelerator(accelerator)
    layouts = enumerate_layouts(card, chip, most, node)
    assert Layout(1) in layouts
    assert len(set(layouts)) == len(layouts)
    for layout in layouts:
        assert layout.gpus <= most
        assert node % layout.gpus == 0 or layout.gpus % node == 0
        assert layout.tensor_parallel <= chip.scale_up_domain
        assert layout.expert_parallel in (1, layout.stage_gpus)
        if card.moe_layers == 0:
            assert layout.attention_data_parallel == layout.expert_parallel == 1
        if not chip.scale_up_spans_nodes:
            assert layout.tensor_parallel <= node


def test_layouts_of_boards_without_a_fast_link_are_stages() -> None:
    card, chip = find_model("llama-3.1-70b-instruct"), find_accelerator("l40s")
    labels = [layout.label for layout in enumerate_layouts(card, chip, 8, 8)]
    assert labels == ["tp1", "tp1·pp2", "tp1·pp4", "tp1·pp8"]


def test_layout_labels() -> None:
    assert Layout(4).label == "tp4"
    assert Layout(2, 2).label == "tp2·pp2"
    assert Layout(1, 1, 8, 8).label == "dp8·ep8"
    assert Layout(2, 1, 4, 8).label == "tp2·dp4·ep8"
    assert Layout(2, 2, 4, 8).gpus == 16
