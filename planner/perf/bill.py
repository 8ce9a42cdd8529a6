"""The bill of one operating point: where the memory and the time of a step go, and what binds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planner.errors import InputError, Problem
from planner.perf.backend import find_backend
from planner.perf.coefficients import StepModel
from planner.perf.config import PoolConfig, config_problem
from planner.perf.serving import DEFAULT_BUDGET_TOKENS, serving_point
from planner.perf.work import causal_pairs

USUAL_BATCH = 64
"""Sequences of a bill whose reader did not say how many, where as many fit."""


@dataclass(frozen=True, slots=True)
class MemoryBill:
    """Bytes of one GPU."""

    hbm_bytes: float
    weights_bytes: float
    reserve_bytes: float
    """Activations, sampler, graphs, runtime and collectives."""
    kv_room_bytes: float
    kv_used_bytes: float
    """By the batch at its mean context."""
    request_tokens: int
    max_concurrency: float
    """Requests of `request_tokens` tokens that the cache holds, as engines print it at start-up."""
    cache_tokens: float
    """Tokens in such requests that the cache of the replica holds."""

    @property
    def outside_bytes(self) -> float:
        """What the engine's memory setting leaves alone."""
        inside = self.weights_bytes + self.reserve_bytes + self.kv_room_bytes
        return max(self.hbm_bytes - inside, 0.0)


@dataclass(frozen=True, slots=True)
class StepBill:
    """Seconds of one engine step: calibrated terms, their sum, and the physical bound."""

    terms_s: Mapping[str, float]
    total_s: float
    resources_s: Mapping[str, float]
    """Compute, HBM and links at efficiency 1."""
    bound_s: float

    @property
    def binds(self) -> str:
        """The resource that bounds the step: compute, hbm or links."""
        return max(self.resources_s, key=lambda name: self.resources_s[name])


