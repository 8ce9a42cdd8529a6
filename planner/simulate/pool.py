"""What the replicas of a pool share: their tables, their queue, and counts over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.simulate.tables import StepTables


@dataclass(frozen=True, slots=True)
class Hits:
    """What the requests of a class find in the prefix cache of a pool: `input_share` of their
    prompt, for a share `request_share` of them.
    """

    input_share: float
    request_share: float


@dataclass(frozen=True, slots=True, eq=False)
class PoolModel:
    """A pool as it is simulated. Rates are requests/s of the whole pool, by class name."""

    id: str
    role: str
    replicas: int
    routing: str
    kv_group: tuple[str, str, str]
    """Site, vendor and KV precision: prefill and decode pools pass caches on inside it."""
    requests_per_s: Mapping[str, float]
    tables: StepTables
    transfer_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    """Slowest link on the way of a class's cache from this prefill pool to its receivers."""
    batch: float = 0.0
    """Sequences in flight on one replica as the plan predicts them."""
    hits: Mapping[str, Hits] = field(default_factory=dict)
    """By class, where they hang on the room of this pool; else a request's own tokens hold."""
    prefix_cache: bool = True
    """Whether block ids of a replayed trace are looked up."""


class PoolState:
    """Counts of a pool and their integrals over time."""

    __slots__ = (
        "_last_s",
        "model",
        "queue",
        "running",
        "running_integral",
        "up",
        "up_integral",
        "waiting",
        "waiting_integral",
    )

    def __init__(self, model: PoolModel) -> None:
        self.model = model
        self.queue: deque[int] = deque()
        """Requests that no replica has taken yet (shared queue)."""
        self.waiting = 0
        self.running = 0
        self.up = model.replicas
        self.waiting_integral = self.running_integral = self.up_integral = 0.0
        self._last_s = 0.0

    def advance(self, now_s: float) -> None:
        """Bring the integrals up to now; call before a count changes."""
        elapsed = now_s - self._last_s
        self.waiting_integral += elapsed * self.waiting
        self.running_integral += elapsed * self.running
        self.up_integral += elapsed * self.up
        self._last_s = now_s

    def waits(self, now_s: float, change: int) -> None:
        """`change` more requests wait."""
        self.advance(now_s)
        self.waiting += change

    def starts(self, now_s: float) -> None:
        """A waiting request is taken into work."""
        self.advance(now_s)
        self.waiting -= 1
        self.running += 1

    def leaves(self, now_s: float) -> None:
        """A request in work is done, moved on or lost."""
        self.advance(now_s)
        self.running -= 1
