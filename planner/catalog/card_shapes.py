"""Shapes of layers as cards state them, and the sizes that follow from each.

One class per mechanism; field names are those of the Hugging Face configs where they have one.
Parameter counts leave out normalization vectors and router correction biases.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from planner.catalog.cards import AttentionGroup

Count = Annotated[int, Field(gt=0)]
StateDtype = Literal["fp32", "bf16"]

STATE_BYTES: Final = {"fp32": 4, "bf16": 2}
CACHED_CONV_BYTES: Final = 2
"""Engines keep the convolution state in the model's own bf16 (vLLM mamba_utils, SGLang)."""


class Part(BaseModel):
    """A mapping in a card: unknown fields are mistakes, numbers are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Indexer(Part):
    """The scorer of a sparse layer: every query ranks all keys by small index keys.

    `dsa` (DeepSeek Sparse Attention, DeepSeek-V3.2 report): queries from MLA's compressed query,
    a weight per head, keys in FP8 with one 4-byte scale. `msa` (MiniMax Sparse Attention):
    queries from the hidden state, one key per token in bf16, blocks of keys are chosen.
    """

    style: Literal["dsa", "msa"]
    heads: Count
    head_dim: Count
    top_k_tokens: Count

    def parameters(self, hidden: int, q_lora_rank: int | None) -> float:
        """Projections of the indexer of one layer."""
        if self.style == "dsa":
            query_from = q_lora_rank if q_lora_rank is not None else hidden
            return query_from * self.heads * self.head_dim + hidden * (self.head_dim + self.heads)
        return float(hidden * (self.heads + 1) * self.head_dim)

    @property
    def bytes_per_token(self) -> float:
        """Index keys of one token and layer."""
        return float(self.head_dim + 4 if self.style == "dsa" else 2 * self.head_dim)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query token, cached token) and layer."""
        return 2.0 * self.heads * self.head_dim


class SoftmaxShape(Part):
    """Fields that every softmax attention may have."""

    layers: Count
    heads: Count
    window_tokens: Count | None = None
    indexer: Indexer | None = None
    output_gate: bool = False
    """An elementwise gate on the attention output: one more hidden x (heads x dim) matrix."""

    def conflicts(self, kind: str) -> list[tuple[str, str, str]]:
        """Fields that do not go with the kind: (field, message, hint)."""
        found = []
        if kind in ("sliding", "chunked") and self.window_tokens is None:
            found.append(("window_tokens", f"is required for {kind} attention", "give the window"))
        if kind not in ("sliding", "chunked") and self.window_tokens is not None:
            found.append(("window_tokens", f"does not go with {kind} attention", "remove it"))
        if kind == "sparse" and self.indexer is None:
            found.append(("indexer", "is required for sparse attention", "give its shape"))
        if kind != "sparse" and self.indexer is not None:
            found.append(("indexer", f"does not go with {kind} attention", "use kind: sparse"))
        return found


class GqaShape(SoftmaxShape):
    """Grouped-query attention; multi-head where kv_heads = heads, multi-query where it is 1."""

    kinds: ClassVar[tuple[str, ...]] = ("full", "sliding", "chunked", "sparse")

    kv_heads: Count
    head_dim: Count
    qkv_bias: bool = False
    output_bias: bool = False
    k_eq_v: bool = False
    """Keys and values share one projection; both are still cached (Gemma 4)."""

    def conflicts(self, kind: str) -> list[tuple[str, str, str]]:
        """As for any softmax attention, and heads that cannot be grouped."""
        found = super().conflicts(kind)
        if self.heads % self.kv_heads:
            message = f"{self.kv_heads} does not divide heads {self.heads}"
            found.append(("kv_heads", message, "each KV head serves the same number of heads"))
        return found

    def group(self, kind: str, hidden: int) -> AttentionGroup:
        """Sizes of these layers in a model of this width."""
        wide = self.heads * self.head_dim
        kv_matrices = 1 if self.k_eq_v else 2
        narrow = kv_matrices * self.kv_heads * self.head_dim
        parameters = float(hidden * (wide + narrow) + wide * hidden)
        parameters += (wide + narrow) * self.qkv_bias + hidden * self.output_bias
        parameters += hidden * wide * self.output_gate
        index = self.indexer.parameters(hidden, None) if self.indexer else 0.0
        return AttentionGroup(
            kind=kind,
            mechanism="gqa",
            layers=self.layers,
            parameters_per_layer=parameters + index,
            kv_elements_per_token=2.0 * self.kv_heads * self.head_dim,
            kv_shards=self.kv_heads,
            query_heads=self.heads,
            decode_flops_per_pair=4.0 * wide,
            prefill_flops_per_pair=4.0 * wide,
            window=self.window_tokens,
            top_k=self.indexer.top_k_tokens if self.indexer else None,
            index_bytes_per_token=self.indexer.bytes_per_token if self.indexer else 0.0,
            index_flops_per_pair=self.indexer.flops_per_pair if self.indexer else 0.0,
            index_parameters_per_layer=index,
            overhead_kind="sparse" if kind == "sparse" else "gqa",
        )


