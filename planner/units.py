"""Base units, bytes of each precision, and the few words for precisions, roles and terms.

Inside the program every quantity is in seconds, bytes, FLOP/s, tokens, requests per second
and USD per hour; milliseconds, GB and percent exist only where people read or write.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

GIB: Final = 1024**3
GB: Final = 10**9
HOURS_PER_MONTH: Final = 730.0
"""Hours in an average month (365 x 24 / 12), the figure cloud price lists use."""
SECONDS_PER_DAY: Final = 86_400.0

WEIGHT_BYTES: Final[Mapping[str, float]] = MappingProxyType(
    {
        "bf16": 2.0,
        "fp8": 1.0,
        "int8": 1.0,
        # 4-bit weights carry scales: one byte for 32 (MXFP4) adds 1/32, two bytes for 64 the same.
        "int4": 0.5 + 1 / 32,
        # NVFP4: one FP8 scale for 16 weights.
        "fp4": 0.5 + 1 / 16,
    }
)
"""Bytes per weight, scales included."""

KV_BYTES: Final[Mapping[str, float]] = MappingProxyType({"bf16": 2.0, "fp8": 1.0})
"""Bytes per cached element."""

ROLES: Final = ("prefill", "decode", "aggregated")
TERMS: Final = ("on_demand", "reserved_1y", "reserved_3y", "spot", "owned")
