"""A decode or aggregated replica: continuous batching with a cache that can run full.

Between two events the batch is fixed, so a step grows by the same amount each time (a sequence
adds time by straight pieces of its context): j steps take j c + g j (j - 1) / 2, and the replica
leaps to the next event in one go. Steps that carry prompt chunks are taken one by one.
"""

from __future__ import annotations

import heapq
import math
from typing import Final

from planner.simulate.chunks import ChunkStep
from planner.simulate.pool import PoolState
from planner.simulate.prefix_cache import PrefixCache
from planner.simulate.replica import Host, Replica

FINISH: Final = 0
PIECE: Final = 1
VISIBLE: Final = 2
RESERVE_SHARE: Final = 0.01
"""Share of the cache kept free when a request is admitted beside others (vLLM's watermark)."""


class _Sequence:
    """A sequence in the batch: since which step, from which context, on which piece."""

    __slots__ = ("base", "context", "piece", "stamp")

    def __init__(self, stamp: int, base: int, context: int, piece: int) -> None:
        self.stamp, self.base, self.context, self.piece = stamp, base, context, piece


class EngineReplica(Replica):
    """Decodes, and computes prompts in chunks where the pool is aggregated or lost a cache."""

    __slots__ = (
        "_admitted",
        "_cache",
        "_chunks",
        "_done_steps",
        "_grow_bytes",
        "_grow_s",
        "_held",
        "_leap_steps",
        "_marks",
        "_prompts",
        "_sequence_s",
        "_sequences",
        "_stamp",
        "_step_s",
    )

    def __init__(self, pool: PoolState, index: int, host: Host) -> None:
        super().__init__(pool, index, host)
        uses_blocks = pool.model.prefix_cache and host.requests.blocks is not None
        self._cache = PrefixCache(host.requests.block_tokens) if uses_blocks else None
        self._stamp = 0
        self._done_steps = 0
        self._clear()

    def _clear(self) -> None:
        self._admitted: dict[int, None] = {}
        """Requests in work, in order of admission."""
        self._sequences: dict[int, _Sequence] = {}
        self._prompts: list[int] = []
        self._chunks: list[tuple[int, int]] = []
        self._marks: list[tuple[int, int, int, int]] = []
        """Heap of (step, request, kind, stamp): what happens after that many steps."""
        self._held = 0.0
        self._sequence_s = 0.0
        """What the sequences add to the next step."""
        self._grow_s = self._grow_bytes = 0.0
        """By how much the step and the cache grow from one step to the next."""
        self._step_s = 0.0
        self._leap_steps = 0

    # ---- what others ask --------------------------------------------------------------------

    def outstanding(self) -> int:
        return len(self._admitted) + len(self.waiting)

    def ready(self) -> bool:
        if self._prompts or self.waiting:
            return False
        room = self._held + self.tables.room_bytes * RESERVE_SHARE < self.tables.room_bytes
        return len(self._admitted) < self.tables.max_sequences and room

    def work_left(self, now_s: float) -> float:
        if self.model.role == "decode":
            growth, requests = self.tables.growth, self.requests
            return self._held + sum(growth.held_bytes(requests.need[i]) for i in self.waiting)
        return float(self.queued_tokens)

    def held_bytes(self, now_s: float) -> float:
        if not self._leap_steps or self.end_s <= self.start_s:
            return self._held
        share = (now_s - self.start_s) / (self.end_s - self.start_s)
        return self._held + share * self._leap_steps * self._grow_bytes

    # ---- steps ------------------------------------------------------------------------------

    def plan(self, now_s: float) -> None:
        while True:
            self._make_room(now_s)
            tables, requests = self.tables, self.requests
            decoding = len(self._sequences) * tables.verified
            step = ChunkStep(tables, tables.chunk_tokens - -(-decoding // tables.lanes))
            for request in self._prompts:
                if not step.free:
                    break
                step.take(request, requests.done[request], requests.need[request])
            self._admit(step, now_s)
            self._chunks = step.taken
            if self._held + self._grow_bytes <= tables.room_bytes or len(self._admitted) < 2:
                break
        if step.taken:
            self._chunk_step(step, now_s)
        elif self._sequences:
            self._leap(now_s)
        else:
            self.stop(now_s)

    def _chunk_step(self, step: ChunkStep, now_s: float) -> None:
        tables = self.tables
        batch = len(self._sequences)
        tokens = batch * tables.verified
        rows = tokens + (tables.lanes if step.ends(self.requests) else 0)
        duration_s = step.duration_s(tokens) + self._sequence_s
        if rows:
            duration_s += tables.head_s(min(rows, tables.max_sequences * tables.verified))
        if batch:
            duration_s += tables.draft_s(batch)
        self._leap_steps = 1
        self.begin(now_s, duration_s)

    def _leap(self, now_s: float) -> None:
        """All steps until something happens, in one go."""
        steps = self._marks[0][0] - self._done_steps
        if self._grow_bytes > 0:
            left = self.tables.room_bytes - self._held
            steps = max(min(steps, int(left / self._grow_bytes)), 1)
        self._leap_steps = steps
        self._step_s = self.tables.decode_s(len(self._sequences)) + self._sequence_s
        self.begin(now_s, self._steps_s(steps))

    def _steps_s(self, steps: int) -> float:
        return steps * self._step_s + 0.5 * self._grow_s * steps * (steps - 1)

    def cut(self, now_s: float) -> None:
        if self._chunks or self._leap_steps < 2:
            return
        elapsed = now_s - self.start_s
        grow, first = self._grow_s, self._step_s - 0.5 * self._grow_s
        if grow * self._leap_steps > 1e-6 * first:
            steps = math.ceil((math.sqrt(first * first + 2 * grow * elapsed) - first) / grow)
        else:
            steps = math.ceil(elapsed / self._step_s)
        steps = max(steps, 1)
        if self._steps_s(steps) < elapsed:
            steps += 1
        if steps < self._leap_steps:
            self.accrue(now_s)
            self._leap_steps = steps
            self.begin(self.start_s, self._steps_s(steps))

    def end(self, now_s: float) -> None:
        self.accrue(now_s)
        steps, self._leap_steps = self._leap_steps, 0
        self.steps += steps
        self._done_steps += steps
        self._sequence_s += steps * self._grow_s
        self._held += steps * self._grow_bytes
        chunks, self._chunks = self._chunks, []
        while self._marks and self._marks[0][0] <= self._done_steps:
            _, request, kind, stamp = heapq.heappop(self._marks)
            sequence = self._sequences.get(request)
            if sequence is not None and sequence.stamp == stamp:
                self._happen(request, kind, sequence, now_s)
        for request, size in chunks:
            self._chunk_done(request, size, now_s)
        self.plan(now_s)

    def _chunk_done(self, request: int, size: int, now_s: float) -> None:
        requests = self.requests
        requests.done[request] += size
        self.queued_tokens -= size
        if requests.done[request] < requests.need[request]:
            return
        self._prompts.remove(request)
        requests.generated[request] += 1
        if self._cache is not None:
            held = self.tables.growth.held_bytes(requests.need[request])
            free_tokens = (self.tables.room_bytes - self._held) * requests.need[request] / held
            self._cache.store(requests.blocks_of(request), free_tokens)
        if requests.generated[request] == 1:
            batch_s = self.tables.decode_s(len(self._sequences)) + self._sequence_s
            late = max(self.tables.first_token_steps - 0.5, 0.0) * batch_s
            requests.shift_s[request] = late
            self.host.first_token(request, now_s, self)
        if requests.generated[request] >= requests.outputs[request]:
            self._held -= self.tables.growth.held_bytes(requests.need[request])
            self._depart(request, now_s)
            self.host.finished(request, now_s)
        else:
            self._join(request)

    def _happen(self, request: int, kind: int, sequence: _Sequence, now_s: float) -> None:
        if kind == FINISH:
            self._leave(request, sequence)
            self._depart(request, now_s)
            self.requests.generated[request] = self.requests.outputs[request]
            self.host.finished(request, now_s)
        elif kind == VISIBLE:
            self.host.visible(request, now_s)
        else:
            # The old piece was followed up to here; the new one holds from here.
            self._remove(sequence)
            context = self._context(sequence)
            self._add(request, sequence, context, self.tables.growth.piece(context))

    # ---- the batch --------------------------------------------------------------------------

    def _context(self, sequence: _Sequence) -> float:
        return sequence.context + (self._done_steps - sequence.base) * self.tables.accepted

    def _join(self, request: int) -> None:
        """A request whose cache is whole decodes from the next step on."""
        requests, tables = self.requests, self.tables
        context = requests.inputs[request] + requests.generated[request]
        self._stamp += 1
        sequence = _Sequence(self._stamp, self._done_steps, context, 0)
        self._sequences[request] = sequence
        self._held -= tables.growth.held_bytes(requests.need[request])
        self._add(request, sequence, context, tables.growth.piece(context))
        made, accepted = requests.generated[request], tables.accepted
        self._mark(FINISH, request, sequence, (requests.outputs[request] - made) / accepted)
        hidden = requests.hidden[request]
        if hidden >= made:
            self._mark(VISIBLE, request, sequence, (hidden + 1 - made) / accepted)

    def _mark(self, kind: int, request: int, sequence: _Sequence, steps: float) -> None:
        at = self._done_steps + max(math.ceil(steps - 1e-9), 1)
        heapq.heappush(self._marks, (at, request, kind, sequence.stamp))

    def _add(self, request: int, sequence: _Sequence, context: float, piece: int) -> None:
        growth, accepted = self.tables.growth, self.tables.accepted
        sequence.piece = piece
        self._sequence_s += growth.step_at[piece] + growth.step_slope[piece] * context
        self._grow_s += growth.step_slope[piece] * accepted
        self._held += growth.bytes_at[piece] + growth.bytes_slope[piece] * context
        self._grow_bytes += growth.bytes_slope[piece] * accepted
        if growth.ends[piece] != math.inf:
            self._mark(PIECE, request, sequence, (growth.ends[piece] - context) / accepted)

    def _remove(self, sequence: _Sequence) -> None:
        growth, accepted = self.tables.growth, self.tables.accepted
        piece, context = sequence.piece, self._context(sequence)
        self._sequence_s -= growth.step_at[piece] + growth.step_slope[piece] * context
        self._grow_s -= growth.step_slope[piece] * accepted
        self._held -= growth.bytes_at[piece] + growth.bytes_slope[piece] * context
        self._grow_bytes -= growth.bytes_slope[piece] * accepted

    def _leave(self, request: int, sequence: _Sequence) -> None:
        self._remove(sequence)
        del self._sequences[request]
        if not self._sequences:
            # Sums of many additions and subtractions: begin again from nothing.
            self._sequence_s = self._grow_s = self._grow_bytes = 0.0
            if not self._prompts:
                self._held = 0.0

    def _depart(self, request: int, now_s: float) -> None:
        del self._admitted[request]
        self.pool.leaves(now_s)

    # ---- the cache --------------------------------------------------------------------------

    def _admit(self, step: ChunkStep, now_s: float) -> None:
        tables, requests = self.tables, self.requests
        while (request := self.next_waiting()) is not None:
            if len(self._admitted) >= tables.max_sequences:
                return
            whole = requests.done[request] >= requests.need[request]
            if not whole and not step.free:
                return
            bytes_needed = tables.growth.held_bytes(requests.need[request])
            reserve = RESERVE_SHARE * tables.room_bytes if self._admitted else 0.0
            if self._held + bytes_needed + reserve > tables.room_bytes and self._admitted:
                return
            self.pull(now_s)
            self._admitted[request] = None
            self._held += bytes_needed
            if whole:
                self._join(request)
                continue
            self._start(request, now_s)
            self._prompts.append(request)
            step.take(request, requests.done[request], requests.need[request])

    def _start(self, request: int, now_s: float) -> None:
        requests = self.requests
        if requests.generated[request] == 0:
            requests.prefill_start_s[request] = now_s
        if self._cache is not None:
            found = self._cache.find(requests.blocks_of(request), requests.inputs[request])
            if requests.generated[request] == 0:
                requests.found[request] = found
            self.queued_tokens -= found - requests.done[request]
            requests.done[request] = found

    def _make_room(self, now_s: float) -> None:
        """Give up the newest requests until the next step fits (recompute, as in vLLM)."""
        while self._held + self._grow_bytes > self.tables.room_bytes and len(self._admitted) > 1:
            self._preempt(next(reversed(self._admitted)), now_s)

    def _preempt(self, request: int, now_s: float) -> None:
        requests = self.requests
        sequence = self._sequences.get(request)
        if sequence is None:
            self._prompts.remove(request)
            self._held -= self.tables.growth.held_bytes(requests.need[request])
            self.queued_tokens -= requests.need[request] - requests.done[request]
        else:
            steps = self._done_steps - sequence.base
            made = requests.generated[request] + int(steps * self.tables.accepted + 1e-9)
            self._leave(request, sequence)
            requests.generated[request] = min(made, requests.outputs[request] - 1)
            requests.need[request] = requests.inputs[request] + requests.generated[request]
        self._depart(request, now_s)
        requests.done[request] = requests.found[request]
        requests.preemptions[request] += 1
        self.queued_tokens += requests.need[request] - requests.done[request]
        self.waiting.appendleft(request)
        self.pool.waits(now_s, 1)

    def drop_all(self, now_s: float) -> list[int]:
        lost = [*self._admitted, *self.waiting]
        for _ in self._admitted:
            self.pool.leaves(now_s)
        self.pool.waits(now_s, -len(self.waiting))
        self.waiting.clear()
        self.accrue(now_s)
        self._clear()
        if self._cache is not None:
            self._cache = PrefixCache(self.requests.block_tokens)
        return lost

    def fill(self, request: int) -> bool:
        """Put a request into the batch before the start, if it fits with some room to spare."""
        tables, requests = self.tables, self.requests
        context = requests.inputs[request] + requests.generated[request]
        held = self._held + tables.growth.held_bytes(context)
        if held > tables.room_bytes * (1 - 5 * RESERVE_SHARE):
            return False
        if len(self._admitted) >= tables.max_sequences:
            return False
        self._admitted[request] = None
        self._held += tables.growth.held_bytes(requests.need[request])
        self._join(request)
        self.pool.running += 1
        return True
