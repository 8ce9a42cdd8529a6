"""Memory of one GPU: weights, KV cache, activations, what is left; and KV bytes to move.

Per rank, because replication is what memory turns on: latent (MLA) caches and the key/value heads
beyond the tensor-parallel degree exist once per rank, not once per replica.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.perf.constants import Constants, load_constants
from planner.perf.work import FloatArray, attention_parameters_per_rank, stored_cap
from planner.units import GIB, KV_BYTES, WEIGHT_BYTES

if TYPE_CHECKING:
    from planner.catalog.cards import ComponentBytes
    from planner.perf.config import PoolConfig

Index = int | NDArray[np.int64] | slice | tuple[slice, None]

LARGE_GPU_BYTES = 70 * GIB
"""From this much memory on, vLLM's server admits more sequences by default."""


@dataclass(frozen=True, slots=True)
class _KvGroup:
    """One slot of attention groups over all configurations: bytes per token on a rank and whole,
    most tokens kept, bytes of state per sequence on a rank and whole.
    """

    rank_bytes: FloatArray
    whole_bytes: FloatArray
    cap_tokens: FloatArray
    rank_state_bytes: FloatArray
    whole_state_bytes: FloatArray


_COLUMNS = (
    "_weights",
    "_hbm",
    "_fraction",
    "_base",
    "_runtime",
    "_per_token",
    "_logits",
    "_max_seqs",
    "_page",
    "_groups",
    "_nic",
    "_stages",
)
"""Arrays over configurations that `MemoryModel` keeps."""


