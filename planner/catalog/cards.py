"""LLM cards: what one model weighs, keeps per token, and reads and computes in a step.

Everything here is derived from the shapes of the published config (`card_file` reads them):
parameter counts, KV bytes and state bytes are never typed in. Only the text decoder is
described; vision and audio encoders are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, overload

from planner.errors import InputError, Problem
from planner.units import KV_BYTES, WEIGHT_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COMPONENTS: Final = ("attention", "dense", "experts", "shared", "head")
"""Parts of the weights that checkpoints quantize separately."""

WEIGHT_BITS: Final[Mapping[str, int]] = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4}


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Identical token-mixing layers of a model, before any sharding.

    FLOPs are per (query token, visible key token) pair and layer: GQA 4*H*hd; MLA in decode, with
    the up-projections absorbed, 2*H*(2*kv_lora + rope), in prefill 2*H*(nope + rope + v)
    (DeepSeek-V2, arXiv:2405.04434). A query sees min(context, window or top_k) keys.
    """

    kind: str
    """full | sliding | chunked | sparse | linear"""
    mechanism: str
    """gqa | mla | linear"""
    layers: int
    parameters_per_layer: float
    """Projections of one layer, the sparse indexer among them."""
    kv_elements_per_token: float
    """Cached elements per token and layer, whole layer; 0 for linear."""
    kv_shards: int
    """Over how many tensor-parallel ranks the cache or state can split; 1 for MLA's latent."""
    query_heads: int
    """Heads that ask; 0 for linear."""
    decode_flops_per_pair: float
    prefill_flops_per_pair: float
    window: int | None = None
    """Visible and kept tokens: sliding window, or attention chunk (its largest fill)."""
    top_k: int | None = None
    """Tokens that a sparse query reads; all tokens stay cached."""
    index_bytes_per_token: float = 0.0
    """Sparse: index keys, bytes per token and layer, kept for and read over the whole context."""
    index_flops_per_pair: float = 0.0
    index_parameters_per_layer: float = 0.0
    """Share of `parameters_per_layer` that is the sparse indexer."""
    state_bytes_per_sequence: float = 0.0
    """Linear: recurrent and convolution state, bytes per layer and sequence."""
    overhead_kind: str = "gqa"
    """gqa | mla | sparse | linear; a sparse layer over MLA is `sparse` (mechanism tells)."""


@dataclass(frozen=True, slots=True)
class ComponentBytes:
    """Bytes per weight, scales included, of each component; `mtp` for the MTP layers."""

    attention: float
    dense: float
    experts: float
    shared: float
    head: float
    mtp: float


