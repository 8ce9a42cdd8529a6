"""Small random instances: one or two classes of one small model, a handful of replicas.

Everything is drawn from the seed. Classes, hardware, stocks and promises vary; the demand is
drawn wide enough that fleets of one to six replicas, and now and then none at all, come out.
"""

from __future__ import annotations

import random
from typing import Any, Final

import yaml

from planner.problem import Problem, build_problem
from planner.schema import parse_instance

ROLES: Final = {
    "aggregated": ["aggregated"],
    "split": ["prefill", "decode"],
    "all": ["prefill", "decode", "aggregated"],
}

PRICES_USD_PER_GPU_HOUR: Final = {
    "l4": 0.8,
    "l40s": 1.2,
    "a100-80gb": 1.6,
    "h100": 2.6,
    "h200": 3.3,
    "mi300x": 2.4,
}

BASE_RATE_PER_S: Final = {
    "llama-3.1-8b-instruct": 12.0,
    "qwen3-8b": 12.0,
    "qwen3-30b-a3b": 10.0,
}


def problem(seed: int, classes: int, roles: str) -> Problem:
    """The problem of a seed; `roles` is a key of `ROLES`."""
    return build_problem(parse_instance(yaml.safe_dump(document(seed, classes, roles))))


def document(seed: int, classes: int, roles: str) -> dict[str, Any]:
    """The instance of a seed as a document."""
    rng = random.Random(f"{seed}/{classes}/{roles}")
    model = rng.choice(sorted(BASE_RATE_PER_S))
    weights = rng.choice([["fp8"], ["bf16", "fp8"], ["fp8", "int4"], ["bf16"]])
    caches = rng.choice([["bf16"], ["fp8"], ["bf16", "fp8"]][: 3 if classes == 1 else 2])
    workloads = [_workload(rng, f"class-{k}", model, classes) for k in range(classes)]
    if "bf16" in weights and "bf16" in caches:
        # A bound on quality leaves the native precision at least.
        workloads[0]["max_quality_loss_percent"] = rng.choice([1.0, 3.0, 10.0])
    return {
        "format_version": 1,
        "name": f"random-{seed}",
        "roles": ROLES[roles],
        "engine": {
            "name": rng.choice(["vllm", "vllm", "sglang", "tensorrt-llm"]),
            "chunk_budgets_tokens": rng.choice([[512, 2048], [2048], [1024, 8192], [512]]),
            "max_num_seqs": rng.choice([64, 256, 1024]),
        },
        "models": [{"model": model, "weight_precisions": weights, "kv_precisions": caches}],
        "workloads": workloads,
        "fleet": _fleet(rng, classes, roles),
    }


def _workload(rng: random.Random, name: str, model: str, classes: int) -> dict[str, Any]:
    prompt = rng.choice([200, 600, 1500, 3000, 6000])
    output = rng.choice([40, 150, 400, 900])
    work = prompt / 1500 + output / 250
    spread = rng.choice([0.2, 0.8, 1.5])
    rate = BASE_RATE_PER_S[model] / work / classes * 10 ** rng.uniform(-0.3, 0.7)
    slo: list[dict[str, Any]] = [
        {
            "metric": "ttft",
            "percentile": rng.choice([90, 95, 99]),
            "limit_ms": rng.choice([800, 2000, 5000]) * max(1.0, prompt / 2000),
        },
        {
            "metric": "tpot",
            "percentile": rng.choice([90, 95, "mean"]),
            "limit_ms": rng.choice([20, 35, 60, 120]),
        },
    ]
    form = rng.random()
    if form < 0.15:
        slo = slo[1:]
    elif form < 0.3:
        slo = [slo[0], {"metric": "e2e", "percentile": 90, "limit_ms": 60.0 * output * 4}]
    workload: dict[str, Any] = {
        "name": name,
        "model": model,
        "demand": {"requests_per_s": round(rate, 3)},
        "burst_factor": 1.0,
        "input_tokens": {"mean": prompt, "scv": spread, "max": min(8 * prompt, 30000)},
        "output_tokens": {"mean": output, "scv": rng.choice([0.5, 1.0]), "max": 8 * output},
        "slo": slo,
    }
    if rng.random() < 0.4:
        workload["cached_input_fraction"] = rng.choice([0.3, 0.8])
    return workload


def _fleet(rng: random.Random, classes: int, roles: str) -> dict[str, Any]:
    accelerators = rng.sample(sorted(PRICES_USD_PER_GPU_HOUR), rng.choice([1, 2, 3]))
    sites = ["here"] if rng.random() < 0.6 else ["here", "there"]
    offers = []
    for accelerator in accelerators:
        size = rng.choice([1, 1, 2, 8] if classes == 1 else [1, 1, 2])
        for site in sites:
            # Three accelerators at two sites make searches long and teach nothing new.
            if site == "there" and (len(accelerators) == 3 or rng.random() < 0.4):
                continue
            price = PRICES_USD_PER_GPU_HOUR[accelerator] * rng.uniform(0.75, 1.3)
            offer = {
                "id": f"{accelerator}-{site}",
                "provider": "own",
                "region": site,
                "accelerator": accelerator,
                "price_usd_per_gpu_hour": round(price, 2),
                "gpus_per_node": size,
            }
            if rng.random() < 0.5:
                offer["available_nodes"] = rng.choice([1, 2, 3, 5])
            offers.append(offer)
    fleet: dict[str, Any] = {
        "catalogue_offers": False,
        "offers": offers,
        "max_gpus_per_replica": rng.choice([1, 2]),
        "max_pool_kinds_per_model": 100,
    }
    if rng.random() < 0.2:
        fleet["availability"] = [{"accelerator": accelerators[0], "nodes": rng.choice([2, 4])}]
    return fleet
