"""The constants of the roofline, loaded from `planner/data/constants.yaml` with provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from planner import resources
from planner.units import GIB

_MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class Constants:
    """Global constants of one engine step; none belongs to a single model, chip or engine.

    Fractions are of the dense peak (`compute`, `attention_compute`), of HBM bandwidth
    (`weight_bandwidth`, `kv_bandwidth`) or of link bandwidth (`link`). `source`, `rows` and
    `date` say what they were fitted on.
    """

    source: str
    rows: int
    date: str
    accelerators: tuple[str, ...]
    compute_efficiency_fraction: float
    weight_bandwidth_fraction: float
    kv_bandwidth_fraction: float
    activation_traffic_factor: float
    layer_overhead_s: float
    moe_layer_overhead_s: float
    mla_layer_overhead_s: float
    linear_layer_overhead_s: float
    sparse_layer_overhead_s: float
    sequence_overhead_s: float
    mixing_share_fraction: float
    attention_compute_fraction: float
    step_overhead_s: float
    tile_rows: float
    link_fraction: float
    scale_out_link_fraction: float
    collective_latency_s: float
    pipeline_hop_latency_s: float
    driver_reserve_bytes: float
    runtime_reserve_bytes: float
    collective_reserve_bytes: float
    activation_hidden_vectors: float
    activation_ffn_vectors: float
    static_outside_limit_bytes: float
    band_low_factor: float
    band_high_factor: float
    ttft_band_low_factor: float
    ttft_band_high_factor: float


def constants_from_mapping(data: Mapping[str, Any]) -> Constants:
    """Constants from the mapping of a constants file. Raises KeyError on a missing name."""
    fitted, given, memory, band = data["fitted"], data["set"], data["memory"], data["band"]
    return Constants(
        source=str(data["source"]),
        rows=int(data["rows"]),
        date=str(data["date"]),
        accelerators=tuple(data["accelerators"]),
        compute_efficiency_fraction=float(fitted["compute_efficiency_fraction"]),
        weight_bandwidth_fraction=float(fitted["weight_bandwidth_fraction"]),
        kv_bandwidth_fraction=float(fitted["kv_bandwidth_fraction"]),
        activation_traffic_factor=float(fitted["activation_traffic_factor"]),
        layer_overhead_s=fitted["layer_overhead_us"] * _MICRO,
        moe_layer_overhead_s=fitted["moe_layer_overhead_us"] * _MICRO,
        mla_layer_overhead_s=fitted["mla_layer_overhead_us"] * _MICRO,
        linear_layer_overhead_s=fitted["linear_layer_overhead_us"] * _MICRO,
        sparse_layer_overhead_s=fitted["sparse_layer_overhead_us"] * _MICRO,
        sequence_overhead_s=fitted["sequence_overhead_us"] * _MICRO,
        mixing_share_fraction=float(fitted["mixing_share_fraction"]),
        attention_compute_fraction=float(given["attention_compute_fraction"]),
        step_overhead_s=given["step_overhead_us"] * _MICRO,
        tile_rows=float(given["tile_rows"]),
        link_fraction=float(given["link_fraction"]),
        scale_out_link_fraction=float(given["scale_out_link_fraction"]),
        collective_latency_s=given["collective_latency_us"] * _MICRO,
        pipeline_hop_latency_s=given["pipeline_hop_latency_us"] * _MICRO,
        driver_reserve_bytes=memory["driver_reserve_gib"] * GIB,
        runtime_reserve_bytes=memory["runtime_reserve_gib"] * GIB,
        collective_reserve_bytes=memory["collective_reserve_gib"] * GIB,
        activation_hidden_vectors=float(memory["activation_hidden_vectors"]),
        activation_ffn_vectors=float(memory["activation_ffn_vectors"]),
        static_outside_limit_bytes=memory["static_outside_limit_gib"] * GIB,
        band_low_factor=float(band["low_factor"]),
        band_high_factor=float(band["high_factor"]),
        ttft_band_low_factor=float(band["ttft_low_factor"]),
        ttft_band_high_factor=float(band["ttft_high_factor"]),
    )


@cache
def load_constants() -> Constants:
    """The constants shipped with the program."""
    return constants_from_mapping(yaml.safe_load(resources.read_text("constants.yaml")))