@dataclass(frozen=True, slots=True)
class Published:
    """Parameter counts as their authors state them, and what those counts include.

    Only compared with the derived counts, never used in their place.
    """

    total_parameters_billion: float
    active_parameters_billion: float
    total_embeddings: bool
    total_mtp: bool
    active_embeddings: bool
    active_head: bool
    active_indexer: bool
    note: str
    source: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One LLM: raw shapes reduced to what performance, memory and cost need."""

    id: str
    repository: str
    aliases: tuple[str, ...]
    family: str
    architecture: str
    source: str
    date: str
    licence: str
    note: str
    hidden: int
    layers: int
    vocabulary: int
    max_context_tokens: int
    tied_embeddings: bool
    separate_blocks: bool
    """Whether a layer is a mixer or a feed-forward block (Nemotron-H), not one of each."""
    attention: tuple[AttentionGroup, ...]
    dense_ffn_layers: int
    dense_ffn_parameters_per_layer: float
    moe_layers: int
    experts: int
    experts_active: int
    expert_parameters: float
    """One expert of one layer."""
    shared_parameters_per_layer: float
    """Shared experts, router and latent projections of one MoE layer."""
    router_parameters_per_layer: float
    """Share of `shared_parameters_per_layer` that is the router (never quantized)."""
    mtp_layers: int
    mtp_parameters: float
    """All MTP layers; embedding and head are shared with the main model and not counted."""
    native_precision: str
    component_precisions: Mapping[str, str] = field(hash=False)
    precision_overrides: Mapping[str, Mapping[str, float]] = field(hash=False)
    published: Published

    @property
    def weight_precisions(self) -> tuple[str, ...]:
        """Precisions the model can be deployed in: native first, none wider than native."""
        bits = WEIGHT_BITS[self.native_precision]
        others = [p for p in WEIGHT_BITS if WEIGHT_BITS[p] <= bits and p != self.native_precision]
        return (self.native_precision, *others)

    def component_bytes(self, weight_precision: str) -> ComponentBytes:
        """Bytes per weight of every component in a checkpoint of this precision.

        Native: as the published checkpoint has it. Otherwise, by the usual practice of quantized
        checkpoints, and never above native:

        - fp8, int8: attention, feed-forward and experts 1 byte;
        - int4 (AWQ, GPTQ): the same layers 0.53125;
        - fp4 (NVFP4, ModelOpt): dense models 0.5625 throughout; MoE models experts only;
        - head, embedding and router stay bf16; MTP layers keep the native precision.

        A card's `precisions` block states what a published checkpoint really does where that
        differs; it may exceed native (NVIDIA's NVFP4 checkpoints of FP8 models hold attention in
        bf16). Shared layers mix the router's 2 bytes in by parameter count. InputError where the
        precision is not in `weight_precisions`.
        """
        if weight_precision not in self.weight_precisions:
            message = f"{self.id} has no {weight_precision} weights"
            hint = f"it can be deployed in {', '.join(self.weight_precisions)}"
            raise InputError([Problem(message, hint, field="weight_precision")])
        per_weight = {c: self._weight_bytes_of(c, weight_precision) for c in COMPONENTS}
        per_weight |= self.precision_overrides.get(weight_precision, {})
        if self.shared_parameters_per_layer > 0:
            router = self.router_parameters_per_layer / self.shared_parameters_per_layer
            per_weight["shared"] += router * (WEIGHT_BYTES["bf16"] - per_weight["shared"])
        return ComponentBytes(**per_weight, mtp=WEIGHT_BYTES[self.native_precision])

    def _weight_bytes_of(self, component: str, weight_precision: str) -> float:
        native = self.component_precisions[component]
        if weight_precision == self.native_precision:
            return WEIGHT_BYTES[native]
        kept_by_nvfp4 = weight_precision == "fp4" and self.moe_layers > 0 and component != "experts"
        if component == "head" or kept_by_nvfp4:
            return WEIGHT_BYTES[native]
        if WEIGHT_BITS[native] < WEIGHT_BITS[weight_precision]:
            return WEIGHT_BYTES[native]
        return WEIGHT_BYTES[weight_precision]

    @property
    def overhead_layers(self) -> float:
        """Pairs of a mixer and a feed-forward block: what a fixed time per layer applies to."""
        return self.layers / 2 if self.separate_blocks else float(self.layers)

    @property
    def embedding_parameters(self) -> float:
        """The input embedding, vocabulary x hidden."""
        return float(self.vocabulary) * self.hidden

    @property
    def head_parameters(self) -> float:
        """What the output head reads: vocabulary x hidden, tied to the embedding or not."""
        return float(self.vocabulary) * self.hidden

    @property
    def attention_parameters(self) -> float:
        """Projections of all token-mixing layers, linear mixers and sparse indexers included."""
        return sum(g.layers * g.parameters_per_layer for g in self.attention)

    @property
    def dense_parameters(self) -> float:
        """All dense feed-forward blocks."""
        return self.dense_ffn_layers * self.dense_ffn_parameters_per_layer

    @property
    def expert_parameters_total(self) -> float:
        """All routed experts of all MoE layers."""
        return self.moe_layers * self.experts * self.expert_parameters

    @property
    def shared_parameters(self) -> float:
        """Shared experts, routers and latent projections of all MoE layers."""
        return self.moe_layers * self.shared_parameters_per_layer

    @property
    def parameters_total(self) -> float:
        """The decoder with embedding and head (once where tied), without MTP layers.

        Normalization vectors are left out: below 0.02 % in every card.
        """
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        routed = self.expert_parameters_total + self.shared_parameters
        return self.attention_parameters + self.dense_parameters + routed + tables

    @property
    def parameters_active(self) -> float:
        """Weights that one token is multiplied with: head counted, embedding look-up not."""
        routed = self.moe_layers * self.experts_active * self.expert_parameters
        blocks = self.attention_parameters + self.dense_parameters + self.shared_parameters
        return blocks + routed + self.head_parameters

    def published_total(self) -> float:
        """The derived total, counted as `published` counts it, to compare the two."""
        total = self.parameters_total
        if not self.published.total_embeddings:
            total -= self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return total + (self.mtp_parameters if self.published.total_mtp else 0.0)

    def published_active(self) -> float:
        """The derived active count, counted as `published` counts it."""
        active = self.parameters_active
        if not self.published.active_head:
            active -= self.head_parameters
        if self.published.active_embeddings and not (
            self.tied_embeddings and self.published.active_head
        ):
            active += self.embedding_parameters
        if not self.published.active_indexer:
            active -= sum(g.layers * g.index_parameters_per_layer for g in self.attention)
        return active

    def weight_bytes(self, weight_precision: str, *, with_mtp: bool = False) -> float:
        """Bytes of the resident weights, whole model; MTP layers only where they are loaded."""
        per_weight = self.component_bytes(weight_precision)
        # The embedding is looked up, never quantized below the head; once where tied.
        tables = self.head_parameters * per_weight.head
        if not self.tied_embeddings:
            tables += self.embedding_parameters * WEIGHT_BYTES["bf16"]
        return (
            self.attention_parameters * per_weight.attention
            + self.dense_parameters * per_weight.dense
            + self.expert_parameters_total * per_weight.experts
            + self.shared_parameters * per_weight.shared
            + tables
            + (self.mtp_parameters * per_weight.mtp if with_mtp else 0.0)
        )

    def kv_bytes_per_token(self, kv_precision: str) -> float:
        """Bytes that every further token adds for good: full and sparse layers, index keys.

        Windows and recurrent states do not grow without end and are left out.
        """
        element = KV_BYTES[kv_precision]
        return sum(
            g.layers * (g.kv_elements_per_token * element + g.index_bytes_per_token)
            for g in self.attention
            if g.window is None
        )

    @property
    def state_bytes_per_sequence(self) -> float:
        """Recurrent and convolution states of all linear layers; independent of context."""
        return sum(g.layers * g.state_bytes_per_sequence for g in self.attention)

    @overload
    def kv_bytes_per_sequence(self, context: float, kv_precision: str) -> float: ...
    @overload
    def kv_bytes_per_sequence(
        self, context: NDArray[np.float64], kv_precision: str
    ) -> NDArray[np.float64]: ...

    def kv_bytes_per_sequence(
        self, context: float | NDArray[np.float64], kv_precision: str
    ) -> float | NDArray[np.float64]:
        """Bytes held for one sequence of `context` tokens, whole model before sharding.

        Windows hold min(context, window) tokens; linear layers their state whatever the context.
        """
        element = KV_BYTES[kv_precision]
        tokens: Any = context  # one arithmetic for floats and arrays, numpy not imported
        held = tokens * self.kv_bytes_per_token(kv_precision) + self.state_bytes_per_sequence
        for group in self.attention:
            if group.window is not None:
                beyond = tokens - group.window
                kept = tokens - 0.5 * (beyond + abs(beyond))  # min(context, window)
                held = held + kept * (group.layers * group.kv_elements_per_token * element)
        return held  # type: ignore[no-any-return]
