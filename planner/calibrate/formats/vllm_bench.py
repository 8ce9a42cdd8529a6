"""`vllm bench serve --save-result` (and `--append-result`, JSON Lines; and older spellings).

Read in vllm/benchmarks/serve.py, https://github.com/vllm-project/vllm. Times are milliseconds;
`mean_tpot_ms` is the mean over requests of (latency - ttft) / (output - 1). The file says nothing
of GPUs or layout; what `--metadata KEY=VALUE` added stands beside the other fields. `backend` is
the client's protocol, not the engine: `vllm` and `openai` serve any of them.
"""

from __future__ import annotations

import re
from typing import Final

from planner.calibrate.formats.draft import MS, Draft
from planner.calibrate.formats.node import Node
from planner.calibrate.formats.percentiles import by_percent, rising
from planner.calibrate.measurement import Measurement, Recorded

NAME: Final = "vllm bench serve"
KEYS: Final = frozenset(
    {
        "model_id",
        "tokenizer_id",
        "num_prompts",
        "burstiness",
        "total_input_tokens",
        "total_output_tokens",
        "total_token_throughput",
        "request_goodput",
        "request_goodput:",
        "mean_ttft_ms",
        "mean_tpot_ms",
        "mean_e2el_ms",
    }
)
_PERCENTILE: Final = re.compile(r"(?P<which>median|p\d[\d.]*)_(?P<metric>ttft|tpot)_ms")

METADATA_TEXT: Final = {
    "model": ("model",),
    "accelerator": ("accelerator", "gpu", "gpu_type", "gpu_model", "hardware", "hw"),
    "engine": ("engine", "framework"),
    "weight_precision": ("weight_precision", "weights", "quantization", "precision"),
    "kv_precision": ("kv_precision", "kv_cache_dtype", "kv_cache"),
    "speculative": ("speculative", "spec_decoding"),
}
METADATA_COUNTS: Final = {
    "tensor_parallel": ("tensor_parallel", "tensor_parallel_size", "tp"),
    "pipeline_parallel": ("pipeline_parallel", "pipeline_parallel_size", "pp"),
    "attention_data_parallel": ("attention_data_parallel", "attention_dp"),
    "expert_parallel": ("expert_parallel", "expert_parallel_size", "ep"),
    "gpus": ("gpus", "num_gpus", "gpu_count"),
    "replicas": ("replicas",),
}
"""Names under which people put a deployment into `--metadata`, first found first used."""


def read(node: Node) -> list[Measurement]:
    """The one measurement of a result object. Raises InputError naming the field."""
    draft, completed = totals_and_means(node, NAME, "mean_e2el_ms")
    draft.take("accepted_tokens_per_step", node.find("spec_decode_acceptance_length"))
    draft.take_load(node.find("max_concurrency"), closed=closed_loop(node, completed))
    return [
        draft.finish(
            requests=completed,
            failed=_failed(node, completed),
            tpot_percentiles_s=percentiles(node, "tpot"),
            ttft_percentiles_s=percentiles(node, "ttft"),
            recorded=_recorded(node),
        )
    ]


def totals_and_means(node: Node, name: str, e2e: str) -> tuple[Draft, int]:
    """A draft of the format `name` with what vLLM and SGLang, whose tool is descended from vLLM's,
    write alike, and the number of completed requests. `e2e` is the field of the mean latency.

    Raises InputError naming the field.
    """
    draft = Draft(node, name)
    completed = node.at("completed").count()
    if completed == 0:
        raise node.at("completed").error("no request was completed", "there is nothing to read")
    draft.values["input_tokens"] = node.at("total_input_tokens").positive() / completed
    draft.values["output_tokens"] = node.at("total_output_tokens").positive() / completed
    draft.take("duration_s", node.at("duration"))
    draft.values["request_rate_per_s"] = completed / draft.values["duration_s"]
    draft.take("output_tokens_per_s", node.find("output_throughput"))
    draft.take("ttft_s", node.find("mean_ttft_ms"), MS)
    draft.take("e2e_s", node.find(e2e), MS)
    draft.take_tpot(node.find("mean_tpot_ms"), MS)
    if "tpot_s" not in draft.values and not draft.tpot_from_means():
        draft.need_tpot("mean_tpot_ms")
    return draft, completed


def closed_loop(node: Node, completed: int) -> bool:
    """Whether every place was taken again at once: no request rate, and requests enough.

    Raises InputError when the rate is neither a number nor a word that these tools write.
    """
    rate, limit = node.find("request_rate"), node.find("max_concurrency")
    if rate is not None and rate.value == "trace":
        return False
    if rate is not None and rate.value not in ("inf", float("inf")):
        rate.positive("a rate in requests/s, or inf")
        return False
    return limit is None or limit.positive() <= completed


def percentiles(node: Node, metric: str) -> dict[float, float]:
    """Seconds by fraction from keys such as `p99_tpot_ms` and `median_tpot_ms`."""
    found: dict[float, Node] = {}
    for key, value in node.mapping().items():
        match = _PERCENTILE.fullmatch(key)
        if match is None or match["metric"] != metric or value is None:
            continue
        fraction = by_percent(match["which"])
        if fraction is not None:
            found[fraction] = node.at(key)
    return rising(found, MS)


def _failed(node: Node, completed: int) -> int | None:
    failed = node.find("failed")
    if failed is not None:
        return failed.count()
    prompts = node.find("num_prompts")  # versions without `failed`
    return max(0, prompts.count() - completed) if prompts is not None else None


def _recorded(node: Node) -> Recorded:
    return Recorded(
        model=node.first_text(*METADATA_TEXT["model"], "model_id"),
        accelerator=node.first_text(*METADATA_TEXT["accelerator"]),
        engine=node.first_text(*METADATA_TEXT["engine"]),
        weight_precision=node.first_text(*METADATA_TEXT["weight_precision"]),
        kv_precision=node.first_text(*METADATA_TEXT["kv_precision"]),
        tensor_parallel=node.first_count(*METADATA_COUNTS["tensor_parallel"]),
        pipeline_parallel=node.first_count(*METADATA_COUNTS["pipeline_parallel"]),
        attention_data_parallel=node.first_count(*METADATA_COUNTS["attention_data_parallel"]),
        expert_parallel=node.first_count(*METADATA_COUNTS["expert_parallel"]),
        gpus=node.first_count(*METADATA_COUNTS["gpus"]),
        replicas=node.first_count(*METADATA_COUNTS["replicas"]),
        speculative=node.first_text(*METADATA_TEXT["speculative"]),
    )
