"""Profiles of the serving engines, loaded from `planner/data/engines.yaml`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import yaml

from planner import resources
from planner.errors import InputError, Problem
from planner.perf.config import EngineProfile

_ALIASES = {"trtllm": "tensorrt-llm", "trt-llm": "tensorrt-llm", "tensorrtllm": "tensorrt-llm"}


@cache
def engines() -> Mapping[str, EngineProfile]:
    """Every engine's profile by name: vllm, sglang, tensorrt-llm."""
    profiles: dict[str, EngineProfile] = {}
    for name, row in yaml.safe_load(resources.read_text("engines.yaml"))["engines"].items():
        profiles[name] = EngineProfile(
            name=name,
            source=str(row["source"]),
            page_efficiency_fraction=float(row["page_efficiency_fraction"]),
            kv_occupancy_limit_fraction=float(row["kv_occupancy_limit_fraction"]),
            memory_utilization_fraction=float(row["memory_utilization_fraction"]),
            sampler_bytes_per_logit=float(row["sampler_bytes_per_logit"]),
            memory_base=str(row["memory_base"]),
            chunk_budgets_tokens=tuple(int(n) for n in row["chunk_budgets_tokens"]),
            max_num_seqs=int(row["max_num_seqs"]),
            max_num_seqs_small_gpu=int(row["max_num_seqs_small_gpu"]),
            prefix_cache=bool(row["prefix_cache"]),
            aggregated_utilization_cap_fraction=float(row["aggregated_utilization_cap_fraction"]),
            routing=row["routing"],
        )
    return MappingProxyType(profiles)


def engine_profile(name: str) -> EngineProfile:
    """The profile called `name` (an alias such as `trtllm` will do).

    Raises InputError, with the nearest name, if there is none.
    """
    key = name.strip().lower().replace("_", "-")
    key = _ALIASES.get(key, key)
    known = engines()
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, [*known, *_ALIASES], n=1)
    hint = f"did you mean '{_ALIASES.get(near[0], near[0])}'?" if near else ""
    raise InputError(
        [Problem(f"unknown engine '{name}'", hint=hint or f"known: {', '.join(known)}")]
    )
