"""AIPerf's profile_export_aiperf.json, and genai-perf's, which has the same shape.

Read in docs/reference/json-export-schema.md and docs/metrics-reference.md,
https://github.com/ai-dynamo/aiperf. Every metric carries its own `unit`.
`inter_token_latency` is (latency - ttft) / (output - 1), the mean over requests. Telemetry sees
every GPU of a node, used or not: its name is read, their number is not.
"""

from __future__ import annotations

from typing import Final

from planner.calibrate.formats.draft import Draft
from planner.calibrate.formats.node import Node
from planner.calibrate.formats.percentiles import by_percent, read_percentiles
from planner.calibrate.formats.scales import rate_scale, time_scale
from planner.calibrate.measurement import Measurement, Recorded

NAME: Final = "AIPerf"
KEYS: Final = frozenset(
    {
        "request_throughput",
        "request_latency",
        "request_count",
        "time_to_first_token",
        "inter_token_latency",
        "input_sequence_length",
        "output_sequence_length",
        "output_token_throughput",
        "output_token_throughput_per_user",
        "input_config",
        "aiperf_version",
        "telemetry_data",
    }
)


def read(node: Node) -> list[Measurement]:
    """The one measurement of an export. Raises InputError naming the field."""
    draft = Draft(node, NAME)
    draft.take("input_tokens", node.at("input_sequence_length", "avg"))
    draft.take("output_tokens", node.at("output_sequence_length", "avg"))
    completed = _count(node, "request_count")
    if completed == 0:
        raise node.at("request_count", "avg").error(
            "no request was completed", "there is nothing to read"
        )
    for name, key in (
        ("request_rate_per_s", "request_throughput"),
        ("output_tokens_per_s", "output_token_throughput"),
    ):
        metric = node.find(key)
        if metric is not None:
            draft.take(name, metric.at("avg"), rate_scale(metric.at("unit")))
    for name, key in (
        ("ttft_s", "time_to_first_token"),
        ("e2e_s", "request_latency"),
        ("duration_s", "benchmark_duration"),
    ):
        metric = node.find(key)
        if metric is not None:
            draft.take(name, metric.at("avg"), time_scale(metric.at("unit")))
    gap = node.find("inter_token_latency")
    if gap is not None:
        draft.take_tpot(gap.at("avg"), time_scale(gap.at("unit")))
    if "tpot_s" not in draft.values and not draft.tpot_from_means():
        draft.need_tpot("inter_token_latency", "avg")
    draft.take("accepted_tokens_per_step", node.find("spec_decode_acceptance_length", "avg"))
    limit, rate = _load(node)
    draft.take_load(limit, closed=rate is None)
    if draft.get("duration_s") is None and completed and draft.get("request_rate_per_s"):
        draft.values["duration_s"] = completed / draft.values["request_rate_per_s"]
    return [
        draft.finish(
            requests=completed,
            failed=_failed(node),
            tpot_percentiles_s=_percentiles(gap),
            ttft_percentiles_s=_percentiles(node.find("time_to_first_token")),
            recorded=Recorded(model=_model(node), accelerator=_accelerator(node)),
            cached_fraction=_cached_fraction(node),
        )
    ]


def _count(node: Node, key: str) -> int | None:
    found = node.find(key)
    return found.at("avg").count() if found is not None else None


def _failed(node: Node) -> int | None:
    """AIPerf leaves the field out where nothing failed; genai-perf does not count at all."""
    failed = _count(node, "error_request_count")
    if failed is None and node.find("aiperf_version") is not None:
        return 0
    return failed


def _percentiles(metric: Node | None) -> dict[float, float]:
    if metric is None:
        return {}
    return read_percentiles(metric, by_percent, time_scale(metric.at("unit")))


def _load(node: Node) -> tuple[Node | None, Node | None]:
    """Concurrency and request rate as they were asked for, in any of the known places."""
    config = node.find("input_config")
    if config is None:
        return None, None
    places = [config.find("loadgen"), config.find("perf_analyzer", "stimulus"), config]
    phases = config.find("phases")
    if phases is not None and isinstance(phases.value, list):
        named = [phase for phase in phases.items() if isinstance(phase.value, dict)]
        places[:0] = [phase for phase in named if phase.mapping().get("name") == "profiling"]
    elif phases is not None:
        places.insert(0, phases.find("profiling"))
    for place in places:
        if place is None:
            continue
        limit, rate = _single(place.find("concurrency")), _single(place.find("request_rate"))
        if limit is not None or rate is not None:
            return limit, rate
    return None, None


def _single(found: Node | None) -> Node | None:
    """The value, or the only element of a list; a sweep of several says nothing of one run."""
    if found is None or not isinstance(found.value, list):
        return found
    return found.find(0) if len(found.value) == 1 else None


def _model(node: Node) -> str | None:
    config = node.find("input_config")
    if config is None:
        return None
    for place, key in (
        (config.find("endpoint"), "model_names"),
        (config, "model_names"),
        (config, "model"),
    ):
        found = place.find(key) if place is not None else None
        if found is not None:
            model = _single(found)
            return model.text() if model is not None else None
    models = config.find("models", "items")
    model = (
        models.find(0, "name") if models is not None and len(list(models.items())) == 1 else None
    )
    return model.text() if model is not None else None


def _accelerator(node: Node) -> str | None:
    """The name of the GPUs that telemetry saw, if they are all of one kind."""
    endpoints = node.find("telemetry_data", "endpoints")
    if endpoints is None:
        return None
    names = {
        gpu.at("gpu_name").text()
        for endpoint in endpoints.children()
        for gpu in endpoint.at("gpus").children()
    }
    return names.pop() if len(names) == 1 else None


def _cached_fraction(node: Node) -> float | None:
    percent = node.find("overall_usage_prompt_cache_read_pct", "avg")
    if percent is None:
        return None
    if not 0 <= percent.number() <= 100:
        raise percent.error(f"{percent.number():g} is no percentage")
    return percent.number() / 100
