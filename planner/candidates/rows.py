"""Rows of decode and aggregated options: linear in the flow because the step time is bounded.

At a mean step tau, Little's law makes the sequences in flight B_k = x_k O_k tau / a, so every
resource of n replicas is linear in (n, x). `safe_rows` are the rows that keep promises,
`resource_rows` the physical limits beside them. Both in replicas per request/s.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.options import ROW_INDEX, ROWS
from planner.candidates.promises import Promises
from planner.candidates.search import (
    cache_limit_bytes,
    largest_batch,
    sequence_limit,
    utilization_cap,
)
from planner.pools.decode import Engine
from planner.pools.prompts import ALL, EACH

Floats = NDArray[np.float64]

MIXES_PER_CHORD: Final = 4
"""Mixes at which a chord of a frontier of two classes is checked against the full model."""
LATTICE: Final = {3: 6, 4: 3}
"""Steps along an edge of the lattice of mixes, by the number of classes; more classes have 2."""
FRONTIER_MARGIN: Final = 1e-4
"""Shrinkage of rows that a frontier was found to undercut, for what lies between its mixes."""


def resource_rows(
    engine: Engine, quickest_s: Floats, slowest_s: Floats, full_step_s: Floats
) -> Floats:
    """Every row but the calibrated step, (N, rows, K).

    `quickest_s` and `slowest_s` (N,) bound the mean step of the option's loads; where they
    differ (options of several classes) the rows are necessary, where they agree also exact.

    compute        (seconds of FLOPs per request at dense peak) x <= n
    hbm_bandwidth  n weights / tau + (seconds of cache reads per request) x <= n, weights as one
                   token reads them, so that the row bounds every batch
    hbm_capacity   sum_k B_k cache_k <= n occupancy room
    interconnect   (seconds of collectives per request at full link rate) x <= n
    kv_transfer    cache bytes entering a decode pool <= n NIC bandwidth
    batch_limit    sum_k B_k <= n max_num_seqs
    chunk_budget   uncached prompt tokens per step <= n chunk
    prefill_utilization  uncached prompt tokens x full step / chunk <= n cap
    """
    step = engine.step
    rows = np.zeros((len(engine.configs), len(ROWS), len(engine.loads)))
    accepted = engine.accepted
    with np.errstate(divide="ignore", invalid="ignore"):
        weights_share = step.weight_read_s(ALL, 1.0) / slowest_s
        room = cache_limit_bytes(engine)
        for k, load in enumerate(engine.loads):
            flight = load.output_mean * quickest_s / accepted
            steps = load.output_mean / accepted
            token_s = step.compute_s_per_token(ALL)
            sequence_s = step.compute_s_per_sequence(ALL, load.context_mean)
            compute = steps * engine.verified * (token_s + sequence_s)
            links = steps * engine.verified * step.collective_s_per_token(ALL)
            if engine.profiles is not None:
                prompt_s = step.prefill_compute_s(EACH, load.uncached, load.cached)
                compute = compute + prompt_s @ load.weight
                links = links + load.uncached_mean * step.collective_s_per_token(ALL)
                chunk = engine.chunk_capacity_tokens()
                _set(rows, "chunk_budget", k, load.uncached_mean * quickest_s / chunk)
                _set(
                    rows,
                    "prefill_utilization",
                    k,
                    load.uncached_mean * full_step_s / chunk / utilization_cap(engine),
                )
            else:
                moved = step.kv_transfer_bytes(EACH, load.prompt) @ load.weight
                _set(rows, "kv_transfer", k, moved / step.nic_bytes_per_s(ALL))
            reads = steps * step.kv_read_s(ALL, load.context_mean)
            cache = step.kv_bytes_per_sequence(ALL, load.context_mean)
            _set(rows, "compute", k, compute)
            _set(rows, "hbm_bandwidth", k, reads / (1.0 - weights_share))
            _set(rows, "hbm_capacity", k, flight * cache / room)
            _set(rows, "interconnect", k, links)
            _set(rows, "batch_limit", k, flight / sequence_limit(engine))
    return rows


def _set(rows: Floats, family: str, class_index: int, value: Floats) -> None:
    rows[:, ROW_INDEX[family], class_index] = value


def single_class_rows(engine: Engine, batch: Floats) -> tuple[Floats, Floats]:
    """Rows (N, rows, 1) and step time (N,) of options dedicated to one class.

    The batch is the largest that every limit allows, so the calibrated row is exact:
    x O tau / a <= n batch.
    """
    point = engine.point(batch[:, None])
    rows = resource_rows(engine, point.step_s, point.step_s, point.full_step_s)
    flight = engine.outputs[0] * point.step_s / engine.accepted
    _set(rows, "calibrated_step_1", 0, flight / batch)
    return rows, point.step_s


class Frontier:
    """The loads that one replica can carry when several classes share it.

    For mixes of the classes on a lattice, the largest batch at which the full model keeps every
    promise to every class, the memory and the engine's limits; the points found bound the set
    of admissible loads, which is closed downwards. Rows are chords between those points (two
    classes) or the simplex of what each class reaches alone (more), scaled so that no mix on
    the lattice lies beyond its own point. So every row is safe at any mix checked, exact where
    the frontier bulges, and what lies between the mixes is covered by verification.
    """

    def __init__(self, engine: Engine, promises: Promises, chords: int, replicas: int = 1) -> None:
        self.engine = engine
        self.promises = promises
        self.chords = chords
        self.replicas = replicas
        count = len(engine.loads)
        edge = MIXES_PER_CHORD * chords if count == 2 else LATTICE.get(count, 2)
        self.shares = _mixes(count, edge)
        self.rates, self.steps = self._points()
        self.valid = np.asarray(np.isfinite(self.rates).all(axis=(1, 2)))

    def _points(self) -> tuple[Floats, Floats]:
        """Rates (N, mixes, K) and mean steps (N, mixes) on the frontier, nan where none."""
        size, (mixes, count) = len(self.engine.configs), self.shares.shape
        alone = np.stack(
            [self._along(np.eye(count)[k][None, None, :])[0][:, 0, k] for k in range(count)],
            axis=-1,
        )
        composition = self.shares[None] * np.where(np.isfinite(alone), alone, 1.0)[:, None, :]
        rates, steps = self._along(composition)
        able = np.asarray(np.isfinite(alone).all(axis=-1))
        rates = np.where(able[:, None, None], rates, np.nan)
        return rates, steps.reshape(size, mixes)

    def _along(self, rates: Floats) -> tuple[Floats, Floats]:
        """The largest multiples of rate directions (N or 1, M, K) that keep every promise.

        At given proportions of the rates the batch has the proportions x_k O_k, whatever the
        step, so one search over the batch settles each direction.
        """
        size, mixes = len(self.engine.configs), rates.shape[1]
        composition = np.broadcast_to(
            rates * self.engine.outputs, (size, mixes, rates.shape[2])
        ).reshape(size * mixes, -1)
        composition = composition / composition.sum(axis=-1, keepdims=True)
        each = np.repeat(np.arange(size), mixes)
        engine = self.engine.select(each)
        replicas = np.full(len(each), self.replicas)
        total = largest_batch(engine, self.promises.take(each), composition, replicas)
        batch = np.where(np.isfinite(total), total, 1.0)[:, None] * composition
        step_s = engine.point(batch).step_s
        reached = engine.rates(batch, step_s)
        reached[~np.isfinite(total)] = np.nan
        return reached.reshape(size, mixes, -1), step_s.reshape(size, mixes)

    def rows(self) -> list[tuple[str, Floats]]:
        """Sets of rows (N, rows, K) by name; nan where a configuration has none."""
        found = [("", self._with_safe_rows(self._simplex()[:, None, :]))]
        if self.shares.shape[1] == 2:
            found.append(("chords", self._with_safe_rows(self._chords())))
        return found

    def slowest_step_s(self) -> Floats:
        """The longest mean step on the frontier, (N,)."""
        return np.asarray(self.steps.max(axis=-1))

    def _simplex(self) -> Floats:
        """sum_k x_k / x_k,alone <= 1."""
        count = self.shares.shape[1]
        corners = [int(np.argmax(self.shares[:, k])) for k in range(count)]
        return np.stack([1.0 / self.rates[:, corners[k], k] for k in range(count)], axis=-1)

    def _chords(self) -> Floats:
        """Lines through neighbouring knots of a frontier of two classes, (N, chords, 2)."""
        knots = self.rates[:, ::MIXES_PER_CHORD, :]
        lines = []
        for j in range(self.chords):
            (x1, y1), (x2, y2) = knots[:, j].T, knots[:, j + 1].T
            with np.errstate(divide="ignore", invalid="ignore"):
                area = x1 * y2 - x2 * y1
                lines.append(np.stack([(y2 - y1) / area, (x1 - x2) / area], axis=-1))
        return np.stack(lines, axis=1)

    def _with_safe_rows(self, lines: Floats) -> Floats:
        """All rows of an option: `lines` (N, J, K) scaled to be safe, resources beside them."""
        use = np.einsum("njk,nmk->nmj", lines, self.rates).max(axis=-1).min(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(use < 1.0, (1.0 + FRONTIER_MARGIN) / use, 1.0)
        quickest = np.min(
            [
                self.engine.decode_s(_one_class(len(use), self.shares.shape[1], k))
                for k in range(self.shares.shape[1])
            ],
            axis=0,
        )
        full = self.engine.point(np.full((len(use), self.shares.shape[1]), 1e-9)).full_step_s
        rows = resource_rows(self.engine, quickest, self.slowest_step_s(), full)
        for j in range(lines.shape[1]):
            rows[:, ROW_INDEX[f"calibrated_step_{j + 1}"], :] = lines[:, j] * scale[:, None]
        return rows


def _one_class(size: int, count: int, class_index: int) -> Floats:
    batch = np.zeros((size, count))
    batch[:, class_index] = 1.0
    return batch


def _mixes(count: int, steps: int) -> Floats:
    """Points (M, count) of the simplex lattice with `steps` steps along an edge, in order."""
    if count == 1:
        return np.ones((1, 1))
    if count == 2:
        share = np.linspace(0.0, 1.0, steps + 1)
        return np.stack([1.0 - share, share], axis=-1)
    points = [
        np.concatenate([[first], (1.0 - first) * rest])
        for first in np.linspace(0.0, 1.0, steps + 1)
        for rest in (_mixes(count - 1, steps) if first < 1.0 else np.eye(count - 1)[:1])
    ]
    return np.unique(np.round(np.array(points), 12), axis=0)
