"""The prefix cache of a pool: how many replicas must hold it together."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.perf.backend import StepTimes
from planner.pools.loads import ClassLoad
from planner.pools.prompts import ALL

Floats = NDArray[np.float64]

CACHE_SHARE: Final = 0.5
"""Share of an aggregated replica's KV room kept for reuse where hits are counted on."""
LARGEST_POOL: Final = 4096


def prefill_cache_share(step: StepTimes, batched_tokens: Floats, load: ClassLoad) -> Floats:
    """Share of a prefill replica's KV room that is free for reuse, (N,): all but the longest
    prompt on each of its lanes.
    """
    room = np.maximum(step.kv_room_bytes(ALL, batched_tokens), 1e-300)
    longest = step.kv_bytes_per_sequence(ALL, load.longest_tokens) * step.prompt_lanes(ALL)
    return np.asarray(np.maximum(1.0 - longest / room, 0.0))


def least_replicas_of_cache(
    step: StepTimes,
    batched_tokens: Floats,
    load: ClassLoad,
    cache_tokens: float,
    share: Floats | float = CACHE_SHARE,
) -> Floats:
    """Replicas whose `share` of the KV room holds `cache_tokens` of the class's prompts, (N,).

    Requests go to the replica that may hold their prefix, so no prefix is held twice. A token
    takes what it takes on average in a prompt of mean length. inf where no pool can hold it.
    """
    mean_prompt = float(load.prompt @ load.weight)
    bytes_needed = step.kv_bytes_per_sequence(ALL, mean_prompt) * cache_tokens / mean_prompt
    room = np.maximum(step.kv_room_bytes(ALL, batched_tokens), 0.0) * share
    with np.errstate(divide="ignore"):
        least = np.ceil(bytes_needed / room)
    return np.asarray(np.where(least <= LARGEST_POOL, np.maximum(least, 1.0), np.inf))
