"""GuideLLM's benchmarks.json, format version 2 (GuideLLM 0.8) and version 1 (read in 0.3).

Read in src/guidellm/benchmark/, https://github.com/vllm-project/guidellm. `request_latency` is in
seconds, what ends in `_ms` in milliseconds. `inter_token_latency_ms` is (last - first token) /
(output - 1), averaged over tokens and not over requests. `time_per_output_token_ms` has two
meanings: of version 2, e2e / output, the first token in it; of version 1, (last - first token) /
output. Only the first can be converted here; the second is not read.
"""

from __future__ import annotations

from typing import Final

from planner.calibrate.formats.draft import MS, Draft
from planner.calibrate.formats.node import Node
from planner.calibrate.formats.percentiles import by_digits, read_percentiles
from planner.calibrate.measurement import Measurement, Recorded

NAME: Final = "GuideLLM"
KEYS: Final = frozenset({"benchmarks", "metadata", "args", "config"})
INCLUSIVE_FROM_VERSION: Final = 2


def read(node: Node) -> list[Measurement]:
    """One measurement per benchmark. Raises InputError naming the field."""
    benchmarks = list(node.at("benchmarks").items())
    if not benchmarks:
        raise node.at("benchmarks").error("is empty", "it holds no result")
    version = node.find("metadata", "version")
    inclusive = version is not None and version.count() >= INCLUSIVE_FROM_VERSION
    return [_read_one(benchmark, inclusive=inclusive) for benchmark in benchmarks]


def _read_one(node: Node, *, inclusive: bool) -> Measurement:
    draft = Draft(node, NAME)
    metrics = node.at("metrics")
    totals = metrics.find("request_totals") or node.at("request_totals")
    completed = totals.at("successful").count()
    if completed == 0:
        raise totals.at("successful").error("no request was completed", "there is nothing to read")

    def mean(metric: str, *, needed: bool = False, status: str = "successful") -> Node | None:
        path = (metric, status, "mean")
        return metrics.at(*path) if needed else metrics.find(*path)

    draft.take("input_tokens", mean("prompt_token_count", needed=True))
    draft.take("output_tokens", mean("output_token_count", needed=True))
    draft.take("duration_s", node.find("duration"))
    draft.take("request_rate_per_s", mean("requests_per_second"))
    draft.take("output_tokens_per_s", mean("output_tokens_per_second"))
    draft.take("ttft_s", mean("time_to_first_token_ms"), MS, "were the answers streamed?")
    draft.take("e2e_s", mean("request_latency"))
    draft.take_tpot(mean("inter_token_latency_ms"), MS)
    with_first = mean("time_per_output_token_ms") if inclusive else None
    if "tpot_s" not in draft.values and not draft.tpot_from_means():
        if with_first is not None:
            draft.tpot_from_inclusive(with_first, MS)
        else:
            draft.need_tpot("metrics", "inter_token_latency_ms", "successful", "mean")
    # All requests that were in flight, also those that the end of the run cut off.
    flight = mean("request_concurrency", status="total") or mean("request_concurrency")
    draft.take_load(None, closed=False, measured=flight)
    return draft.finish(
        requests=completed,
        failed=totals.at("errored").count(),
        tpot_percentiles_s=_percentiles(metrics, "inter_token_latency_ms"),
        ttft_percentiles_s=_percentiles(metrics, "time_to_first_token_ms"),
        recorded=Recorded(model=_model(node)),
    )


def _percentiles(metrics: Node, metric: str) -> dict[float, float]:
    found = metrics.find(metric, "successful", "percentiles")
    return read_percentiles(found, by_digits, MS)


def _model(node: Node) -> str | None:
    """The model, where one of the layouts has it; between 0.3 and 0.8 the places moved."""
    for *place, key in (("config", "backend", "model"), ("worker", "backend_model")):
        holder = node.find(*place)
        if holder is not None and isinstance(holder.value, dict):
            model = holder.find(key)
            if model is not None:
                return model.text()
    return None
