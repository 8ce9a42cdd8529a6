"""What may be rented or is owned: accelerators, offers, limits."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from planner.schema.fields import (
    CountOrZero,
    Many,
    Name,
    NotNegative,
    Part,
    Positive,
    Some,
    Whole,
    described,
    mistakes,
)
from planner.schema.serving import repeats

Term = Literal["on_demand", "reserved_1y", "reserved_3y", "spot", "owned"]


class OwnOffer(Part):
    """An offer of your own: owned hardware, or a price you negotiated."""

    id: Name = described("Name of the offer, unique in the file and the catalogue.")
    provider: Name = described("Who provides it.")
    region: Name = described("Where it stands; pools of one site share provider and region.")
    accelerator: Name = described("Id or alias of the accelerator.")
    term: Term = described("Kind of commitment.", default="owned")
    price_usd_per_gpu_hour: NotNegative = described(
        "Price of one accelerator, used or not.", unit="USD/GPU/hour"
    )
    gpus_per_node: Annotated[int, Field(ge=1, le=1024), Whole] = described(
        "Accelerators in one node; nodes are rented whole.", unit="GPUs"
    )
    available_nodes: CountOrZero | None = described(
        "Most nodes there are. Left out: no limit, and said to be assumed.",
        unit="nodes",
        default=None,
    )


class Availability(Part):
    """A limit on one accelerator (over all its offers) or on one offer."""

    accelerator: Name | None = described(
        "Id or alias of the accelerator. Give this or `offer`.", default=None
    )
    offer: Name | None = described("Id of the offer. Give this or `accelerator`.", default=None)
    nodes: CountOrZero = described("Most nodes that can be had.", unit="nodes")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accelerator is None and self.offer is None:
            mistakes([("", "neither accelerator nor offer is given", "name what is limited")])
        if self.accelerator is not None and self.offer is not None:
            mistakes([("offer", "accelerator and offer are both given", "keep one of the two")])
        return self


class FleetLimits(Part):
    """What the plan may use. Without any of it: the whole catalogue, on demand."""

    accelerators: Some[Name] | None = described(
        "Accelerators allowed. Left out: all that have an offer.", default=None
    )
    providers: Some[Name] | None = described(
        "Providers of catalogue offers allowed. Left out: all.", default=None
    )
    regions: Some[Name] | None = described(
        "Regions of catalogue offers allowed. Left out: all.", default=None
    )
    terms: Some[Term] = described("Terms of catalogue offers allowed.", default=("on_demand",))
    offers: Many[OwnOffer] = described("Offers of your own, never filtered.", default=())
    catalogue_offers: bool = described(
        "Whether the catalogue's offers may be used too.", default=True
    )
    availability: Many[Availability] = described(
        "Limits on accelerators or offers. Left out: none, and said to be assumed.", default=()
    )
    budget_usd_per_hour: Positive | None = described(
        "Most the fleet may cost. Left out: no limit.", unit="USD/hour", default=None
    )
    max_pool_kinds_per_model: Annotated[int, Field(ge=1, le=100), Whole] = described(
        "Most kinds of pool (accelerator, shape, role) that one model may run on.", default=4
    )
    max_gpus_per_replica: Annotated[int, Field(ge=1, le=4096), Whole] = described(
        "Most accelerators that one replica may span.", unit="GPUs", default=16
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        found: list[tuple[str, str, str]] = []
        for field in ("accelerators", "providers", "regions", "terms"):
            found += repeats(field, getattr(self, field))
        if not self.catalogue_offers and not self.offers:
            message = "is false, and no offers of your own are given"
            found.append(("catalogue_offers", message, "give offers, or leave it out"))
        seen: set[str] = set()
        for index, offer in enumerate(self.offers):
            if offer.id in seen:
                message = f"the id {offer.id!r} is given twice"
                found.append((f"offers[{index}].id", message, "ids are unique"))
            seen.add(offer.id)
        limited: set[tuple[str | None, str | None]] = set()
        for index, limit in enumerate(self.availability):
            key = (limit.accelerator, limit.offer)
            if key in limited:
                name = limit.accelerator or limit.offer
                message = f"{name!r} is limited twice"
                found.append((f"availability[{index}]", message, "keep one limit"))
            limited.add(key)
        mistakes(found)
        return self
