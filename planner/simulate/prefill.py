"""A prefill replica: prompts in chunks, first come, first served, nothing else in its steps."""

from __future__ import annotations

from planner.simulate.chunks import ChunkStep
from planner.simulate.pool import PoolState
from planner.simulate.prefix_cache import PrefixCache
from planner.simulate.replica import Host, Replica


class PrefillReplica(Replica):
    """Computes prompts and passes their caches on.

    A prompt of many chunks on a replica of one lane is one leap: it fills every step but its
    last, so nobody else can ride.
    """

    __slots__ = ("_cache", "_chunks", "_work")

    def __init__(self, pool: PoolState, index: int, host: Host) -> None:
        super().__init__(pool, index, host)
        self._work: list[int] = []
        self._chunks: list[tuple[int, int]] = []
        uses_blocks = pool.model.prefix_cache and host.requests.blocks is not None
        self._cache = PrefixCache(host.requests.block_tokens) if uses_blocks else None

    def outstanding(self) -> int:
        return len(self._work) + len(self.waiting)

    def ready(self) -> bool:
        return not self.stepping

    def held_bytes(self, now_s: float) -> float:
        return 0.0

    def work_left(self, now_s: float) -> float:
        if not self.stepping:
            return float(self.queued_tokens)
        under_way = sum(size for _, size in self._chunks)
        share = (now_s - self.start_s) / max(self.end_s - self.start_s, 1e-300)
        return self.queued_tokens - under_way * share

    def cut(self, now_s: float) -> None:
        """A prompt's chunks are not given up for another."""

    def plan(self, now_s: float) -> None:
        tables, requests = self.tables, self.requests
        step = ChunkStep(tables, tables.chunk_tokens)
        self._chunks = step.taken
        for request in self._work:
            step.take(request, requests.done[request], requests.need[request])
        while step.free and self.next_waiting() is not None:
            request = self.pull(now_s)
            self._work.append(request)
            self._start(request, now_s)
            step.take(request, requests.done[request], requests.need[request])
        if not step.taken:
            self.stop(now_s)
            return
        repeats, duration_s = step.alone_s(requests) if tables.lanes == 1 else (1, 0.0)
        if repeats == 1:
            ends = step.ends(requests)
            duration_s = step.duration_s(0) + (tables.head_s(tables.lanes) if ends else 0.0)
        self.steps += repeats
        self.begin(now_s, duration_s * tables.prefill_factor)

    def _start(self, request: int, now_s: float) -> None:
        requests = self.requests
        requests.prefill_start_s[request] = now_s
        blocks = requests.blocks_of(request)
        if self._cache is not None:
            found = self._cache.find(blocks, requests.inputs[request])
            requests.found[request] = found
            self.queued_tokens -= found - requests.done[request]
            requests.done[request] = found

    def end(self, now_s: float) -> None:
        self.accrue(now_s)
        requests = self.requests
        through = []
        for request, size in self._chunks:
            requests.done[request] += size
            self.queued_tokens -= size
            if requests.done[request] >= requests.need[request]:
                through.append(request)
        self._chunks = []
        for request in through:
            self._work.remove(request)
            self.pool.leaves(now_s)
            if self._cache is not None:
                per_token = self.tables.growth.held_bytes(requests.inputs[request])
                per_token /= requests.inputs[request]
                self._cache.store(requests.blocks_of(request), self.tables.room_bytes / per_token)
            requests.generated[request] = 1
            self.host.first_token(request, now_s, self)
        self.plan(now_s)

    def drop_all(self, now_s: float) -> list[int]:
        lost = [*self._work, *self.waiting]
        for _ in self._work:
            self.pool.leaves(now_s)
        self.pool.waits(now_s, -len(self.waiting))
        self._work, self._chunks = [], []
        self.waiting.clear()
        if self._cache is not None:
            self._cache = PrefixCache(self.requests.block_tokens)
        return lost
