"""Builder of tiny instances: own offers only, small models, a second or less to solve."""

from __future__ import annotations

from typing import Any, Final

import yaml

from planner import api, catalog
from planner.assemble import fleet_rules
from planner.candidates.build import build_candidates
from planner.fleet.inputs import FleetInputs
from planner.perf.config import Layout, PoolConfig
from planner.plan import Plan
from planner.problem import Problem, build_problem
from planner.schema import Instance, parse_instance
from planner.verify import FleetPool, FleetRules, Verification, verify

Document = dict[str, Any]

LLAMA_8B: Final = "llama-3.1-8b-instruct"
QWEN_MOE: Final = "qwen3-30b-a3b"


def ttft(limit_ms: float, percentile: float | str = 95) -> Document:
    """A promise on the time to first token."""
    return {"metric": "ttft", "percentile": percentile, "limit_ms": limit_ms}


def tpot(limit_ms: float, percentile: float | str = 95) -> Document:
    """A promise on the time per output token."""
    return {"metric": "tpot", "percentile": percentile, "limit_ms": limit_ms}


def e2e(limit_ms: float, percentile: float | str = 95) -> Document:
    """A promise on the whole request."""
    return {"metric": "e2e", "percentile": percentile, "limit_ms": limit_ms}


def workload(name: str = "chat", requests_per_s: float = 8.0, **fields: Any) -> Document:
    """A chat-like class; `fields` replace or add keys of the schema."""
    return {
        "name": name,
        "model": LLAMA_8B,
        "demand": {"requests_per_s": requests_per_s},
        "burst_factor": 1.0,
        "input_tokens": {"mean": 800, "scv": 1.0, "max": 8000},
        "output_tokens": {"mean": 200, "scv": 1.0, "max": 2000},
        "slo": [ttft(2000), tpot(50)],
        **fields,
    }


def offer(
    accelerator: str = "h100", usd_per_gpu_hour: float = 2.5, gpus_per_node: int = 1, **fields: Any
) -> Document:
    """An own offer, named after its accelerator unless `fields` say otherwise."""
    return {
        "id": accelerator,
        "provider": "own",
        "region": "here",
        "accelerator": accelerator,
        "gpus_per_node": gpus_per_node,
        "price_usd_per_gpu_hour": usd_per_gpu_hour,
        **fields,
    }


def document(
    *workloads: Document,
    offers: list[Document] | None = None,
    roles: tuple[str, ...] = ("aggregated",),
    models: list[Document] | None = None,
    engine: Document | None = None,
    **fleet: Any,
) -> Document:
    """An instance as a mapping; by default one class on H100 nodes of one GPU."""
    used = workloads or (workload(),)
    named = dict.fromkeys(each["model"] for each in used)
    return {
        "format_version": 1,
        "name": "tiny",
        "roles": list(roles),
        "engine": engine or {"chunk_budgets_tokens": [2048]},
        "models": models
        or [
            {"model": model, "weight_precisions": ["fp8"], "kv_precisions": ["fp8"]}
            for model in named
        ],
        "workloads": list(used),
        "fleet": {
            "catalogue_offers": False,
            "max_gpus_per_replica": 2,
            "offers": offers or [offer()],
            **fleet,
        },
    }


def instance(content: Document) -> Instance:
    """The instance of a mapping, through YAML as a user would write it."""
    return parse_instance(yaml.safe_dump(content, sort_keys=False), file="tiny.yaml")


def problem(content: Document) -> Problem:
    """The problem of a mapping, catalogue joined."""
    return build_problem(instance(content))


def inputs(content: Document) -> FleetInputs:
    """Sets and coefficients of a mapping, options enumerated."""
    built = problem(content)
    return built.inputs().with_options(build_candidates(built.request()).options)


def rules(content: Document) -> FleetRules:
    """The limits that a fleet for a mapping is verified against."""
    return fleet_rules(problem(content))


def solve(content: Document, gap_fraction: float = 0.0, **options: Any) -> Plan:
    """The plan of a mapping, to proven optimality unless a gap is given."""
    return api.solve(instance(content), gap_fraction=gap_fraction, **options)


def pools(plan: Plan, content: Document) -> list[FleetPool]:
    """The pools of a plan, built again from what is printed and from the instance."""
    served = {each.card.id: each for each in problem(content).models}
    return [
        FleetPool(
            id=pool.id,
            config=PoolConfig(
                served[pool.model].card,
                catalog.find_accelerator(pool.accelerator),
                Layout(
                    pool.layout.tensor_parallel,
                    pool.layout.pipeline_parallel,
                    pool.layout.attention_data_parallel,
                    pool.layout.expert_parallel,
                ),
                pool.weight_precision,
                pool.kv_precision,
                served[pool.model].engine,
                served[pool.model].speculative if pool.draft_tokens else None,
            ),
            role=pool.role,
            site=pool.site,
            gpus_per_node=pool.gpus_per_node,
            replicas=pool.replicas,
            chunk_tokens=pool.chunk_tokens,
            requests_per_s=pool.requests_per_s,
        )
        for pool in plan.pools
    ]


def nodes(plan: Plan) -> dict[str, int]:
    """Nodes of a plan by offer."""
    return {each.offer: each.nodes for each in plan.nodes}


def verified(plan: Plan, content: Document) -> Verification:
    """A plan as printed, evaluated again by the full model against the instance."""
    return verify(problem(content).classes, pools(plan, content), nodes(plan), rules(content))
