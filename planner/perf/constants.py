"""The constants of the roofline, loaded from `planner/data/constants.yaml` with provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import yaml

from planner import resources
from planner.units import GIB

_MICRO = 1e-6
OTHER_ACCELERATORS: Final = "other accelerators"
"""Key of the band that holds where no deployment on the accelerator was fitted."""


@dataclass(frozen=True, slots=True)
class EngineConstants:
    """What is fitted for one serving engine, zero where nothing was found."""

    layer_overhead_s: float = 0.0
    """On top of the global overhead of every layer: kernels that this engine does not fuse."""
    ttft_launch_s: float = 0.0
    """Of a first token, per layer of experts and per mixer that is more than grouped-query
    attention: prefill steps outside the engine's CUDA graphs."""


@dataclass(frozen=True, slots=True)
class Band:
    """Factors on a prediction between which 80 % of held-out measurements lie."""

    tpot: tuple[float, float]
    ttft: tuple[float, float]
    rows: int


@dataclass(frozen=True, slots=True)
class Constants:
    """Constants of one engine step; none belongs to a single model or chip.

    Fractions are of the dense peak (`compute`, `attention_compute`), of HBM bandwidth
    (`weight_bandwidth`, `kv_bandwidth`) or of link bandwidth (`link`). `source`, `rows` and
    `date` say what they were fitted on. `bands` are by kind of model (`kind_of`).
    """

    source: str
    rows: int
    date: str
    accelerators: tuple[str, ...]
    compute_efficiency_fraction: float
    kv_bandwidth_fraction: float
    layer_overhead_s: float
    fp8_expert_layer_overhead_s: float
    mixer_extra_overhead_s: float
    sequence_layer_overhead_s: float
    ttft_decode_steps: float
    ttft_token_s: float
    ttft_burst_fraction: float
    ttft_burst_in_step_fraction: float
    engines: Mapping[str, EngineConstants]
    weight_bandwidth_fraction: float
    attention_compute_fraction: float
    attention_tile_rows: float
    activation_traffic_factor: float
    tile_rows: float
    link_fraction: float
    exchange_link_fraction: float
    scale_out_link_fraction: float
    collective_latency_s: float
    pipeline_hop_latency_s: float
    driver_reserve_bytes: float
    runtime_reserve_bytes: float
    collective_reserve_bytes: float
    activation_hidden_vectors: float
    activation_ffn_vectors: float
    static_outside_limit_bytes: float
    bands: Mapping[str, Band]
    standard_errors: Mapping[str, float]
    """Of the fitted values, in the units and by the names of the constants file."""

    def band(self, kind: str, accelerator: str) -> Band:
        """The band of a kind of model; on an accelerator that no fitted row was measured on, as
        wide as that of published results elsewhere besides.
        """
        own = self.bands[kind]
        if accelerator in self.accelerators:
            return own
        other = self.bands[OTHER_ACCELERATORS]
        return Band(_hull(own.tpot, other.tpot), _hull(own.ttft, other.ttft), own.rows + other.rows)

    def engine(self, name: str) -> EngineConstants:
        """What is fitted for the engine of this name; zeros for one that was not measured."""
        return self.engines.get(name, EngineConstants())


def _hull(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])


def constants_from_mapping(data: Mapping[str, Any]) -> Constants:
    """Constants from the mapping of a constants file. Raises KeyError on a missing name."""
    fitted, given, memory = data["fitted"], data["set"], data["memory"]
    return Constants(
        source=str(data["source"]),
        rows=int(data["rows"]),
        date=str(data["date"]),
        accelerators=tuple(data["accelerators"]),
        compute_efficiency_fraction=float(fitted["compute_efficiency_fraction"]),
        kv_bandwidth_fraction=float(fitted["kv_bandwidth_fraction"]),
        layer_overhead_s=fitted["layer_overhead_us"] * _MICRO,
        fp8_expert_layer_overhead_s=fitted["fp8_expert_layer_overhead_us"] * _MICRO,
        mixer_extra_overhead_s=fitted["mixer_extra_overhead_us"] * _MICRO,
        sequence_layer_overhead_s=fitted["sequence_layer_overhead_us"] * _MICRO,
        ttft_decode_steps=float(fitted["ttft_decode_steps"]),
        ttft_token_s=fitted["ttft_token_us"] * _MICRO,
        ttft_burst_fraction=float(fitted["ttft_burst_fraction"]),
        ttft_burst_in_step_fraction=float(fitted["ttft_burst_in_step_fraction"]),
        engines=MappingProxyType(
            {
                name: EngineConstants(
                    layer_overhead_s=row.get("layer_overhead_us", 0.0) * _MICRO,
                    ttft_launch_s=row.get("ttft_launch_us", 0.0) * _MICRO,
                )
                for name, row in data["engines"].items()
            }
        ),
        weight_bandwidth_fraction=float(given["weight_bandwidth_fraction"]),
        attention_compute_fraction=float(given["attention_compute_fraction"]),
        attention_tile_rows=float(given["attention_tile_rows"]),
        activation_traffic_factor=float(given["activation_traffic_factor"]),
        tile_rows=float(given["tile_rows"]),
        link_fraction=float(given["link_fraction"]),
        exchange_link_fraction=float(given["exchange_link_fraction"]),
        scale_out_link_fraction=float(given["scale_out_link_fraction"]),
        collective_latency_s=given["collective_latency_us"] * _MICRO,
        pipeline_hop_latency_s=given["pipeline_hop_latency_us"] * _MICRO,
        driver_reserve_bytes=memory["driver_reserve_gib"] * GIB,
        runtime_reserve_bytes=memory["runtime_reserve_gib"] * GIB,
        collective_reserve_bytes=memory["collective_reserve_gib"] * GIB,
        activation_hidden_vectors=float(memory["activation_hidden_vectors"]),
        activation_ffn_vectors=float(memory["activation_ffn_vectors"]),
        static_outside_limit_bytes=memory["static_outside_limit_gib"] * GIB,
        bands=MappingProxyType(
            {
                kind: Band(
                    tpot=(float(row["tpot"][0]), float(row["tpot"][1])),
                    ttft=(float(row["ttft"][0]), float(row["ttft"][1])),
                    rows=int(row["rows"]),
                )
                for kind, row in data["bands"].items()
            }
        ),
        standard_errors=MappingProxyType(
            {name: float(value) for name, value in data["standard_errors"].items()}
        ),
    )


@cache
def load_constants() -> Constants:
    """The constants shipped with the program."""
    return constants_from_mapping(yaml.safe_load(resources.read_text("constants.yaml")))
