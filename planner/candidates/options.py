"""The candidate table: the contract between the physics and the optimisation.

A *pool option* is one way to run replicas of one model: accelerator, parallel layout,
precisions, role, the classes it admits. Every row of an
option is written per replica and second and normalised to

    sum_k coefficient[row, k] * x_k  <=  n

with x_k the requests/s of class k through the pool and n its replicas, so the program,
the dominance test and the pricing test all read the same numbers. Prefill options carry a
capacity table beside the rows: sum_k service_s[k] * x_k <= capacity(n).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.perf.config import PoolConfig
from planner.queueing import CapacityTable

Floats = NDArray[np.float64]

ROWS: Final = (
    "calibrated_step_1",
    "calibrated_step_2",
    "calibrated_step_3",
    "calibrated_step_4",
    "calibrated_step_5",
    "calibrated_step_6",
    "compute",
    "hbm_bandwidth",
    "hbm_capacity",
    "interconnect",
    "kv_transfer",
    "batch_limit",
    "chunk_budget",
    "prefill_utilization",
)
"""Row families of an option, in the order of the first axis of `PoolOption.coefficients`."""

ROW_INDEX: Final = {name: index for index, name in enumerate(ROWS)}

PROGRAM_MARGIN: Final = 1e-6
"""Program rows are tightened by this factor, because the solver's own tolerance is 1e-6."""


@dataclass(frozen=True, slots=True)
class PoolOption:
    """One column of the program.

    `coefficients` is (rows, classes of the whole instance), replicas per request/s; a class
    that the option does not admit has `inf` in every row, a row that does not bind has 0.
    `step_s` is the level: the longest mean step time that the rows admit (None for
    prefill). `service_s` is the mean busy time of a prefill replica per request (prefill
    only), in replica-seconds.
    """

    name: str
    config: PoolConfig
    role: str
    site: str
    gpus_per_node: int
    classes: tuple[int, ...]
    coefficients: Floats
    step_s: float | None = None
    chunk_tokens: int | None = None
    variant: str = ""
    """Which of several safe descriptions of the same pool this is; "" for the first."""
    service_s: Floats | None = None
    capacity: CapacityTable | None = None
    least_replicas: int = 1
    """Smallest pool that keeps the promises at these rows: waiting is short, or the prefix cache
    large enough, only from so many replicas on."""

    @property
    def model(self) -> str:
        """Card id of the model served."""
        return self.config.model.id

    @property
    def gpus(self) -> int:
        """Accelerators in one replica."""
        return self.config.layout.gpus

    @property
    def node_group(self) -> tuple[str, str, int]:
        """Site, accelerator and node size: what an offer must match to host the replica."""
        return (self.site, self.config.accelerator.id, self.gpus_per_node)

    @property
    def kv_group(self) -> tuple[str, str, str]:
        """Where a KV cache can move between prefill and decode: site, vendor, KV precision."""
        return (self.site, self.config.accelerator.vendor, self.config.kv_precision)

    @property
    def prefills(self) -> bool:
        """Whether requests are prefilled here."""
        return self.role in ("prefill", "aggregated")

    @property
    def decodes(self) -> bool:
        """Whether requests are decoded here."""
        return self.role in ("decode", "aggregated")


@dataclass(frozen=True, slots=True)
class CandidateTable:
    """Every undominated option, and how many were enumerated to get there."""

    options: tuple[PoolOption, ...]
    enumerated: int
    """Options evaluated by the performance model, before dominance."""
    configurations: int
    """Replica configurations (model, accelerator, layout, precisions) considered."""
    refusals: dict[str, dict[str, int]]
    """Per class name: why configurations cannot serve it, and how many of them."""

    def __len__(self) -> int:
        return len(self.options)