class MemoryModel:
    """Memory coefficients of many configurations, as arrays indexed by `i`.

    `i` is an index or an array of indices into `configs`; every method broadcasts it against its
    other arguments and returns float64 arrays. `component_bytes`, where given, replaces the
    bytes per weight that a card states for its precision (measured deployments differ).
    """

    def __init__(
        self,
        configs: Sequence[PoolConfig],
        constants: Constants | None = None,
        component_bytes: Sequence[ComponentBytes | None] | None = None,
    ) -> None:
        self.configs = tuple(configs)
        self.constants = constants or load_constants()
        self.component_bytes: tuple[ComponentBytes, ...] = tuple(
            (component_bytes[n] if component_bytes else None)
            or config.model.component_bytes(config.weight_precision)
            for n, config in enumerate(self.configs)
        )
        pairs = list(zip(self.configs, self.component_bytes, strict=True))
        self._weights = _column([_weights_per_rank(c, b) for c, b in pairs])
        self._hbm = _column(
            [c.accelerator.hbm_bytes - self.constants.driver_reserve_bytes for c in self.configs]
        )
        self._fraction = _column([c.engine.memory_utilization_fraction for c in self.configs])
        self._base = np.array([c.engine.memory_base for c in self.configs])
        self._runtime = _column([self._runtime_bytes(c) for c in self.configs])
        self._per_token = _column([self._activation_per_token(c) for c in self.configs])
        self._logits = _column(
            [c.engine.sampler_bytes_per_logit * c.model.vocabulary for c in self.configs]
        )
        self._max_seqs = _column([_admitted_sequences(c) for c in self.configs])
        self._page = _column([c.engine.page_efficiency_fraction for c in self.configs])
        self._groups = _column([c.layout.attention_data_parallel for c in self.configs])
        self._nic = _column(
            [c.accelerator.scale_out_bytes_per_s * c.layout.gpus for c in self.configs]
        )
        self._stages = _column([c.model.layers / _longest_stage_layers(c) for c in self.configs])
        depth = max((len(c.model.attention) for c in self.configs), default=0)
        self._kv_groups = [self._kv_group(slot) for slot in range(depth)]

    def take(self, indices: NDArray[np.int64]) -> Self:
        """The same model of some of its configurations, in the order of `indices` (N,)."""
        part = copy(self)
        chosen = indices.tolist()
        part.configs = tuple(self.configs[index] for index in chosen)
        part.component_bytes = tuple(self.component_bytes[index] for index in chosen)
        for name in _COLUMNS:
            setattr(part, name, getattr(self, name)[indices])
        part._kv_groups = [
            _KvGroup(*(getattr(group, each.name)[indices] for each in fields(group)))
            for group in self._kv_groups
        ]
        return part

    def _runtime_bytes(self, config: PoolConfig) -> float:
        collective = self.constants.collective_reserve_bytes if config.layout.gpus > 1 else 0.0
        return self.constants.runtime_reserve_bytes + collective

    def _activation_per_token(self, config: PoolConfig) -> float:
        model = config.model
        width = 0.0
        if model.dense_ffn_layers:
            width = model.dense_ffn_parameters_per_layer / (3 * model.hidden)
        if model.moe_layers:
            active = model.experts_active * model.expert_parameters
            width = max(width, (active + model.shared_parameters_per_layer) / (3 * model.hidden))
        per_rank = width / config.layout.tensor_parallel
        vectors = (
            self.constants.activation_hidden_vectors * model.hidden
            + self.constants.activation_ffn_vectors * per_rank
        )
        return 2.0 * vectors

    def _kv_group(self, slot: int) -> _KvGroup:
        rows = [_kv_row(config, slot) for config in self.configs]
        return _KvGroup(*(_column(column) for column in zip(*rows, strict=True)))

    def weight_bytes_per_rank(self, i: Index) -> FloatArray:
        """Bytes of weights on the fullest GPU of the replica, draft model included."""
        return self._weights[i]

    def activation_bytes(self, i: Index, batched_tokens: ArrayLike) -> FloatArray:
        """Bytes a GPU sets aside for activations, sampler, graphs, runtime and collectives, when a
        step may hold `batched_tokens` tokens per attention rank.
        """
        tokens = np.asarray(batched_tokens, dtype=np.float64)
        logits = np.minimum(tokens, self._max_seqs[i]) * self._logits[i]
        return self._runtime[i] + tokens * self._per_token[i] + logits

    def kv_room_bytes(self, i: Index, batched_tokens: ArrayLike) -> FloatArray:
        """Bytes of one GPU left for the cache under the engine's memory setting; negative if the
        weights do not fit. The engine's occupancy limit is not applied.
        """
        reserve = self.activation_bytes(i, batched_tokens)
        hbm, fraction, weights = self._hbm[i], self._fraction[i], self._weights[i]
        inside_total = fraction * hbm - weights - reserve
        free = hbm - weights - reserve
        outside = np.minimum((1 - fraction) * hbm, self.constants.static_outside_limit_bytes)
        static = np.minimum(hbm - weights - outside, free)
        base = self._base[i]
        room: FloatArray = np.where(
            base == "total",
            inside_total,
            np.where(base == "static", static, np.where(free > 0, fraction * free, free)),
        )
        return room

    def _kv_bytes_per_rank(self, i: Index, tokens: ArrayLike) -> FloatArray:
        held = np.asarray(tokens, dtype=np.float64)
        total: FloatArray = np.zeros(())
        for group in self._kv_groups:
            kept = np.minimum(held, group.cap_tokens[i])
            total = total + group.rank_bytes[i] * kept + group.rank_state_bytes[i]
        return total / self._page[i] / self._stages[i]

    def kv_bytes_per_sequence(self, i: Index, tokens: ArrayLike) -> FloatArray:
        """What one sequence of `tokens` tokens takes of `kv_room_bytes`, on average over the
        replica's attention groups: the sum over all sequences of the replica must stay within
        the room of one GPU. Pages, windows, states and replication included.
        """
        return self._kv_bytes_per_rank(i, tokens) / self._groups[i]

    def longest_fits(
        self, i: Index, tokens: ArrayLike, batched_tokens: ArrayLike = 512
    ) -> NDArray[np.bool_]:
        """Whether one sequence of `tokens` tokens fits on the attention group that holds it."""
        fits: NDArray[np.bool_] = np.asarray(
            self._kv_bytes_per_rank(i, tokens) <= self.kv_room_bytes(i, batched_tokens)
        )
        return fits

    def kv_transfer_bytes(self, i: Index, tokens: ArrayLike) -> FloatArray:
        """Bytes of cache that a request of `tokens` prompt tokens moves from prefill to decode:
        the whole model once, only what windows keep, states included.
        """
        held = np.asarray(tokens, dtype=np.float64)
        total: FloatArray = np.zeros(())
        for group in self._kv_groups:
            kept = np.minimum(held, group.cap_tokens[i])
            total = total + group.whole_bytes[i] * kept + group.whole_state_bytes[i]
        return total

    def max_num_seqs(self, i: Index) -> FloatArray:
        """Sequences that the engine admits to a replica: its limit on every attention group."""
        return self._max_seqs[i] * self._groups[i]

    def max_num_seqs_per_rank(self, i: Index) -> FloatArray:
        """Sequences that the engine admits to one attention group."""
        return self._max_seqs[i]

    def nic_bytes_per_s(self, i: Index) -> FloatArray:
        """Scale-out bandwidth of the replica, all GPUs together, one direction."""
        return self._nic[i]


