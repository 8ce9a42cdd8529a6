"""Published system results predicted as they stand: no constant is fitted to any of them.

`load_cases` reads what was published, `predict_cases` predicts it with the constants and engine
profiles that the planner ships, `summarise` adds the errors up by group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.catalog import find_accelerator, find_model
from planner.fidelity.public_data import RATES, PublicCase, PublicGroup, load_cases, load_notes
from planner.fidelity.public_regimes import (
    NEEDS_ROOM,
    PREDICTORS,
    IntArray,
    Runs,
    fitting_sequences,
)
from planner.perf import Constants, Layout, PoolConfig, StepModel, engine_profile

if TYPE_CHECKING:
    from planner.catalog.accelerators import Accelerator

__all__ = [
    "RATES",
    "CaseResult",
    "GroupSummary",
    "MetricErrors",
    "PublicCase",
    "load_cases",
    "predict_cases",
    "summarise",
]

NO_ROOM = "does not fit beside the weights, by the planner's memory model"

RESERVING_ENGINE = "tensorrt-llm"
"""Its default scheduler, guaranteed_no_evict, keeps room for the whole of every request."""

METRIC_NAMES = {
    "tpot": "TPOT",
    "itl_median": "median token gap",
    "ttft": "TTFT",
    "e2e": "end to end",
    "output_tokens_per_s": "output tokens/s",
    "input_tokens_per_s": "input tokens/s",
    "requests_per_s": "requests/s",
}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One measured figure and what the model says, in seconds or per second, of the GPUs that
    the published figure counts.

    `bound` is the same regime at efficiency 1 without overhead: no engine is better. `predicted`
    and `bound` are NaN where `left_out` says why.
    """

    point_id: str
    group: str
    metric: str
    measured: float
    predicted: float
    bound: float
    left_out: str
    source_url: str

    @property
    def ape_fraction(self) -> float:
        """|predicted / measured - 1|."""
        return abs(self.predicted / self.measured - 1)

    @property
    def log_error(self) -> float:
        """ln(predicted / measured)."""
        return math.log(self.predicted / self.measured)

    @property
    def beats_bound(self) -> bool:
        """Whether the measured figure is better than the bound: then the case is not what its
        publication says, or the chip is not what the catalogue says.
        """
        if self.metric in RATES:
            return self.measured > self.bound
        return self.measured < self.bound


