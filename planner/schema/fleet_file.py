"""The fleet file: a fleet as it stands, written down to be evaluated against an instance.

What the file may hold, and its names against an instance and the catalogue. Whether the fleet
keeps its promises, or could exist at all, is for the evaluation to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from planner import catalog
from planner.errors import InputError, Problem
from planner.schema.fields import (
    Count,
    CountOrZero,
    Name,
    NotNegative,
    Part,
    Some,
    Whole,
    described,
    mistakes,
)
from planner.schema.instance import Instance
from planner.schema.messages import Places, problems_of
from planner.schema.serving import KvPrecision, Role, WeightPrecision, repeats
from planner.schema.suggest import hint_for_word
from planner.schema.yaml_positions import FieldPath, parse_yaml, read_text_file, shown

MOST_REPLICAS: Final = 4096
"""Largest pool: the capacity of prefill pools is proven up to here."""

Degree = Annotated[int, Field(ge=1, le=4096), Whole]
Tell = Callable[[FieldPath, str, str], None]
"""Takes the place, message and hint of a mistake."""


class GivenPool(Part):
    """Identical replicas of one model in one role."""

    name: Name | None = described(
        "Name of the pool in reports. Left out: made of model and role.", default=None
    )
    model: Name = described("The model served: one of the instance's `models`.")
    role: Role = described("What the replicas do.")
    offer: Name | None = described(
        "Offer whose nodes hold the replicas, of the instance or the catalogue. Give this, or "
        "`accelerator` and `site`.",
        default=None,
    )
    accelerator: Name | None = described("Id or alias of the accelerator.", default=None)
    site: Name | None = described("Where the nodes are: provider/region.", default=None)
    gpus_per_node: Annotated[int, Field(ge=1, le=1024), Whole] | None = described(
        "Accelerators in one node. Left out: as offered at the site, where all nodes are alike.",
        unit="GPUs",
        default=None,
    )
    tensor_parallel: Degree = described("GPUs that share every layer.", default=1)
    pipeline_parallel: Degree = described("Stages that the layers are cut into.", default=1)
    attention_data_parallel: Degree = described(
        "Groups of GPUs that attend to sequences of their own (mixtures of experts).", default=1
    )
    expert_parallel: Degree = described(
        "1, or all GPUs of a stage where every expert is whole on one of them.", default=1
    )
    weight_precision: WeightPrecision | None = described(
        "Precision of the weights. Left out: as published.", default=None
    )
    kv_precision: KvPrecision = described("Precision of the KV cache.", default="bf16")
    chunk_tokens: Count | None = described(
        "Most prompt tokens in one step (vLLM's max_num_batched_tokens); for prefill and "
        "aggregated pools.",
        unit="tokens",
        default=None,
    )
    speculative: bool = described(
        "Whether it decodes speculatively, as the instance says for the model.", default=False
    )
    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS), Whole] = described(
        "Replicas in the pool."
    )
    classes: Some[Name] | None = described(
        "Workloads that may use it. Left out: all of its model.", default=None
    )
    requests_per_s: dict[str, NotNegative] | None = described(
        "Requests per second sent here, by workload. Give it for all pools, or for none to have "
        "the routing found.",
        unit="requests/s",
        default=None,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = repeats("classes", self.classes)
        if self.offer is None:
            found += [
                (field, "is missing, as no offer is named", "give offer, or accelerator and site")
                for field in ("accelerator", "site")
                if getattr(self, field) is None
            ]
        else:
            found += [
                (field, "does not go with offer, from which it follows", "keep one of the two")
                for field in ("accelerator", "site", "gpus_per_node")
                if getattr(self, field) is not None
            ]
        if self.role == "decode" and self.chunk_tokens is not None:
            message = "does not apply to decode pools, which compute no prompts"
            found.append(("chunk_tokens", message, "leave it out"))
        if self.role != "decode" and self.chunk_tokens is None:
            hint = "add the most prompt tokens in one step, vLLM's max_num_batched_tokens"
            found.append(("chunk_tokens", f"is missing in the {self.role} pool", hint))
        if self.role == "prefill" and self.speculative:
            message = "does not apply to prefill pools, which decode nothing"
            found.append(("speculative", message, "leave it out"))
        if self.classes is not None:
            found += [
                (f"requests_per_s.{name}", "is not among the classes of the pool", "add it there")
                for name, rate in (self.requests_per_s or {}).items()
                if rate > 0 and name not in self.classes
            ]
        mistakes(found)
        return self


class GivenFleet(Part):
    """A whole fleet. After `load_fleet` every name in it is a canonical id."""

    format_version: Literal[1] = described("Version of this format.")
    name: Name | None = described("Name of the fleet, shown in reports.", default=None)
    description: str = described("What it is about.", default="")
    pools: Some[GivenPool] = described("The pools.")
    nodes: dict[str, CountOrZero] | None = described(
        "Nodes held, by offer. Left out: the fewest whole nodes that hold the replicas.",
        unit="nodes",
        default=None,
    )

    @property
    def routed(self) -> bool:
        """Whether the file says which requests go where."""
        return all(pool.requests_per_s is not None for pool in self.pools)

    @model_validator(mode="after")
    def _check(self) -> Self:
        found: list[tuple[str, str, str]] = []
        first: dict[str, int] = {}
        routed = [i for i, pool in enumerate(self.pools) if pool.requests_per_s is not None]
        for index, pool in enumerate(self.pools):
            if pool.name is not None:
                if pool.name in first:
                    message = f"pools[{first[pool.name]}] has the name {pool.name!r} already"
                    found.append((f"pools[{index}].name", message, "names are unique"))
                first.setdefault(pool.name, index)
            if routed and pool.requests_per_s is None:
                message = f"is missing, and pools[{routed[0]}] has it"
                hint = "give it for all pools, or for none to have the routing found"
                found.append((f"pools[{index}].requests_per_s", message, hint))
        mistakes(found)
        return self


@dataclass(frozen=True, slots=True)
class _KnownOffer:
    id: str
    site: str
    accelerator: str
    gpus_per_node: int


def load_fleet(path: str | Path, instance: Instance) -> GivenFleet:
    """Read the fleet file at `path`, with names resolved against a loaded instance.

    Raises InputError with every mistake found.
    """
    return parse_fleet(read_text_file(path), str(path), instance)


def parse_fleet(text: str, file: str, instance: Instance) -> GivenFleet:
    """As `load_fleet`, from a text. Raises InputError with every mistake found."""
    document = parse_yaml(text, file)
    places = Places.of(document, file)
    if not isinstance(document.value, dict):
        message, hint = "is not a fleet", "write fields such as format_version: 1"
        raise InputError([places.problem((), message, hint)])
    try:
        fleet = GivenFleet.model_validate(document.value)
    except ValidationError as error:
        raise InputError(
            sorted(
                dict.fromkeys(problems_of(error, GivenFleet, places, ())),
                key=lambda problem: (problem.line or 0, problem.column or 0),
            )
        ) from None
    problems: list[Problem] = []

    def tell(path: FieldPath, message: str, hint: str) -> None:
        problems.append(places.problem(path, message, hint))

    resolved = resolve_fleet(fleet, instance, tell)
    if problems:
        raise InputError(problems)
    if resolved.name is None:
        return resolved.model_copy(update={"name": Path(file).stem})
    return resolved


def resolve_fleet(fleet: GivenFleet, instance: Instance, tell: Tell) -> GivenFleet:
    """The fleet with canonical ids and defaults filled in; every name unknown is told."""
    work = _Resolver(instance, tell)
    pools = tuple(work.pool(pool, ("pools", index)) for index, pool in enumerate(fleet.pools))
    nodes: dict[str, int] | None = None
    if fleet.nodes is not None:
        nodes = {}
        for name, count in fleet.nodes.items():
            offer = work.offer(name, ("nodes", name))
            key = name if offer is None else offer.id
            nodes[key] = nodes.get(key, 0) + count
    names = _names(pools)
    return fleet.model_copy(
        update={
            "pools": tuple(
                pool.model_copy(update={"name": name})
                for pool, name in zip(pools, names, strict=True)
            ),
            "nodes": nodes,
        }
    )


def _names(pools: Iterable[GivenPool]) -> Iterator[str]:
    """Names of all pools: those given, else model/role-1, model/role-2, ..."""
    pools = list(pools)
    taken = {pool.name for pool in pools}
    counts: Counter[str] = Counter()
    for pool in pools:
        name = pool.name
        while name is None or (pool.name is None and name in taken):
            stem = f"{pool.model}/{pool.role}"
            counts[stem] += 1
            name = f"{stem}-{counts[stem]}"
        yield name


class _Resolver:
    """Looks names up in an instance and the catalogue."""

    def __init__(self, instance: Instance, tell: Tell) -> None:
        self.instance = instance
        self.tell = tell
        self.models = {
            catalog.normalise(name): card.id
            for card in instance.cards.values()
            for name in (card.id, card.repository, *card.aliases)
        }
        self.classes = {workload.name: workload.model for workload in instance.workloads}
        own = [
            _KnownOffer(
                each.id, f"{each.provider}/{each.region}", each.accelerator, each.gpus_per_node
            )
            for each in instance.fleet.offers
        ]
        listed = [
            _KnownOffer(each.id, each.site, each.accelerator, each.gpus_per_node)
            for each in catalog.offers().values()
        ]
        self.offers = {catalog.normalise(each.id): each for each in [*listed, *own]}
        self.at_hand = [*own, *(listed if instance.fleet.catalogue_offers else [])]

    def pool(self, pool: GivenPool, at: FieldPath) -> GivenPool:
        """A pool with canonical ids."""
        update: dict[str, Any] = {}
        model = self.models.get(catalog.normalise(pool.model))
        if model is None:
            message = f"{shown(pool.model)} is not one of the instance's models"
            self.tell((*at, "model"), message, hint_for_word(pool.model, self.instance.cards))
        else:
            update["model"] = model
            card = self.instance.cards[model]
            if pool.weight_precision is None:
                update["weight_precision"] = card.native_precision
            elif pool.weight_precision not in card.weight_precisions:
                message = f"{model} cannot be deployed in {pool.weight_precision}"
                hint = f"it can in {', '.join(card.weight_precisions)}"
                self.tell((*at, "weight_precision"), message, hint)
            if pool.speculative and self.instance.served_model(model).speculative is None:
                message = f"is true, and the instance has no speculative decoding for {model}"
                self.tell((*at, "speculative"), message, "add it there, or leave this out")
        self._classes(pool, model, at)
        if pool.offer is not None:
            offer = self.offer(pool.offer, (*at, "offer"))
            if offer is not None:
                update |= {"offer": offer.id, **_place(offer)}
        else:
            update |= self._site(pool, at)
        return pool.model_copy(update=update)

    def offer(self, name: str, path: FieldPath) -> _KnownOffer | None:
        """An offer by its id; told where there is none."""
        found = self.offers.get(catalog.normalise(name))
        if found is None:
            known = [offer.id for offer in self.offers.values()]
            hint = hint_for_word(name, known)
            if not hint.startswith("did"):
                hint = "name one of the instance's, or of `planner list offers`"
            self.tell(path, f"unknown offer {shown(name)}", hint)
        return found

    def _classes(self, pool: GivenPool, model: str | None, at: FieldPath) -> None:
        named: list[tuple[FieldPath, str]] = [
            *((("classes", index), name) for index, name in enumerate(pool.classes or ())),
            *((("requests_per_s", name), name) for name in pool.requests_per_s or {}),
        ]
        for where, name in named:
            if name not in self.classes:
                message = f"{shown(name)} is not one of the instance's workloads"
                self.tell((*at, *where), message, hint_for_word(name, self.classes))
            elif model is not None and self.classes[name] != model:
                message = f"{name} uses {self.classes[name]}, and the pool serves {model}"
                self.tell((*at, *where), message, "remove it here")

    def _site(self, pool: GivenPool, at: FieldPath) -> dict[str, Any]:
        """Accelerator and node size of a pool that names a site."""
        assert pool.accelerator is not None
        assert pool.site is not None
        try:
            accelerator = catalog.find_accelerator(pool.accelerator).id
        except InputError as error:
            for problem in error.problems:
                self.tell((*at, "accelerator"), problem.message, problem.hint)
            return {}
        here = [each for each in self.at_hand if each.accelerator == accelerator]
        sizes = sorted({each.gpus_per_node for each in here if each.site == pool.site})
        if not sizes:
            message = f"no offer has {accelerator} at {shown(pool.site)}"
            sites = sorted({each.site for each in here})
            hint = hint_for_word(pool.site, sites) if sites else "no offer has it anywhere"
            self.tell((*at, "site"), message, hint)
            return {}
        if pool.gpus_per_node is None and len(sizes) > 1:
            listed = ", ".join(map(str, sizes))
            message = f"{accelerator} comes in nodes of {listed} GPUs at {pool.site}"
            self.tell((*at, "gpus_per_node"), message, "give gpus_per_node, or name the offer")
        elif pool.gpus_per_node is not None and pool.gpus_per_node not in sizes:
            message = f"no offer has {accelerator} in nodes of {pool.gpus_per_node} at {pool.site}"
            hint = f"known: {', '.join(map(str, sizes))}"
            self.tell((*at, "gpus_per_node"), message, hint)
        size = pool.gpus_per_node if pool.gpus_per_node is not None else sizes[0]
        return {"accelerator": accelerator, "gpus_per_node": size}


def _place(offer: _KnownOffer) -> dict[str, Any]:
    return {
        "accelerator": offer.accelerator,
        "site": offer.site,
        "gpus_per_node": offer.gpus_per_node,
    }
