"""Metrics of a running service as workload classes: one for each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.errors import InputError, Problem
from planner.traces.arrivals import FEWEST_MINUTES, MINUTE_S, burst_factor, profile_of
from planner.traces.buckets import next_edge, refined
from planner.traces.estimate import MOST_BURST, ClassEstimate, WorkloadEstimate, stem_of
from planner.traces.lengths import Lengths, moments_of
from planner.traces.prometheus import QUERY, Key, Labels, MetricsDump, increase, joined
from planner.traces.trace import Floats

LARGEST_FOUND: Final = 0.999

_Series = dict[Key, tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of an engine's metrics, with `_` for `:`; several are alternatives."""

    inputs: str
    outputs: str
    asked: tuple[str, ...]
    found: tuple[str, ...]


ENGINES: Final = {
    "vLLM": _Names(
        "vllm_request_prompt_tokens",
        "vllm_request_generation_tokens",
        ("vllm_prefix_cache_queries_total", "vllm_gpu_prefix_cache_queries_total"),
        ("vllm_prefix_cache_hits_total", "vllm_gpu_prefix_cache_hits_total"),
    ),
    "SGLang": _Names(
        "sglang_prompt_tokens_histogram",
        "sglang_generation_tokens_histogram",
        ("sglang_prompt_tokens_total",),
        ("sglang_cached_tokens_total",),
    ),
}


def estimate_metrics(dumps: Sequence[MetricsDump], bins: int) -> list[WorkloadEstimate]:
    """One estimate for each engine and model in the dumps, which are taken as of one service.

    Histograms have at most `bins` bins, or one for each bucket where those are more. Raises
    InputError where the dumps have no histogram of tokens, or no request came in their time.
    """
    series = joined(list(dumps))
    source = ", ".join(dump.source for dump in dumps)
    found = []
    for engine, names in ENGINES.items():
        models = sorted(
            {
                dict(labels).get("model_name", "")
                for name, labels in series
                if name == f"{names.inputs}_bucket"
            }
        )
        for model in models:
            own = {key: at for key, at in series.items() if _model(key) == model}
            found.append(_Service(own, names, source, engine, model).estimate(bins))
    if not found:
        shown = ", ".join(sorted({name for name, _ in series})[:6]) or "no series"
        message = f"has no histogram of tokens of vLLM or SGLang, but {shown}"
        raise InputError([Problem(message, f"query {QUERY}", file=source)])
    return found


def _model(key: Key) -> str:
    return dict(key[1]).get("model_name", "")


def _edge(labels: Labels) -> float:
    """Upper edge of the bucket with these labels; NaN where they have none."""
    try:
        return float(dict(labels).get("le", "nan"))
    except ValueError:
        return float("nan")


