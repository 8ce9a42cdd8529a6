"""From an instance to the problem that is solved: catalogue rows joined, filters applied."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from planner import catalog
from planner.candidates.promises import NO_MARGINS, Margins
from planner.candidates.request import CandidateRequest, NodeGroup, ServedModel
from planner.catalog.offers import Offer
from planner.errors import InputError
from planner.fleet.inputs import FleetInputs, Period, Stock
from planner.perf.backend import StepTimeBackend
from planner.perf.config import EngineProfile, Speculative
from planner.perf.engines import engine_profile
from planner.perf.instance import instance_backend
from planner.schema.instance import Instance
from planner.units import KV_BYTES
from planner.workload.build import build_workload
from planner.workload.classes import WorkloadClass

STEADY = (Period("steady", 1.0),)


@dataclass(frozen=True, slots=True)
class Problem:
    """An instance with every unit resolved; demand, prices and hardware side by side."""

    instance: Instance
    classes: tuple[WorkloadClass, ...]
    models: tuple[ServedModel, ...]
    offers: tuple[Offer, ...]
    stocks: tuple[Stock, ...]
    assumptions: tuple[str, ...]
    backend: StepTimeBackend
    """Where step times come from: what enumerates, verifies and reports."""

    def request(self, refinement: int = 0, margins: Margins = NO_MARGINS) -> CandidateRequest:
        """What to enumerate; `refinement` 1 doubles the points of shared pools' frontiers, and
        `margins` keep formulas below their limits by what a simulation found.
        """
        groups = {
            (offer.site, offer.accelerator, offer.gpus_per_node): NodeGroup(
                offer.site, catalog.find_accelerator(offer.accelerator), offer.gpus_per_node
            )
            for offer in self.offers
        }
        return CandidateRequest(
            models=self.models,
            classes=self.classes,
            node_groups=tuple(groups[key] for key in sorted(groups)),
            roles=frozenset(self.instance.roles),
            max_gpus_per_replica=self.instance.fleet.max_gpus_per_replica,
            backend=self.backend,
            refinement=refinement,
            margins=margins,
        )

    def inputs(self) -> FleetInputs:
        """Sets and limits of the program, still without options."""
        fleet = self.instance.fleet
        return FleetInputs(
            classes=tuple(workload.name for workload in self.classes),
            class_models=tuple(workload.model for workload in self.classes),
            demand=tuple(workload.rate_per_s for workload in self.classes),
            periods=STEADY,
            options=(),
            offers=self.offers,
            stocks=self.stocks,
            budget_usd_per_hour=fleet.budget_usd_per_hour,
            max_pool_kinds_per_model=fleet.max_pool_kinds_per_model,
        )


def build_problem(instance: Instance) -> Problem:
    """Join an instance with the catalogue.

    Raises InputError when filters leave no offer, a speculative model has no draft size, or the
    source of step times asked for is not there.
    """
    backend = instance_backend(instance)
    workload = build_workload(instance)
    offers = allowed_offers(instance)
    if not offers:
        raise InputError(
            f"{instance.source.file}: fleet: no offer matches the accelerators, providers, "
            "regions and terms allowed; `planner list offers` shows what there is"
        )
    limited = {offer for stock in _stocks(instance, offers) for offer in stock.offers}
    offers = without_dearer(offers, limited)
    used = {each.model for each in workload.classes}
    return Problem(
        instance=instance,
        classes=workload.classes,
        models=tuple(
            _served(instance, served.model)
            for served in instance.models
            if served.model is not None and served.model in used
        ),
        offers=offers,
        stocks=_stocks(instance, offers),
        assumptions=workload.assumptions,
        backend=backend,
    )


def _served(instance: Instance, model_id: str) -> ServedModel:
    served = instance.served_model(model_id)
    card = instance.cards[model_id]
    settings = instance.engine_for(model_id)
    profile: EngineProfile = replace(engine_profile(settings.engine_name), **settings.overrides())
    speculative = None
    if served.speculative is not None:
        billions = served.speculative.draft_parameters_billion
        parameters = card.mtp_parameters if billions is None else billions * 1e9
        speculative = Speculative(
            served.speculative.draft_tokens,
            served.speculative.accepted_tokens_per_step,
            parameters,
        )
    return ServedModel(
        card=card,
        engine=profile,
        weight_precisions=served.weight_precisions or card.weight_precisions,
        kv_precisions=served.kv_precisions or tuple(KV_BYTES),
        speculative=speculative,
    )


def allowed_offers(instance: Instance) -> tuple[Offer, ...]:
    """Every offer that an instance allows: its own, and those of the catalogue that pass."""
    fleet = instance.fleet
    own = [
        Offer(
            id=offer.id,
            provider=offer.provider,
            region=offer.region,
            term=offer.term,
            accelerator=offer.accelerator,
            price_usd_per_gpu_hour=offer.price_usd_per_gpu_hour,
            gpus_per_node=offer.gpus_per_node,
            available_nodes=offer.available_nodes,
            source=instance.source.file,
        )
        for offer in fleet.offers
    ]
    if not fleet.catalogue_offers:
        return tuple(own)
    listed = [
        offer
        for offer in catalog.offers().values()
        if _allowed(offer.accelerator, fleet.accelerators)
        and _allowed(offer.provider, fleet.providers)
        and _allowed(offer.region, fleet.regions)
        and offer.term in fleet.terms
    ]
    return tuple(own + listed)


def without_dearer(offers: Sequence[Offer], limited: Collection[str]) -> tuple[Offer, ...]:
    """The offers that some cheapest fleet may need; the others are dropped, which is exact.

    An offer is not needed beside a cheaper one of the same nodes at the same site that never
    runs out, and a site is not needed beside another that has all its kinds of node, each
    without limit and at no higher price. `limited` are ids of offers that a stated availability
    covers; an offer with such a limit, or one of its own, dominates nothing.
    """

    def endless(offer: Offer) -> bool:
        return offer.available_nodes is None and offer.id not in limited

    cheapest: dict[str, dict[tuple[str, int], float]] = {}
    for offer in offers:
        if endless(offer):
            prices = cheapest.setdefault(offer.site, {})
            kind = (offer.accelerator, offer.gpus_per_node)
            prices[kind] = min(prices.get(kind, math.inf), offer.price_usd_per_gpu_hour)
    kept: list[Offer] = []
    seen: set[tuple[str, str, int, float]] = set()
    for offer in offers:
        kind = (offer.accelerator, offer.gpus_per_node)
        best = cheapest.get(offer.site, {}).get(kind, math.inf)
        twin = (offer.site, *kind, offer.price_usd_per_gpu_hour)
        if offer.price_usd_per_gpu_hour > best or (endless(offer) and twin in seen):
            continue
        if endless(offer):
            seen.add(twin)
        kept.append(offer)
    dropped: set[str] = set()
    for site in sorted({offer.site for offer in kept}):
        here = [offer for offer in kept if offer.site == site]
        for other in sorted(cheapest):
            if other == site or other in dropped:
                continue
            if all(
                cheapest[other].get((offer.accelerator, offer.gpus_per_node), math.inf)
                <= offer.price_usd_per_gpu_hour
                for offer in here
            ):
                dropped.add(site)
                break
    return tuple(offer for offer in kept if offer.site not in dropped)


def _allowed(value: str, names: Collection[str] | None) -> bool:
    return names is None or value in names


def _stocks(instance: Instance, offers: tuple[Offer, ...]) -> tuple[Stock, ...]:
    stocks = [
        Stock(offer.id, (offer.id,), offer.available_nodes)
        for offer in offers
        if offer.available_nodes is not None
    ]
    for limit in instance.fleet.availability:
        if limit.offer is not None:
            stocks.append(Stock(limit.offer, (limit.offer,), limit.nodes))
        else:
            ids = tuple(offer.id for offer in offers if offer.accelerator == limit.accelerator)
            stocks.append(Stock(str(limit.accelerator), ids, limit.nodes))
    return tuple(stocks)
