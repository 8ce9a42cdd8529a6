"""A given fleet in terms of the model: pools with their configurations, and their nodes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from planner import catalog
from planner.candidates.request import ServedModel
from planner.catalog.offers import Offer
from planner.errors import InputError, Problem
from planner.perf.config import Layout, PoolConfig, config_problem
from planner.plan import Plan
from planner.schema.fleet_file import GivenFleet, GivenPool, resolve_fleet
from planner.schema.instance import Instance
from planner.schema.yaml_positions import FieldPath, field_name
from planner.verify import FleetPool

NodeKey = tuple[str, str, int]
"""Site, accelerator and node size."""


def fleet_of_plan(plan: Plan, file: str, instance: Instance) -> GivenFleet:
    """The fleet of a plan: its pools, nodes and routing.

    Raises InputError when the plan has none, or names what the instance does not have.
    """
    if not plan.has_fleet:
        raise InputError([Problem(f"holds no fleet: its status is {plan.status}", file=file)])
    pools = [
        {
            "name": pool.id,
            "model": pool.model,
            "role": pool.role,
            "accelerator": pool.accelerator,
            "site": pool.site,
            "gpus_per_node": pool.gpus_per_node,
            "tensor_parallel": pool.layout.tensor_parallel,
            "pipeline_parallel": pool.layout.pipeline_parallel,
            "attention_data_parallel": pool.layout.attention_data_parallel,
            "expert_parallel": pool.layout.expert_parallel,
            "weight_precision": pool.weight_precision,
            "kv_precision": pool.kv_precision,
            "chunk_tokens": pool.chunk_tokens,
            "speculative": pool.draft_tokens > 0,
            "replicas": pool.replicas,
            "requests_per_s": dict(pool.requests_per_s),
        }
        for pool in plan.pools
    ]
    nodes = {node.offer: node.nodes for node in plan.nodes}
    mistakes: list[Problem] = []

    def tell(path: FieldPath, message: str, hint: str) -> None:
        mistakes.append(Problem(message, hint, file=file, field=field_name(path)))

    try:
        fleet = GivenFleet.model_validate(
            {"format_version": 1, "name": plan.name, "pools": pools, "nodes": nodes}
        )
    except ValidationError as error:
        for item in error.errors(include_url=False):
            tell(item["loc"], item["msg"], "")
        raise InputError(mistakes) from None
    resolved = resolve_fleet(fleet, instance, tell)
    if mistakes:
        raise InputError(mistakes)
    return resolved


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as given, its configuration, and why it cannot run where it cannot."""

    given: GivenPool
    config: PoolConfig
    flaw: str | None

    @property
    def id(self) -> str:
        """Its name."""
        return str(self.given.name)

    @property
    def node_key(self) -> NodeKey:
        """The nodes that hold it."""
        given = self.given
        assert given.site is not None
        assert given.gpus_per_node is not None
        return (given.site, self.config.accelerator.id, given.gpus_per_node)

    @property
    def gpus(self) -> int:
        """Accelerators of all replicas."""
        return self.given.replicas * self.config.layout.gpus

    def part(self, suffix: str, replicas: int, requests_per_s: Mapping[str, float]) -> FleetPool:
        """So many of its replicas as a pool of their own, with the requests that they get."""
        site, _, gpus_per_node = self.node_key
        return FleetPool(
            id=self.id + suffix,
            config=self.config,
            role=self.given.role,
            site=site,
            gpus_per_node=gpus_per_node,
            replicas=replicas,
            chunk_tokens=self.given.chunk_tokens,
            requests_per_s=dict(requests_per_s),
        )


def pool_of(given: GivenPool, served: ServedModel) -> Pool:
    """A pool whose names are resolved, with its configuration."""
    layout = Layout(
        given.tensor_parallel,
        given.pipeline_parallel,
        given.attention_data_parallel,
        given.expert_parallel,
    )
    config = PoolConfig(
        served.card,
        catalog.find_accelerator(str(given.accelerator)),
        layout,
        str(given.weight_precision),
        given.kv_precision,
        served.engine,
        served.speculative if given.speculative else None,
    )
    return Pool(given, config, config_problem(config) or _node_problem(config, given))


def _node_problem(config: PoolConfig, given: GivenPool) -> str | None:
    """Why replicas of this shape do not go on nodes of this size."""
    size, layout = given.gpus_per_node, config.layout
    assert size is not None
    if layout.tensor_parallel > size and not config.accelerator.scale_up_spans_nodes:
        return f"tensor parallel {layout.tensor_parallel} is wider than a node of {size}"
    if size % layout.gpus and layout.gpus % size:
        return f"a replica of {layout.gpus} GPUs neither divides a node of {size} nor fills nodes"
    return None


def fewest_nodes(
    pools: Sequence[Pool], offers: Mapping[str, Offer], allowed: Collection[str]
) -> dict[str, int]:
    """The fewest whole nodes that hold the replicas, by offer.

    Replicas with an offer are on its nodes. The others fill what is left on these, then nodes of
    the cheapest allowed offers as far as they are available, then more of the very cheapest.
    """
    nodes: dict[str, int] = {}
    for key in dict.fromkeys(pool.node_key for pool in pools):
        here = [pool for pool in pools if pool.node_key == key]
        size = key[2]
        for name in dict.fromkeys(pool.given.offer for pool in here if pool.given.offer):
            named = sum(pool.gpus for pool in here if pool.given.offer == name)
            nodes[name] = math.ceil(named / size)
        choice = sorted(
            (offer for offer in offers.values() if _key(offer) == key),
            key=lambda offer: (offer.id not in allowed, offer.price_usd_per_gpu_hour, offer.id),
        )
        held = sum(nodes.get(offer.id, 0) for offer in choice)
        missing = math.ceil(sum(pool.gpus for pool in here) / size) - held
        for offer in choice:
            if missing <= 0:
                break
            if offer.id in allowed:
                had = nodes.get(offer.id, 0)
                most = math.inf if offer.available_nodes is None else offer.available_nodes
                nodes[offer.id] = had + int(max(min(missing, most - had), 0))
                missing -= nodes[offer.id] - had
        if missing > 0:
            nodes[choice[0].id] = nodes.get(choice[0].id, 0) + missing
    return {name: count for name, count in nodes.items() if count}


def _key(offer: Offer) -> NodeKey:
    return (offer.site, offer.accelerator, offer.gpus_per_node)
