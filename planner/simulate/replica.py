"""What every replica has: a clock of steps, its place in a pool, and what it owes the fleet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Protocol

from planner.simulate.pool import PoolState
from planner.simulate.requests import Requests


class Host(Protocol):
    """The fleet, as replicas see it."""

    requests: Requests

    def schedule(self, replica: Replica, at_s: float) -> None:
        """End the replica's step or leap at `at_s`; an end scheduled before no longer holds."""
        ...

    def first_token(self, request: int, now_s: float, replica: Replica) -> None:
        """The prompt is through and its first token made; the replica goes on to others."""
        ...

    def visible(self, request: int, now_s: float) -> None:
        """The last hidden token is made and the first one for the user follows it."""
        ...

    def finished(self, request: int, now_s: float) -> None:
        """The last token is made."""
        ...


class Replica(ABC):
    """A replica that works in steps. Subclasses say what a step is."""

    __slots__ = (
        "accrued_s",
        "busy_s",
        "end_s",
        "held_integral",
        "host",
        "index",
        "model",
        "pool",
        "queued_tokens",
        "requests",
        "start_s",
        "stepping",
        "steps",
        "tables",
        "up",
        "version",
        "waiting",
    )

    def __init__(self, pool: PoolState, index: int, host: Host) -> None:
        self.pool = pool
        self.model = pool.model
        self.tables = pool.model.tables
        self.index = index
        self.host = host
        self.requests = host.requests
        self.waiting: deque[int] = deque()
        self.queued_tokens = 0
        """Prompt tokens still to compute, of requests waiting and in work."""
        self.up = True
        self.stepping = False
        self.version = 0
        self.steps = 0
        self.start_s = self.end_s = self.accrued_s = 0.0
        self.busy_s = 0.0
        """Time spent stepping, up to `accrued_s`."""
        self.held_integral = 0.0
        """Integral of the cache held, in byte seconds, up to `accrued_s`."""

    @abstractmethod
    def outstanding(self) -> int:
        """Requests waiting and in work."""

    @abstractmethod
    def work_left(self, now_s: float) -> float:
        """Prompt tokens that a new request would wait for."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether a request of a shared queue would be worked on at the next step."""

    @abstractmethod
    def held_bytes(self, now_s: float) -> float:
        """Cache held now."""

    @abstractmethod
    def plan(self, now_s: float) -> None:
        """Begin the next step or leap, or stand idle."""

    @abstractmethod
    def end(self, now_s: float) -> None:
        """The step or leap is over."""

    @abstractmethod
    def cut(self, now_s: float) -> None:
        """End a leap at the next boundary between steps, because something has come."""

    @abstractmethod
    def drop_all(self, now_s: float) -> list[int]:
        """Lose everything; the requests that were here, in order of arrival here."""

    def take(self, request: int, now_s: float) -> None:
        """A request is routed here."""
        first = not self.waiting
        self.waiting.append(request)
        self.queued_tokens += self.requests.need[request] - self.requests.done[request]
        self.pool.waits(now_s, 1)
        if not self.stepping:
            self.plan(now_s)
        elif first:
            self.cut(now_s)

    def next_waiting(self) -> int | None:
        """The request to be worked on next: an own one, else the head of the shared queue."""
        if self.waiting:
            return self.waiting[0]
        return self.pool.queue[0] if self.pool.queue else None

    def pull(self, now_s: float) -> int:
        """Take the request of `next_waiting` into work."""
        if self.waiting:
            request = self.waiting.popleft()
        else:
            request = self.pool.queue.popleft()
            self.queued_tokens += self.requests.need[request] - self.requests.done[request]
        self.pool.starts(now_s)
        return request

    def begin(self, now_s: float, duration_s: float) -> None:
        """A step or leap of so many seconds begins."""
        if not self.stepping:
            self.stepping = True
            self.accrued_s = now_s
        self.start_s = now_s
        self.end_s = now_s + duration_s
        self.host.schedule(self, self.end_s)

    def stop(self, now_s: float) -> None:
        """Nothing to do."""
        self.accrue(now_s)
        self.stepping = False

    def accrue(self, now_s: float) -> None:
        """Bring the integrals up to now; call before what is held changes otherwise than by the
        steps of a leap.
        """
        elapsed = now_s - self.accrued_s
        if self.stepping:
            self.busy_s += elapsed
            self.held_integral += elapsed * self.held_bytes(0.5 * (now_s + self.accrued_s))
        self.accrued_s = now_s

    def fail(self, now_s: float) -> list[int]:
        """The replica dies. Returns the requests that were on it."""
        lost = self.drop_all(now_s)
        self.stop(now_s)
        self.version += 1
        self.queued_tokens = 0
        self.up = False
        return lost
