"""What classes are promised on each configuration: their limits, and margins kept on them.

A margin of 1.1 on a latency means that the formula's value may use 1/1.1 of the limit only. A
simulation that finds a pool slower than its formula asks for such a margin, for one class on one
kind of pool; everywhere else it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from planner.perf.config import PoolConfig
from planner.workload.classes import WorkloadClass

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Margin:
    """Factors, 1 or more, by which the formulas of one class on one kind of pool stay below its
    limits on the first token and on the time per output token.
    """

    ttft: float = 1.0
    tpot: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a factor that would loosen a promise."""
        if not (self.ttft >= 1.0 and self.tpot >= 1.0):
            raise ValueError(f"margins are 1 or more, not {self.ttft} and {self.tpot}")


Margins: TypeAlias = Mapping[tuple[str, str], Margin]
"""By class name and `pool_kind`."""
NO_MARGIN: Final = Margin()
NO_MARGINS: Final[Margins] = MappingProxyType({})


def pool_kind(config: PoolConfig, role: str, chunk_tokens: int | None) -> str:
    """What pools must have in common to share a margin: all but site, size and classes."""
    parts = [
        config.model.id,
        role,
        config.accelerator.id,
        config.layout.label,
        f"{config.weight_precision}-kv-{config.kv_precision}",
    ]
    if config.speculative is not None:
        parts.append(f"spec{config.speculative.draft_tokens}")
    if chunk_tokens is not None:
        parts.append(f"chunk{chunk_tokens}")
    return "|".join(parts)


@dataclass(frozen=True, slots=True)
class Promises:
    """The classes of a pool (K of them) and their margins on each configuration, (N, K)."""

    workloads: tuple[WorkloadClass, ...]
    ttft_margin: Floats
    tpot_margin: Floats

    @classmethod
    def of(
        cls, workloads: Sequence[WorkloadClass], kinds: Sequence[str], margins: Margins
    ) -> Promises:
        """The promises to `workloads` on configurations of these `kinds` (N,)."""
        shape = (len(kinds), len(workloads))
        ttft, tpot = np.ones(shape), np.ones(shape)
        if margins:
            for n, kind in enumerate(kinds):
                for k, workload in enumerate(workloads):
                    margin = margins.get((workload.name, kind), NO_MARGIN)
                    ttft[n, k], tpot[n, k] = margin.ttft, margin.tpot
        return cls(tuple(workloads), ttft, tpot)

    def take(self, keep: Ints) -> Promises:
        """The same on some of the configurations."""
        return Promises(self.workloads, self.ttft_margin[keep], self.tpot_margin[keep])
