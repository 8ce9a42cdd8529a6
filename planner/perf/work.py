"""Work and bytes from shapes alone: what any machine must do, before any constant is fitted.

Plain functions of a card (or of a parameter count), in FLOPs, bytes, tokens and seconds. A
multiplication and an addition are two FLOPs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from planner.catalog.cards import AttentionGroup, ModelCard

FloatArray = NDArray[np.float64]

NO_CAP = math.inf


def visible_cap(group: AttentionGroup) -> float:
    """Most key tokens that one query token of this layer attends to; 0 for linear mixers."""
    if group.kind == "linear":
        return 0.0
    caps = [cap for cap in (group.window, group.top_k) if cap is not None]
    return float(min(caps)) if caps else NO_CAP


def stored_cap(group: AttentionGroup) -> float:
    """Most tokens of one sequence that this layer keeps; a top-k layer keeps them all."""
    if group.kind == "linear":
        return 0.0
    return NO_CAP if group.window is None else float(group.window)


def replicated_kv_parameters(group: AttentionGroup, hidden: int) -> float:
    """Projection parameters that make what is cached; ranks beyond `kv_shards` repeat them."""
    return min(hidden * group.kv_elements_per_token, group.parameters_per_layer)


def attention_parameters_per_rank(
    group: AttentionGroup, hidden: int, tensor_parallel: int
) -> float:
    """Projection parameters of one layer on one of `tensor_parallel` ranks."""
    cached = replicated_kv_parameters(group, hidden)
    shards = min(tensor_parallel, max(group.kv_shards, 1))
    return (group.parameters_per_layer - cached) / tensor_parallel + cached / shards


def forward_flops(active_parameters: float, tokens: float) -> float:
    """FLOPs of `tokens` tokens through weights alone: one multiply-add per weight and token."""
    return 2.0 * active_parameters * tokens


def attention_flops(model: ModelCard, uncached: float, cached: float = 0.0) -> float:
    """FLOPs of prefill attention for one prompt, exact causal pairs, windows honoured."""
    everything = float(causal_pairs(uncached, cached, np.inf))
    return sum(
        group.layers
        * (
            group.prefill_flops_per_pair * float(causal_pairs(uncached, cached, visible_cap(group)))
            + group.index_flops_per_pair * everything
        )
        for group in model.attention
    )


def gpu_seconds(flops: float, peak_flops: float, utilization_fraction: float) -> float:
    """Accelerator-seconds of `flops` at a set share of the peak (a set MFU)."""
    return flops / (peak_flops * utilization_fraction)


def ridge_point(peak_flops: float, hbm_bytes_per_s: float) -> float:
    """FLOPs per byte at which compute and HBM take equally long."""
    return peak_flops / hbm_bytes_per_s


def critical_batch(peak_flops: float, hbm_bytes_per_s: float, bytes_per_weight: float) -> float:
    """Tokens per step beyond which weights cost more arithmetic than reading:
    2 B / peak = bytes / bandwidth.
    """
    return ridge_point(peak_flops, hbm_bytes_per_s) * bytes_per_weight / 2.0


def prefill_replicas_per_decode(
    prefill_s: float, decode_step_s: float, batch: float, output_tokens: float
) -> float:
    """Prefill replicas that keep one decode replica busy: it frees batch / (output x step)
    places a second, each to be filled by one prefill.
    """
    return prefill_s * batch / (output_tokens * decode_step_s)


def causal_pairs(uncached: ArrayLike, cached: ArrayLike, cap: ArrayLike) -> FloatArray:
    """Query-key pairs of prefilling u tokens behind c cached ones when a query sees at most `cap`
    keys: the integral of min(c + x, cap) over x in (0, u); u (c + u/2) without a cap.
    """
    new = np.asarray(uncached, dtype=np.float64)
    old = np.asarray(cached, dtype=np.float64)
    limit = np.asarray(cap, dtype=np.float64)
    growing = np.clip(limit - old, 0.0, new)
    with np.errstate(invalid="ignore"):
        flat = np.where(new > growing, (new - growing) * limit, 0.0)
    pairs: FloatArray = growing * (old + growing / 2) + flat
    return pairs