class MlaShape(SoftmaxShape):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434).

    Per layer h*ql + ql*H*(nope + rope) + h*(kvl + rope) + kvl*H*(nope + v) + H*v*h parameters;
    kvl + rope elements are cached, the same on every tensor-parallel rank.
    """

    kinds: ClassVar[tuple[str, ...]] = ("full", "sparse")

    q_lora_rank: Count | None
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count

    def group(self, kind: str, hidden: int) -> AttentionGroup:
        """Sizes of these layers in a model of this width."""
        query_dim = self.heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        latent = self.kv_lora_rank + self.qk_rope_head_dim
        value_dim = self.heads * self.v_head_dim
        ql = self.q_lora_rank
        query = hidden * query_dim if ql is None else ql * (hidden + query_dim)
        key_value = hidden * latent
        key_value += self.kv_lora_rank * (self.heads * self.qk_nope_head_dim + value_dim)
        output = value_dim * hidden * (2 if self.output_gate else 1)
        index = self.indexer.parameters(hidden, ql) if self.indexer else 0.0
        absorbed = 2 * self.kv_lora_rank + self.qk_rope_head_dim
        plain = self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim
        return AttentionGroup(
            kind=kind,
            mechanism="mla",
            layers=self.layers,
            parameters_per_layer=query + key_value + output + index,
            kv_elements_per_token=float(latent),
            kv_shards=1,
            query_heads=self.heads,
            decode_flops_per_pair=2.0 * self.heads * absorbed,
            prefill_flops_per_pair=2.0 * self.heads * plain,
            top_k=self.indexer.top_k_tokens if self.indexer else None,
            index_bytes_per_token=self.indexer.bytes_per_token if self.indexer else 0.0,
            index_flops_per_pair=self.indexer.flops_per_pair if self.indexer else 0.0,
            index_parameters_per_layer=index,
            overhead_kind="sparse" if kind == "sparse" else "mla",
        )


class LinearShape(Part):
    """Fields of every linear mixer: a state of fixed size instead of a cache.

    A causal convolution of kernel k keeps the last k - 1 inputs.
    """

    kinds: ClassVar[tuple[str, ...]] = ("linear",)

    layers: Count
    conv_kernel: Count
    state_dtype: StateDtype

    def conflicts(self, kind: str) -> list[tuple[str, str, str]]:
        """None: a linear mixer has no window and no indexer to contradict."""
        return []

    def _group(self, parameters: float, state: int, conv: int, heads: int) -> AttentionGroup:
        kept = conv * (self.conv_kernel - 1) * CACHED_CONV_BYTES
        return AttentionGroup(
            kind="linear",
            mechanism="linear",
            layers=self.layers,
            parameters_per_layer=parameters,
            kv_elements_per_token=0.0,
            kv_shards=heads,
            query_heads=0,
            decode_flops_per_pair=0.0,
            prefill_flops_per_pair=0.0,
            state_bytes_per_sequence=float(state * STATE_BYTES[self.state_dtype] + kept),
            overhead_kind="linear",
        )


class GdnShape(LinearShape):
    """Gated DeltaNet as in Qwen3-Next, Qwen3.5 and Qwen3.6 (arXiv:2412.06464).

    Projections to q, k, v, the output gate z and two scalars per value head; the state of a value
    head is key_dim x value_dim.
    """

    key_heads: Count
    key_head_dim: Count
    value_heads: Count
    value_head_dim: Count

    def group(self, kind: str, hidden: int) -> AttentionGroup:
        """Sizes of these layers in a model of this width."""
        keys = self.key_heads * self.key_head_dim
        values = self.value_heads * self.value_head_dim
        conv = 2 * keys + values
        parameters = hidden * (2 * keys + 2 * values + 2 * self.value_heads) + values * hidden
        parameters += conv * self.conv_kernel
        state = self.value_heads * self.key_head_dim * self.value_head_dim
        return self._group(float(parameters), state, conv, self.value_heads)


class KdaShape(LinearShape):
    """Kimi Delta Attention (Kimi Linear, arXiv:2510.26692).

    q, k, v and output projections, a low-rank decay (rank = head_dim), one scalar per head, and an
    output gate of full or low rank; q, k and v each pass a short convolution.
    """

    heads: Count
    head_dim: Count
    full_rank_gate: bool = False

    def group(self, kind: str, hidden: int) -> AttentionGroup:
        """Sizes of these layers in a model of this width."""
        wide = self.heads * self.head_dim
        low_rank = self.head_dim * (hidden + wide)
        gate = hidden * wide if self.full_rank_gate else low_rank
        parameters = 4 * hidden * wide + gate + low_rank + hidden * self.heads
        parameters += 3 * wide * self.conv_kernel
        state = self.heads * self.head_dim * self.head_dim
        return self._group(float(parameters), state, 3 * wide, self.heads)


class Mamba2Shape(LinearShape):
    """Mamba-2 (arXiv:2405.21060): one input projection to z, x, B, C and dt."""

    heads: Count
    head_dim: Count
    state_size: Count
    groups: Count

    def group(self, kind: str, hidden: int) -> AttentionGroup:
        """Sizes of these layers in a model of this width."""
        inner = self.heads * self.head_dim
        conv = inner + 2 * self.groups * self.state_size
        parameters = hidden * (inner + conv + self.heads) + inner * hidden
        parameters += conv * (self.conv_kernel + 1)  # with bias
        state = self.heads * self.head_dim * self.state_size
        return self._group(float(parameters), state, conv, self.heads)


AttentionShape = GqaShape | MlaShape | GdnShape | KdaShape | Mamba2Shape
MECHANISMS: Final[dict[str, type[AttentionShape]]] = {
    "gqa": GqaShape,
    "mla": MlaShape,
    "gdn": GdnShape,
    "kda": KdaShape,
    "mamba2": Mamba2Shape,
}
KINDS: Final = ("full", "sliding", "chunked", "sparse", "linear")


class DenseShape(Part):
    """A feed-forward block: three matrices where gated (SwiGLU), two where not (relu2)."""

    layers: Count
    intermediate_size: Count
    gated: bool = True

    def parameters(self, hidden: int) -> float:
        """One block."""
        return float((3 if self.gated else 2) * hidden * self.intermediate_size)


class MoeShape(Part):
    """Routed experts, and what every token passes beside them.

    With `latent_size` the experts work on a projection of the hidden state (Nemotron-3, Kimi-K3):
    two more matrices hidden x latent for every token; router and shared experts see the full width.
    """

    layers: Count
    experts: Count
    experts_per_token: Count
    intermediate_size: Count
    shared_intermediate_size: Annotated[int, Field(ge=0)] = 0
    """Over all shared experts."""
    shared_gate: bool = False
    """One scalar gate on the shared expert (Qwen)."""
    latent_size: Count | None = None
    gated: bool = True
    bias: bool = False
    """Biases on experts and router (gpt-oss)."""

    @property
    def _matrices(self) -> int:
        return 3 if self.gated else 2

    def expert_parameters(self, hidden: int) -> float:
        """One expert of one layer."""
        width = self.latent_size or hidden
        biases = ((self._matrices - 1) * self.intermediate_size + width) * self.bias
        return float(self._matrices * width * self.intermediate_size + biases)

    def router_parameters(self, hidden: int) -> float:
        """The router of one layer; it sees the full width."""
        return float((hidden + self.bias) * self.experts)

    def shared_parameters(self, hidden: int) -> float:
        """Per layer: shared experts, their gate, router, latent projections."""
        shared = self._matrices * hidden * self.shared_intermediate_size
        shared += hidden * self.shared_gate + 2 * hidden * (self.latent_size or 0)
        return float(shared) + self.router_parameters(hidden)
