"""Physics that holds for every card on every accelerator, whatever the constants' values.

Every pair of the catalogue is looked at in its first three feasible layouts and its last (the
widest, or one with pipeline stages), over all engines, precisions and with and without
speculation. Each check runs over all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.catalog import accelerators, models
from planner.catalog.accelerators import Accelerator
from planner.catalog.cards import ModelCard
from planner.perf import (
    PoolConfig,
    Speculative,
    StepModel,
    config_problem,
    engine_profile,
    enumerate_layouts,
)
from planner.perf.engines import engines
from planner.perf.serving import ServingPoint, serving_point
from planner.pools.decode import Engine
from planner.pools.loads import ClassLoad
from planner.pools.prompts import chunk_profile, prompt_queue

Floats = NDArray[np.float64]

ROUNDING = 1e-12
"""Relative noise of double precision in a sum of a dozen terms."""
RIPPLE = 1e-3
"""The percentiles of aggregated engines grow with the batch but for so much."""
BY_CHUNK: dict[float, tuple[int, float | None]] = {
    512.0: (0, 0.95),
    2048.0: (1, None),
    8192.0: (0, 0.99),
}
MOST_GPUS = 32
OTHER_DRAFT_PARAMETERS = 1e9
BATCHES = np.geomspace(1, 4096, 13)
CONTEXTS = np.geomspace(1, 131_072, 10)
CACHED = np.array([0.0, 100.0, 5_000.0, 100_000.0])
CHUNKS = (512.0, 2048.0, 8192.0)
FASTER: dict[str, Callable[[Accelerator, float], Accelerator]] = {
    "memory": lambda chip, by: replace(chip, hbm_bytes_per_s=by * chip.hbm_bytes_per_s),
    "arithmetic": lambda chip, by: replace(
        chip, peak_flops={name: by * peak for name, peak in chip.peak_flops.items()}
    ),
    "links inside": lambda chip, by: replace(
        chip, scale_up_bytes_per_s=by * chip.scale_up_bytes_per_s
    ),
    "links between nodes": lambda chip, by: replace(
        chip, scale_out_bytes_per_s=by * chip.scale_out_bytes_per_s
    ),
}


def speculations(model: ModelCard) -> tuple[Speculative | None, ...]:
    """None twice, the checkpoint's own prediction layers (or another draft), another draft."""
    own = model.mtp_parameters or OTHER_DRAFT_PARAMETERS
    return (
        None,
        Speculative(1, 1.7, own),
        None,
        Speculative(3, 2.4, OTHER_DRAFT_PARAMETERS),
        None,
    )


def everything() -> Iterator[PoolConfig]:
    profiles = cycle(engine_profile(name) for name in engines())
    turn = 0
    for model in models().values():
        guesses = speculations(model)
        for chip in accelerators().values():
            found = []
            for layout in enumerate_layouts(model, chip, MOST_GPUS, chip.usual_node_size):
                precisions = model.weight_precisions
                config = PoolConfig(
                    model,
                    chip,
                    layout,
                    precisions[turn % len(precisions)],
                    ("bf16", "fp8")[turn % 2],
                    next(profiles),
                    guesses[turn % len(guesses)],
                )
                turn += 1
                if config_problem(config) is None:
                    found.append(config)
            yield from found[:3]
            yield from found[3:][-1:]


CONFIGS = tuple(everything())
MODEL = StepModel(CONFIGS)
BOUND = StepModel(CONFIGS, calibrated=False)
ALL = np.arange(len(CONFIGS))
EACH = ALL[:, None]
GRID = ALL[:, None, None]
either = pytest.mark.parametrize("step", [MODEL, BOUND], ids=["calibrated", "bound"])


def name(index: int) -> str:
    config = CONFIGS[index]
    draft = "" if config.speculative is None else f", {config.speculative.draft_tokens} drafted"
    return (
        f"{config.model.id}, {config.weight_precision}/{config.kv_precision}, on "
        f"{config.layout.label} {config.accelerator.id}, {config.engine.name}{draft}"
    )


def holds(good: NDArray[np.bool_]) -> None:
    """Every entry holds; names configurations (first axis) where one does not."""
    bad = np.flatnonzero(~good.reshape(len(CONFIGS), -1).all(axis=1))
    assert not len(bad), f"{len(bad)} of {len(CONFIGS)}: {', '.join(map(name, bad[:3].tolist()))}"


