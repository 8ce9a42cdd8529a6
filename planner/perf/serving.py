"""From steps to serving: TPOT, TTFT and throughput of one replica at a closed-loop concurrency.

Continuous batching with chunked prefill: C clients keep a request open each, B of them fit.
While B sequences decode, their successors' prompts pass through in chunks that delay everyone
else's next token. Open arrivals and percentiles are the business of `planner.queueing`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.perf.coefficients import StepModel
from planner.perf.memory import Index
from planner.perf.work import FloatArray

DEFAULT_BUDGET_TOKENS = 8192.0
"""Tokens per step of an aggregated engine; the default of vLLM's server on large GPUs."""


@dataclass(frozen=True, slots=True)
class ServingPoint:
    """Arrays of one shape: what C concurrent clients see. Means, not percentiles."""

    batch: FloatArray
    """Sequences decoding at once: C, or as many as the cache and the engine admit."""
    capacity: FloatArray
    """Sequences at mean context that fit the cache; below 1 the point cannot be served."""
    context_tokens: FloatArray
    decode_step_s: FloatArray
    stall_s: FloatArray
    """What one prefill chunk adds to a step."""
    chunk_tokens: FloatArray
    prefill_s: FloatArray
    tpot_s: FloatArray
    ttft_s: FloatArray
    output_tokens_per_s: FloatArray
    """Of the replica."""


def serving_point(
    model: StepModel,
    i: Index,
    concurrency: ArrayLike,
    input_tokens: ArrayLike,
    output_tokens: ArrayLike,
    budget_tokens: ArrayLike = DEFAULT_BUDGET_TOKENS,
) -> ServingPoint:
    """TPOT and TTFT with `concurrency` clients, each sending `input_tokens` and reading
    `output_tokens`, on every configuration in `i`; all arguments broadcast.

    With td the decode step at mean context I + O/2 and dt the delay of one chunk of n tokens,
    TPOT = td / a + (B - 1)/O * I/n * dt: during one request B - 1 others come in, each with I/n
    chunks; a is the tokens a step yields. TTFT = a + b * prefill + d * td + w (C - 1) dt I/n with
    the engine's four coefficients, plus the wait for a place where C exceeds what fits.
    """
    clients = np.asarray(concurrency, dtype=np.float64)
    prompt = np.asarray(input_tokens, dtype=np.float64)
    answer = np.asarray(output_tokens, dtype=np.float64)
    budget = np.asarray(budget_tokens, dtype=np.float64)
    context = prompt + answer / 2
    room = model.kv_room_bytes(i, budget)
    capacity = np.maximum(room, 0.0) / model.kv_bytes_per_sequence(i, context)
    batch = np.minimum(clients, np.maximum(np.minimum(capacity, model.max_num_seqs(i)), 1.0))
    chunk = np.minimum(np.maximum(prompt, clients * prompt / answer), budget)
    chunk = np.minimum(chunk, clients * prompt)
    step = model.decode_step_s(i, batch, context)
    stall = model.chunk_stall_s(i, chunk, batch, context, prompt / 2, chunk / prompt)
    chunks = prompt / chunk
    tpot = step / model.accepted_per_step(i) + np.maximum(batch - 1, 0) / answer * chunks * stall
    prefill = model.prefill_time_s(i, prompt, 0.0, budget, alone=True)
    waiting = np.maximum(clients - batch, 0.0) * tpot * answer / batch
    ttft = (
        model.ttft_fixed_s(i)
        + prefill
        + model.ttft_decode_steps(i) * step
        + model.ttft_queue(i) * np.maximum(clients - 1, 0) * stall * chunks
        + waiting
    )
    rate = clients * answer / (ttft + np.maximum(answer - 1, 0) * tpot)
    shape = np.broadcast(rate, capacity, context, chunk)
    arrays = (batch, capacity, context, step, stall, chunk, prefill, tpot, ttft, rate)
    return ServingPoint(*(np.broadcast_to(array, shape.shape) for array in arrays))
