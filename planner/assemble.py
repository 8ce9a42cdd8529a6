"""From a solution to a plan: pools with names, verified latencies, prices, provenance."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from planner import __version__, catalog
from planner.candidates.options import CandidateTable, PoolOption
from planner.candidates.promises import NO_MARGINS, Margins, pool_kind
from planner.fleet.solution import FleetSolution
from planner.fleet.solver import SolveSettings
from planner.perf.backend import RooflineBackend, StepTimeBackend
from planner.perf.constants import load_constants
from planner.plan import (
    ClassPlan,
    LayoutPlan,
    MarginPlan,
    NodePlan,
    PoolPlan,
    Provenance,
    SearchPlan,
    ServingShare,
    SloPlan,
    TokenPrice,
)
from planner.pricing.attribution import ClassCost, class_costs
from planner.problem import Problem
from planner.verify import FleetPool, FleetRules, SloState, Verification

DISTRIBUTIONS = ("pyomo", "highspy", "numpy", "scipy", "pydantic")


def fleet_pools(
    problem: Problem, options: Mapping[str, PoolOption], solution: FleetSolution
) -> dict[str, FleetPool]:
    """Pools by option name, with short ids: model/role-1, model/role-2, ..."""
    counts: Counter[str] = Counter()
    pools: dict[str, FleetPool] = {}
    for name in sorted(solution.replicas, key=lambda each: _order(options[each])):
        option = options[name]
        stem = f"{option.model}/{option.role}"
        counts[stem] += 1
        pools[name] = FleetPool(
            id=f"{stem}-{counts[stem]}",
            config=option.config,
            role=option.role,
            site=option.site,
            gpus_per_node=option.gpus_per_node,
            replicas=solution.replicas[name],
            chunk_tokens=option.chunk_tokens,
            requests_per_s={
                problem.classes[k].name: rate
                for (k, p), rate in sorted(solution.flow.items())
                if p == name
            },
        )
    return pools


def _order(option: PoolOption) -> tuple[str, int, str]:
    return (option.model, ("aggregated", "prefill", "decode").index(option.role), option.name)


def fleet_rules(problem: Problem) -> FleetRules:
    """The instance's limits on the fleet as a whole."""
    fleet = problem.instance.fleet
    return FleetRules(
        offers={offer.id: offer for offer in problem.offers},
        stocks=problem.stocks,
        budget_usd_per_hour=fleet.budget_usd_per_hour,
        max_pool_kinds_per_model=fleet.max_pool_kinds_per_model,
        roles=frozenset(problem.instance.roles),
        max_gpus_per_replica=fleet.max_gpus_per_replica,
        backend=problem.backend,
    )


def pool_plans(
    problem: Problem,
    pools: Sequence[FleetPool],
    check: Verification,
    costs: Mapping[str, float],
    margins: Margins = NO_MARGINS,
) -> tuple[PoolPlan, ...]:
    """The fleet as printed; `margins` are those that it was found with."""
    return tuple(pool_plan(pool, check, costs[pool.id], problem.backend, margins) for pool in pools)


def pool_plan(
    pool: FleetPool,
    check: Verification,
    cost_usd_per_hour: float,
    backend: StepTimeBackend,
    margins: Margins = NO_MARGINS,
) -> PoolPlan:
    """One pool as printed, at the operating point of `check`."""
    config, layout, state = pool.config, pool.config.layout, check.pools[pool.id]
    return PoolPlan(
        id=pool.id,
        model=config.model.id,
        role=pool.role,  # type: ignore[arg-type]  # one of the three roles by construction
        site=pool.site,
        accelerator=config.accelerator.id,
        gpus_per_node=pool.gpus_per_node,
        layout=LayoutPlan(
            tensor_parallel=layout.tensor_parallel,
            pipeline_parallel=layout.pipeline_parallel,
            attention_data_parallel=layout.attention_data_parallel,
            expert_parallel=layout.expert_parallel,
            label=layout.label,
        ),
        weight_precision=config.weight_precision,
        kv_precision=config.kv_precision,
        engine=config.engine.name,
        draft_tokens=config.speculative.draft_tokens if config.speculative else 0,
        chunk_tokens=pool.chunk_tokens,
        replicas=pool.replicas,
        gpus=pool.gpus,
        cost_usd_per_hour=cost_usd_per_hour,
        requests_per_s=dict(pool.requests_per_s),
        step_ms=None if state.step_s is None else state.step_s * 1e3,
        batch=state.batch,
        utilization_fraction=dict(state.utilization),
        binding=state.binding,
        band_fraction=backend.band(config),
        step_time_source=backend.source_of(config),
        routing=config.engine.routing,
        margins={
            name: MarginPlan(ttft=margin.ttft, tpot=margin.tpot)
            for name in pool.requests_per_s
            if (margin := margins.get((name, pool_kind(config, pool.role, pool.chunk_tokens))))
        },
    )