def never_falls(values: Floats, axis: int, where: NDArray[np.bool_] | None = None) -> None:
    """Nowhere smaller than the neighbour before it, at the pairs of neighbours in `where`."""
    assert np.isfinite(values).all()
    before, after = np.delete(values, -1, axis=axis), np.delete(values, 0, axis=axis)
    good = after >= before * (1 - ROUNDING)
    holds(good if where is None else good | ~where)


def prompts(chunk: float) -> Floats:
    """Prompt lengths, dense where one more chunk begins."""
    edges = chunk * np.arange(1, 9)
    return np.unique(np.concatenate([np.geomspace(1, 100_000, 25), edges, edges + 1]))


def mixed(step: StepModel, tokens: Floats, before: Floats, batch: float = 32.0) -> Floats:
    """Steps with a chunk of `tokens` (T,) behind `before` (C,) tokens: (N, T, C)."""
    chunk = tokens[:, None]
    return step.mixed_step_s(GRID, batch, 2000.0, chunk, chunk * (before + chunk / 2))


def served(step: StepModel, clients: Floats | float, prompt: Floats | float) -> ServingPoint:
    return serving_point(step, EACH, clients, prompt, 300.0, 2048.0)


def test_every_card_and_accelerator_is_looked_at() -> None:
    assert {config.model.id for config in CONFIGS} == set(models())
    assert {config.accelerator.id for config in CONFIGS} == set(accelerators())
    assert {config.engine.name for config in CONFIGS} == set(engines())
    assert {config.weight_precision for config in CONFIGS} == {"bf16", "fp8", "int8", "int4", "fp4"}
    drafts = {config.speculative.draft_tokens for config in CONFIGS if config.speculative}
    assert drafts == {1, 3}
    assert any(config.layout.pipeline_parallel > 1 for config in CONFIGS)
    across = [c for c in CONFIGS if c.layout.stage_gpus > c.accelerator.scale_up_domain]
    assert across


@either
def test_all_times_are_finite_and_positive(step: StepModel) -> None:
    point = served(step, np.array([1.0, 16.0, 4096.0]), 2000.0)
    for values in (
        step.decode_step_s(GRID, BATCHES[:, None], CONTEXTS),
        mixed(step, CONTEXTS, CACHED),
        step.prefill_time_s(GRID, CONTEXTS[:, None], CACHED, 2048.0),
        point.tpot_s,
        point.ttft_s,
        point.output_tokens_per_s,
    ):
        holds(np.isfinite(values) & (values > 0))
    fixed = step.ttft_fixed_s(EACH, CONTEXTS)
    holds(np.isfinite(fixed) & (fixed >= 0))
    holds(step.ttft_decode_steps(ALL) >= 0)


@either
def test_a_decode_step_grows_with_batch_and_context(step: StepModel) -> None:
    values = step.decode_step_s(GRID, BATCHES[:, None], CONTEXTS)
    never_falls(values, 1)
    never_falls(values, 2)


def test_one_more_sequence_always_takes_time() -> None:
    holds(np.diff(MODEL.decode_step_s(GRID, BATCHES[:, None], CONTEXTS), axis=1) > 0)


@either
@pytest.mark.parametrize("batch", [1.0, 40.0, 800.0])
def test_a_mixed_step_grows_with_chunk_and_cache(step: StepModel, batch: float) -> None:
    values = mixed(step, np.geomspace(1, 65_536, 14), CACHED, batch)
    never_falls(values, 1)
    never_falls(values, 2)


@either
@pytest.mark.parametrize("chunk", [16.0, 512.0, 8192.0])
def test_a_mixed_step_grows_with_sequences_context_and_pairs(step: StepModel, chunk: float) -> None:
    causal = chunk * (1000 + chunk / 2)
    values = step.mixed_step_s(GRID, BATCHES[:, None], CONTEXTS, chunk, causal)
    never_falls(values, 1)
    never_falls(values, 2)
    pairs = chunk * np.geomspace(chunk / 2, 200_000, 12)
    never_falls(step.mixed_step_s(EACH, 32.0, 2000.0, chunk, pairs), 1)


