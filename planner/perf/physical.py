"""Compiled configurations, and the physical coefficients that rooflines are made of.

Everything public here is at efficiency 1: what arithmetic, HBM and links must take at least. The
calibrated step times built on the same arrays are `StepModel`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.perf.compiled import attention_core, scalars
from planner.perf.constants import Constants
from planner.perf.corrections import NO_CORRECTION, Correction
from planner.perf.memory import Index, MemoryModel
from planner.perf.work import FloatArray, causal_pairs

if TYPE_CHECKING:
    from planner.catalog.cards import ComponentBytes
    from planner.perf.config import PoolConfig


@dataclass(frozen=True, slots=True)
class Core:
    """One slot of attention groups over all configurations, at efficiency 1 on one rank.

    `read_s` per visible token and `index_s` per context token; `flop_s` and `index_flop_s` the
    same for arithmetic of a decode step; `pair_s` per query-key pair of prefill. `query_rows` of
    one sequence and token share a cache head: rows of a matrix product in decode.
    """

    cap_tokens: FloatArray
    read_s: FloatArray
    index_s: FloatArray
    state_s: FloatArray
    flop_s: FloatArray
    index_flop_s: FloatArray
    pair_s: FloatArray
    index_pair_s: FloatArray
    query_rows: FloatArray


def join(compute_s: FloatArray, memory_s: FloatArray) -> FloatArray:
    """Smooth maximum of compute and memory time, sqrt(c^2 + m^2)."""
    # np.hypot guards against overflow that seconds cannot reach, at ten times the price.
    return np.sqrt(compute_s * compute_s + memory_s * memory_s)


class PhysicalModel(MemoryModel):
    """Arrays of coefficients of many configurations, addressed by `i` as in `MemoryModel`.

    `calibrated` decides whether the fitted efficiencies enter the private terms that `StepModel`
    adds up; the public coefficients never contain them, nor `corrections`, one for each
    configuration that was measured. Token and sequence counts are of the whole
    replica; context is tokens per sequence.
    """

    def __init__(
        self,
        configs: Sequence[PoolConfig],
        constants: Constants | None = None,
        calibrated: bool = True,
        component_bytes: Sequence[ComponentBytes | None] | None = None,
        corrections: Sequence[Correction | None] | None = None,
    ) -> None:
        super().__init__(configs, constants, component_bytes)
        self.calibrated = calibrated
        c = self.constants
        rows = [
            scalars(config, each, c)
            for config, each in zip(self.configs, self.component_bytes, strict=True)
        ]
        column = {
            name: np.array([row[name] for row in rows], dtype=np.float64)
            for name in (rows[0] if rows else {})
        }
        self._c = column
        given = corrections if calibrated and corrections is not None else [None] * len(rows)
        measured = [each or NO_CORRECTION for each in given]
        self._step_factor = np.array([each.step_time_factor for each in measured])
        self._step_extra_s = np.array([each.step_overhead_s for each in measured])
        self._prefill_factor = np.array([each.prefill_time_factor for each in measured])
        depth = max((len(config.model.attention) for config in self.configs), default=0)
        self._cores = [
            Core(
                *(
                    np.array(values, dtype=np.float64)
                    for values in zip(*(attention_core(x, slot) for x in self.configs), strict=True)
                )
            )
            for slot in range(depth)
        ]
        self._calibrate(c)

    def recalibrated(self, constants: Constants) -> Self:
        """The same model with other constants, at none of the cost of compiling it: what a fit asks
        for. Those of links, activations and memory stay as it was compiled with.
        """
        other = copy(self)
        other._calibrate(constants)
        return other

    def _calibrate(self, c: Constants) -> None:
        self.constants = c
        # Inverse efficiencies of compute, weight reads, cache reads, attention compute.
        self._ce = 1 / c.compute_efficiency_fraction if self.calibrated else 1.0
        self._we = 1 / c.weight_bandwidth_fraction if self.calibrated else 1.0
        self._ke = 1 / c.kv_bandwidth_fraction if self.calibrated else 1.0
        self._ae = 1 / c.attention_compute_fraction if self.calibrated else 1.0
        self._tile = c.tile_rows if self.calibrated else 0.0
        engines = [c.engine(config.engine.name) for config in self.configs]
        own_s = np.array([each.layer_overhead_s for each in engines])
        count = self._c
        if engines:
            self._overhead_s = (
                count["layers"] * (c.layer_overhead_s + own_s)
                + count["fp8_expert_layers"] * c.fp8_expert_layer_overhead_s
                + count["mixer_extras"] * c.mixer_extra_overhead_s
            )
            self._sequence_overhead_s = count["layers"] * c.sequence_layer_overhead_s
            self._draft_overhead_s = count["draft_layers"] * (c.layer_overhead_s + own_s)
            launches = count["moe_layers"] + count["mixer_extras"]
            self._ttft_launch_s = launches * np.array([e.ttft_launch_s for e in engines])

    def take(self, indices: NDArray[np.int64]) -> Self:
        """The same model of some of its configurations, in the order of `indices` (N,).

        Callers that ask for the same rows again and again address them with a slice instead of
        an index array, which copies nothing.
        """
        part = super().take(indices)
        part._c = {name: values[indices] for name, values in self._c.items()}
        part._prefill_factor = self._prefill_factor[indices]
        part._step_factor = self._step_factor[indices]
        part._step_extra_s = self._step_extra_s[indices]
        part._overhead_s = self._overhead_s[indices]
        part._sequence_overhead_s = self._sequence_overhead_s[indices]
        part._draft_overhead_s = self._draft_overhead_s[indices]
        part._ttft_launch_s = self._ttft_launch_s[indices]
        part._cores = [
            Core(*(getattr(core, each.name)[indices] for each in fields(core)))
            for core in self._cores
        ]
        return part

    def _lanes(
        self,
        i: Index,
        tokens: ArrayLike,
        head_tokens: ArrayLike | None,
        coverage_tokens: ArrayLike | None,
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Tokens of a lane, tokens and head tokens of an attention rank, distinct experts read."""
        c = self._c
        stages, groups = c["stages"][i], c["groups"][i]
        lane = np.asarray(tokens, dtype=np.float64) / stages
        head = lane if head_tokens is None else np.asarray(head_tokens, dtype=np.float64) / stages
        drawn = (
            lane
            if coverage_tokens is None
            else np.asarray(coverage_tokens, dtype=np.float64) / stages
        )
        return lane, lane / groups, head / groups, self._distinct_experts(i, drawn)

    def _distinct_experts(self, i: Index, drawn: FloatArray) -> FloatArray:
        """Expected distinct experts that `drawn` tokens of one layer choose, k of E each:
        E (1 - (1 - k/E)^n), choices taken as independent and even.
        """
        experts, log_miss = self._c["experts"][i], self._c["log_miss"][i]
        hit: FloatArray = -experts * np.expm1(drawn * log_miss)
        return hit

    def _core_terms(
        self, i: Index, context: ArrayLike
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Compute, memory and joined time one sequence adds on its own rank, efficiencies in."""
        tokens = np.asarray(context, dtype=np.float64)
        queries = self._c["queries"][i]
        compute: FloatArray = np.zeros(())
        memory: FloatArray = np.zeros(())
        joined: FloatArray = np.zeros(())
        for core in self._cores:
            seen = np.minimum(tokens, core.cap_tokens[i])
            flops = core.flop_s[i] * seen + core.index_flop_s[i] * tokens
            flops = self._ae * queries * flops
            if self.calibrated:
                filled = core.query_rows[i] * queries / self.constants.attention_tile_rows
                flops = self._c["attention_slowdown"][i] * flops / np.minimum(filled, 1.0)
            reads = core.read_s[i] * seen + core.index_s[i] * tokens + core.state_s[i]
            reads = self._ke * reads
            compute, memory = compute + flops, memory + reads
            joined = joined + join(flops, reads)
        return compute, memory, joined

    def _pair_terms(
        self,
        i: Index,
        seen_pairs: Sequence[FloatArray],
        all_pairs: FloatArray,
        seen_keys: Sequence[FloatArray],
        all_keys: FloatArray,
        steps: FloatArray,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Compute, memory and joined time of prefill attention on one rank.

        `seen_pairs` and `seen_keys` per slot of attention groups are the query-key pairs computed
        and the keys read from HBM; sparse layers score all pairs and read all index keys besides.
        """
        compute: FloatArray = np.zeros(())
        memory: FloatArray = np.zeros(())
        joined: FloatArray = np.zeros(())
        for core, pairs, keys in zip(self._cores, seen_pairs, seen_keys, strict=True):
            flops = self._ae * (core.pair_s[i] * pairs + core.index_pair_s[i] * all_pairs)
            if self.calibrated:
                flops = self._c["attention_slowdown"][i] * flops
            reads = core.read_s[i] * keys + core.index_s[i] * all_keys + core.state_s[i] * steps
            reads = self._ke * reads
            compute, memory = compute + flops, memory + reads
            joined = joined + join(flops, reads)
        return compute, memory, joined

    def _token_bound(
        self,
        i: Index,
        tokens: ArrayLike,
        head_tokens: ArrayLike | None,
        coverage_tokens: ArrayLike | None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Compute, memory and collective seconds of g at efficiency 1."""
        c = self._c
        lane, local, head, hit = self._lanes(i, tokens, head_tokens, coverage_tokens)
        compute = (
            (c["attention_c"][i] + c["ffn_c"][i]) * local
            + c["expert_c"][i] * c["active"][i] * lane
            + c["head_c"][i] * head
        )
        memory = (
            c["attention_m"][i]
            + c["ffn_m"][i]
            + c["expert_m"][i] * hit
            + np.where(head > 0, c["head_m"][i], 0.0)
        )
        return compute, memory, c["link_s"][i] * local

    def compute_s_per_token(self, i: Index) -> FloatArray:
        """Seconds of arithmetic per token of the replica, attention core apart, head included."""
        c = self._c
        dense = (c["attention_c"][i] + c["ffn_c"][i] + c["head_c"][i]) / c["groups"][i]
        total: FloatArray = (dense + c["expert_c"][i] * c["active"][i]) / c["stages"][i]
        return total

    def weight_read_s(self, i: Index, tokens: ArrayLike | None = None) -> FloatArray:
        """Seconds to read once the weights that a step of `tokens` tokens of the replica touches
        (default: all experts), on the GPUs of one stage.
        """
        c = self._c
        rest = c["attention_m"][i] + c["ffn_m"][i] + c["head_m"][i]
        if tokens is None:
            hit = c["experts"][i]
        else:
            drawn = np.asarray(tokens, dtype=np.float64) / c["stages"][i]
            hit = self._distinct_experts(i, drawn)
        total: FloatArray = rest + c["expert_m"][i] * hit
        return total

    def kv_read_s(self, i: Index, context: ArrayLike) -> FloatArray:
        """Seconds of HBM reads that one sequence at `context` adds to a step of the replica."""
        memory = self._core_terms(i, context)[1] / self._ke
        spread: FloatArray = self._c["groups"][i] * self._c["stages"][i]
        return memory / spread

    def compute_s_per_sequence(self, i: Index, context: ArrayLike) -> FloatArray:
        """Seconds of attention arithmetic that one sequence adds to a step, at the peak of its
        cache's precision.
        """
        tokens = np.asarray(context, dtype=np.float64)
        compute: FloatArray = np.zeros(())
        for core in self._cores:
            seen = np.minimum(tokens, core.cap_tokens[i])
            compute = compute + core.flop_s[i] * seen + core.index_flop_s[i] * tokens
        compute = self._c["queries"][i] * compute
        spread: FloatArray = self._c["groups"][i] * self._c["stages"][i]
        return compute / spread

    def prefill_compute_s(self, i: Index, uncached: ArrayLike, cached: ArrayLike) -> FloatArray:
        """Seconds of arithmetic of one prompt's prefill on the replica: projections and experts of
        every uncached token, the head once, exact causal pairs at the peak of the cache's
        precision.
        """
        new = np.asarray(uncached, dtype=np.float64)
        old = np.asarray(cached, dtype=np.float64)
        c = self._c
        spread = c["groups"][i] * c["stages"][i]
        pairs: FloatArray = np.zeros(())
        everything = causal_pairs(new, old, np.inf)
        for core in self._cores:
            seen = causal_pairs(new, old, core.cap_tokens[i])
            pairs = pairs + core.pair_s[i] * seen + core.index_pair_s[i] * everything
        head = np.where(new > 0, c["head_c"][i], 0.0)
        layers = self.compute_s_per_token(i) - c["head_c"][i] / spread
        return layers * new + (head + pairs) / spread

    def collective_s_per_token(self, i: Index) -> FloatArray:
        """Seconds on the links per token of the replica, at full link bandwidth, no latency."""
        share: FloatArray = self._c["link_s"][i] / (self._c["groups"][i] * self._c["stages"][i])
        return share

    def bound_terms(
        self, i: Index, sequences: ArrayLike, context: ArrayLike
    ) -> dict[str, FloatArray]:
        """The three resources of a decode step at efficiency 1: `compute`, `hbm`, `links`."""
        batch = np.asarray(sequences, dtype=np.float64)
        compute, memory, link = self._token_bound(i, batch * self._c["queries"][i], None, None)
        return {
            "compute": compute + batch * self.compute_s_per_sequence(i, context),
            "hbm": memory + batch * self.kv_read_s(i, context),
            "links": link,
        }
