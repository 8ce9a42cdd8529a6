"""Hypothesis strategies for tiny instances: everything the schema allows to vary, varied."""

from __future__ import annotations

from typing import Final

import tiny
from hypothesis import strategies as st

ACCELERATORS: Final = ("l4", "l40s", "a100-80gb", "h100", "h200", "mi300x")
MODELS: Final = {tiny.LLAMA_8B: 12.0, "qwen3-8b": 12.0, tiny.QWEN_MOE: 10.0}
"""Models small enough for one GPU, with a rate that a replica or two serve."""
PERCENTILES: Final[st.SearchStrategy[float | str]] = st.sampled_from([50, 90, 95, 99, "mean"])
ROUTINGS: Final = (
    "queued_tokens",
    "queued_tokens",
    "shared_queue",
    "least_outstanding",
    "prefix_affine",
    "round_robin",
    "random",
)
ROLES: Final = (
    ("aggregated",),
    ("prefill", "decode"),
    ("prefill", "decode", "aggregated"),
)


def _precisions() -> st.SearchStrategy[list[str]]:
    return st.sampled_from([["fp8"], ["bf16"], ["fp8", "int4"], ["bf16", "fp8"]])


def _caches() -> st.SearchStrategy[list[str]]:
    return st.sampled_from([["fp8"], ["bf16"], ["bf16", "fp8"]])


@st.composite
def promises(draw: st.DrawFn, prompt: int, output: int) -> list[tiny.Document]:
    """TTFT and TPOT, or one of them with or instead of e2e, from tight to loose."""
    first = tiny.ttft(
        draw(st.sampled_from([400, 1000, 3000, 10000])) * max(1.0, prompt / 2000),
        draw(PERCENTILES),
    )
    each = tiny.tpot(draw(st.sampled_from([15, 30, 60, 150])), draw(PERCENTILES))
    whole = tiny.e2e(
        draw(st.sampled_from([60, 150, 400])) * float(output) + 2000,
        draw(st.sampled_from([90, 95])),
    )
    also = [
        tiny.ttft(4 * first["limit_ms"], 99.5),
        tiny.tpot(2 * each["limit_ms"], 99.5),
    ]
    return draw(
        st.sampled_from(
            [
                [first, each],
                [first, each, *also],
                [first],
                [each],
                [first, whole],
                [whole],
            ]
        )
    )


@st.composite
def workloads(draw: st.DrawFn, name: str, model: str, share: float) -> tiny.Document:
    """A class of `model`; its demand is `share` of what a replica or two of it serve."""
    prompt = draw(st.sampled_from([100, 400, 1500, 5000]))
    output = draw(st.sampled_from([30, 150, 500]))
    work = prompt / 1500 + output / 250
    rate = MODELS[model] / work * share * draw(st.sampled_from([0.1, 0.5, 1.0, 2.0, 5.0, 20.0]))
    fields: tiny.Document = {
        "model": model,
        "input_tokens": {
            "mean": prompt,
            "scv": draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
            "max": min(8 * prompt, 24000),
        },
        "output_tokens": {
            "mean": output,
            "scv": draw(st.sampled_from([0.0, 0.5, 1.0])),
            "max": 8 * output,
        },
        "slo": draw(promises(prompt, output)),
    }
    if fields["input_tokens"]["scv"] == 0:
        fields["input_tokens"] = prompt
    if fields["output_tokens"]["scv"] == 0:
        fields["output_tokens"] = output
    cached = draw(st.sampled_from([0.0, 0.0, 0.3, 0.9]))
    if cached:
        fields["cached_input_fraction"] = cached
    if draw(st.booleans()):
        fields["arrival_scv"] = draw(st.sampled_from([0.5, 1.0, 2.0, 4.0]))
    if not cached and draw(st.integers(0, 3)) == 0:
        fields["cached_input_by_cache_size"] = [
            {"cache_tokens": 1e5, "fraction": 0.2},
            {"cache_tokens": 2e6, "fraction": 0.5},
        ]
        fields["cached_request_fraction"] = draw(st.sampled_from([0.6, 1.0]))
    if draw(st.integers(0, 5)) == 0:
        fields["hidden_output_tokens"] = {"mean": 2 * output, "scv": 0.5, "max": 8 * output}
        fields["slo"] = [
            {**slo, "limit_ms": slo["limit_ms"] * (20 if slo["metric"] == "ttft" else 3)}
            if slo["metric"] != "tpot"
            else slo
            for slo in fields["slo"]
        ]
    return tiny.workload(name, round(rate, 4), **fields)


@st.composite
def offers(draw: st.DrawFn) -> list[tiny.Document]:
    """One to three accelerators in nodes of 1, 2 or 8, sometimes at two sites."""
    found = []
    for accelerator in draw(
        st.lists(st.sampled_from(ACCELERATORS), min_size=1, max_size=3, unique=True)
    ):
        price = draw(st.integers(50, 400)) / 100
        size = draw(st.sampled_from([1, 1, 2, 8]))
        for site in draw(st.sampled_from([["here"], ["here"], ["here", "there"]])):
            each = tiny.offer(accelerator, price, size, id=f"{accelerator}-{site}", region=site)
            if draw(st.integers(0, 3)) == 0:
                each["available_nodes"] = draw(st.sampled_from([1, 2, 4]))
            found.append(each)
            price = round(price * 1.1, 2)
    return found


@st.composite
def documents(draw: st.DrawFn, most_classes: int = 2) -> tiny.Document:
    """An instance of one or two classes, of one model or two."""
    count = draw(st.integers(1, most_classes))
    names = sorted(MODELS)
    first = draw(st.sampled_from(names))
    chosen = [first] + [
        first if draw(st.integers(0, 3)) else draw(st.sampled_from(names)) for _ in range(count - 1)
    ]
    models = []
    for name in dict.fromkeys(chosen):
        served: tiny.Document = {
            "model": name,
            "weight_precisions": draw(_precisions()),
            "kv_precisions": draw(_caches()),
        }
        if draw(st.integers(0, 3)) == 0:
            served["speculative"] = {
                "draft_tokens": draw(st.sampled_from([1, 3])),
                "accepted_tokens_per_step": draw(st.sampled_from([1.2, 1.8])),
                "draft_parameters_billion": 0.5,
            }
        models.append(served)
    roles = draw(st.sampled_from(ROLES))
    fleet: tiny.Document = {"max_gpus_per_replica": draw(st.sampled_from([1, 2]))}
    if draw(st.integers(0, 5)) == 0:
        # Prefill and decode pools alone need two kinds at least.
        least = 1 if "aggregated" in roles else 2
        fleet["max_pool_kinds_per_model"] = least + draw(st.integers(0, 1))
    return tiny.document(
        *[draw(workloads(f"class-{k}", model, 1 / count)) for k, model in enumerate(chosen)],
        offers=draw(offers()),
        roles=roles,
        models=models,
        engine={
            "name": draw(st.sampled_from(["vllm", "vllm", "sglang", "tensorrt-llm"])),
            "chunk_budgets_tokens": draw(st.sampled_from([[512, 2048], [2048], [512], [8192]])),
            "max_num_seqs": draw(st.sampled_from([32, 256, 1024])),
            "routing": draw(st.sampled_from(ROUTINGS)),
        },
        **fleet,
    )
