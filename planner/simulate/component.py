"""One component of a fleet, simulated: requests arrive, are routed, worked on and logged.

The events are the ends of steps and leaps, arrivals, caches that reach a decode pool, samples,
and replicas that die or return. Requests that come after the horizon are there to keep the
engines as busy as before, until the last counted one is done.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from planner.simulate.engine import EngineReplica
from planner.simulate.pool import PoolModel, PoolState
from planner.simulate.prefill import PrefillReplica
from planner.simulate.records import SERIES_SAMPLES, ComponentRun, Outcome
from planner.simulate.replica import Replica
from planner.simulate.requests import NAN, Arrivals, Requests
from planner.simulate.routing import Router
from planner.simulate.sampling import Sampler

EVENTS_PER_NOTE: Final = 2048
"""Events between two reports of progress."""

_STEP, _JOIN, _SAMPLE, _OUTAGE, _RETURN = range(5)


@dataclass(frozen=True, slots=True)
class Outage:
    """A replica that dies, and returns after a while or never (None)."""

    pool: int
    replica: int
    at_s: float
    down_s: float | None
    text: str
    """What happened, for the list of events; empty where another entry says it already."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A request that is decoding when the simulation begins, on one replica."""

    pool: int
    replica: int
    class_index: int
    input_tokens: int
    output_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class ComponentModel:
    """Pools and classes that share nothing with the rest of the fleet."""

    classes: tuple[str, ...]
    pools: tuple[PoolModel, ...]


class _Way:
    """Pools that a class may take next, with the share of each."""

    __slots__ = ("pools", "reach")

    def __init__(self, weighted: Sequence[tuple[int, float]]) -> None:
        self.pools = [pool for pool, weight in weighted if weight > 0]
        self.reach = list(accumulate(weight for _, weight in weighted if weight > 0))

    def draw(self, share: float) -> int:
        """A pool, for `share` uniform in [0, 1)."""
        place = bisect_right(self.reach, share * self.reach[-1])
        return self.pools[min(place, len(self.pools) - 1)]


