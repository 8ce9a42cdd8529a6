"""What a prefix cache of any size would have found: LRU stack distances over blocks of prompts.

A least-recently-used cache of C blocks holds exactly the C blocks used last, so one pass over the
trace gives the hits of every size at once (Mattson, Gecsei, Slutz and Traiger, "Evaluation
techniques for storage hierarchies", IBM Systems Journal 9(2), 1970): a block is found where no
more than C different blocks, itself included, have been used since it was used last.

As in vLLM and SGLang, only the leading run of found blocks counts, only full blocks are kept, and
a prompt's tail is given up before its head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np

from planner.traces.trace import Flags, Floats, Ints, Trace, frozen

NEVER: Final = np.iinfo(np.int64).max
"""Depth of a block that no cache holds: it is new, or behind one that is."""
STEPS: Final = (1.0, 2.0, 5.0)
LEAST_SHARE: Final = 0.005
"""Points of a curve that add less than this share of the input are left out."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefixReuse:
    """Every full block of every prompt, B in all, with the smallest cache that finds it.

    `depth_blocks` and `request` have shape (B,), `input_tokens` (R,).
    """

    depth_blocks: Ints
    """Blocks that the cache must hold for this block and all before it; NEVER if none finds it."""
    request: Ints
    """Index of the request it belongs to."""
    input_tokens: Ints
    block_tokens: int

    def found_tokens(self, cache_tokens: float) -> Ints:
        """Input tokens found of each request (R,) in a cache of this size."""
        found = self.depth_blocks <= self._blocks(cache_tokens)
        return (
            np.bincount(self.request[found], minlength=len(self.input_tokens)) * self.block_tokens
        )

    def fraction(self, cache_tokens: float, rows: Flags | None = None) -> float:
        """Share of the input tokens found, of all requests or of those in `rows` (R,)."""
        found, given = self.found_tokens(cache_tokens), self.input_tokens
        if rows is not None:
            found, given = found[rows], given[rows]
        return float(found.sum() / given.sum())

    def curve(self, rows: Flags | None = None) -> list[tuple[float, float]]:
        """(cache_tokens, fraction found) at sizes 1, 2, 5, 10 ..., rising, up to where a larger
        cache finds no more; empty where nothing is found. The cache is shared by all requests.
        """
        largest = self.fraction(np.inf, rows)
        finite = self.depth_blocks[self.depth_blocks < NEVER]
        if not len(finite) or largest < LEAST_SHARE:
            return []
        top = float(finite.max()) * self.block_tokens
        points: list[tuple[float, float]] = []
        for size in _sizes(float(self.block_tokens), top):
            share = self.fraction(size, rows)
            if share >= (points[-1][1] if points else 0.0) + LEAST_SHARE:
                points.append((size, share))
        if not points or points[-1][1] < largest - LEAST_SHARE / 10:
            points.append((top, largest))
        return points

    def request_shares(self, cache_tokens: float, rows: Flags | None = None) -> tuple[float, float]:
        """Share of requests that find anything, and the effective share.

        The effective share is E[h]^2 / E[h^2] with h the fraction of its input that a request
        finds, requests counted by their input: if that share found all that is found, and equal
        fractions each, h would have the mean and the variance that it has.
        """
        found, given = self.found_tokens(cache_tokens), self.input_tokens
        if rows is not None:
            found, given = found[rows], given[rows]
        if not found.any():
            return 0.0, 0.0
        weight: Floats = given / given.sum()
        part: Floats = found / given
        mean, square = float(weight @ part), float(weight @ part**2)
        return float(np.count_nonzero(found) / len(found)), mean**2 / square

    def _blocks(self, cache_tokens: float) -> float:
        return min(cache_tokens // self.block_tokens if np.isfinite(cache_tokens) else NEVER - 1,
                   NEVER - 1)  # fmt: skip


def prefix_reuse(trace: Trace) -> PrefixReuse | None:
    """The reuse of blocks in a trace, O(n log n) in its blocks; None where it has no blocks."""
    if trace.block_ids is None:
        return None
    full = np.minimum(
        trace.input_tokens // trace.block_tokens,
        np.array([len(ids) for ids in trace.block_ids], dtype=np.int64),
    )
    count = int(full.sum())
    ids = np.fromiter(
        chain.from_iterable(ids[:kept] for ids, kept in zip(trace.block_ids, full, strict=True)),
        dtype=np.int64,
        count=count,
    )
    request = np.repeat(np.arange(trace.requests), full)
    start = np.repeat(np.cumsum(full) - full, full)
    end = np.repeat(np.cumsum(full), full)
    place = np.arange(count)
    # A prompt's blocks are used from its tail to its head, so that the head is given up last.
    used_at = start + end - 1 - place
    last_use = _previous_use(ids, used_at)
    again = (last_use >= 0) & (last_use < start)  # a block twice in one prompt: the second misses
    by_time = np.empty(count, dtype=np.int64)
    by_time[used_at] = last_use
    depth = np.full(count, NEVER, dtype=np.int64)
    # Of the uses before this prompt, those after the last use of the block whose own last use was
    # before it are different blocks; all up to that last use count too, and are taken off.
    different = count_up_to(by_time, start[again], last_use[again])
    depth[again] = different - last_use[again]
    return PrefixReuse(
        frozen(_running_maximum(depth, request)), frozen(request), trace.input_tokens,
        trace.block_tokens,
    )  # fmt: skip


def count_up_to(values: Ints, bounds: Ints, limits: Ints) -> Ints:
    """For each query k, how many of values[:bounds[k]] are at most limits[k].

    `values` (N,) lie between -1 and N - 1; `bounds` and `limits` (Q,). The first `bound` places
    are cut into blocks whose sizes are the powers of two in it; on every level all blocks of one
    size are sorted (merged from the level below), and each query looks into at most one.
    """
    total = np.zeros(len(bounds), dtype=np.int64)
    stride = len(values) + 1
    size = 1
    level = values + 1
    while size <= len(values):
        block = np.arange(len(values)) // size
        keys = np.sort(block * stride + level, kind="stable")  # runs are sorted: this merges them
        asked = np.flatnonzero(bounds & size)
        block_of = bounds[asked] // (2 * size) * 2
        top = np.searchsorted(keys, block_of * stride + limits[asked] + 1, side="right")
        total[asked] += top - block_of * size
        level = keys - block * stride
        size *= 2
    return total


def _previous_use(ids: Ints, used_at: Ints) -> Ints:
    """Time of the use of the same block before this one, -1 where there is none; all (B,)."""
    order = np.lexsort((used_at, ids))
    same = ids[order[1:]] == ids[order[:-1]]
    previous = np.full(len(ids), -1, dtype=np.int64)
    previous[order[1:][same]] = used_at[order[:-1][same]]
    return previous


def _running_maximum(depth: Ints, request: Ints) -> Ints:
    """The largest depth from the head of each prompt up to here: what a leading run needs."""
    finite = depth[depth < NEVER]
    cap = int(finite.max()) + 1 if len(finite) else 1
    step = cap + 1
    lifted = np.minimum(depth, cap) + request * step
    highest = np.maximum.accumulate(lifted) - request * step if len(depth) else depth
    return np.where(highest >= cap, NEVER, highest)


def _sizes(least: float, most: float) -> list[float]:
    """1, 2, 5, 10 ... from `least` to `most`."""
    found = []
    power = 10.0 ** np.floor(np.log10(least))
    while power <= most:
        found += [step * power for step in STEPS if least <= step * power <= most]
        power *= 10
    return [float(size) for size in found]
