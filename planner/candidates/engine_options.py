"""Decode and aggregated options: for each class alone, and for classes that share a pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.dominance import undominated
from planner.candidates.options import PROGRAM_MARGIN, ROWS, PoolOption
from planner.candidates.prefill import slowest_transfer_bytes_per_s
from planner.candidates.promises import Margins, Promises, pool_kind
from planner.candidates.rows import Frontier, single_class_rows
from planner.candidates.search import largest_batch, roomiest_batch
from planner.perf.backend import StepTimes
from planner.perf.config import PoolConfig
from planner.pools.cache import CACHE_SHARE, least_replicas_of_cache
from planner.pools.decode import POOL_SIZES, Engine
from planner.pools.loads import ClassLoad, class_load, mixed_load
from planner.pools.prompts import ALL, ChunkProfile, chunk_profile
from planner.workload.classes import WorkloadClass

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]

SHARED_POOL_SIZES: Final = (1, 4)
"""Those of `POOL_SIZES` for pools shared by classes, whose frontiers take longer to find."""
SHARED_EXHAUSTIVE: Final = 48
"""Up to this many configurations and chunk budgets, all are tried for aggregated pools that classes
share; above it, those that are undominated for one of the classes alone."""
GAIN: Final = 0.95
"""An option for larger pools only is made where it fills a replica at least 5 % further."""
LARGEST_EXHAUSTIVE_SET: Final = 3
"""Up to this many classes of a model, every subset gets options of its own; above it, single
classes, all together, and pairs of neighbours by the length of their decode contexts."""


@dataclass(frozen=True, slots=True)
class ClassView:
    """A class of the model: its index in the instance, promises and moments."""

    index: int
    workload: WorkloadClass
    load: ClassLoad
    mixed: ClassLoad
    """The same with fewer points, for aggregated engines."""
    hit_loads: tuple[ClassLoad, ...] = ()
    """Moments at each of the workload's `hit_levels`."""
    hit_mixed: tuple[ClassLoad, ...] = ()

    @classmethod
    def of(cls, index: int, workload: WorkloadClass) -> ClassView:
        """The view of a class of the instance."""
        scv = workload.arrival_scv
        levels = [level.mix for level in workload.hit_levels]
        return cls(
            index,
            workload,
            class_load(workload.mix, scv),
            mixed_load(workload.mix, scv),
            tuple(class_load(mix, scv) for mix in levels),
            tuple(mixed_load(mix, scv) for mix in levels),
        )


