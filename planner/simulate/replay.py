"""A trace replayed at the rate of a plan, with its bursts as they were.

Speeding a trace up would make its bursts shorter than they are, so a rate above the trace's own
is reached by several copies of it, each shifted by chance around its span (a cycle), and only
what remains by playing them faster or slower, by at most half. A rate below the trace's own
keeps each request with the same chance. Copies and repetitions share no blocks of a prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.simulate.chance import generator
from planner.simulate.draw import places
from planner.simulate.records import Floats, Ints
from planner.simulate.requests import Arrivals
from planner.traces.arrivals import spread_ticks, tick_of
from planner.traces.trace import Trace
from planner.workload.classes import WorkloadClass
from planner.workload.mix import TokenMix


def classes_of(trace: Trace, classes: Sequence[WorkloadClass]) -> Ints:
    """The class (R,) that each request of a trace is most like: the nearest by the logarithms of
    input and output tokens, each against the class's own mean and spread of them.
    """
    best = np.full(trace.requests, np.inf)
    chosen = np.zeros(trace.requests, dtype=np.int64)
    inputs, outputs = _logs(trace.input_tokens), _logs(trace.output_tokens)
    for k, workload in enumerate(classes):
        mix = workload.mix
        distance = _distance(inputs, _logs(mix.prompt_tokens), mix.prompt_weight)
        distance = distance + _distance(outputs, _logs(mix.output_tokens), mix.output_weight)
        nearer = distance < best
        best[nearer], chosen[nearer] = distance[nearer], k
    return chosen


def _logs(tokens: Floats | Ints) -> Floats:
    return np.asarray(np.log(np.maximum(tokens, 1.0)))


def _distance(values: Floats, points: Floats, weight: Floats) -> Floats:
    """Twice the negative logarithm of a normal density, up to a constant."""
    mean = float(points @ weight)
    # Classes of one length would have no spread: a tenth of it is taken as the least.
    variance = max(float((points - mean) ** 2 @ weight), 0.01)
    return np.asarray((values - mean) ** 2 / variance + np.log(variance))


def replayed_arrivals(
    trace: Trace,
    rows: Ints,
    span_s: float,
    class_index: int,
    rate_per_s: float,
    end_s: float,
    seed: int,
    mix: TokenMix,
) -> Arrivals:
    """The requests `rows` (R,) of a trace as one class in [0, end), all counted.

    Where the trace does not say what prompts share, each finds the share of itself in the cache
    that a prompt drawn from `mix`, the class's, finds.
    `span_s` is the span of the whole trace: the cycle. Copies are shifted alike for every class.
    """
    draw = generator(seed, "replay")
    times = even_times_s(trace, seed)[rows]
    own_rate = len(rows) / span_s
    copies = max(round(rate_per_s / own_rate), 1)
    kept = min(rate_per_s / own_rate, 1.0)
    speed = rate_per_s / (copies * own_rate * kept)
    repeats = int(np.ceil(end_s * speed / span_s)) + 1
    shifts = draw.random(copies) * span_s
    thinning = generator(seed, "thinning", str(class_index))
    arrival, row, copy = [], [], []
    for number, shift in enumerate(shifts.tolist()):
        for repeat in range(repeats):
            at = (times + shift + (repeat - 1) * span_s) / speed
            inside = (at >= 0) & (at < end_s)
            if kept < 1:
                inside &= thinning.random(len(at)) < kept
            arrival.append(at[inside])
            row.append(rows[inside])
            copy.append(np.full(int(inside.sum()), number * repeats + repeat))
    at_s, index = np.concatenate(arrival), np.concatenate(row)
    order = np.argsort(at_s, kind="stable")
    at_s, index, of = at_s[order], index[order], np.concatenate(copy)[order]
    inputs = np.maximum(trace.input_tokens[index], 1)
    return Arrivals(
        class_index=np.full(len(at_s), class_index, dtype=np.int64),
        arrival_s=at_s,
        input_tokens=inputs,
        cached_tokens=_found(trace, inputs, mix, generator(seed, "found", str(class_index))),
        output_tokens=np.maximum(trace.output_tokens[index], 1),
        hidden_tokens=np.zeros(len(at_s), dtype=np.int64),
        counted=np.ones(len(at_s), dtype=np.bool_),
        block_ids=_blocks(trace, index, of),
        block_tokens=trace.block_tokens,
    )


def even_times_s(trace: Trace, seed: int) -> Floats:
    """Arrivals (R,); those of a coarse clock spread over its ticks."""
    tick = tick_of(trace.arrival_s)
    return trace.arrival_s if tick is None else spread_ticks(trace.arrival_s, tick, seed)


def _found(trace: Trace, inputs: Ints, mix: TokenMix, draw: np.random.Generator) -> Ints:
    if trace.block_ids is not None:
        return np.zeros_like(inputs)
    point = places(mix.prompt_weight, draw.random(len(inputs)))
    share = mix.cached_tokens[point] / mix.prompt_tokens[point]
    return np.minimum((inputs * share).astype(np.int64), inputs - 1)


def _blocks(trace: Trace, index: Ints, copy: Ints) -> tuple[Sequence[int], ...] | None:
    if trace.block_ids is None:
        return None
    offset = 1 + max((max(row) for row in trace.block_ids if row), default=0)
    return tuple(
        tuple(block + number * offset for block in trace.block_ids[row])
        for row, number in zip(index.tolist(), copy.tolist(), strict=True)
    )
