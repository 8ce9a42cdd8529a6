"""Requests drawn from the classes of a plan: when they come and how long they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from planner.simulate.chance import generator
from planner.simulate.component import Resident
from planner.simulate.pool import PoolModel
from planner.simulate.records import Floats, Ints
from planner.simulate.requests import Arrivals
from planner.workload.classes import WorkloadClass
from planner.workload.mix import TokenMix


def renewal_times_s(
    rate_per_s: float, scv: float, end_s: float, draw: np.random.Generator
) -> Floats:
    """Arrivals (R,) in [0, end): independent gaps, gamma with this squared coefficient of
    variation (1: exponential, a Poisson process; 0: evenly spaced).
    """
    reached, parts = 0.0, []
    while reached < end_s:
        expected = rate_per_s * (end_s - reached)
        count = int(expected + 5 * np.sqrt(expected * max(scv, 1.0)) + 10)
        gaps = np.full(count, 1.0) if scv <= 0 else draw.gamma(1 / scv, scv, count)
        parts.append(reached + np.cumsum(gaps / rate_per_s))
        reached = float(parts[-1][-1])
    times = np.concatenate(parts)
    return np.asarray(times[times < end_s])


def drawn_tokens(
    mix: TokenMix, count: int, draw: np.random.Generator
) -> tuple[Ints, Ints, Ints, Ints]:
    """Input, cached, output and hidden tokens of `count` requests, (R,) each.

    Hidden tokens and the whole output rise together (the same quantile of each): both have their
    own distribution exactly, and the output is never shorter than its hidden part.
    """
    prompt = places(mix.prompt_weight, draw.random(count))
    inputs = np.maximum(np.rint(mix.prompt_tokens[prompt]), 1.0)
    cached = np.minimum(np.rint(mix.cached_tokens[prompt]), inputs - 1)
    share = draw.random(count)
    outputs = mix.output_tokens[places(mix.output_weight, share)]
    hidden = mix.hidden_tokens[places(mix.hidden_weight, share)]
    outputs = np.maximum(np.rint(outputs), 1.0)
    hidden = np.minimum(np.rint(hidden), outputs - 1)
    return (
        inputs.astype(np.int64),
        cached.astype(np.int64),
        outputs.astype(np.int64),
        hidden.astype(np.int64),
    )


def places(weight: Floats, share: Floats) -> Ints:
    """Index of the point that each share in [0, 1) falls on."""
    reached = np.cumsum(weight)
    found = np.searchsorted(reached, share * reached[-1], side="right")
    return np.asarray(np.minimum(found, len(weight) - 1), dtype=np.int64)


def drawn_arrivals(
    workload: WorkloadClass, class_index: int, rate_per_s: float, end_s: float, seed: int
) -> Arrivals:
    """The requests of one class in [0, end), all counted."""
    draw = generator(seed, "arrivals", workload.name)
    times = renewal_times_s(rate_per_s, workload.arrival_scv, end_s, draw)
    lengths = generator(seed, "tokens", workload.name)
    inputs, cached, outputs, hidden = drawn_tokens(workload.mix, len(times), lengths)
    return Arrivals(
        class_index=np.full(len(times), class_index, dtype=np.int64),
        arrival_s=times,
        input_tokens=inputs,
        cached_tokens=cached,
        output_tokens=outputs,
        hidden_tokens=hidden,
        counted=np.ones(len(times), dtype=np.bool_),
    )


def merged(parts: Sequence[Arrivals], warmup_s: float, horizon_s: float) -> Arrivals:
    """Classes put together in order of arrival; those in [warm-up, horizon) are counted."""
    times = np.concatenate([part.arrival_s for part in parts])
    order = np.argsort(times, kind="stable")
    times = times[order]

    def joined(name: str) -> Ints:
        return np.asarray(np.concatenate([getattr(part, name) for part in parts])[order])

    with_blocks = [part for part in parts if part.block_ids is not None]
    blocks: tuple[Sequence[int], ...] | None = None
    if with_blocks:
        rows = [row for part in parts for row in (part.block_ids or ((),) * len(part))]
        blocks = tuple(rows[index] for index in order.tolist())
    return Arrivals(
        class_index=joined("class_index"),
        arrival_s=times,
        input_tokens=joined("input_tokens"),
        cached_tokens=joined("cached_tokens"),
        output_tokens=joined("output_tokens"),
        hidden_tokens=joined("hidden_tokens"),
        counted=(times >= warmup_s) & (times < horizon_s),
        block_ids=blocks,
        block_tokens=with_blocks[0].block_tokens if with_blocks else 1,
    )


def drawn_residents(
    pool_index: int,
    pool: PoolModel,
    classes: Sequence[WorkloadClass],
    rate_factors: Mapping[str, float],
    seed: int,
) -> list[Resident]:
    """Requests that decode on the replicas of a pool when the simulation begins: as many as the
    plan predicts, each class by its rate and output, and long outputs by their length, anywhere
    in their output.
    """
    draw = generator(seed, "residents", pool.id)
    served = [k for k, each in enumerate(classes) if pool.requests_per_s.get(each.name, 0.0) > 0]
    if not served or pool.batch <= 0:
        return []
    planned = np.array(
        [pool.requests_per_s[classes[k].name] * classes[k].mix.mean_output for k in served]
    )
    share = planned * np.array([rate_factors[classes[k].name] for k in served])
    mean = pool.batch * float(share.sum() / planned.sum())
    found = []
    for replica in range(pool.replicas):
        count = int(mean + draw.random())
        kinds = draw.choice(served, size=count, p=share / share.sum())
        for kind in kinds.tolist():
            mix = classes[kind].mix
            prompt = int(places(mix.prompt_weight, draw.random(1))[0])
            long = mix.output_weight * mix.output_tokens
            output = int(places(long, draw.random(1))[0])
            outputs = max(round(float(mix.output_tokens[output])), 2)
            found.append(
                Resident(
                    pool=pool_index,
                    replica=replica,
                    class_index=kind,
                    input_tokens=max(round(float(mix.prompt_tokens[prompt])), 1),
                    output_tokens=outputs,
                    generated_tokens=1 + int(draw.random() * (outputs - 1)),
                )
            )
    return found
