"""The prompt chunks of one step: which prompts ride, on which lane, and how long that takes."""

from __future__ import annotations

from planner.simulate.requests import Requests
from planner.simulate.tables import StepTables

LEAST_CHUNK_TOKENS = 16
"""Prompt tokens that a lane takes in a step however many sequences decode on it: one block."""


class ChunkStep:
    """A step being filled, first come, first served, up to `budget` tokens on each lane.

    A prompt rides on the lane whose attention is done first, of those with room: lanes wait for
    each other, and a balancer would spread long contexts. With pipeline stages its next chunks
    follow it on other lanes, as they do through the stages.
    """

    __slots__ = ("_attention_s", "_budget", "_loads", "_tables", "free", "taken", "tokens")

    def __init__(self, tables: StepTables, budget: int) -> None:
        self._tables = tables
        self._budget = max(budget, min(LEAST_CHUNK_TOKENS, tables.chunk_tokens))
        self._loads = [0] * tables.lanes
        self._attention_s = [0.0] * tables.lanes
        self.taken: list[tuple[int, int]] = []
        """Requests and their tokens in this step."""
        self.tokens = 0
        self.free = True
        """Whether a lane has room."""

    def take(self, request: int, done: int, need: int) -> None:
        """Let a prompt with `done` of `need` tokens ride, as far as there is room."""
        attention_s, loads = self._tables.attention_s, self._loads
        start = done
        for _ in range(self._tables.stages):
            lane = self._lightest() if len(loads) > 1 else 0
            room = self._budget - loads[lane]
            if room <= 0:
                self.free = False
                break
            end = min(need, start + room)
            loads[lane] += end - start
            self._attention_s[lane] += attention_s[end] - attention_s[start]
            start = end
            if end == need:
                break
        if start > done:
            self.taken.append((request, start - done))
            self.tokens += start - done
        if min(loads) >= self._budget:
            self.free = False

    def _lightest(self) -> int:
        loads, budget = self._loads, self._budget
        return min(
            range(len(loads)),
            key=lambda lane: (loads[lane] >= budget, self._attention_s[lane], loads[lane]),
        )

    def ends(self, requests: Requests) -> bool:
        """Whether a prompt is through after this step."""
        return any(requests.done[each] + size >= requests.need[each] for each, size in self.taken)

    def duration_s(self, decode_tokens: int) -> float:
        """Token part and prompt attention of the step, the output head left out."""
        tables = self._tables
        widest = tables.lanes * max(self._loads)
        experts = widest if tables.stages > 1 else self.tokens
        return (
            tables.shared_s(decode_tokens + widest)
            + tables.experts_s(decode_tokens + experts)
            + max(self._attention_s)
        )

    def alone_s(self, requests: Requests) -> tuple[int, float]:
        """Steps that the first prompt fills by itself from here, and their time; on one lane.

        `taken` is changed to hold them all. One step where it does not fill two.
        """
        tables = self._tables
        request = self.taken[0][0]
        done, need = requests.done[request], requests.need[request]
        repeats = (need - done) // self._budget
        if repeats < 2:
            return 1, 0.0
        end = done + repeats * self._budget
        self.taken[:] = [(request, end - done)]
        each_s = tables.shared_s(self._budget) + tables.experts_s(self._budget)
        duration_s = repeats * each_s + tables.attention_s[end] - tables.attention_s[done]
        if end == need:
            duration_s += tables.head_s(1)
        return repeats, duration_s