def class_plans(
    problem: Problem,
    pools: Sequence[FleetPool],
    check: Verification,
    costs: Mapping[str, float],
) -> tuple[ClassPlan, ...]:
    """What every workload gets, where, at what cost."""
    spent = class_costs(problem.classes, pools, check.pools, costs)
    band = _widest([problem.backend.band(pool.config) for pool in pools])
    ttft_band = _widest([problem.backend.ttft_band(pool.config) for pool in pools])
    plans = []
    for workload in problem.classes:
        rate = workload.rate_per_s[0]
        cost = spent[workload.name]
        served = tuple(
            ServingShare(
                pool=pool.id,
                phase=pool.role,  # type: ignore[arg-type]  # one of the three roles
                share_fraction=pool.requests_per_s[workload.name] / rate,
            )
            for pool in pools
            if pool.requests_per_s.get(workload.name, 0.0) > 0
        )
        plans.append(
            ClassPlan(
                name=workload.name,
                model=workload.model,
                requests_per_s=rate,
                mean_requests_per_s=rate / workload.burst_factor,
                input_tokens_per_s=cost.input_tokens_per_s,
                cached_input_tokens_per_s=cost.cached_tokens_per_s,
                output_tokens_per_s=cost.output_tokens_per_s,
                slos=tuple(
                    _slo_plan(state, band, ttft_band) for state in check.slos[workload.name]
                ),
                served_by=served,
                cost_usd_per_hour=cost.usd_per_hour,
                price=_price(cost),
            )
        )
    return tuple(plans)


Band = tuple[float, float]


def _widest(bands: Sequence[Band]) -> Band:
    return (min((low for low, _ in bands), default=1.0), max((up for _, up in bands), default=1.0))


def _slo_plan(state: SloState, band: Band, ttft_band: Band) -> SloPlan:
    first = state.first_token_s * 1e3
    after = state.predicted_s * 1e3 - first
    predicted = state.predicted_s * 1e3
    percentile = state.slo.percentile
    return SloPlan(
        metric=state.slo.metric,  # type: ignore[arg-type]  # the schema allows these only
        percentile=None if percentile is None else round(percentile * 100, 9),
        limit_ms=state.slo.limit_s * 1e3,
        predicted_ms=predicted,
        low_ms=first * ttft_band[0] + after * band[0],
        high_ms=first * ttft_band[1] + after * band[1],
    )


def _price(cost: ClassCost) -> TokenPrice:
    return TokenPrice(
        input_usd_per_mtok=cost.usd_per_mtok("input") or 0.0,
        cached_input_usd_per_mtok=cost.usd_per_mtok("cached"),
        output_usd_per_mtok=cost.usd_per_mtok("output") or 0.0,
    )


def node_plans(
    problem: Problem, pools: Sequence[FleetPool], nodes: Mapping[str, int]
) -> tuple[NodePlan, ...]:
    """Nodes by offer; GPUs without a replica are counted at the last offer of their group."""
    offers = {offer.id: offer for offer in problem.offers}
    left: dict[tuple[str, str, int], int] = {}
    for pool in pools:
        left[pool.node_group] = left.get(pool.node_group, 0) + pool.gpus
    plans = []
    for offer_id, count in sorted(nodes.items()):
        offer = offers[offer_id]
        key = (offer.site, offer.accelerator, offer.gpus_per_node)
        gpus = count * offer.gpus_per_node
        used = min(gpus, left.get(key, 0))
        left[key] = left.get(key, 0) - used
        plans.append(
            NodePlan(
                offer=offer.id,
                site=offer.site,
                accelerator=offer.accelerator,
                term=offer.term,
                nodes=count,
                gpus=gpus,
                idle_gpus=gpus - used,
                price_usd_per_gpu_hour=offer.price_usd_per_gpu_hour,
                cost_usd_per_hour=offer.price_usd_per_node_hour * count,
                source=offer.source,
                date=offer.date,
            )
        )
    return tuple(plans)


def search_plan(
    table: CandidateTable,
    solution: FleetSolution,
    enumeration_s: float,
    settings: SolveSettings,
) -> SearchPlan:
    """How the plan was found."""
    relaxation = solution.relaxation_usd_per_hour
    return SearchPlan(
        configurations=table.configurations,
        options_enumerated=table.enumerated,
        options_after_dominance=len(table),
        options_in_last_program=solution.columns,
        relaxation_usd_per_hour=None if relaxation != relaxation else relaxation,
        branch_nodes=solution.branch_nodes,
        enumeration_s=enumeration_s,
        solve_s=solution.elapsed_s,
        solver=solution.solver,
        solver_version=_version("highspy") if solution.solver == "highs" else "unknown",
        gap_asked_fraction=settings.gap_fraction,
        time_limit_s=settings.time_limit_s,
        threads=settings.threads,
        seed=settings.seed,
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def provenance(
    problem: Problem, pools: Sequence[FleetPool], nodes: Mapping[str, int]
) -> Provenance:
    """The resolved instance and every catalogue row that the fleet uses."""
    instance = problem.instance
    offers = {offer.id: offer for offer in problem.offers}
    used = {pool.config.accelerator.id for pool in pools}
    return Provenance(
        planner_version=__version__,
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in DISTRIBUTIONS},
        },
        instance_file=instance.source.file,
        instance_sha256=instance.source.sha256,
        instance=instance.model_dump(mode="json"),
        accelerators={name: catalog.find_accelerator(name).as_row() for name in sorted(used)},
        offers={name: _plain(offers[name].as_row()) for name in sorted(nodes)},
        models={served.card.id: _plain(served.card) for served in problem.models},
        constants=_plain(load_constants()),
        corrections=_corrections(problem.backend),
    )


def _corrections(backend: StepTimeBackend) -> tuple[dict[str, Any], ...]:
    if not isinstance(backend, RooflineBackend):
        return ()
    return tuple(
        {"deployment": _plain(deployment), "correction": _plain(correction)}
        for deployment, correction in backend.corrections.by_deployment.items()
    )


def _plain(value: Any) -> Any:
    """JSON values only: dataclasses and mappings become objects, tuples lists."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
