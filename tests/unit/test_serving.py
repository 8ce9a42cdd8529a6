"""What clients of a closed loop see, worked by hand from step times."""

from __future__ import annotations

import numpy as np
import pytest

from planner.catalog import find_accelerator, find_model
from planner.perf import (
    Layout,
    PoolConfig,
    Speculative,
    StepModel,
    engine_profile,
    load_constants,
)
from planner.perf.serving import serving_point


def config(
    model: str, accelerator: str, layout: Layout, speculative: Speculative | None = None
) -> PoolConfig:
    card, chip = find_model(model), find_accelerator(accelerator)
    vllm = engine_profile("vllm")
    return PoolConfig(card, chip, layout, card.native_precision, "bf16", vllm, speculative)


MODEL = StepModel(
    [
        config("llama-3.1-70b-instruct", "h100", Layout(8)),
        config("deepseek-v3", "h200", Layout(1, 1, 8, 8)),
        config("llama-3.3-70b-instruct", "h100", Layout(4), Speculative(3, 2.3, 1e9)),
    ]
)


def test_closed_loop_serving() -> None:
    point = serving_point(MODEL, np.arange(3)[:, None], np.array([1.0, 16.0]), 1000.0, 200.0)
    assert point.tpot_s.shape == (3, 2)
    assert (point.tpot_s[:, 1] >= point.tpot_s[:, 0]).all()
    assert (point.output_tokens_per_s[:, 1] > point.output_tokens_per_s[:, 0]).all()
    # Alone, nobody's prefill gets in the way.
    alone = point.decode_step_s[:, 0] / MODEL.accepted_per_step(np.arange(3))
    np.testing.assert_allclose(point.tpot_s[:, 0], alone)


def test_closed_loop_by_hand() -> None:
    """Four clients, 1,000 tokens in (600 of them new) and 200 out: the prompts of three others
    delay 200 tokens, and four prompts of one burst are a chunk and a rest."""
    c = load_constants()
    point = serving_point(MODEL, 0, 4, 1000, 200, 2048, cached_fraction=0.4, wait_steps=2)
    decode = MODEL.decode_step_s(0, 4, 1100)
    stall = MODEL.mixed_step_s(0, 4, 1100, 600, 600 * 700) - decode
    assert point.tpot_s == pytest.approx(float(decode + 3 / 200 * stall))
    prefill = MODEL.prefill_time_s(0, 600, 400, 2048)
    # 2,400 tokens: a full chunk, then the 352 that wait for it as well.
    full, rest = (float(MODEL.prefill_step_s(0, n, n * 700)) for n in (2048, 352))
    burst = (2048 * full + 352 * (full + rest)) / 2400
    waits = float(c.ttft_burst_fraction * (burst - prefill))
    own = float(MODEL.ttft_fixed_s(0, 1000) + prefill + (c.ttft_decode_steps + 2) * decode)
    assert waits > 0
    assert point.ttft_s == pytest.approx(own + waits)


def test_clients_beyond_capacity_wait() -> None:
    small = StepModel([config("llama-3.1-70b-instruct", "h200", Layout(2))])
    few, many, more = (serving_point(small, 0, n, 2000, 500) for n in (4, 800, 900))
    assert many.batch == pytest.approx(float(many.capacity))
    assert many.ttft_s > 10 * few.ttft_s
    # A place is free after one prefill and 500 tokens; a hundred clients more share the places.
    held = float(many.prefill_s + 500 * many.tpot_s)
    assert more.tpot_s == pytest.approx(float(many.tpot_s))
    assert more.ttft_s - many.ttft_s >= 100 / float(many.batch) * held


def test_no_more_decode_than_one_full_chunk_a_step_brings_in() -> None:
    """9,000 tokens in and 100 out, in chunks of 2,048: a prompt takes 4.4 steps, so beside one
    that prefills 22.8 decode; every step carries a full chunk."""
    point = serving_point(MODEL, 0, 64, 9000, 100, 2048)
    assert point.batch == pytest.approx(1 + 2048 * 100 / 9000)
    full = MODEL.mixed_step_s(0, point.batch, 9050, 2048, 2048 * 4500, 2048 / 9000)
    assert point.tpot_s == pytest.approx(float(full))


def test_speculation_needs_prompts_sooner() -> None:
    """At 2.3 tokens a step 100 tokens take 43 steps, each with one full chunk at most."""
    point = serving_point(MODEL, 2, 64, 9000, 100, 2048)
    assert point.batch == pytest.approx(1 + 2048 * 100 / 2.3 / 9000)
    plain = MODEL.decode_step_s(2, point.batch, 9050)
    assert point.tpot_s == pytest.approx(float(plain + point.stall_s) / 2.3)


def test_attention_groups_carry_a_chunk_each() -> None:
    point = serving_point(MODEL, 1, 512, 9000, 100, 2048)
    assert point.batch == pytest.approx(1 + 8 * 2048 * 100 / 9000)
    assert point.chunk_tokens == pytest.approx(8 * 2048)
