"""What runs where: the layout of a replica, the engine, speculation; and what cannot exist.

A replica is `pipeline_parallel` stages of G = tensor_parallel x attention_data_parallel GPUs.
Attention runs on groups of `tensor_parallel` ranks, each group with sequences of its own;
experts are spread over all G ranks of a stage, whole (expert parallel) or cut (tensor parallel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.catalog.accelerators import Accelerator
    from planner.catalog.cards import ComponentBytes, ModelCard
    from planner.schema.serving import Routing

PIPELINE_DEGREES = (2, 4, 8)
"""Numbers of stages tried when one stage cannot hold the model."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one replica's GPUs share the model.

    `expert_parallel` is 1 (every expert cut over the stage's GPUs) or the GPUs of a stage
    (every expert whole on one of them).
    """

    tensor_parallel: int
    pipeline_parallel: int = 1
    attention_data_parallel: int = 1
    expert_parallel: int = 1

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage, G."""
        return self.tensor_parallel * self.attention_data_parallel

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.stage_gpus * self.pipeline_parallel

    @property
    def label(self) -> str:
        """Short name: `tp4`, `tp2·pp2`, `dp8·ep8`, `tp2·dp4·ep8`."""
        parts = []
        if self.tensor_parallel > 1 or self.attention_data_parallel == 1:
            parts.append(f"tp{self.tensor_parallel}")
        if self.attention_data_parallel > 1:
            parts.append(f"dp{self.attention_data_parallel}")
        if self.pipeline_parallel > 1:
            parts.append(f"pp{self.pipeline_parallel}")
        if self.expert_parallel > 1:
            parts.append(f"ep{self.expert_parallel}")
        return "·".join(parts)


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Defaults of a serving engine; what is fitted for it stands with the constants.

    `memory_base` says what `memory_utilization_fraction` is a fraction of: `total` HBM with
    activations inside (vLLM), `static` memory with activations outside (SGLang), or what is
    `free` after weights and activations (TensorRT-LLM). The sampler takes
    `sampler_bytes_per_logit` for every admitted sequence and vocabulary entry.
    """

    name: str
    page_efficiency_fraction: float
    kv_occupancy_limit_fraction: float
    memory_utilization_fraction: float
    chunk_budgets_tokens: tuple[int, ...]
    max_num_seqs: int
    prefix_cache: bool
    aggregated_utilization_cap_fraction: float
    routing: Routing
    max_num_seqs_small_gpu: int = 256
    sampler_bytes_per_logit: float = 28.0
    memory_base: str = "total"
    source: str = ""


@dataclass(frozen=True, slots=True)
class Speculative:
    """Speculative decoding: `draft_tokens` guesses a step, of which the step yields
    `accepted_tokens_per_step` tokens in all (1 without luck, draft_tokens + 1 at most).
    """

    draft_tokens: int
    accepted_tokens_per_step: float
    draft_parameters: float


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """One way to serve one model: hardware, layout, precisions, engine."""

    model: ModelCard
    accelerator: Accelerator
    layout: Layout
    weight_precision: str
    kv_precision: str
    engine: EngineProfile
    speculative: Speculative | None = None


def kind_of(model: ModelCard) -> str:
    """Kind of a model, by which its predictions err: `dense`, `moe` (experts behind grouped-query
    attention alone) or `mixer` (some layers with latent, linear or sparse attention).
    """
    if any(group.overhead_kind != "gqa" for group in model.attention):
        return "mixer"
    return "moe" if model.moe_layers else "dense"


def attention_heads(model: ModelCard) -> int:
    """The number that tensor parallel must divide: greatest common divisor of the query heads of
    all layers with grouped-query attention and of the value heads of linear ones (0 for a model
    with neither: latent attention alone does not constrain it here).
    """
    heads = 0
    for group in model.attention:
        if group.mechanism == "gqa":
            heads = math.gcd(heads, group.query_heads)
        elif group.mechanism == "linear":
            heads = math.gcd(heads, group.kv_shards)
    return heads


def config_problem(config: PoolConfig, component_bytes: ComponentBytes | None = None) -> str | None:
    """Why this configuration cannot exist, in words; None if it can.

    Checks the shape of the layout, the scale-up domain, head counts, precisions and that the
    weights (`component_bytes` per weight, where it differs from the card) leave room for a cache.
    Whether a given context fits is asked of `StepModel.longest_fits`.
    """
    return (
        _layout_problem(config)
        or _precision_problem(config)
        or _speculation_problem(config)
        or _memory_problem(config, component_bytes)
    )


def _layout_problem(config: PoolConfig) -> str | None:
    layout, model, chip = config.layout, config.model, config.accelerator
    degrees = (
        layout.tensor_parallel,
        layout.pipeline_parallel,
        layout.attention_data_parallel,
        layout.expert_parallel,
    )
    if min(degrees) < 1:
        return "every parallel degree must be at least 1"
    if layout.tensor_parallel > chip.scale_up_domain:
        return (
            f"tensor parallel {layout.tensor_parallel} is wider than the scale-up domain of "
            f"{chip.name}, {chip.scale_up_domain}"
        )
    heads = attention_heads(model)
    if heads and heads % layout.tensor_parallel:
        return f"tensor parallel {layout.tensor_parallel} does not divide {heads} attention heads"
    if layout.pipeline_parallel > model.layers:
        return f"pipeline parallel {layout.pipeline_parallel} exceeds {model.layers} layers"
    if model.moe_layers == 0:
        if layout.expert_parallel > 1:
            return f"expert parallel {layout.expert_parallel}, but {model.id} is dense"
        if layout.attention_data_parallel > 1:
            return f"attention data parallel is for mixtures of experts; {model.id} is dense"
    if layout.expert_parallel not in (1, layout.stage_gpus):
        return (
            f"expert parallel {layout.expert_parallel} must be 1 or all {layout.stage_gpus} GPUs "
            "of a stage"
        )
    if layout.expert_parallel > model.experts > 0:
        return f"expert parallel {layout.expert_parallel} exceeds {model.experts} experts"
    return None


def _precision_problem(config: PoolConfig) -> str | None:
    model, chip = config.model, config.accelerator
    if config.weight_precision not in model.weight_precisions:
        return (
            f"{model.id} is not deployed in {config.weight_precision}; "
            f"only {', '.join(model.weight_precisions)}"
        )
    if config.weight_precision == "int8" and "int8" not in chip.peak_flops:
        return f"{chip.name} has no int8 arithmetic"
    if config.kv_precision not in ("bf16", "fp8"):
        return f"KV cache in {config.kv_precision} is not supported; bf16 or fp8"
    return None


def _speculation_problem(config: PoolConfig) -> str | None:
    guess = config.speculative
    if guess is None:
        return None
    if guess.draft_tokens < 1:
        return "speculation needs at least one draft token"
    if not 1 <= guess.accepted_tokens_per_step <= guess.draft_tokens + 1:
        return (
            f"{guess.accepted_tokens_per_step:g} accepted tokens per step; with "
            f"{guess.draft_tokens} draft tokens it lies between 1 and {guess.draft_tokens + 1}"
        )
    if guess.draft_parameters < 0:
        return "draft parameters cannot be negative"
    return None


def _memory_problem(config: PoolConfig, component_bytes: ComponentBytes | None) -> str | None:
    from planner.perf.memory import MemoryModel

    memory = MemoryModel([config], component_bytes=[component_bytes])
    tokens = min(config.engine.chunk_budgets_tokens, default=512)
    if float(memory.kv_room_bytes(0, tokens)) > 0:
        return None
    weights = float(memory.weight_bytes_per_rank(0))
    return (
        f"{weights / 1e9:.1f} GB of weights a GPU leave no room for a KV cache in "
        f"{config.accelerator.hbm_bytes / 1e9:.1f} GB of {config.accelerator.name}"
    )


def enumerate_layouts(
    model: ModelCard,
    accelerator: Accelerator,
    max_gpus: int,
    gpus_per_node: int,
) -> list[Layout]:
    """Layouts worth considering for `model` on nodes of `gpus_per_node`, at most `max_gpus` each.

    Powers of two. Tensor parallel inside the scale-up domain; mixtures of experts also with
    attention data parallel and whole experts. Pipeline stages appear only beyond what one
    scale-up domain (a node, unless the domain spans nodes) reaches: there they are the way to
    make a model fit. A layout that neither divides a node nor fills whole nodes is left out, and so
    is one over several nodes that are smaller than the accelerator's usual node.
    Whether the weights fit is for `config_problem` to say.
    """
    reach = accelerator.scale_up_domain
    if not accelerator.scale_up_spans_nodes:
        reach = min(reach, gpus_per_node)
    reach = min(reach, max_gpus)
    heads = attention_heads(model)
    is_moe = model.moe_layers > 0
    found: dict[Layout, None] = {}
    # Parts of a node have whatever network their seller gives them; whole nodes the published one.
    joined = accelerator.scale_up_spans_nodes or gpus_per_node >= accelerator.usual_node_size

    def add(layout: Layout) -> None:
        fills = gpus_per_node % layout.gpus == 0 or layout.gpus % gpus_per_node == 0
        if layout.gpus > gpus_per_node and not joined:
            return
        if fills and layout.gpus <= max_gpus and layout.expert_parallel <= max(model.experts, 1):
            found.setdefault(layout)

    widths = [n for n in _powers_of_two(reach) if not heads or heads % n == 0]
    for width in widths:
        add(Layout(width))
        if is_moe and width > 1:
            add(Layout(width, expert_parallel=width))
    if is_moe:
        # Attention data parallel: ranks exchange tokens only around the experts, so the group may
        # be wider than tensor parallel could be, on chips that have a scale-up network at all.
        limit = max_gpus if accelerator.scale_up_domain > 1 else 1
        for tensor in (1, 2, 4):
            if tensor not in widths:
                continue
            for gpus in _powers_of_two(limit):
                if gpus > tensor:
                    add(Layout(tensor, 1, gpus // tensor, gpus))
    for stages in PIPELINE_DEGREES:
        if stages > model.layers:
            continue
        # One stage fills its domain: a narrower stage with more of them is only slower, except on
        # boards without a scale-up network, where one GPU is the domain.
        widest = widths[-1] if widths else 1
        add(Layout(widest, pipeline_parallel=stages))
        if is_moe and widest > 1:
            add(Layout(widest, pipeline_parallel=stages, expert_parallel=widest))
    return list(found)


def _powers_of_two(limit: int) -> list[int]:
    return [1 << power for power in range(int(math.log2(limit)) + 1)] if limit >= 1 else []
