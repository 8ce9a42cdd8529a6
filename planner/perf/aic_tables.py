"""Step times of one setup, sampled from AIConfigurator and put into the planner's split.

A decode step of b sequences at context c on one attention group and pipeline lane is sampled as
S(b, c) and kept as

    S(b, c) = g(b) + b r(c)

with r at a context of next to nothing set to what the physical bound has there, so that
g(b) = S(b, ~0) - b r(~0) exactly, and r(c) the multiple of b that is nearest to S(b, c) - g(b) in
relative error over the batches that fit in memory. Beyond the batches of an engine, g goes on with
prompts so short that they have next to no attention. The attention of a prompt of u tokens behind c
cached ones is what its prefill takes beyond g(u).

Measured kernels need not be faster for less work, and take jumps where a tile fills. g is smoothed
by straight lines through its neighbours within an octave, because the tail of TPOT rests on its
slope, and is then the nearest increasing sequence (isotonic regression), both in relative error,
with monotone cubics between samples; the other two are running maxima.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.perf.aic_engine import EngineHandle, NotCoveredError, quiet, reason_of
from planner.perf.work import FloatArray

LARGEST_BATCH: Final = 1024
"""Sequences of one attention group and lane up to which g comes from decode steps."""
SHORT_PROMPT_TOKENS: Final = 128
"""Length of the prompts from which g comes beyond that: their attention takes next to no time."""
NO_CONTEXT_TOKENS: Final = 16
"""A context whose attention takes next to no time; the tables start near it."""

SMOOTHED_RATIO: Final = 2.5
"""Tokens up to so many times more or fewer smooth g. Without it the 95th percentile of TPOT falls
by up to 72 % where a batch grows past a tile, with it by 3 %; mean errors on measured deployments
are the same.
"""
SMALLEST_SHARE: Final = 0.01
"""Least share of a decode step without context that is left to tokens."""


def _steps(largest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, … up to `largest`, a power of two."""
    powers = [1 << n for n in range(largest.bit_length())]
    return sorted({*powers, *(3 * n // 2 for n in powers[1:-1])})


# Where steps are sampled, and at `LEVELS` where g is kept.
BATCHES: Final = np.array(_steps(LARGEST_BATCH), dtype=np.float64)
POWERS: Final = BATCHES[np.log2(BATCHES) % 1 == 0]
TOKENS: Final = np.array(_steps(1 << 20), dtype=np.float64)
LEVELS: Final = np.exp2(np.linspace(0, 20, 161))
CONTEXTS: Final = np.array([NO_CONTEXT_TOKENS, *(1 << n for n in range(7, 21))], dtype=np.float64)
CACHED: Final = np.array([0, *(1 << n for n in range(10, 21, 2))], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds that AIConfigurator answers for one setup.

    `decode_s` (len(POWERS), len(CONTEXTS)) by batch and context, `alone_s` at `BATCHES` and next to
    no context, `short_s` at `TOKENS` in short prompts, `prompt_s` (len(TOKENS), len(CACHED)).
    """

    decode_s: FloatArray
    alone_s: FloatArray
    short_s: FloatArray
    prompt_s: FloatArray


@dataclass(frozen=True, slots=True)
class StepTable:
    """Seconds of one configuration per attention group and lane.

    `token_s` at `LEVELS`, `sequence_s` at `CONTEXTS`, `prompt_s` (len(TOKENS), len(CACHED)).
    Nine in ten sampled decode steps lie within the relative `split_error` of the split.
    """

    token_s: FloatArray
    sequence_s: FloatArray
    prompt_s: FloatArray
    split_error: float


def sample(handle: EngineHandle) -> Samples:
    """What a compiled setup answers. Raises NotCoveredError where a sampled step has no data."""
    decode, prefill = handle.predict_decode_latency, handle.predict_prefill_latency
    prompts = [max(round(tokens / SHORT_PROMPT_TOKENS), 1) for tokens in TOKENS]
    with quiet():
        try:
            found = (
                [[decode(int(b), int(c)) for c in CONTEXTS] for b in POWERS],
                [decode(int(b), NO_CONTEXT_TOKENS) for b in BATCHES],
                [prefill(n, round(t / n)) for t, n in zip(TOKENS, prompts, strict=True)],
                [[prefill(1, int(u + c), int(c)) for c in CACHED] for u in TOKENS],
            )
        except Exception as error:  # it raises many kinds, all of them "cannot predict this"
            raise NotCoveredError(reason_of(error)) from error
    seconds = [np.array(each, dtype=np.float64) / 1e3 for each in found]
    if not all(np.isfinite(each).all() and (each > 0).all() for each in seconds):
        raise NotCoveredError("its tables give a time that is not a positive number")
    return Samples(*seconds)


def split(
    samples: Samples,
    batch_limit: FloatArray,
    sequence_floor_s: float,
) -> StepTable:
    """The table of a configuration.

    `batch_limit` holds the sequences that fit at `CONTEXTS`, 0 beyond the model's context;
    `sequence_floor_s` is r of the physical bound without context. Both are of one attention group
    and lane. Raises NotCoveredError where not even one sequence fits.
    """
    from scipy.interpolate import PchipInterpolator

    least = SMALLEST_SHARE * samples.alone_s
    at_batches = np.maximum(samples.alone_s - BATCHES * sequence_floor_s, least)
    beyond = TOKENS > LARGEST_BATCH
    offset = at_batches[-1] - np.interp(LARGEST_BATCH, TOKENS, samples.short_s)
    further = np.maximum(samples.short_s + offset, at_batches[-1])
    measured = np.where(beyond, further, np.interp(TOKENS, BATCHES, at_batches))
    token_s = nearest_rising(smooth(TOKENS, measured))
    at_powers = np.interp(POWERS, TOKENS, token_s)
    sequence_s, split_error = _sequences(samples.decode_s, at_powers, batch_limit)
    attention = np.maximum(samples.prompt_s - token_s[:, None], 0.0)
    dense = PchipInterpolator(TOKENS, token_s)(LEVELS)
    return StepTable(dense, sequence_s, rising(rising(attention).T).T, split_error)


def _sequences(
    decode_s: FloatArray, token_s: FloatArray, limits: FloatArray
) -> tuple[FloatArray, float]:
    """Values of r at `CONTEXTS`, by least squares on relative errors over the batches that fit,
    and the error that nine in ten of these keep.
    """
    fits = POWERS[:, None] <= limits
    if not fits.any():
        raise NotCoveredError("no sequence fits in memory")
    # One sequence counts at every context, so that r is defined there.
    weight = np.where(fits | (POWERS[:, None] == 1), 1.0 / decode_s, 0.0)
    batch = POWERS[:, None] * weight
    target = (decode_s - token_s[:, None]) * weight
    found = rising(np.maximum((batch * target).sum(axis=0) / (batch**2).sum(axis=0), 0.0))
    errors = np.abs((token_s[:, None] + POWERS[:, None] * found) / decode_s - 1.0)[fits]
    return found, float(np.quantile(errors, 0.9))


def smooth(nodes: FloatArray, values: FloatArray) -> FloatArray:
    """Positive values at increasing nodes, each replaced by the straight line through its
    neighbours within `SMOOTHED_RATIO`, nearer ones counting more and errors relative.

    Straight lines stay as they are.
    """
    distance = np.abs(np.log(nodes[:, None] / nodes)) / math.log(SMOOTHED_RATIO)
    weight = np.maximum(1.0 - distance, 0.0) / values**2
    total = weight.sum(axis=1)
    mean_node, mean_value = weight @ nodes / total, weight @ values / total
    offset = nodes - mean_node[:, None]
    spread = (weight * offset**2).sum(axis=1)
    slope = (weight * offset * (values - mean_value[:, None])).sum(axis=1) / spread
    line = mean_value + slope * (nodes - mean_node)
    result: FloatArray = np.where(line > 0, line, values)
    return result


def nearest_rising(values: FloatArray) -> FloatArray:
    """The increasing sequence nearest to positive values in the logarithm."""
    from scipy.optimize import isotonic_regression

    nearest: FloatArray = np.exp(isotonic_regression(np.log(values)).x)
    return nearest


def rising(values: FloatArray) -> FloatArray:
    """The running maximum along the first axis."""
    highest: FloatArray = np.maximum.accumulate(values, axis=0)
    return highest


def interpolate(
    nodes: FloatArray, values: FloatArray, rows: NDArray[np.int64], at: ArrayLike
) -> FloatArray:
    """Rows of `values` (R, len(nodes)) at points, linear between nodes and beyond the last one,
    constant before the first; `rows` and `at` broadcast.
    """
    left, share = _place(nodes, at)
    low, high = values[rows, left], values[rows, left + 1]
    result: FloatArray = low + share * (high - low)
    return result


def interpolate_two(
    values: FloatArray, rows: NDArray[np.int64], tokens: ArrayLike, cached: ArrayLike
) -> FloatArray:
    """`prompt_s` of rows (R, len(TOKENS), len(CACHED)), bilinear; arguments broadcast."""
    j, s = _place(TOKENS, tokens)
    k, t = _place(CACHED, cached)
    low = values[rows, j, k] * (1 - s) + values[rows, j + 1, k] * s
    high = values[rows, j, k + 1] * (1 - s) + values[rows, j + 1, k + 1] * s
    result: FloatArray = low + t * (high - low)
    return result


def _place(nodes: FloatArray, at: ArrayLike) -> tuple[NDArray[np.int64], FloatArray]:
    points = np.maximum(np.asarray(at, dtype=np.float64), nodes[0])
    left = np.clip(np.searchsorted(nodes, points, side="right") - 1, 0, len(nodes) - 2)
    share: FloatArray = (points - nodes[left]) / (nodes[left + 1] - nodes[left])
    return left, share
