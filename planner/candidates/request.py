"""What the enumeration needs to know: models, classes, and the hardware on offer."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.candidates.promises import NO_MARGINS, Margins
from planner.catalog.accelerators import Accelerator
from planner.catalog.cards import ModelCard
from planner.perf.backend import StepTimeBackend
from planner.perf.config import EngineProfile, PoolConfig, Speculative
from planner.workload.classes import WorkloadClass


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Interchangeable nodes: one accelerator at one site in nodes of one size."""

    site: str
    accelerator: Accelerator
    gpus_per_node: int


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model to serve, the engine that serves it, and the precisions it may be served in."""

    card: ModelCard
    engine: EngineProfile
    weight_precisions: tuple[str, ...]
    kv_precisions: tuple[str, ...]
    speculative: Speculative | None = None


@dataclass(frozen=True, slots=True)
class CandidateRequest:
    """Everything that decides which options exist; demand and prices do not."""

    models: tuple[ServedModel, ...]
    classes: tuple[WorkloadClass, ...]
    node_groups: tuple[NodeGroup, ...]
    roles: frozenset[str]
    max_gpus_per_replica: int
    backend: StepTimeBackend
    refinement: int = 0
    """0, or 1 to double the points at which frontiers of shared pools are taken."""
    margins: Margins = field(default_factory=lambda: NO_MARGINS)
    """What a simulation found the formulas to need, by class and kind of pool."""
    only: tuple[PoolConfig, ...] | None = None
    """Configurations of a given fleet; they stand in for all that could be enumerated."""