class Fleet:
    """The replicas of a component at work."""

    def __init__(
        self,
        model: ComponentModel,
        arrivals: Arrivals,
        residents: Sequence[Resident],
        outages: Sequence[Outage],
        seed: int,
    ) -> None:
        self.requests = Requests(arrivals)
        self._draw = random.Random(seed)
        self._model = model
        self._heap: list[tuple[float, int, int, int, int]] = []
        self._ties = 0
        self._lost: list[int] = []
        """Requests without a replica, waiting for one to return."""
        self._returning = 0
        self._outages = tuple(outages)
        self.events: list[tuple[float, str]] = []
        self.pools = [PoolState(each) for each in model.pools]
        self.replicas: list[list[Replica]] = []
        self._flat: list[Replica] = []
        self._place: dict[Replica, int] = {}
        for pool in self.pools:
            kind = PrefillReplica if pool.model.role == "prefill" else EngineReplica
            own: list[Replica] = [kind(pool, n, self) for n in range(pool.model.replicas)]
            self.replicas.append(own)
            for replica in own:
                self._place[replica] = len(self._flat)
                self._flat.append(replica)
        self._pool_of = {id(pool): n for n, pool in enumerate(self.pools)}
        self._routers = [
            Router(pool, own, self.requests, self._draw)
            for pool, own in zip(self.pools, self.replicas, strict=True)
        ]
        self._entry = [_Way(self._entries(name)) for name in model.classes]
        self._onward: dict[tuple[int, int], _Way] = {
            (k, p): _Way(self._receivers(name, each))
            for k, name in enumerate(model.classes)
            for p, each in enumerate(model.pools)
            if each.role == "prefill"
        }
        self._open = sum(self.requests.counted)
        for resident in residents:
            self._fill(resident)
        for number, outage in enumerate(self._outages):
            self._push(outage.at_s, _OUTAGE, number, 0)

    def _entries(self, name: str) -> list[tuple[int, float]]:
        return [
            (n, each.requests_per_s.get(name, 0.0))
            for n, each in enumerate(self._model.pools)
            if each.role != "decode"
        ]

    def _receivers(self, name: str, sender: PoolModel) -> list[tuple[int, float]]:
        return [
            (n, each.requests_per_s.get(name, 0.0))
            for n, each in enumerate(self._model.pools)
            if each.role == "decode" and each.kv_group == sender.kv_group
        ]

    def _fill(self, resident: Resident) -> None:
        replica = self.replicas[resident.pool][resident.replica]
        assert isinstance(replica, EngineReplica)
        request = self.requests.add(
            resident.class_index,
            resident.input_tokens,
            resident.output_tokens,
            resident.generated_tokens,
        )
        replica.fill(request)

    # ---- the loop ---------------------------------------------------------------------------

    def run(self, horizon_s: float, sampler: Sampler, note: Callable[[float], None]) -> int:
        """Simulate until every counted request is done. Returns how many requests arrived."""
        requests, heap, flat = self.requests, self._heap, self._flat
        arrival_s, count = requests.arrival_s[: requests.count], requests.count
        arrival_s.append(float("inf"))
        for replica in flat:
            replica.plan(0.0)
        for at_s in sampler.times_s:
            self._push(at_s, _SAMPLE, 0, 0)
        arrived = handled = 0
        while (self._open > 0 or (heap and heap[0][0] <= horizon_s)) and (heap or arrived < count):
            handled += 1
            if handled % EVENTS_PER_NOTE == 0 and arrived:
                note(min(arrival_s[arrived - 1] / horizon_s, 1.0))
            if arrived < count and (not heap or arrival_s[arrived] <= heap[0][0]):
                self._dispatch(arrived, arrival_s[arrived])
                arrived += 1
                continue
            now_s, _, kind, which, version = heapq.heappop(heap)
            if kind == _STEP:
                replica = flat[which]
                if replica.version == version:
                    replica.end(now_s)
            elif kind == _JOIN:
                if requests.restarts[which] == version:
                    self._join(which, now_s)
            elif kind == _SAMPLE:
                sampler.take(now_s, self.pools, self.replicas)
            elif kind == _OUTAGE:
                self._fail(which, now_s)
            else:
                self._revive(self._outages[which], now_s)
        return arrived

    def _push(self, at_s: float, kind: int, which: int, version: int) -> None:
        self._ties += 1
        heapq.heappush(self._heap, (at_s, self._ties, kind, which, version))

    # ---- what replicas call -----------------------------------------------------------------

    def schedule(self, replica: Replica, at_s: float) -> None:
        """End the replica's step or leap at `at_s`."""
        replica.version += 1
        self._push(at_s, _STEP, self._place[replica], replica.version)

    def first_token(self, request: int, now_s: float, replica: Replica) -> None:
        """The prompt is through: the user's first token, and in a prefill pool the transfer."""
        requests, tables = self.requests, replica.tables
        requests.engine_first_s[request] = now_s
        shift_s = tables.launch_s + tables.launch_per_token_s * requests.inputs[request]
        if replica.model.role != "prefill":
            shift_s += requests.shift_s[request]
            requests.shift_s[request] = shift_s
            requests.first_s[request] = now_s + shift_s
            requests.decode_pool[request] = requests.prefill_pool[request]
            requests.decode_replica[request] = replica.index
            requests.prefill_replica[request] = replica.index
            return
        requests.shift_s[request] = shift_s
        requests.prefill_replica[request] = replica.index
        name = self._model.classes[requests.class_index[request]]
        rate = replica.model.transfer_bytes_per_s[name]
        moved_s = now_s + tables.transfer_bytes(requests.inputs[request]) / rate
        requests.first_s[request] = moved_s + shift_s
        if requests.outputs[request] == 1:
            requests.decode_pool[request] = requests.prefill_pool[request]
            requests.decode_replica[request] = replica.index
            self.finished(request, moved_s)
        else:
            self._push(moved_s, _JOIN, request, requests.restarts[request])

    def visible(self, request: int, now_s: float) -> None:
        """The first token after the hidden ones."""
        self.requests.visible_s[request] = now_s + self.requests.shift_s[request]

    def finished(self, request: int, now_s: float) -> None:
        """The last token."""
        requests = self.requests
        end_s = now_s + requests.shift_s[request]
        requests.finish_s[request] = end_s
        if not requests.hidden[request]:
            requests.visible_s[request] = requests.first_s[request]
        elif requests.visible_s[request] != requests.visible_s[request]:
            requests.visible_s[request] = end_s
        self._close(request, Outcome.FINISHED)

    def _close(self, request: int, outcome: Outcome) -> None:
        self.requests.outcome[request] = int(outcome)
        if self.requests.counted[request]:
            self._open -= 1

    # ---- from pool to pool ------------------------------------------------------------------

    def _dispatch(self, request: int, now_s: float) -> None:
        """A request begins: to a pool that is up, else it waits for a return, else is refused."""
        requests = self.requests
        kind = requests.class_index[request]
        way = self._entry[kind]
        drawn = way.draw(self._draw.random())
        for pool in (drawn, *(each for each in way.pools if each != drawn)):
            if not self._leads_on(request, pool):
                continue
            hits = self.pools[pool].model.hits.get(self._model.classes[kind])
            if hits is not None:
                finds = self._draw.random() < hits.request_share
                share = hits.input_share if finds else 0.0
                found = min(int(requests.inputs[request] * share), requests.inputs[request] - 1)
                requests.found[request] = found
            requests.done[request] = requests.found[request]
            requests.prefill_pool[request] = pool
            if self._routers[pool].send(request, now_s):
                return
        if self._returning and any(self._could(request, pool) for pool in way.pools):
            self._lost.append(request)
        else:
            self._close(request, Outcome.REJECTED)

    def _could(self, request: int, pool: int) -> bool:
        """Whether a pool, were it up, has room for the whole request, here or further on."""
        if self.pools[pool].model.role != "prefill":
            return self._fits(request, pool)
        way = self._onward[self.requests.class_index[request], pool]
        return any(self._fits(request, each) for each in way.pools)

    def _leads_on(self, request: int, pool: int) -> bool:
        """As `_could`, with the replicas that are up."""
        if self.pools[pool].up == 0:
            return False
        if self.pools[pool].model.role != "prefill":
            return self._fits(request, pool)
        way = self._onward[self.requests.class_index[request], pool]
        return any(self.pools[each].up and self._fits(request, each) for each in way.pools)

    def _fits(self, request: int, pool: int) -> bool:
        tables = self._model.pools[pool].tables
        tokens = self.requests.inputs[request] + self.requests.outputs[request]
        return tables.growth.held_bytes(tokens) <= tables.longest_bytes

    def _join(self, request: int, now_s: float) -> None:
        """A cache has reached the decode side."""
        requests = self.requests
        way = self._onward[requests.class_index[request], requests.prefill_pool[request]]
        drawn = way.draw(self._draw.random())
        for pool in (drawn, *(each for each in way.pools if each != drawn)):
            if self.pools[pool].up and self._fits(request, pool):
                requests.decode_pool[request] = pool
                self._routers[pool].send(request, now_s)
                return
        self._restart(request, now_s)

    # ---- failures ---------------------------------------------------------------------------

    def _restart(self, request: int, now_s: float) -> None:
        """Begin again from the prompt: what was computed is gone."""
        requests = self.requests
        requests.restarts[request] += 1
        requests.generated[request] = 0
        requests.need[request] = requests.inputs[request]
        requests.shift_s[request] = 0.0
        for times in (requests.engine_first_s, requests.first_s, requests.visible_s):
            times[request] = NAN
        self._dispatch(request, now_s)

    def _fail(self, number: int, now_s: float) -> None:
        outage = self._outages[number]
        replica = self.replicas[outage.pool][outage.replica]
        if not replica.up:
            return
        pool = self.pools[outage.pool]
        lost = replica.fail(now_s)
        pool.advance(now_s)
        pool.up -= 1
        if outage.down_s is not None:
            self._returning += 1
            self._push(now_s + outage.down_s, _RETURN, number, 0)
        if outage.text:
            self.events.append((now_s, outage.text))
        if pool.up == 0 and pool.queue:
            pool.waits(now_s, -len(pool.queue))
            lost += pool.queue
            pool.queue.clear()
        for request in lost:
            self._restart(request, now_s)

    def _revive(self, outage: Outage, now_s: float) -> None:
        replica = self.replicas[outage.pool][outage.replica]
        self._returning -= 1
        replica.up = True
        pool = self.pools[outage.pool]
        pool.advance(now_s)
        pool.up += 1
        if outage.text:
            self.events.append((now_s, f"{outage.text}: back in service"))
        replica.plan(now_s)
        waiting, self._lost = self._lost, []
        for request in waiting:
            self._dispatch(request, now_s)


def simulate_component(
    model: ComponentModel,
    arrivals: Arrivals,
    *,
    horizon_s: float,
    warmup_s: float,
    residents: Sequence[Resident] = (),
    outages: Sequence[Outage] = (),
    seed: int = 0,
    note: Callable[[float], None] = lambda fraction: None,
) -> ComponentRun:
    """Simulate one component over its arrivals. `note` receives the share that is done."""
    fleet = Fleet(model, arrivals, residents, outages, seed)
    sampler = Sampler(horizon_s, SERIES_SAMPLES, fleet.pools)
    arrived = fleet.run(horizon_s, sampler, note)
    return ComponentRun(
        classes=model.classes,
        pools=tuple(pool.id for pool in model.pools),
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        requests=fleet.requests.log(arrived),
        series=sampler.series(),
        steps=sum(replica.steps for own in fleet.replicas for replica in own),
        events=tuple(fleet.events),
    )
