"""A fleet as deployed, the rules it must keep, and what its re-evaluation finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from planner.catalog.offers import Offer
from planner.fleet.inputs import Stock
from planner.perf.backend import StepTimeBackend
from planner.perf.config import PoolConfig
from planner.workload.classes import Slo

TOLERANCE: Final = 1e-9
"""Relative tolerance of every check."""


@dataclass(frozen=True, slots=True)
class FleetPool:
    """A pool as it would be deployed: what, how many, and which requests go there."""

    id: str
    config: PoolConfig
    role: str
    site: str
    gpus_per_node: int
    replicas: int
    chunk_tokens: int | None
    requests_per_s: Mapping[str, float]

    @property
    def gpus(self) -> int:
        """Accelerators of the whole pool."""
        return self.replicas * self.config.layout.gpus

    @property
    def node_group(self) -> tuple[str, str, int]:
        """Site, accelerator and node size that host it."""
        return (self.site, self.config.accelerator.id, self.gpus_per_node)

    @property
    def kv_group(self) -> tuple[str, str, str]:
        """Site, vendor and KV precision: where its cache can move."""
        return (self.site, self.config.accelerator.vendor, self.config.kv_precision)


@dataclass(frozen=True, slots=True)
class FleetRules:
    """Limits of the instance that are about the fleet as a whole."""

    offers: Mapping[str, Offer]
    stocks: Sequence[Stock]
    budget_usd_per_hour: float | None
    max_pool_kinds_per_model: int | None
    roles: frozenset[str]
    max_gpus_per_replica: int
    backend: StepTimeBackend


@dataclass(frozen=True, slots=True)
class PoolState:
    """The operating point of one pool. Seconds; utilisations as fractions."""

    utilization: Mapping[str, float]
    pressure: Mapping[str, float]
    """Use of every limit that can break, 1 at the limit."""
    step_s: float | None = None
    batch: float | None = None
    prefill_seconds: Mapping[str, float] = field(default_factory=dict)
    """Replica-seconds per second spent on prompts of each class."""
    cached_seconds: Mapping[str, float] = field(default_factory=dict)
    """The part of them that attention over cached tokens takes."""
    decode_seconds: Mapping[str, float] = field(default_factory=dict)
    cached_tokens: Mapping[str, float] = field(default_factory=dict)
    """Mean input tokens of a request of each class that the prefix cache holds."""

    @property
    def binding(self) -> str:
        """The limit that more load would break first."""
        return max(self.pressure, key=lambda name: self.pressure[name])


@dataclass(frozen=True, slots=True)
class SloState:
    """What a class gets on one promise; seconds."""

    slo: Slo
    predicted_s: float
    first_token_s: float = 0.0
    """The part of it up to the first token, which is predicted less well."""

    @property
    def kept(self) -> bool:
        """Whether the prediction is within the limit."""
        return self.predicted_s <= self.slo.limit_s * (1 + TOLERANCE)


@dataclass(frozen=True, slots=True)
class Verification:
    """Cost, operating points and promises of a fleet, and everything it breaks."""

    cost_usd_per_hour: float
    pools: Mapping[str, PoolState]
    slos: Mapping[str, tuple[SloState, ...]]
    violations: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is broken."""
        return not self.violations
