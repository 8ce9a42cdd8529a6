"""What each way of benchmarking measures, in terms of engine steps.

A regime takes the step model, the configurations `i` (N,) and the circumstances `runs` of N cases,
and returns metrics by name, each (N,), in seconds or per second of the whole replica. Nothing here
is fitted: the formulas say what was run, the step model how long it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.perf import StepModel
from planner.perf.serving import DEFAULT_BUDGET_TOKENS, serving_point
from planner.perf.work import FloatArray

IntArray = NDArray[np.int64]
Metrics = dict[str, FloatArray]

BISECTIONS = 50
"""Halvings of the interval of sequences in which Little's law is solved."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Circumstances of N cases, each (N,); NaN where a case has none.

    Sequences, requests and clients are of the replica, `chunk_tokens` of one attention group.
    `reserves_all` says whether the engine keeps room for a request's whole length (TensorRT-LLM's
    guaranteed_no_evict) or admits by what is there now (vLLM, SGLang, TurboMind).
    """

    input_tokens: FloatArray
    output_tokens: FloatArray
    cached_tokens: FloatArray
    sequences: FloatArray
    requests: FloatArray
    offered_requests_per_s: FloatArray
    clients_limit: FloatArray
    chunk_tokens: FloatArray
    reserves_all: NDArray[np.bool_]

    @property
    def uncached_tokens(self) -> FloatArray:
        """Prompt tokens that are computed."""
        return self.input_tokens - self.cached_tokens

    @property
    def budget_tokens(self) -> FloatArray:
        """Tokens of a step of one attention group: as published, else the usual default."""
        return np.where(np.isnan(self.chunk_tokens), DEFAULT_BUDGET_TOKENS, self.chunk_tokens)

    @property
    def mean_context_tokens(self) -> FloatArray:
        """What a decode token sees on average: the prompt and half of the output."""
        return self.input_tokens + self.output_tokens / 2


def fitting_sequences(step: StepModel, i: IntArray, runs: Runs) -> FloatArray:
    """Sequences that the replica admits: at their whole or at their mean length."""
    room = np.maximum(step.kv_room_bytes(i, runs.budget_tokens), 0.0)
    whole = runs.input_tokens + runs.output_tokens
    kept = np.where(runs.reserves_all, whole, runs.mean_context_tokens)
    each = step.kv_bytes_per_sequence(i, kept)
    return np.floor(np.minimum(room / each, step.max_num_seqs(i)))


def _prompts_s(
    step: StepModel, i: IntArray, runs: Runs, prompts: FloatArray, budget: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Seconds to prefill `prompts` prompts back to back in steps of at most `budget` tokens of an
    attention group, and the number of steps.
    """
    tokens = prompts * runs.uncached_tokens
    steps = np.maximum(np.ceil(tokens / (budget * step.prompt_lanes(i))), 1.0)
    pairs = tokens * (runs.cached_tokens + runs.uncached_tokens / 2)
    each = step.mixed_step_s(i, 0.0, 0.0, tokens / steps, pairs / steps, prompts / steps)
    return step.prefill_time_factor(i) * steps * each, steps


def prefill_step(step: StepModel, i: IntArray, runs: Runs) -> Metrics:
    """All prompts of a batch in one step: TTFT without a server around it."""
    taken, _ = _prompts_s(step, i, runs, runs.sequences, np.full_like(runs.sequences, np.inf))
    return {"ttft": taken}


def prefill_rate(step: StepModel, i: IntArray, runs: Runs) -> Metrics:
    """A prefill pool at work: full steps of packed prompts. Cached tokens count as input."""
    prompts = runs.budget_tokens * step.prompt_lanes(i) / runs.uncached_tokens
    taken, _ = _prompts_s(step, i, runs, prompts, runs.budget_tokens)
    return {"input_tokens_per_s": prompts * runs.input_tokens / taken}


def decode_step(step: StepModel, i: IntArray, runs: Runs) -> Metrics:
    """One decode step at the mean context and nothing else."""
    taken = step.decode_step_s(i, runs.sequences, runs.mean_context_tokens)
    tpot = taken / step.accepted_per_step(i)
    return {"tpot": tpot, "output_tokens_per_s": runs.sequences / tpot}


def static_batch(step: StepModel, i: IntArray, runs: Runs) -> Metrics:
    """A batch that starts together and decodes in step until all are done. It ran, so it fits."""
    prefill, steps = _prompts_s(step, i, runs, runs.sequences, runs.budget_tokens)
    tpot = decode_step(step, i, runs)["tpot"]
    e2e = prefill + (runs.output_tokens - 1) * tpot
    return {
        "tpot": tpot,
        "ttft": prefill * (steps + 1) / (2 * steps),
        "e2e": e2e,
        "output_tokens_per_s": runs.sequences * runs.output_tokens / e2e,
    }


def burst(step: StepModel, i: IntArray, runs: Runs) -> Metrics:
    """All requests at once, so many in flight as fit, in waves of one length: W full ones and one
    of what is left. Each lasts O TPOT; TPOT holds the prompts of the wave. Prompts of a wave leave
    prefill one step after another.
    """
    batch = np.minimum(runs.requests, np.maximum(fitting_sequences(step, i, runs), 1.0))
    whole = np.floor(runs.requests / batch)
    rest = runs.requests - whole * batch
    tpot = _served(step, i, runs, batch).tpot
    last = np.where(rest > 0, _served(step, i, runs, np.maximum(rest, 1.0)).tpot, 0.0)
    wave = runs.output_tokens * tpot
    lasts = whole * wave + runs.output_tokens * last
    prefill, steps = _prompts_s(step, i, runs, batch, runs.budget_tokens)
    before = (batch * whole * (whole - 1) / 2 + rest * whole) / runs.requests * wave
    decode = step.decode_step_s(i, batch, runs.mean_context_tokens)
    return {
        "tpot": tpot,
        "itl_median": decode,
        "ttft": before + prefill * (steps + 1) / (2 * steps),
        "output_tokens_per_s": runs.requests * runs.output_tokens / lasts,
        "requests_per_s": runs.requests / lasts,
    }


