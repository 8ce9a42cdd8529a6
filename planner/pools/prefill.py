"""Prefill replicas: how long a prompt occupies one, and when its first token is out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.perf.backend import StepTimes
from planner.pools.loads import ClassLoad
from planner.pools.prompts import (
    EACH,
    attention_groups,
    chunks_token_s,
    longest_of_groups_s,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PrefillService:
    """Busy time and time to the first token per prompt point, both (N, P), seconds.

    `own_s` runs from the start of service to the first token at the decode side: compute,
    engine overhead and KV transfer; waiting for other prompts is not in it.
    """

    busy_s: Floats
    own_s: Floats

    def moments(self, weight: Floats) -> tuple[Floats, Floats]:
        """E[S] and E[S^2] of the busy time over the prompts of a class, (N,)."""
        return self.busy_s @ weight, self.busy_s**2 @ weight


def prefill_service(
    step: StepTimes,
    load: ClassLoad,
    chunk_tokens: Floats,
    transfer_bytes_per_s: Floats,
) -> tuple[PrefillService, PrefillService]:
    """Service of one class on every configuration of `step`, one prompt at a time and packed.

    One at a time: a prompt runs alone, cut into chunks. Packed: short prompts share chunks
    of `chunk_tokens` (N,), so each occupies its share of a full one, and in the worst case waits
    for the chunk under way, straddles two more and leaves with the last. Each of the two
    bounds the engine from above, so either may prove an SLO.
    """
    factor = step.prefill_time_factor(EACH)
    lanes = step.prompt_lanes(EACH)
    chunk = chunk_tokens[:, None]
    prompts = (EACH, load.uncached, load.cached, chunk)
    busy_s = step.prefill_time_s(*prompts)
    alone_s = step.prefill_time_s(*prompts, alone=True)
    attention_s = np.maximum(busy_s - factor * chunks_token_s(step, load, chunk_tokens), 0.0)
    longest_s, mean_s = longest_of_groups_s(step, load, chunk_tokens, attention_s)
    groups = attention_groups(step)
    straggling = (longest_s / np.maximum(mean_s, 1e-300))[:, None]
    # Groups that step together wait for the longest context among them.
    busy_s = busy_s + (straggling - 1.0) * attention_s
    chunks = np.maximum(np.ceil(load.uncached / chunk), 1.0)
    behind_s = np.maximum(chunks * longest_s[:, None] - attention_s, 0.0) * lanes
    # A prompt that comes while other groups step waits for the end of their step.
    under_way_s = ((busy_s @ load.weight) / (chunks @ load.weight))[:, None] * lanes
    alone_s = alone_s + np.where(groups[:, None] > 1.0, behind_s + under_way_s, 0.0)
    attention_s = attention_s * straggling
    attention_per_token_s = (attention_s @ load.weight)[:, None] / load.uncached_mean
    tokens = chunk * lanes
    tokens_s = factor * step.token_time_s(EACH, tokens, 0.0)
    packed_busy_s = tokens_s * (load.uncached / tokens) + attention_s
    chunk_s = tokens_s + tokens * attention_per_token_s
    whole = np.floor(load.uncached / chunk)
    packed_own_s = (whole + 3.0) * chunk_s + attention_s * lanes

    transfer_s = step.kv_transfer_bytes(EACH, load.prompt) / transfer_bytes_per_s[:, None]
    after_s = step.ttft_fixed_s(EACH, load.prompt) + transfer_s
    return (
        PrefillService(busy_s, alone_s + after_s),
        PrefillService(packed_busy_s, packed_own_s + after_s),
    )