class Refusals:
    """Counts of why configurations cannot serve a class."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}

    def add(self, view: ClassView, reason: str, count: int) -> None:
        """Note `count` configurations refused for one reason."""
        if count:
            reasons = self.counts.setdefault(view.workload.name, {})
            reasons[reason] = reasons.get(reason, 0) + count


class EngineOptions:
    """Enumerates decode (`budgets` None) or aggregated options of one model.

    Every configuration is combined with every chunk budget; the pair is a *slot*, and all
    slots are searched at once, because numpy is paid per call.
    """

    def __init__(
        self,
        step: StepTimes,
        views: Sequence[ClassView],
        class_count: int,
        budgets: Sequence[int] | None,
        refusals: Refusals,
        chords: int,
        margins: Margins,
    ) -> None:
        self.views = views
        self.class_count = class_count
        self.aggregated = budgets is not None
        self.refusals = refusals
        self.chords = chords
        self.margins = margins
        chunks = [0] if budgets is None else list(budgets)
        size = len(step.configs)
        self.step = step.take(np.tile(np.arange(size), len(chunks)))
        self.chunks = np.repeat(np.array(chunks, dtype=np.float64), size)
        self.strong = np.ones(len(self.chunks), dtype=bool)
        self.able = {view.index: np.zeros(len(self.chunks), dtype=bool) for view in views}

    def run(self, masks: dict[int, Flags]) -> Iterator[PoolOption]:
        """All options; `masks` says per class which configurations have a precision for it."""
        copies = len(self.chunks) // max(len(next(iter(masks.values()))), 1)
        strong: set[tuple[PoolConfig, int | None]] = set()
        for view in self.views:
            slots = np.flatnonzero(np.tile(masks[view.index], copies))
            found = list(self._single(view, self._capable(view, slots)))
            yield from found
            if self.aggregated and len(self.views) > 1:
                strong |= {(each.config, each.chunk_tokens) for each in undominated(found)}
        self.strong = np.array(
            [
                (config, int(chunk)) in strong
                for config, chunk in zip(self.step.configs, self.chunks, strict=True)
            ]
            if strong
            else np.ones(len(self.chunks)),
            dtype=bool,
        )
        for views in class_sets(self.views):
            if len(views) > 1:
                yield from self._shared(views)

    def _capable(self, view: ClassView, slots: Ints) -> Ints:
        """Slots whose memory holds the longest request and whose network receives in time."""
        fits = self.step.longest_fits(slots, view.load.longest_tokens, self._batched(slots))
        reason = f"a request of {view.load.longest_tokens:,.0f} tokens does not fit in memory"
        self.refusals.add(view, reason, int((~fits).sum()))
        slots = slots[fits]
        if not self.aggregated and len(slots):
            part = self.step.take(slots)
            slowest = slowest_transfer_bytes_per_s(part, view.workload, view.load)
            quick = part.nic_bytes_per_s(ALL) >= slowest
            reason = "network too slow to receive the KV cache in time (decode)"
            self.refusals.add(view, reason, int((~quick).sum()))
            slots = slots[quick]
        return slots

    def _single(self, view: ClassView, slots: Ints) -> Iterator[PoolOption]:
        if not len(slots):
            return
        found = self._levels(view, slots, self._load(view), np.ones(len(slots), dtype=np.int64))
        role = "aggregated" if self.aggregated else "decode"
        for keep, option in found:
            self.able[view.index][slots[keep]] = True
            yield option
        late = len(slots) - int(self.able[view.index][slots].sum())
        self.refusals.add(view, f"latency limits not met ({role})", late)
        if not self.aggregated:
            return
        for level, load in zip(view.workload.hit_levels, view.hit_mixed, strict=True):
            step = self.step.take(slots)
            least = least_replicas_of_cache(step, self._batched(slots), load, level.cache_tokens)
            some = np.flatnonzero(np.isfinite(least))
            floor = least[some].astype(np.int64)
            found = self._levels(view, slots[some], load, floor, CACHE_SHARE)
            yield from (option for _, option in found)

    def _levels(
        self,
        view: ClassView,
        slots: Ints,
        load: ClassLoad,
        floor: Ints,
        cache_share: float = 0.0,
    ) -> Iterator[tuple[int, PoolOption]]:
        """Options of one class with its position in `slots`, for pools from each size on where
        that lets a replica carry more.
        """
        if not len(slots):
            return
        engine = self._engine(slots, [load], cache_share)
        promises = self._promises(slots, [view])
        sizes = self._pool_sizes([view], engine)
        roomiest = roomiest_batch(engine, np.ones((len(slots), 1)))
        reached = np.zeros(len(slots))
        first = np.arange(len(slots))
        for rows, larger in ((first, sizes[:1]), (first, sizes[1:])):
            # What has no more room, no shorter wait helps.
            rows = rows[np.nan_to_num(roomiest) * GAIN > reached]
            if not len(rows) or not larger:
                continue
            each = np.tile(rows, len(larger))
            replicas = np.repeat(np.array(larger), len(rows))
            batch = largest_batch(
                engine.select(each),
                promises.take(each),
                np.ones((len(each), 1)),
                replicas,
                roomiest[each],
            )
            for size, found in zip(larger, batch.reshape(len(larger), -1), strict=True):
                more = np.flatnonzero(np.isfinite(found) & (found * GAIN > reached[rows]))
                keep = rows[more]
                reached[keep] = found[more]
                if not len(keep):
                    continue
                coefficients, step_s = single_class_rows(engine.select(keep), found[more])
                least = np.maximum(floor[keep], size)
                packed = self._pack(slots[keep], coefficients, step_s, [view], "", least)
                for position, option in packed:
                    yield int(keep[position]), option

    def _shared(self, views: Sequence[ClassView]) -> Iterator[PoolOption]:
        slots = np.flatnonzero(np.all([self.able[view.index] for view in views], axis=0))
        if len(slots) > SHARED_EXHAUSTIVE:
            slots = slots[self.strong[slots]]
        if not len(slots):
            return
        engine = self._engine(slots, [self._load(view) for view in views])
        promises = self._promises(slots, views)
        for replicas in self._pool_sizes(views, engine):
            frontier = Frontier(engine, promises, self.chords, replicas)
            step_s = frontier.slowest_step_s()
            for variant, rows in frontier.rows():
                usable = frontier.valid & np.isfinite(rows).all(axis=(1, 2))
                keep = np.flatnonzero(usable)
                least = np.full(len(keep), replicas)
                packed = self._pack(slots[keep], rows[keep], step_s[keep], views, variant, least)
                yield from (option for _, option in packed)

    def _pool_sizes(self, views: Sequence[ClassView], engine: Engine) -> tuple[int, ...]:
        """Pool sizes from which options are made: one, where waiting does not depend on it."""
        waits = self.aggregated and any(view.workload.ttft_limits for view in views)
        pooled = engine.pooled.any() and waits
        if not pooled:
            return (1,)
        return POOL_SIZES if len(views) == 1 else SHARED_POOL_SIZES

    def _promises(self, slots: Ints, views: Sequence[ClassView]) -> Promises:
        role = "aggregated" if self.aggregated else "decode"
        kinds = [
            pool_kind(
                self.step.configs[slot], role, int(self.chunks[slot]) if self.aggregated else None
            )
            for slot in slots.tolist()
        ]
        return Promises.of([view.workload for view in views], kinds, self.margins)

    def _load(self, view: ClassView) -> ClassLoad:
        return view.mixed if self.aggregated else view.load

    def _batched(self, slots: Ints) -> Floats:
        return np.asarray(self.chunks[slots] + self.step.max_num_seqs_per_rank(slots))

    def _engine(self, slots: Ints, loads: Sequence[ClassLoad], cache_share: float = 0.0) -> Engine:
        step = self.step.take(slots)
        profiles: list[ChunkProfile] | None = None
        if self.aggregated:
            profiles = [chunk_profile(step, load, self.chunks[slots]) for load in loads]
        return Engine(step, loads, profiles, cache_share)

    def _pack(
        self,
        slots: Ints,
        rows: Floats,
        step_s: Floats,
        views: Sequence[ClassView],
        variant: str,
        least: Ints,
    ) -> Iterator[tuple[int, PoolOption]]:
        """Options from arrays, each with its position in them; those with a row that cannot hold
        any flow are dropped.
        """
        columns = [view.index for view in views]
        usable = np.isfinite(rows).all(axis=(1, 2)) & (rows >= 0).all(axis=(1, 2))
        wide = np.full((len(slots), len(ROWS), self.class_count), np.inf)
        wide[:, :, columns] = rows * (1.0 + PROGRAM_MARGIN)
        for position in np.flatnonzero(usable).tolist():
            slot = int(slots[position])
            option = PoolOption(
                name="",
                config=self.step.configs[slot],
                role="aggregated" if self.aggregated else "decode",
                site="",
                gpus_per_node=0,
                classes=tuple(columns),
                coefficients=wide[position],
                step_s=float(step_s[position]),
                chunk_tokens=int(self.chunks[slot]) if self.aggregated else None,
                variant=variant,
                least_replicas=int(least[position]),
            )
            yield position, option


def class_sets(views: Sequence[ClassView]) -> list[tuple[ClassView, ...]]:
    """Sets of classes that options are made for, single classes first."""
    count = len(views)
    if count <= LARGEST_EXHAUSTIVE_SET:
        return [chosen for size in range(1, count + 1) for chosen in combinations(views, size)]
    ranked = sorted(views, key=lambda view: (view.load.context_mean, view.index))
    pairs = [tuple(sorted(pair, key=lambda view: view.index)) for pair in pairwise(ranked)]
    return [*((view,) for view in views), *pairs, tuple(views)]
