"""Results of Prometheus range queries: the counters and histograms of vLLM and SGLang.

Names as in vLLM 0.33 (V1 engine) and SGLang 0.5.23; vLLM's are also accepted as before 0.9
(`gpu_prefix_cache_...`), and with `_` for `:`, as some collectors write them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from planner.errors import InputError, Problem
from planner.traces.trace import Floats

QUERY: Final = (
    '{__name__=~"vllm:(request_(prompt|generation)_tokens_(bucket|sum)'
    "|prefix_cache_(queries|hits)_total)"
    "|sglang:((prompt|generation)_tokens_histogram_(bucket|sum)"
    '|(prompt|cached)_tokens_total)"}'
)
"""What to ask Prometheus for; the answer has all that is read here."""
MOST_TOLD: Final = 10

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
"""Name of the metric with `_` for `:`, and its labels in order."""


@dataclass(frozen=True, slots=True, eq=False)
class MetricsDump:
    """Samples of counters: for each series its times (s since 1970) and values, both (T,)."""

    source: str
    series: dict[Key, tuple[Floats, Floats]]


def metrics_from(document: Any, file: str) -> MetricsDump:
    """The series of one answer of /api/v1/query_range, or of a list of answers.

    Raises InputError where it is no such answer, or a series in it has no name or bad samples.
    """
    problems: list[Problem] = []
    series: dict[Key, tuple[Floats, Floats]] = {}
    for item in _results(document, file):
        metric, values = item.get("metric"), item.get("values")
        if not isinstance(metric, dict) or not isinstance(values, list):
            message = "a result has no metric or no values"
            hint = "save the whole answer of a range query"
            problems.append(Problem(message, hint, file=file))
            continue
        name = str(metric.get("__name__", ""))
        if not name:
            shown = ", ".join(f"{key}={value}" for key, value in metric.items())[:80]
            message = f"a series has no name ({shown or 'no labels'}): it is no plain counter"
            hint = f"query the counters as they are, without rate() or sum(): {QUERY}"
            problems.append(Problem(message, hint, file=file))
            continue
        labels = tuple(
            sorted((str(key), str(value)) for key, value in metric.items() if key != "__name__")
        )
        try:
            samples = _samples(values)
        except ValueError as error:
            problems.append(Problem(str(error), file=file, field=name))
            continue
        series[name.replace(":", "_"), labels] = samples
    if problems:
        more = len(problems) - MOST_TOLD
        last = [Problem(f"and {more} more", file=file)] if more > 0 else []
        raise InputError([*problems[:MOST_TOLD], *last])
    return MetricsDump(file, series)


def joined(dumps: list[MetricsDump]) -> dict[Key, tuple[Floats, Floats]]:
    """The series of several dumps; what two of them have of one series is put together."""
    found: dict[Key, tuple[Floats, Floats]] = {}
    for dump in dumps:
        for key, (times, values) in dump.series.items():
            if key in found:
                times = np.concatenate([found[key][0], times])
                values = np.concatenate([found[key][1], values])
                times, first = np.unique(times, return_index=True)
                values = values[first]
            found[key] = (times, values)
    return found


def increase(values: Floats) -> Floats:
    """What a counter (T,) has grown by since its first sample (T,), from 0 on.

    A counter that falls was reset to 0 by a restart, and has grown by its value since.
    """
    steps = np.diff(values)
    steps = np.where(steps < 0, values[1:], steps)
    return np.concatenate([[0.0], np.cumsum(steps)])


def _results(document: Any, file: str) -> Iterator[dict[str, Any]]:
    answers = document if isinstance(document, list) else [document]
    for answer in answers:
        if not isinstance(answer, dict):
            hint = "save what /api/v1/query_range returns"
            raise InputError([Problem("is no answer of Prometheus", hint, file=file)])
        if answer.get("status") == "error":
            message = f"Prometheus answered with an error: {str(answer.get('error', ''))[:200]}"
            raise InputError([Problem(message, "mend the query and save its answer", file=file)])
        data = answer.get("data", answer)
        kind = data.get("resultType") if isinstance(data, dict) else None
        result = data.get("result") if isinstance(data, dict) else None
        if kind != "matrix" or not isinstance(result, list):
            message = f"has a result of type {kind or 'unknown'}, not a matrix"
            hint = "save what /api/v1/query_range returns, not /api/v1/query"
            raise InputError([Problem(message, hint, file=file)])
        for item in result:
            if not isinstance(item, dict):
                raise InputError([Problem("a result is no object", file=file)])
            yield item


def _samples(values: list[Any]) -> tuple[Floats, Floats]:
    """Times and values (T,) in order of time; marks of absence (NaN) are left out."""
    try:
        pairs = np.array([(float(time), float(value)) for time, value in values])
    except (TypeError, ValueError):
        raise ValueError("a sample is not [time, value]") from None
    pairs = pairs.reshape(-1, 2)
    pairs = pairs[~np.isnan(pairs[:, 1])]
    if not np.isfinite(pairs).all() or (pairs[:, 1] < 0).any():
        raise ValueError("a counter has a value that is negative or infinite")
    order = np.argsort(pairs[:, 0], kind="stable")
    return pairs[order, 0], pairs[order, 1]
