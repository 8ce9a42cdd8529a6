"""llm-d benchmark report v0.2 and v0.2.1, as YAML or JSON.

Read in benchmark-report/llmd_benchmark_report/, https://github.com/llm-d/llm-d-benchmark. Every
statistic carries `units`. Its `time_per_output_token` is copied from the load generator: without
the first token from inference-perf and vllm, but with it from GuideLLM, whose
`inter_token_latency` is read instead. Accelerator counts are those of one replica.
"""

from __future__ import annotations

import math
from typing import Final

from planner.calibrate.formats.draft import Draft
from planner.calibrate.formats.node import Node
from planner.calibrate.formats.percentiles import by_point, read_percentiles
from planner.calibrate.formats.scales import rate_scale, time_scale
from planner.calibrate.measurement import Measurement, Recorded

NAME: Final = "llm-d benchmark report"
KEYS: Final = frozenset({"version", "run", "scenario", "results"})
VERSIONS: Final = ("0.2", "0.2.1")
LATENCY: Final = ("results", "request_performance", "aggregate", "latency")


def read(node: Node) -> list[Measurement]:
    """The one measurement of a report. Raises InputError naming the field."""
    version = node.at("version")
    if str(version.value) not in VERSIONS:
        raise version.error(
            f"version {version.value!s:.20} is not known", f"known are {' and '.join(VERSIONS)}"
        )
    draft = Draft(node, NAME)
    aggregate = node.at("results", "request_performance", "aggregate")
    requests = aggregate.at("requests")
    failed = _count(requests, "failures")
    completed = requests.at("total").count() - (failed or 0) - (_count(requests, "incomplete") or 0)
    if completed <= 0:
        raise requests.at("total").error("no request was completed", "there is nothing to read")
    draft.take("input_tokens", requests.at("input_length", "mean"))
    draft.take("output_tokens", requests.at("output_length", "mean"))
    for name, key in (
        ("request_rate_per_s", "request_rate"),
        ("output_tokens_per_s", "output_token_rate"),
    ):
        rate = aggregate.find("throughput", key)
        if rate is not None:
            draft.take(name, rate.at("mean"), rate_scale(rate.at("units")))
    if draft.get("request_rate_per_s") is not None:
        draft.values["duration_s"] = completed / draft.values["request_rate_per_s"]
    latency = aggregate.at("latency")
    for name, key in (("ttft_s", "time_to_first_token"), ("e2e_s", "request_latency")):
        time = latency.find(key)
        if time is not None:
            draft.take(name, time.at("mean"), time_scale(time.at("units")))
    tpot = _tpot(node, draft, latency)
    limit = node.find("scenario", "load", "standardized", "concurrency")
    if limit is not None and limit.value == math.inf:
        limit = None
    open_loop = node.find("scenario", "load", "standardized", "rate_qps") is not None
    draft.take_load(limit, closed=not open_loop)
    disaggregated, recorded = _deployment(node)
    return [
        draft.finish(
            requests=completed,
            failed=failed,
            tpot_percentiles_s=_percentiles(tpot),
            ttft_percentiles_s=_percentiles(latency.find("time_to_first_token")),
            recorded=recorded,
            disaggregated=disaggregated,
        )
    ]


def _count(requests: Node, key: str) -> int | None:
    found = requests.find(key)
    return found.count() if found is not None else None


def _percentiles(statistic: Node | None) -> dict[float, float]:
    if statistic is None:
        return {}
    return read_percentiles(statistic, by_point, time_scale(statistic.at("units")))


def _tpot(node: Node, draft: Draft, latency: Node) -> Node | None:
    """Take TPOT; the statistic that it came from, if it was one without the first token."""
    tool = node.find("scenario", "load", "standardized", "tool")
    counts_first = tool is not None and "guidellm" in tool.text().lower()
    without = latency.find("inter_token_latency" if counts_first else "time_per_output_token")
    if without is not None:
        draft.take_tpot(without.at("mean"), time_scale(without.at("units")))
        return without
    if draft.tpot_from_means():
        return None
    inclusive = latency.find(
        "time_per_output_token" if counts_first else "normalized_time_per_output_token"
    )
    if inclusive is not None:
        draft.tpot_from_inclusive(inclusive.at("mean"), time_scale(inclusive.at("units")))
    draft.need_tpot(*LATENCY, "time_per_output_token", "mean")
    return None


def _deployment(node: Node) -> tuple[bool | None, Recorded]:
    """Whether prefill and decode are apart, and what the stack says of the (decode) engine."""
    stack = node.find("scenario", "stack")
    engines = [
        standardized
        for component in (stack.items() if stack is not None else ())
        if (standardized := component.find("standardized")) is not None
        and standardized.mapping().get("kind") == "inference_engine"
    ]
    if not engines:
        return None, Recorded()
    roles = {engine.at("role").text() for engine in engines}
    disaggregated = {"prefill", "decode"} <= roles
    decoding = [engine for engine in engines if engine.at("role").text() != "prefill"] or engines
    if len({_layout(engine) for engine in decoding}) > 1:  # not one deployment: ask, not guess
        return disaggregated, Recorded()
    engine = decoding[0]
    gpus: int | None = engine.at("accelerator", "count").count()
    replicas: int | None = engine.at("replicas").count()
    if disaggregated:
        gpus = sum(
            one.at("accelerator", "count").count() * one.at("replicas").count() for one in engines
        )
        replicas = None
    tensor, pipeline, data, expert = _layout(engine)
    return disaggregated, Recorded(
        model=engine.at("model", "name").text(),
        accelerator=engine.at("accelerator", "model").text(),
        engine=engine.at("tool").text(),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        attention_data_parallel=data,
        expert_parallel=expert,
        gpus=gpus or None,
        replicas=replicas or None,
    )


def _layout(engine: Node) -> tuple[int | None, ...]:
    """Tensor, pipeline, data and expert parallelism; 0 and absent are None."""
    parallelism = engine.at("accelerator", "parallelism")
    return tuple(
        (found.count() or None) if (found := parallelism.find(key)) is not None else None
        for key in ("tp", "pp", "dp", "ep")
    )