@dataclass(frozen=True, slots=True)
class _Service:
    """One model on one engine, all its replicas."""

    series: _Series
    names: _Names
    source: str
    engine: str
    model: str

    def estimate(self, bins: int) -> WorkloadEstimate:
        notes: list[str] = []
        inputs = self._lengths(self.names.inputs, bins, notes)
        outputs = self._lengths(self.names.outputs, bins, notes)
        start_s, interval_s, counts = self._requests()
        span_s = interval_s * len(counts)
        rate = float(counts.sum()) / span_s
        busiest = burst = None
        if len(counts) >= FEWEST_MINUTES:
            busiest = float(counts.max() / counts.mean())
            burst = min(burst_factor(counts), MOST_BURST)
        else:
            notes.append(
                f"the metrics have fewer than {FEWEST_MINUTES} intervals, too few for a peak"
            )
        if interval_s > MINUTE_S:
            notes.append(
                f"samples are {interval_s:.0f} s apart: the peak is of such an interval, and "
                "that of a minute may be higher"
            )
        notes.append(
            "metrics count requests when they end, know no single arrivals (arrival_scv is left "
            "at its default) and not which output goes with which input"
        )
        middles = (np.arange(len(counts), dtype=np.float64) + 0.5) * interval_s
        hour = start_s / 3600 % 24
        name = f"{stem_of(self.model)}-in{inputs.median}-out{outputs.median}"
        return WorkloadEstimate(
            source=self.source,
            kind=self.engine,
            requests=round(float(counts.sum())),
            span_s=span_s,
            rate_per_s=rate,
            busiest_minute=busiest,
            busiest_second=None,
            unplannable=False,
            tick_s=None,
            hourly_profile=profile_of(middles, span_s, hour, counts),
            has_hours=True,
            classes=(
                ClassEstimate(
                    name=name,
                    share=1.0,
                    rate_per_s=rate,
                    busiest_minute=busiest,
                    burst_factor=burst,
                    arrival_scv=None,
                    input=inputs,
                    output=outputs,
                    rank_correlation=None,
                    cached_fraction=self._cached(),
                ),
            ),
            rates_per_s=tuple(float(rate) for rate in counts / interval_s),
            interval_s=interval_s,
            notes=tuple(notes),
        )

    def _grown(self, name: str) -> float:
        """By how much the counters of this name have grown, all replicas together."""
        return sum(
            float(increase(values)[-1])
            for (each, _), (_, values) in self.series.items()
            if each == name and len(values)
        )

    def _buckets(self, name: str) -> tuple[list[float], Floats]:
        """Upper edges (B,), rising, the last one infinite, and the requests in each bucket."""
        by_edge: dict[float, float] = {}
        for (each, labels), (_, values) in self.series.items():
            if each == f"{name}_bucket" and len(values):
                edge = _edge(labels)
                if np.isnan(edge):
                    continue
                by_edge[edge] = by_edge.get(edge, 0.0) + float(increase(values)[-1])
        edges = sorted(by_edge)
        below = np.array([by_edge[edge] for edge in edges])
        return edges, np.maximum(np.diff(below, prepend=0.0), 0.0)

    def _lengths(self, name: str, bins: int, notes: list[str]) -> Lengths:
        shown = name.replace("_", ":", 1)
        edges, counts = self._buckets(name)
        if len(edges) < 2 or not counts.sum():
            message = f"{shown} of {self.model or 'the service'} has no request in this time"
            hint = "query a time in which requests were served, two samples at least"
            raise InputError([Problem(message, hint, file=self.source)])
        mean = self._grown(f"{name}_sum") / float(counts.sum()) or None
        if np.isinf(edges[-1]):
            if counts[-1] > 0:
                last = next_edge(edges[-2])
                share = float(counts[-1] / counts.sum())
                notes.append(
                    f"{share * 100:.2g} % of the requests lie above the last bucket of {shown}, "
                    f"{edges[-2]:g}; they are taken as of at most {last:,} tokens"
                )
                edges = [*edges[:-1], float(last)]
            else:
                edges, counts = edges[:-1], counts[:-1]
        if mean is None:
            notes.append(
                f"{shown} has no sum: requests count as long as their bucket, which is safe"
            )
        histogram = refined(edges, counts, mean, bins)
        found, scv = moments_of(histogram)
        return Lengths(found, scv, histogram[0][0], histogram[-1][0], (), histogram)

    def _requests(self) -> tuple[float, float, Floats]:
        """Start (s since 1970), interval (s), and the requests that ended in each interval.

        A minute, or the time between samples where that is longer.
        """
        counters = [
            at
            for (name, labels), at in self.series.items()
            if name == f"{self.names.inputs}_bucket" and np.isinf(_edge(labels)) and len(at[0]) > 1
        ]
        if not counters:
            message = "has no bucket le=+Inf with two samples, which counts the requests"
            raise InputError([Problem(message, f"query {QUERY}", file=self.source)])
        start = min(float(times[0]) for times, _ in counters)
        end = max(float(times[-1]) for times, _ in counters)
        step = float(np.median(np.concatenate([np.diff(times) for times, _ in counters])))
        interval = min(max(MINUTE_S, step), end - start)
        edges = start + interval * np.arange(int((end - start) / interval + 1e-6) + 1)
        total = np.zeros(len(edges) - 1)
        for times, values in counters:
            total += np.diff(np.interp(edges, times, increase(values)))
        return start, interval, total

    def _cached(self) -> float | None:
        """Share of the input tokens found in the prefix cache; None where it is not known."""
        asked = sum(self._grown(name) for name in self.names.asked)
        known = any(name in self.names.found for name, _ in self.series)
        if asked <= 0 or not known:
            return None
        found = sum(self._grown(name) for name in self.names.found)
        return min(found / asked, LARGEST_FOUND)
