"""inference-perf's stage_N_lifecycle_metrics.json.

Read in inference_perf/reportgen/base.py, https://github.com/kubernetes-sigs/inference-perf. All
times are seconds. `time_per_output_token` is (last - first token) / (output - 1), the mean over
requests; `normalized_time_per_output_token` is e2e / output, the first token in it. Versions
before pull request 410 counted chunks of the stream instead of tokens: where TPOT is out of step
with the other means, these are used. The summary over all stages mixes loads and is refused.
"""

from __future__ import annotations

from typing import Final

from planner.calibrate.formats.draft import Draft
from planner.calibrate.formats.node import Node
from planner.calibrate.formats.percentiles import by_percent, read_percentiles
from planner.calibrate.measurement import Measurement

NAME: Final = "inference-perf"
KEYS: Final = frozenset(
    {"load_summary", "successes", "failures", "benchmark_time_seconds", "retries"}
)
CHUNKS_NOT_TOKENS: Final = 0.75
"""Share of the TPOT of the means below which the tool's own TPOT counted more than tokens."""


def read(node: Node) -> list[Measurement]:
    """The one measurement of a stage. Raises InputError naming the field."""
    draft = Draft(node, NAME)
    load, done = node.at("load_summary"), node.at("successes")
    if load.find("requested_rate") is None and load.find("concurrency") is None:
        raise load.error(
            "has neither requested_rate nor concurrency: this is the summary over all stages",
            "give the files stage_0_lifecycle_metrics.json and so on",
        )
    completed = done.at("count").count()
    if completed == 0:
        raise done.at("count").error("no request was completed", "there is nothing to read")
    draft.take("input_tokens", _mean(done, "prompt_tokens", "prompt_len"))
    draft.take("output_tokens", _mean(done, "output_tokens", "output_len"))
    draft.take("request_rate_per_s", done.at("throughput", "requests_per_sec"))
    draft.take("output_tokens_per_s", done.find("throughput", "output_tokens_per_sec"))
    draft.take("duration_s", node.find("benchmark_time_seconds"))
    draft.values.setdefault("duration_s", completed / draft.values["request_rate_per_s"])
    latency = done.at("latency")
    draft.take("e2e_s", latency.find("request_latency", "mean"))
    draft.take("ttft_s", latency.find("time_to_first_token", "mean"))
    draft.take_tpot(latency.find("time_per_output_token", "mean"), 1.0)
    reliable = _tpot(draft, latency)
    limit = load.find("concurrency")
    draft.take_load(limit, closed=limit is not None)
    return [
        draft.finish(
            requests=completed,
            failed=node.at("failures", "count").count(),
            tpot_percentiles_s=(
                read_percentiles(latency.find("time_per_output_token"), by_percent, 1.0)
                if reliable
                else {}
            ),
            ttft_percentiles_s=read_percentiles(
                latency.find("time_to_first_token"), by_percent, 1.0
            ),
            cached_fraction=_cached_fraction(done),
        )
    ]


def _tpot(draft: Draft, latency: Node) -> bool:
    """Settle TPOT; whether it is the tool's own, so that its percentiles hold as well."""
    own_s, of_means_s = draft.get("tpot_s"), draft.tpot_of_means_s()
    if own_s is not None:
        if of_means_s is None or own_s >= CHUNKS_NOT_TOKENS * of_means_s:
            return True
        draft.derive(
            "tpot_s",
            of_means_s,
            f"time_per_output_token, {own_s * 1e3:.4g} ms, counts chunks, not tokens; "
            "TPOT is (e2e - TTFT) / (output - 1) of the means",
            draft.sources["tpot_s"],
        )
        return False
    if draft.tpot_from_means():
        return False
    normalized = latency.find("normalized_time_per_output_token", "mean")
    if normalized is not None:
        draft.tpot_from_inclusive(normalized, 1.0)
    draft.need_tpot("successes", "latency", "time_per_output_token", "mean")
    return False


def _mean(done: Node, key: str, older_key: str) -> Node:
    """The mean under the present key, else under the one of older versions."""
    return done.find(key, "mean") or done.find(older_key, "mean") or done.at(key, "mean")


def _cached_fraction(done: Node) -> float | None:
    """Share of prompt tokens from the cache; 0 is also written where a server does not tell."""
    cached, total = done.find("prompt_tokens", "cached"), done.find("prompt_tokens", "total")
    if cached is None or total is None or cached.number() == 0:
        return None
    fraction = cached.positive() / total.positive()
    if fraction > 1:
        raise cached.error(f"{cached.number():g} is more than all {total.number():g} tokens")
    return fraction
