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
    """Sequences decoding at once: C, or as many as cache, engine and prefill let in."""
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
    cached_fraction: ArrayLike = 0.0,
    wait_steps: ArrayLike = 0.0,
    lengths_vary: ArrayLike = True,
) -> ServingPoint:
    """TPOT and TTFT with `concurrency` clients, each sending `input_tokens` and reading
    `output_tokens`, on every configuration in `i`; all arguments broadcast. `cached_fraction` of
    the input is found in the prefix cache, and is neither prefilled nor in a chunk.

    With td the decode step at mean context I + O/2 and dt what a chunk of n tokens adds to it,
    TPOT = td / a + (B - 1)/O * U/n * dt: during one request B - 1 others come in, each with U/n
    chunks of its U uncached tokens; a is the tokens a step yields. No more requests decode than
    one full chunk a step brings in, B - 1 <= budget * O / (U a). TTFT is the engine's own time
    for the prompt, its prefill, some decode steps (`wait_steps` more where the server was told to
    hold prompts back), a share of the burst in which all clients send at once, and the wait for a
    place where C exceeds B. Clients of one length fall into step and burst again and again; where
    `lengths_vary` it is the first round only.
    """
    clients = np.asarray(concurrency, dtype=np.float64)
    prompt = np.asarray(input_tokens, dtype=np.float64)
    answer = np.asarray(output_tokens, dtype=np.float64)
    budget = np.asarray(budget_tokens, dtype=np.float64)
    # Engines compute the last token of a prompt even where all of it is cached.
    fresh = np.maximum(prompt * (1 - np.asarray(cached_fraction, dtype=np.float64)), 1.0)
    cached = np.maximum(prompt - fresh, 0.0)
    context = prompt + answer / 2
    room = model.kv_room_bytes(i, budget)
    capacity = np.maximum(room, 0.0) / model.kv_bytes_per_sequence(i, context)
    places = np.maximum(np.minimum(capacity, model.max_num_seqs(i)), 1.0)
    carried = budget * model.prompt_lanes(i)
    steps = np.maximum(answer / model.accepted_per_step(i), 1.0)
    batch = np.minimum(clients, np.minimum(places, 1 + carried * steps / fresh))
    chunk = np.minimum(np.maximum(np.minimum(fresh, budget), batch * fresh / steps), carried)
    step = model.decode_step_s(i, batch, context)
    stall = model.chunk_stall_s(i, chunk, batch, context, cached + fresh / 2, chunk / fresh)
    chunks = fresh / chunk
    tpot = step / model.accepted_per_step(i) + np.maximum(batch - 1, 0) / answer * chunks * stall
    prefill = model.prefill_time_s(i, fresh, cached, budget, alone=True)
    # A place is taken from a prompt's first chunk to the last token of its answer.
    waiting = (clients - batch) / batch * (prefill + tpot * answer)
    ttft = (
        model.ttft_fixed_s(i, prompt)
        + prefill
        + (model.ttft_decode_steps(i) + np.asarray(wait_steps, dtype=np.float64)) * step
        + _burst_s(model, i, clients, fresh, cached, budget, prefill, lengths_vary)
        + waiting
    )
    rate = clients * answer / (ttft + np.maximum(answer - 1, 0) * tpot)
    shape = np.broadcast(rate, capacity, context, chunk)
    arrays = (batch, capacity, context, step, stall, chunk, prefill, tpot, ttft, rate)
    return ServingPoint(*(np.broadcast_to(array, shape.shape) for array in arrays))


def _burst_s(
    model: StepModel,
    i: Index,
    clients: FloatArray,
    fresh: FloatArray,
    cached: FloatArray,
    budget: FloatArray,
    prefill_s: FloatArray,
    lengths_vary: ArrayLike,
) -> FloatArray:
    """Mean wait for others' prompts: the fitted share of a burst in which all clients send at once
    and full chunks pass one after another, the rest of the tokens last; a token waits for the end
    of its chunk.
    """
    c = model.constants
    if not model.calibrated:
        return np.zeros(())
    tokens = clients * fresh
    full = budget * model.prompt_lanes(i)
    whole = np.floor(tokens / full)
    rest = tokens - whole * full
    visible = cached + fresh / 2
    full_s = model.prefill_step_s(i, full, full * visible)
    last_s = whole * full_s + model.prefill_step_s(i, rest, rest * visible)
    mean_s = (whole * full * full_s * (whole + 1) / 2 + rest * last_s) / tokens
    share = np.where(lengths_vary, c.ttft_burst_fraction, c.ttft_burst_in_step_fraction)
    wait: FloatArray = share * np.maximum(mean_s - prefill_s, 0.0)
    return wait