def _admitted_sequences(config: PoolConfig) -> int:
    """The engine's limit per attention group; smaller on GPUs below `LARGE_GPU_BYTES`."""
    engine = config.engine
    if config.accelerator.hbm_bytes >= LARGE_GPU_BYTES:
        return engine.max_num_seqs
    return min(engine.max_num_seqs, engine.max_num_seqs_small_gpu)


def _longest_stage_layers(config: PoolConfig) -> int:
    return math.ceil(config.model.layers / config.layout.pipeline_parallel)


def _kv_row(config: PoolConfig, slot: int) -> tuple[float, float, float, float, float]:
    """One attention group of one configuration, in the order of `_KvGroup`; zeros if absent."""
    groups = config.model.attention
    if slot >= len(groups):
        return 0.0, 0.0, 0.0, 0.0, 0.0
    group = groups[slot]
    layers = group.layers * _draft_layer_factor(config)
    shards = min(config.layout.tensor_parallel, max(group.kv_shards, 1))
    cached = layers * group.kv_elements_per_token * KV_BYTES[config.kv_precision]
    index = layers * group.index_bytes_per_token
    state = group.layers * group.state_bytes_per_sequence
    return cached / shards + index, cached + index, stored_cap(group), state / shards, state


def _draft_layer_factor(config: PoolConfig) -> float:
    """A draft head is one more layer with a cache of its own."""
    return 1.0 if config.speculative is None else 1.0 + 1.0 / config.model.layers


def drafts_with_own_layers(config: PoolConfig) -> bool:
    """Whether the draft model is the checkpoint's own multi-token-prediction layers."""
    guess, own = config.speculative, config.model.mtp_parameters
    return guess is not None and own > 0 and guess.draft_parameters == own


def draft_weight_bytes(config: PoolConfig, each: ComponentBytes) -> float:
    """Bytes per weight of the draft model: bf16, or as the checkpoint has its own MTP layers."""
    return each.mtp if drafts_with_own_layers(config) else WEIGHT_BYTES["bf16"]


def _weights_per_rank(config: PoolConfig, each: ComponentBytes) -> float:
    """Bytes on the fullest GPU: the layers of the longest stage, with the larger of embedding and
    head (one stage holds both, or one copy if they are tied).
    """
    model, layout = config.model, config.layout
    tensor, gpus, stages = layout.tensor_parallel, layout.stage_gpus, layout.pipeline_parallel
    attention = sum(
        group.layers * attention_parameters_per_rank(group, model.hidden, tensor)
        for group in model.attention
    )
    expert_share = model.experts / gpus
    if layout.expert_parallel > 1:
        expert_share = math.ceil(expert_share)
    layered = (
        attention * each.attention
        + model.dense_ffn_layers * model.dense_ffn_parameters_per_layer * each.dense / tensor
        + model.moe_layers * model.shared_parameters_per_layer * each.shared / tensor
        + model.moe_layers * model.expert_parameters * expert_share * each.experts
    )
    layered *= _longest_stage_layers(config) / model.layers
    embedding = model.embedding_parameters * WEIGHT_BYTES["bf16"] / tensor
    head = model.head_parameters * each.head / tensor
    if model.tied_embeddings:
        ends = max(embedding, head)
    else:
        ends = embedding + head if stages == 1 else max(embedding, head)
    draft = config.speculative.draft_parameters if config.speculative else 0.0
    return layered + ends + draft * draft_weight_bytes(config, each) / gpus


def _column(values: Sequence[float]) -> FloatArray:
    return np.array(values, dtype=np.float64)