@dataclass(frozen=True, slots=True)
class _Served:
    """TPOT, TTFT, a plain decode step and the whole request at some number of clients, (N,)."""

    tpot: FloatArray
    ttft: FloatArray
    decode: FloatArray
    e2e: FloatArray


def _served(step: StepModel, i: IntArray, runs: Runs, clients: FloatArray) -> _Served:
    """`serving_point` and its pieces."""
    point = serving_point(
        step,
        i,
        clients,
        runs.input_tokens,
        runs.output_tokens,
        runs.budget_tokens,
        cached_fraction=runs.cached_tokens / runs.input_tokens,
    )
    e2e = point.ttft_s + np.maximum(runs.output_tokens - 1, 0) * point.tpot_s
    return _Served(point.tpot_s, point.ttft_s, point.decode_step_s, e2e)


def closed_loop(
    step: StepModel, i: IntArray, runs: Runs, clients: FloatArray | None = None
) -> Metrics:
    """So many clients, each with one request open at any time (default: `sequences`)."""
    open_requests = runs.sequences if clients is None else clients
    served = _served(step, i, runs, open_requests)
    return {
        "tpot": served.tpot,
        "itl_median": served.decode,
        "ttft": served.ttft,
        "e2e": served.e2e,
        "output_tokens_per_s": open_requests * runs.output_tokens / served.e2e,
        "requests_per_s": open_requests / served.e2e,
    }


def open_sequences(
    step: StepModel, i: IntArray, runs: Runs
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Requests in the replica that an arriving one finds, itself included, and whether the offered
    rate is above what the replica can do.

    Little's law has L = rate x (TTFT + (O - 1) TPOT) requests there on average, and Poisson
    arrivals see that average: C = 1 + rate T(C), solved by bisection between 1 and what fits.
    """
    most = np.maximum(np.minimum(fitting_sequences(step, i, runs), runs.requests), 1.0)

    def excess(clients: FloatArray) -> FloatArray:
        e2e = _served(step, i, runs, clients).e2e
        return clients - 1 - runs.offered_requests_per_s * e2e

    low, high = np.ones_like(most), most
    overloaded = excess(most) < 0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        short = excess(middle) < 0
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.where(overloaded, most, high), overloaded


def open_loop(step: StepModel, i: IntArray, runs: Runs) -> Metrics:
    """Requests at a given rate, a known number of them; the run ends with the last answer.

    Above what the replica can do, the load generator's own limit on open requests makes it a closed
    loop; without one the requests are a burst whose later ones came later.
    """
    # Poisson arrivals have no first burst in which all clients send at once.
    spread = step.recalibrated(replace(step.constants, ttft_burst_fraction=0.0))
    clients, overloaded = open_sequences(spread, i, runs)
    steady = closed_loop(spread, i, runs, clients)
    arriving = runs.requests / runs.offered_requests_per_s
    flood = burst(step, i, runs)
    queued = step.ttft_fixed_s(i, runs.input_tokens) + flood["ttft"] - arriving / 2
    flood["ttft"] = np.maximum(queued, steady["ttft"])
    flood["e2e"] = flood["ttft"] + (runs.output_tokens - 1) * flood["tpot"]
    limited = closed_loop(step, i, runs, runs.clients_limit)
    by_clients = ~np.isnan(runs.clients_limit)
    metrics = {
        name: np.where(overloaded, np.where(by_clients, limited[name], flood[name]), steady[name])
        for name in steady
    }
    # The last request is answered a whole latency after it arrived.
    ended = runs.requests / (arriving + metrics["e2e"])
    metrics["requests_per_s"] = np.minimum(
        ended, np.where(overloaded, metrics["requests_per_s"], np.inf)
    )
    metrics["output_tokens_per_s"] = metrics["requests_per_s"] * runs.output_tokens
    return metrics


def disaggregated_ttft(step: StepModel, i: IntArray, runs: Runs) -> Metrics:
    """One prompt at a time on a prefill replica, its cache sent over all its network cards."""
    prefill = step.prefill_time_s(
        i, runs.uncached_tokens, runs.cached_tokens, runs.budget_tokens, alone=True
    )
    sent = step.kv_transfer_bytes(i, runs.input_tokens) / step.nic_bytes_per_s(i)
    return {"ttft": step.ttft_fixed_s(i, runs.input_tokens) + prefill + sent}


PREDICTORS: dict[str, Callable[[StepModel, IntArray, Runs], Metrics]] = {
    "prefill_step": prefill_step,
    "prefill_rate": prefill_rate,
    "decode_step": decode_step,
    "static_batch": static_batch,
    "burst": burst,
    "closed_loop": closed_loop,
    "open_loop": open_loop,
    "disaggregated_ttft": disaggregated_ttft,
}
"""The function of every regime of `public_data.REGIMES`."""

NEEDS_ROOM = frozenset({"burst", "closed_loop", "open_loop"})
"""Regimes in which the engine decides how many sequences run."""
