"""The scalars of one configuration that `StepModel` stacks into arrays.

Compute and memory times are at efficiency 1; `StepModel` applies the fitted efficiencies, so the
same numbers serve the calibrated model and the physical bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planner.perf.constants import Constants
from planner.perf.memory import draft_weight_bytes, drafts_with_own_layers
from planner.perf.work import attention_parameters_per_rank, visible_cap
from planner.units import KV_BYTES

if TYPE_CHECKING:
    from planner.catalog.cards import ComponentBytes, ModelCard
    from planner.perf.config import PoolConfig

ACTIVATION_BYTES = 2.0
"""Activations travel in bf16."""

NO_ROWS = 1e9
"""Query rows of a core that has no attention to speak of: no tile is left unfilled."""

ALWAYS_HIT = -1e6
"""Stands for log(0), the chance to miss an expert that every token chooses."""


def attention_core(config: PoolConfig, slot: int) -> tuple[float, ...]:
    """One attention group of one configuration, as `physical.Core` orders it, or zeros."""
    groups = config.model.attention
    if slot >= len(groups):
        return (*(0.0,) * 8, NO_ROWS)
    group, chip = groups[slot], config.accelerator
    tensor = config.layout.tensor_parallel
    shards = min(tensor, max(group.kv_shards, 1))
    peak, bandwidth = chip.peak(_attention_precision(config)), chip.hbm_bytes_per_s
    cached = group.layers * group.kv_elements_per_token * KV_BYTES[config.kv_precision]
    indexed = group.layers * group.index_flops_per_pair / tensor / peak
    return (
        visible_cap(group),
        cached / shards / bandwidth,
        group.layers * group.index_bytes_per_token / bandwidth,
        # A recurrent state is read and written back.
        2 * group.layers * group.state_bytes_per_sequence / shards / bandwidth,
        group.layers * group.decode_flops_per_pair / tensor / peak,
        indexed,
        group.layers * group.prefill_flops_per_pair / tensor / peak,
        indexed,
        # Queries that share a cache head on one rank; beyond the heads, the cache is repeated.
        group.query_heads / max(group.kv_shards, tensor) if group.query_heads else NO_ROWS,
    )


def _attention_precision(config: PoolConfig) -> str:
    """The fastest arithmetic that attention over this cache could have: that of its elements."""
    return "fp8" if config.kv_precision == "fp8" else "bf16"


def arithmetic_precision(bytes_per_weight: float, weight_precision: str) -> str:
    """The precision that weights of this many bytes are held in: what decides the peak.

    A component that a checkpoint keeps above its main precision computes at its own.
    """
    if bytes_per_weight >= 1.5:
        return "bf16"
    if bytes_per_weight >= 0.9:
        return "int8" if weight_precision == "int8" else "fp8"
    return weight_precision if weight_precision in ("int4", "fp4") else "fp4"


def scalars(config: PoolConfig, each: ComponentBytes, constants: Constants) -> dict[str, float]:
    """The scalars of one configuration. Suffix `_c`: seconds of compute per token of an attention
    rank (experts: per row), `_m`: seconds to read the component's weights, both at efficiency 1.
    """
    model, chip, layout = config.model, config.accelerator, config.layout
    tensor, gpus = layout.tensor_parallel, layout.stage_gpus
    bandwidth = chip.hbm_bytes_per_s

    def compute(parameters: float, bytes_per_weight: float) -> float:
        peak = chip.peak(arithmetic_precision(bytes_per_weight, config.weight_precision))
        return 2 * parameters / peak

    attention = sum(
        group.layers * attention_parameters_per_rank(group, model.hidden, tensor)
        for group in model.attention
    )
    dense = model.dense_ffn_layers * model.dense_ffn_parameters_per_layer / tensor
    shared = model.moe_layers * model.shared_parameters_per_layer / tensor
    expert = model.moe_layers * model.expert_parameters / gpus
    head = model.head_parameters / tensor
    token_bytes = ACTIVATION_BYTES * model.hidden
    expert_precision = chip.compute_precision(
        arithmetic_precision(each.experts, config.weight_precision)
    )
    fixed, slope, link = _communication(config, constants, expert_precision)
    moved = constants.activation_traffic_factor
    guess = config.speculative
    draft_tokens = guess.draft_tokens if guess else 0
    draft = draft_tokens * (guess.draft_parameters if guess else 0.0) / gpus
    draft_bytes = draft_weight_bytes(config, each)
    experts, active = float(model.experts), float(model.experts_active)
    return {
        "stages": float(layout.pipeline_parallel),
        "groups": float(layout.attention_data_parallel),
        "attention_c": compute(attention, each.attention),
        "attention_m": attention * each.attention / bandwidth,
        "ffn_c": compute(dense, each.dense) + compute(shared, each.shared),
        "ffn_m": (dense * each.dense + shared * each.shared) / bandwidth,
        "expert_c": compute(expert, each.experts),
        "expert_m": expert * each.experts / bandwidth,
        "experts": experts if model.moe_layers else 0.0,
        "active": active,
        "log_miss": math.log1p(-active / experts) if 0 < active < experts else ALWAYS_HIT,
        "head_c": compute(head, each.head),
        "head_m": head * each.head / bandwidth,
        "activation_m": moved * model.layers * token_bytes / bandwidth,
        "comm_fixed": fixed,
        "comm_slope": slope,
        "link_s": link,
        "layers": float(model.overhead_layers),
        "mixer_extras": _mixer_extras(model),
        "moe_layers": float(model.moe_layers),
        "fp8_expert_layers": float(model.moe_layers if expert_precision == "fp8" else 0),
        # Kernels compute attention in bf16, whatever the cache holds; the bound does not know that.
        "attention_slowdown": chip.peak(_attention_precision(config)) / chip.peak("bf16"),
        "queries": float(draft_tokens + 1),
        "accepted": guess.accepted_tokens_per_step if guess else 1.0,
        "draft_c": 2 * draft * _draft_active_share(config) / chip.peak("bf16"),
        "draft_m": draft_bytes * draft / bandwidth,
        "draft_layers": float(draft_tokens),
    }


def _draft_active_share(config: PoolConfig) -> float:
    """Share of the draft's weights that one token is multiplied with: own MTP layers of a mixture
    of experts are one such layer each, any other draft is dense.
    """
    model = config.model
    if not (drafts_with_own_layers(config) and model.moe_layers):
        return 1.0
    always = model.attention_parameters / model.layers + model.shared_parameters_per_layer
    active = always + model.experts_active * model.expert_parameters
    return active / (always + model.experts * model.expert_parameters)


def _distinct_targets(places: int, choices: int) -> float:
    """Other places, of `places` in all, that a token with `choices` experts goes to on average."""
    return (places - 1) * (1 - (1 - 1 / places) ** choices)


def _mixer_extras(model: ModelCard) -> float:
    """How often, over all layers, the token mixer is more than grouped-query attention: a latent
    projection, a linear recurrence, a sparse indexer. A sparse layer over latents has two.
    """
    return float(
        sum(
            group.layers
            * (
                (group.mechanism == "mla")
                + (group.overhead_kind == "linear")
                + (group.overhead_kind == "sparse")
            )
            for group in model.attention
        )
    )


def _communication(
    config: PoolConfig, constants: Constants, expert_precision: str
) -> tuple[float, float, float]:
    """Fixed seconds of a step's collectives, seconds per token of an attention rank, and the
    least seconds per token on the links (for the bound).

    Tensor parallel: an all-reduce after attention and one after the feed-forward, in a ring each
    moving 2 (n-1)/n of the hidden vectors; a network that adds on the way moves them once.
    Attention data parallel: instead of the second, tokens go to their experts' ranks and back,
    (n-1) (1 - (1-1/n)^k) copies of each on average, of which the network between the m nodes
    carries one per node, (m-1) (1 - (1-1/m)^k); the two pipeline, so the slower counts. They
    leave in 8 bits where the experts compute in 8 or fewer, and return in bf16 (DeepEP's README).
    Stages hand hidden vectors on.
    """
    model, chip, layout = config.model, config.accelerator, config.layout
    tensor, groups, gpus = layout.tensor_parallel, layout.attention_data_parallel, layout.stage_gpus
    token_bytes = ACTIVATION_BYTES * model.hidden
    outside = chip.scale_out_bytes_per_s
    far = constants.scale_out_link_fraction * outside
    fixed = slope = link = 0.0
    if tensor > 1:
        inside = chip.scale_up_within_bytes_per_s(tensor)
        near = constants.link_fraction * inside
        reduces = 2 * model.layers - (model.moe_layers if groups > 1 else 0)
        fixed += reduces * constants.collective_latency_s * math.log2(tensor)
        slope += reduces * 2 * (tensor - 1) / tensor * token_bytes / near
        link += reduces * token_bytes / inside
    if groups > 1:
        inside = chip.scale_up_within_bytes_per_s(gpus)
        near = constants.exchange_link_fraction * inside
        nodes = math.ceil(gpus / chip.scale_up_domain)
        copies = _distinct_targets(gpus, model.experts_active) / tensor
        remote = _distinct_targets(nodes, model.experts_active) / tensor
        out_bytes = (ACTIVATION_BYTES if expert_precision == "bf16" else 1.0) * model.hidden
        volume = model.moe_layers * (out_bytes + token_bytes)
        fixed += 2 * model.moe_layers * constants.collective_latency_s * math.log2(gpus)
        slope += volume * max(copies / near, remote / far)
        link += volume * max(copies / inside, remote / outside)
    if layout.pipeline_parallel > 1:
        # A stage hands over to one neighbour, over the link of a pair.
        inside = chip.scale_up_within_bytes_per_s(2)
        near = constants.link_fraction * inside
        crosses = layout.gpus > chip.usual_node_size and not chip.scale_up_spans_nodes
        volume = layout.pipeline_parallel * token_bytes / tensor
        fixed += layout.pipeline_parallel * constants.pipeline_hop_latency_s
        slope += volume / (far if crosses else near)
        link += volume / (outside if crosses else inside)
    return fixed, slope, link
