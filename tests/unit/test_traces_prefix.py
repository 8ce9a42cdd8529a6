"""Hits by cache size against a cache that is run, block by block."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from planner.traces.prefix import count_up_to, prefix_reuse
from planner.traces.trace import Trace, sorted_trace

BLOCK = 16


def made(blocks: list[tuple[int, ...]], spare: int = 0) -> Trace:
    """A trace of these prompts, `spare` tokens of the last block missing."""
    inputs = [len(ids) * BLOCK - spare for ids in blocks]
    return sorted_trace(
        np.arange(len(blocks), dtype=np.float64), inputs, [1] * len(blocks), source="made",
        block_ids=blocks, block_tokens=BLOCK,
    )  # fmt: skip


def conversations(seed: int, requests: int = 300) -> list[tuple[int, ...]]:
    """Prompts that grow from turn to turn, some with a head in common."""
    rng = np.random.default_rng(seed)
    fresh = 100
    talks: list[tuple[int, ...]] = []
    found = []
    for _ in range(requests):
        if talks and rng.random() < 0.6:
            index = int(rng.integers(len(talks)))
        else:
            talks.append((0, 1) if rng.random() < 0.5 else ())
            index = len(talks) - 1
        grown = int(rng.integers(1, 6))
        talks[index] += tuple(range(fresh, fresh + grown))
        fresh += grown
        found.append(talks[index])
    return found


def run_cache(blocks: list[tuple[int, ...]], capacity: int) -> list[int]:
    """Blocks found of each prompt by a least-recently-used cache, tails given up before heads."""
    cache: OrderedDict[int, None] = OrderedDict()
    found = []
    for ids in blocks:
        hits = 0
        while hits < len(ids) and ids[hits] in cache:
            hits += 1
        found.append(hits)
        for block in reversed(ids):
            cache.pop(block, None)
            cache[block] = None
        while len(cache) > capacity:
            cache.popitem(last=False)
    return found


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 20, 61, 150, 400, 10_000])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_size_finds_what_a_cache_of_that_size_finds(seed: int, capacity: int) -> None:
    blocks = conversations(seed)
    reuse = prefix_reuse(made(blocks))
    assert reuse is not None
    expected = np.array(run_cache(blocks, capacity)) * BLOCK
    assert reuse.found_tokens(capacity * BLOCK).tolist() == expected.tolist()
    assert expected.sum() > 0 or capacity < 20


def test_only_full_blocks_are_kept() -> None:
    reuse = prefix_reuse(made([(1, 2), (1, 2)], spare=1))
    assert reuse is not None
    assert reuse.found_tokens(np.inf).tolist() == [0, BLOCK]


def test_a_missing_head_hides_what_comes_after_it() -> None:
    reuse = prefix_reuse(made([(1, 2, 3), (9, 2, 3), (1, 2, 8)]))
    assert reuse is not None
    assert reuse.found_tokens(np.inf).tolist() == [0, 0, 2 * BLOCK]


def test_a_trace_without_reuse_or_blocks() -> None:
    reuse = prefix_reuse(made([(1, 2), (3, 4)]))
    assert reuse is not None
    assert reuse.curve() == []
    assert reuse.request_shares(np.inf) == (0.0, 0.0)
    assert prefix_reuse(sorted_trace(np.zeros(1), [5], [5], source="")) is None
    nothing = prefix_reuse(made([(1,), (1,)], spare=3))
    assert nothing is not None
    assert nothing.curve() == []


def test_the_curve_rises_to_all_there_is() -> None:
    reuse = prefix_reuse(made(conversations(3)))
    assert reuse is not None
    curve = reuse.curve()
    sizes, shares = zip(*curve, strict=True)
    assert list(sizes) == sorted(set(sizes))
    assert list(shares) == sorted(set(shares))
    assert shares[-1] == pytest.approx(reuse.fraction(np.inf), abs=0.001)
    for size, share in curve:
        assert share == reuse.fraction(size)


def test_the_effective_share_keeps_mean_and_variance() -> None:
    # Half of the requests find three quarters of their input, the others nothing.
    heads = [(index, index + 1, index + 2, index + 3) for index in range(0, 40, 4)]
    again = [(*ids[:3], 1000 + ids[0]) for ids in heads]
    reuse = prefix_reuse(made(heads + again))
    assert reuse is not None
    finding, effective = reuse.request_shares(np.inf)
    assert finding == 0.5
    assert effective == pytest.approx(0.5)
    # All find a little and some find much: more than the few, fewer than all.
    mixed = prefix_reuse(made([(1, 2, 3, 4), (1, 5, 6, 7), (1, 2, 3, 4), (1, 8, 9, 10)]))
    assert mixed is not None
    finding, effective = mixed.request_shares(np.inf)
    part = np.array([0, 0.25, 1, 0.25])
    assert finding == 0.75
    assert effective == pytest.approx(part.mean() ** 2 / (part**2).mean())


@pytest.mark.parametrize("seed", range(5))
def test_counting_against_counting_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 200))
    values = rng.integers(-1, size, size)
    bounds = rng.integers(0, size + 1, 50)
    limits = rng.integers(-1, size, 50)
    expected = [
        int((values[:bound] <= limit).sum()) for bound, limit in zip(bounds, limits, strict=True)
    ]
    assert count_up_to(values, bounds, limits).tolist() == expected