@dataclass(frozen=True, slots=True)
class MetricErrors:
    """Errors of one metric within a group; fractions, and natural logarithms for the signed."""

    metric: str
    count: int
    median_ape_fraction: float
    mean_ape_fraction: float
    p90_ape_fraction: float
    median_log_error: float


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One publication: errors by metric, figures left out by reason, where it was published."""

    group: PublicGroup
    errors: tuple[MetricErrors, ...]
    left_out: tuple[tuple[str, int], ...]
    source_urls: tuple[str, ...]


def predict_cases(
    constants: Constants | None = None, cases: Sequence[PublicCase] | None = None
) -> list[CaseResult]:
    """A result for every measured figure of `cases` (default: all that are shipped), in order.

    Same constants (default: those shipped) and engine profiles for all. Raises InputError if a
    case names a model, chip or engine that is not there.
    """
    chosen = load_cases() if cases is None else tuple(cases)
    chips = load_notes().accelerators
    firsts: dict[tuple[object, ...], int] = {}
    configs: list[PoolConfig] = []
    for case in chosen:
        if firsts.setdefault(_key(case), len(configs)) == len(configs):
            configs.append(_config(case, chips))
    where = np.array([firsts[_key(case)] for case in chosen], dtype=np.int64)
    predicted = _predict(StepModel(configs, constants), where, chosen)
    bounds = _predict(StepModel(configs, constants, calibrated=False), where, chosen)
    return [
        result
        for case, ours, bound in zip(chosen, predicted, bounds, strict=True)
        for result in _results(case, ours, bound)
    ]


def _key(case: PublicCase) -> tuple[object, ...]:
    """What makes a configuration; numbers as text, because NaN is not equal to itself."""
    return (
        case.model,
        case.accelerator,
        case.tensor_parallel,
        case.attention_data_parallel,
        case.expert_parallel,
        case.weights,
        case.kv,
        case.engine,
        str(case.max_sequences),
        str(case.memory_fraction),
    )


def _config(case: PublicCase, chips: Mapping[str, Accelerator]) -> PoolConfig:
    """The configuration of a case: the shipped engine profile, with the settings it published."""
    engine = engine_profile(case.engine)
    if not math.isnan(case.max_sequences):
        limit = int(case.max_sequences)
        engine = replace(engine, max_num_seqs=limit, max_num_seqs_small_gpu=limit)
    if not math.isnan(case.memory_fraction):
        engine = replace(engine, memory_utilization_fraction=case.memory_fraction)
    return PoolConfig(
        model=find_model(case.model),
        accelerator=chips.get(case.accelerator) or find_accelerator(case.accelerator),
        layout=Layout(
            tensor_parallel=case.tensor_parallel,
            attention_data_parallel=case.attention_data_parallel,
            expert_parallel=case.expert_parallel,
        ),
        weight_precision=case.weights,
        kv_precision=case.kv,
        engine=engine,
    )


def _predict(
    step: StepModel, where: IntArray, cases: Sequence[PublicCase]
) -> list[Mapping[str, float]]:
    """Metrics of the replica by case; none where it is left out or has no room."""
    found: list[Mapping[str, float]] = [{} for _ in cases]
    for regime, predictor in PREDICTORS.items():
        places = [n for n, c in enumerate(cases) if c.regime == regime and not c.left_out]
        if regime in NEEDS_ROOM and places:
            fits = fitting_sequences(step, where[places], _runs([cases[n] for n in places])) >= 1
            places = [n for n, fit in zip(places, fits, strict=True) if fit]
        if not places:
            continue
        runs = _runs([cases[n] for n in places])
        columns = predictor(step, where[places], runs)
        for row, place in enumerate(places):
            found[place] = {name: float(values[row]) for name, values in columns.items()}
    return found


def _runs(cases: Sequence[PublicCase]) -> Runs:
    numbers = {
        each.name: np.array([getattr(case, each.name) for case in cases], dtype=np.float64)
        for each in fields(Runs)
        if each.name != "reserves_all"
    }
    whole = np.array([case.engine == RESERVING_ENGINE for case in cases])
    return Runs(**numbers, reserves_all=whole)


def _results(
    case: PublicCase, ours: Mapping[str, float], bound: Mapping[str, float]
) -> list[CaseResult]:
    reason = case.left_out or ("" if ours else NO_ROOM)
    found = []
    for metric, measured in case.measured.items():
        share = case.throughput_gpus / case.gpus if "tokens" in metric else 1.0
        found.append(
            CaseResult(
                point_id=case.point_id,
                group=case.group,
                metric=metric,
                measured=measured,
                predicted=math.nan if reason else ours[metric] * share,
                bound=math.nan if reason else bound[metric] * share,
                left_out=reason,
                source_url=case.source_url,
            )
        )
    return found


def summarise(results: Sequence[CaseResult]) -> tuple[GroupSummary, ...]:
    """Errors by group and metric, groups in the order of the notes; every result is counted once,
    either among the errors or among those left out.
    """
    return tuple(
        _summarise_group(group, mine)
        for name, group in load_notes().groups.items()
        if (mine := [each for each in results if each.group == name])
    )


def _summarise_group(group: PublicGroup, results: Sequence[CaseResult]) -> GroupSummary:
    errors = []
    for metric in METRIC_NAMES:
        judged = [r for r in results if r.metric == metric and not r.left_out]
        if not judged:
            continue
        ape = np.array([result.ape_fraction for result in judged])
        errors.append(
            MetricErrors(
                metric=metric,
                count=len(judged),
                median_ape_fraction=float(np.median(ape)),
                mean_ape_fraction=float(np.mean(ape)),
                p90_ape_fraction=float(np.percentile(ape, 90)),
                median_log_error=float(np.median([result.log_error for result in judged])),
            )
        )
    reasons = Counter(result.left_out for result in results if result.left_out)
    return GroupSummary(
        group=group,
        errors=tuple(errors),
        left_out=tuple(sorted(reasons.items())),
        source_urls=tuple(dict.fromkeys(result.source_url for result in results)),
    )