@dataclass(frozen=True, slots=True)
class Bill:
    """One operating point in full; times are means at a closed-loop concurrency of `batch`."""

    config: PoolConfig
    batch: int
    input_tokens: int
    output_tokens: int
    context_tokens: float
    prefill_tokens: float
    memory: MemoryBill
    decode: StepBill
    prefill: StepBill
    tpot_s: float
    ttft_s: float
    output_tokens_per_s: float
    band: tuple[float, float]
    source: str

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Output tokens per second and GPU."""
        return self.output_tokens_per_s / self.config.layout.gpus


def operating_point(
    config: PoolConfig, input_tokens: int, output_tokens: int, batch: int | None = None
) -> Bill:
    """The bill of serving requests of `input_tokens` in and `output_tokens` out, `batch` at once
    (by default as many as fit, at most 64).

    Raises InputError, with the reason, for a configuration that cannot exist, a context beyond
    the model's, or a batch that does not fit.
    """
    problem = config_problem(config)
    longest = config.model.max_context_tokens
    if problem is None and input_tokens + output_tokens > longest:
        problem = f"{input_tokens} + {output_tokens} tokens exceed the model's context of {longest}"
    if problem:
        raise InputError([Problem(problem)])
    model = StepModel([config])
    context = input_tokens + output_tokens / 2
    room = float(model.kv_room_bytes(0, DEFAULT_BUDGET_TOKENS))
    each = float(model.kv_bytes_per_sequence(0, context))
    fits = min(int(max(room, 0.0) // each), int(model.max_num_seqs(0)))
    whole = input_tokens + output_tokens
    alone = bool(model.longest_fits(0, whole, DEFAULT_BUDGET_TOKENS))
    if not alone or fits < 1:
        raise InputError(
            [
                Problem(
                    f"a request of {whole} tokens does not fit beside the weights on "
                    f"{config.layout.gpus} x {config.accelerator.name}",
                    "use more GPUs, a smaller precision or shorter requests",
                )
            ]
        )
    if batch is not None and batch > fits:
        raise InputError(
            [
                Problem(
                    f"{batch} sequences at {context:.0f} tokens do not fit; {fits} do",
                    field="batch_size",
                )
            ]
        )
    sequences = min(fits, USUAL_BATCH) if batch is None else batch
    chunk = min(float(input_tokens), DEFAULT_BUDGET_TOKENS)
    served = serving_point(model, 0, sequences, input_tokens, output_tokens)
    backend = find_backend()
    return Bill(
        config=config,
        batch=sequences,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        context_tokens=context,
        prefill_tokens=chunk,
        memory=_memory(model, config, sequences, context, whole),
        decode=_decode(model, config, sequences, context),
        prefill=_prefill(model, config, chunk),
        tpot_s=float(served.tpot_s),
        ttft_s=float(served.ttft_s),
        output_tokens_per_s=float(served.output_tokens_per_s),
        band=backend.band(config),
        source=backend.source,
    )


def _memory(
    model: StepModel, config: PoolConfig, sequences: int, context: float, whole: int
) -> MemoryBill:
    room = float(model.kv_room_bytes(0, DEFAULT_BUDGET_TOKENS))
    # Engines count whole pages of a full-length request; page waste is a matter of averages.
    request = float(model.kv_bytes_per_sequence(0, whole))
    request *= config.engine.page_efficiency_fraction
    return MemoryBill(
        hbm_bytes=config.accelerator.hbm_bytes,
        weights_bytes=float(model.weight_bytes_per_rank(0)),
        reserve_bytes=float(model.activation_bytes(0, DEFAULT_BUDGET_TOKENS)),
        kv_room_bytes=room,
        kv_used_bytes=float(sequences * model.kv_bytes_per_sequence(0, context)),
        request_tokens=whole,
        max_concurrency=room / request,
        cache_tokens=room / request * whole,
    )


def _decode(model: StepModel, config: PoolConfig, sequences: int, context: float) -> StepBill:
    bound = StepModel([config], calibrated=False)
    return StepBill(
        terms_s=_shown(model.terms(0, sequences, context)),
        total_s=float(model.decode_step_s(0, sequences, context)),
        resources_s=_numbers(model.bound_terms(0, sequences, context)),
        bound_s=float(bound.decode_step_s(0, sequences, context)),
    )


def _prefill(model: StepModel, config: PoolConfig, chunk: float) -> StepBill:
    bound = StepModel([config], calibrated=False)
    pairs = causal_pairs(chunk, 0.0, np.inf)
    return StepBill(
        terms_s=_shown(model.prefill_terms(0, chunk, pairs)),
        total_s=float(model.prefill_step_s(0, chunk, pairs)),
        resources_s=_numbers(
            {
                "compute": model.prefill_compute_s(0, chunk, 0.0),
                "hbm": model.weight_read_s(0, chunk),
                "links": model.collective_s_per_token(0) * chunk,
            }
        ),
        bound_s=float(bound.prefill_step_s(0, chunk, pairs)),
    )


def _numbers(terms: Mapping[str, object]) -> dict[str, float]:
    return {name: float(np.asarray(value)) for name, value in terms.items()}


def _shown(terms: Mapping[str, object]) -> dict[str, float]:
    """Terms that the model has: a dense model has no experts, few have a draft."""
    return {name: value for name, value in _numbers(terms).items() if value > 0}


def as_document(bill: Bill) -> dict[str, object]:
    """The bill as JSON-ready data, with units in the keys."""
    config, memory = bill.config, bill.memory
    low, high = bill.band
    return {
        "format_version": 1,
        "model": config.model.id,
        "accelerator": config.accelerator.id,
        "engine": config.engine.name,
        "layout": {
            "label": config.layout.label,
            "tensor_parallel": config.layout.tensor_parallel,
            "pipeline_parallel": config.layout.pipeline_parallel,
            "attention_data_parallel": config.layout.attention_data_parallel,
            "expert_parallel": config.layout.expert_parallel,
            "gpus": config.layout.gpus,
        },
        "weight_precision": config.weight_precision,
        "kv_precision": config.kv_precision,
        "batch_size": bill.batch,
        "input_tokens": bill.input_tokens,
        "output_tokens": bill.output_tokens,
        "context_tokens": bill.context_tokens,
        "memory_per_gpu": {
            "hbm_bytes": memory.hbm_bytes,
            "weights_bytes": memory.weights_bytes,
            "activations_and_reserve_bytes": memory.reserve_bytes,
            "kv_room_bytes": memory.kv_room_bytes,
            "kv_used_bytes": memory.kv_used_bytes,
            "outside_engine_bytes": memory.outside_bytes,
        },
        "max_concurrency": {
            "request_tokens": memory.request_tokens,
            "requests": memory.max_concurrency,
            "cache_tokens": memory.cache_tokens,
        },
        "decode_step": _step_document(bill.decode),
        "prefill_step": {**_step_document(bill.prefill), "tokens": bill.prefill_tokens},
        "tpot_ms": bill.tpot_s * 1e3,
        "tpot_low_ms": bill.tpot_s * low * 1e3,
        "tpot_high_ms": bill.tpot_s * high * 1e3,
        "ttft_ms": bill.ttft_s * 1e3,
        "output_tokens_per_s": bill.output_tokens_per_s,
        "output_tokens_per_s_per_gpu": bill.tokens_per_s_per_gpu,
        "constants_source": bill.source,
    }


def _step_document(step: StepBill) -> dict[str, object]:
    return {
        "terms_ms": {name: value * 1e3 for name, value in step.terms_s.items()},
        "total_ms": step.total_s * 1e3,
        "bound_ms": step.bound_s * 1e3,
        "resources_ms": {name: value * 1e3 for name, value in step.resources_s.items()},
        "binding_resource": step.binds,
    }
