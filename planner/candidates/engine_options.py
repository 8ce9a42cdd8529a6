"""Decode and aggregated options: for each class alone, and for classes that share a pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.options import PROGRAM_MARGIN, ROWS, PoolOption
from planner.candidates.prefill import slowest_transfer_bytes_per_s
from planner.candidates.rows import Frontier, single_class_rows
from planner.candidates.search import largest_batch
from planner.perf.backend import StepTimes
from planner.pools.decode import ALL, ChunkProfile, Engine, chunk_profile
from planner.pools.loads import ClassLoad
from planner.workload.classes import WorkloadClass

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]

LARGEST_EXHAUSTIVE_SET: Final = 3
"""Up to this many classes of a model, every subset gets options of its own; above it, single
classes, all together, and pairs of neighbours by the length of their decode contexts."""


@dataclass(frozen=True, slots=True)
class ClassView:
    """A class of the model: its index in the instance, promises and moments."""

    index: int
    workload: WorkloadClass
    load: ClassLoad


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
    ) -> None:
        self.views = views
        self.class_count = class_count
        self.aggregated = budgets is not None
        self.refusals = refusals
        self.chords = chords
        chunks = [0] if budgets is None else list(budgets)
        size = len(step.configs)
        self.step = step.take(np.tile(np.arange(size), len(chunks)))
        self.chunks = np.repeat(np.array(chunks, dtype=np.float64), size)
        self.able = {view.index: np.zeros(len(self.chunks), dtype=bool) for view in views}

    def run(self, masks: dict[int, Flags]) -> Iterator[PoolOption]:
        """All options; `masks` says per class which configurations have a precision for it."""
        copies = len(self.chunks) // max(len(next(iter(masks.values()))), 1)
        for view in self.views:
            slots = np.flatnonzero(np.tile(masks[view.index], copies))
            yield from self._single(view, self._capable(view, slots))
        for views in class_sets(self.views):
            if len(views) > 1:
                yield from self._shared(views)

    def _capable(self, view: ClassView, slots: Ints) -> Ints:
        """Slots whose memory holds the longest request and whose network receives in time."""
        batched = self.chunks[slots] + self.step.max_num_seqs_per_rank(slots)
        fits = self.step.longest_fits(slots, view.load.longest_tokens, batched)
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
        engine = self._engine(slots, [view])
        batch = largest_batch(engine, [view.workload], np.ones((len(slots), 1)))
        keep = np.flatnonzero(np.isfinite(batch))
        role = "aggregated" if self.aggregated else "decode"
        self.refusals.add(view, f"latency limits not met ({role})", len(slots) - len(keep))
        if len(keep):
            rows, step_s = single_class_rows(engine.select(keep), batch[keep])
            self.able[view.index][slots[keep]] = True
            yield from self._pack(slots[keep], rows, step_s, [view], "")

    def _shared(self, views: Sequence[ClassView]) -> Iterator[PoolOption]:
        slots = np.flatnonzero(np.all([self.able[view.index] for view in views], axis=0))
        if not len(slots):
            return
        workloads = [view.workload for view in views]
        frontier = Frontier(self._engine(slots, views), workloads, self.chords)
        step_s = frontier.slowest_step_s()
        for variant, rows in frontier.rows():
            usable = frontier.valid & np.isfinite(rows).all(axis=(1, 2))
            keep = np.flatnonzero(usable)
            yield from self._pack(slots[keep], rows[keep], step_s[keep], views, variant)

    def _engine(self, slots: Ints, views: Sequence[ClassView]) -> Engine:
        step = self.step.take(slots)
        loads = [view.load for view in views]
        profiles: list[ChunkProfile] | None = None
        if self.aggregated:
            profiles = [chunk_profile(step, load, self.chunks[slots]) for load in loads]
        return Engine(step, loads, profiles)

    def _pack(
        self,
        slots: Ints,
        rows: Floats,
        step_s: Floats,
        views: Sequence[ClassView],
        variant: str,
    ) -> Iterator[PoolOption]:
        """Options from arrays; those with a row that cannot hold any flow are dropped."""
        columns = [view.index for view in views]
        usable = np.isfinite(rows).all(axis=(1, 2)) & (rows >= 0).all(axis=(1, 2))
        wide = np.full((len(slots), len(ROWS), self.class_count), np.inf)
        wide[:, :, columns] = rows * (1.0 + PROGRAM_MARGIN)
        for position in np.flatnonzero(usable).tolist():
            slot = int(slots[position])
            yield PoolOption(
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
            )


def class_sets(views: Sequence[ClassView]) -> list[tuple[ClassView, ...]]:
    """Sets of classes that options are made for, single classes first."""
    count = len(views)
    if count <= LARGEST_EXHAUSTIVE_SET:
        return [chosen for size in range(1, count + 1) for chosen in combinations(views, size)]
    ranked = sorted(views, key=lambda view: (view.load.context_mean, view.index))
    pairs = [tuple(sorted(pair, key=lambda view: view.index)) for pair in pairwise(ranked)]
    return [*((view,) for view in views), *pairs, tuple(views)]
