"""Which replica of a pool a request goes to, by the pool's routing policy."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Final

from planner.simulate.pool import PoolState
from planner.simulate.replica import Replica
from planner.simulate.requests import Requests

SHARED_QUEUE: Final = "shared_queue"
DEFAULT_ROUTING: Final = "queued_tokens"
WORTH_FOLLOWING: Final = 0.5
"""Least share of a prompt's blocks that a replica must have seen for the prompt to follow them."""

Choice = Callable[[int, float, Sequence[Replica]], Replica]


class Router:
    """Routes the requests of one pool. Decode pools weigh the cache that a replica holds and is
    to hold in place of queued prompt tokens.
    """

    def __init__(
        self,
        pool: PoolState,
        replicas: Sequence[Replica],
        requests: Requests,
        draw: random.Random,
    ) -> None:
        self._pool = pool
        self._replicas = tuple(replicas)
        self._requests = requests
        self._draw = draw
        self._turn = -1
        self._sent: dict[int, Replica] = {}
        """Where the prompts with each block went last."""
        policies: dict[str, Choice] = {
            SHARED_QUEUE: self._fewest,
            DEFAULT_ROUTING: self._least_work,
            "least_outstanding": self._fewest,
            "prefix_affine": self._affine,
            "round_robin": self._in_turn,
            "random": self._any,
        }
        self._shared = pool.model.routing == SHARED_QUEUE
        self._choose = policies[pool.model.routing]

    def send(self, request: int, now_s: float) -> bool:
        """Hand a request to a replica or to the shared queue; False where no replica is up."""
        up = self._replicas
        if self._pool.up < len(up):
            up = tuple(replica for replica in up if replica.up)
        if not up:
            return False
        if self._shared:
            up = tuple(replica for replica in up if replica.ready())
            if self._pool.queue or not up:
                self._pool.queue.append(request)
                self._pool.waits(now_s, 1)
                return True
        replica = up[0] if len(up) == 1 else self._choose(request, now_s, up)
        replica.take(request, now_s)
        return True

    def _least_work(self, request: int, now_s: float, up: Sequence[Replica]) -> Replica:
        return min(up, key=lambda each: (each.work_left(now_s), each.outstanding()))

    def _fewest(self, request: int, now_s: float, up: Sequence[Replica]) -> Replica:
        return min(up, key=lambda each: each.outstanding())

    def _affine(self, request: int, now_s: float, up: Sequence[Replica]) -> Replica:
        """To the replica that the longest known prefix of the prompt went to, where that is long
        enough to be worth it; else to any. A system prompt that all share draws nobody.
        """
        blocks = self._requests.blocks_of(request)
        chosen = None
        least = max(math.ceil(WORTH_FOLLOWING * len(blocks)) - 1, 0)
        for index in range(len(blocks) - 1, least - 1, -1):
            held = self._sent.get(blocks[index])
            if held is not None and held.up:
                chosen = held
                break
        replica = self._any(request, now_s, up) if chosen is None else chosen
        for block in blocks:
            self._sent[block] = replica
        return replica

    def _in_turn(self, request: int, now_s: float, up: Sequence[Replica]) -> Replica:
        self._turn += 1
        return up[self._turn % len(up)]

    def _any(self, request: int, now_s: float, up: Sequence[Replica]) -> Replica:
        return up[int(self._draw.random() * len(up))]