@either
@pytest.mark.parametrize("alone", [False, True], ids=["share", "alone"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_prefill_grows_with_prompt_and_cache(step: StepModel, chunk: float, alone: bool) -> None:
    values = step.prefill_time_s(GRID, prompts(chunk)[:, None], CACHED, chunk, alone)
    never_falls(values, 1)
    never_falls(values, 2)


def test_no_prediction_is_faster_than_the_bound() -> None:
    slack = 1 + ROUNDING

    def compare(times: Callable[[StepModel], Floats]) -> None:
        holds(times(BOUND) <= times(MODEL) * slack)

    compare(lambda step: step.decode_step_s(GRID, BATCHES[:, None], CONTEXTS))
    compare(lambda step: step.token_time_s(EACH, BATCHES))
    compare(lambda step: step.sequence_time_s(EACH, CONTEXTS))
    compare(lambda step: step.draft_time_s(EACH, BATCHES))
    for batch in (1.0, 40.0, 800.0):
        compare(lambda step, batch=batch: mixed(step, CONTEXTS, CACHED, batch))  # type: ignore[misc]
    for chunk in CHUNKS:
        lengths = prompts(chunk)[:, None]
        for alone in (False, True):
            compare(
                lambda step, chunk=chunk, lengths=lengths, alone=alone: (  # type: ignore[misc]
                    step.prefill_time_s(GRID, lengths, CACHED, chunk, alone)
                )
            )


@pytest.mark.parametrize("by", [1.05, 8.0])
@pytest.mark.parametrize("what", FASTER)
@either
def test_faster_hardware_is_never_slower(step: StepModel, what: str, by: float) -> None:
    improve = FASTER[what]
    chips = {chip.id: improve(chip, by) for chip in accelerators().values()}
    better = StepModel(
        [replace(config, accelerator=chips[config.accelerator.id]) for config in CONFIGS],
        calibrated=step.calibrated,
    )
    clients, lengths = np.geomspace(1, 1000, 8), prompts(2048.0)[::4, None]

    def times(each: StepModel) -> Iterator[Floats]:
        yield each.decode_step_s(GRID, BATCHES[:, None], CONTEXTS)
        yield mixed(each, CONTEXTS, CACHED)
        yield each.prefill_time_s(GRID, lengths, CACHED, 2048.0)
        yield each.prefill_time_s(GRID, lengths, CACHED, 2048.0, alone=True)
        for prompt in (200.0, 6000.0):
            point = served(each, clients, prompt)
            yield point.tpot_s
            yield point.ttft_s

    helped = False
    for slow, fast in zip(times(step), times(better), strict=True):
        holds(fast <= slow * (1 + ROUNDING))
        helped = helped or bool((fast < slow * 0.99).any())
    assert helped


def test_tokens_cost_ever_more_once_the_experts_are_settled() -> None:
    """Convex at fixed coverage: a chord lies nowhere below the curve."""
    tokens = np.geomspace(0.5, 65_536, 13)
    middle = (tokens[:, None] + tokens) / 2
    for coverage in (1.0, 30.0, 1000.0, 100_000.0):
        ends = MODEL.token_time_s(EACH, tokens, coverage_tokens=coverage)
        chord = (ends[:, :, None] + ends[:, None, :]) / 2
        between = MODEL.token_time_s(GRID, middle, coverage_tokens=coverage)
        holds(between <= chord * (1 + ROUNDING))


@either
@pytest.mark.parametrize(
    ("prompt", "answer", "budget", "cached"),
    [
        (200.0, 1000.0, 8192.0, 0.0),
        (2000.0, 500.0, 8192.0, 0.0),
        (9000.0, 100.0, 2048.0, 0.0),
        (4000.0, 60.0, 512.0, 0.8),
        (30_000.0, 1000.0, 8192.0, 0.5),
    ],
)
def test_more_clients_wait_longer(
    step: StepModel, prompt: float, answer: float, budget: float, cached: float
) -> None:
    clients = np.unique(np.round(np.geomspace(1, 3000, 40)))
    point = serving_point(step, EACH, clients, prompt, answer, budget, cached)
    never_falls(point.tpot_s, 1)
    never_falls(point.ttft_s, 1)


@either
@pytest.mark.parametrize(
    ("clients", "answer", "budget", "cached"),
    [
        (1.0, 500.0, 8192.0, 0.0),
        (16.0, 500.0, 8192.0, 0.0),
        (16.0, 100.0, 2048.0, 0.0),
        (256.0, 50.0, 512.0, 0.0),
        (64.0, 300.0, 8192.0, 0.5),
    ],
)
def test_longer_prompts_take_longer_while_everybody_decodes(
    step: StepModel, clients: float, answer: float, budget: float, cached: float
) -> None:
    """Once some wait for a place, longer prompts leave fewer at the table: those are served
    faster, token for token, and nothing is promised of TPOT.
    """
    lengths = np.unique(np.round(np.concatenate([np.geomspace(1, 60_000, 40), prompts(budget)])))
    point = serving_point(step, EACH, clients, lengths, answer, budget, cached)
    everybody = np.asarray(point.batch == clients)[:, 1:]
    assert everybody.any()
    never_falls(point.tpot_s, 1, everybody)
    never_falls(point.ttft_s, 1, everybody)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_larger_batch_keeps_no_promise_better(chunk: float) -> None:
    """What the search for the largest batch of an aggregated engine rests on."""
    loads = [
        ClassLoad(
            uncached=mean * np.array([0.2, 1.0, 3.0]),
            cached=np.full(3, cached),
            weight=np.array([0.4, 0.5, 0.1]),
            outputs=output * np.array([0.5, 1.5]),
            output_weight=np.array([0.5, 0.5]),
            output_mean=output,
            context_mean=mean + cached + output / 2,
            context_std=mean / 2,
            longest_tokens=3 * mean + cached + output,
            arrival_scv=1.0,
        )
        for mean, cached, output in ((1500.0, 0.0, 300.0), (6000.0, 2000.0, 60.0))
    ]
    budget = np.full(len(CONFIGS), chunk)
    engine = Engine(MODEL, loads, [chunk_profile(MODEL, load, budget) for load in loads])
    totals = np.concatenate([[1e-3, 0.1, 0.9, 1.0], np.geomspace(1.1, 4000, 16)])
    batches = [np.tile(total * np.array([0.8, 0.2]), (len(CONFIGS), 1)) for total in totals]
    points = [engine.point(batch) for batch in batches]
    pairs = list(zip(batches, points, strict=True))
    room = np.stack([engine.chunk_room_tokens(batch) for batch in batches], axis=1)
    carried = np.stack([point.prefill_tokens for point in points], axis=1)
    usage = np.stack([point.prefill_utilization for point in points], axis=1)
    queues = [prompt_queue(engine, *pair) for pair in pairs]
    loads_of_queue = [queue.load.queue_load for queue in queues]
    # The range in which the waiting law was tested.
    admitted = (carried <= room) & (usage <= 0.7) & (np.stack(loads_of_queue, axis=1) <= 0.7)
    for values in (
        [point.step_s for point in points],
        [point.prefill_utilization for point in points],
        [engine.kv_bytes_peak(batch, point) for batch, point in pairs],
        [engine.batch_peak(batch, point) for batch, point in pairs],
    ):
        never_falls(np.stack(values, axis=1), 1, admitted[:, 1:])
    # Whatever the limit: where a batch keeps it, so does every smaller one, but for a ripple.
    middle = len(totals) // 2
    replicas = np.full(len(CONFIGS), 2)
    # The laws are dear, so each chunk budget has one percentile of one class.
    index, percentile = BY_CHUNK[chunk]
    first_s = engine.first_token_s(*pairs[middle][:1], index, percentile, 2)
    each_s = engine.tpot_s(batches[middle], index, percentile, 2)
    kept: dict[float, list[NDArray[np.bool_]]] = {1.0: [], 1.0 + RIPPLE: []}
    for (batch, point), queue in zip(pairs, queues, strict=True):
        for factor, found in kept.items():
            first, each = first_s * factor, each_s * factor
            found.append(
                engine.keeps_ttft(index, percentile, first, replicas, queue)
                & engine.keeps_tpot(batch, index, percentile, each, replicas, point, queue)
            )
    good, nearly = (np.stack(found, axis=1) for found in kept.values())
    holds(nearly[:, :-1] | ~good[:, 1:] | ~admitted[:, 1:])
    assert good[:, :middle].any()
    assert not good[:, middle + 1 :].all()
