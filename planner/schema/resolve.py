"""Names against the catalogue: models, accelerators, offers, filters, and what cards allow.

The only part of the schema that knows the catalogue and reads other files. What it finds is
replaced by canonical ids, and traces by histograms, so that nothing after it looks them up again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from planner import catalog
from planner.errors import InputError, Problem
from planner.schema.instance import Instance, WorkloadSpec
from planner.schema.messages import Places
from planner.schema.parts import InstanceParts
from planner.schema.serving import Engine
from planner.schema.suggest import hint_for_word
from planner.schema.tokens import HistogramBin, HistogramTokens, TraceTokens, longest_tokens
from planner.schema.yaml_positions import FieldPath, shown

if TYPE_CHECKING:
    from planner.catalog.cards import ModelCard
    from planner.traces import Trace

V = TypeVar("V")

ENOUGH_PROBLEMS = 200
TOKEN_FIELDS = ("input_tokens", "output_tokens", "hidden_output_tokens")


@dataclass(slots=True)
class Resolved:
    """What the names of an instance stand for."""

    cards: dict[int, ModelCard] = field(default_factory=dict)
    """Card of each entry of `models`, by its index."""
    workload_models: dict[int, int] = field(default_factory=dict)
    """Index into `models` of each workload's model, by the workload's index."""
    accelerators: dict[str, str] = field(default_factory=dict)
    """Accelerator ids by the names written."""
    tokens: dict[int, dict[str, HistogramTokens]] = field(default_factory=dict)
    """Histograms of the traces that a workload names, by its index and the field."""

    def apply(self, instance: Instance) -> Instance:
        """The instance with canonical ids, and each model's engine settings complete."""
        models = tuple(
            served.model_copy(
                update={
                    "model": self.cards[index].id,
                    "engine": (served.engine or Engine()).over(instance.engine),
                }
            )
            for index, served in enumerate(instance.models)
        )
        workloads = tuple(
            workload.model_copy(
                update={
                    "model": self.cards[self.workload_models[index]].id,
                    **self.tokens.get(index, {}),
                }
            )
            for index, workload in enumerate(instance.workloads)
        )
        fleet = instance.fleet
        named = self.accelerators
        fleet = fleet.model_copy(
            update={
                "accelerators": None
                if fleet.accelerators is None
                else tuple(named[name] for name in fleet.accelerators),
                "offers": tuple(
                    offer.model_copy(update={"accelerator": named[offer.accelerator]})
                    for offer in fleet.offers
                ),
                "availability": tuple(
                    limit
                    if limit.accelerator is None
                    else limit.model_copy(update={"accelerator": named[limit.accelerator]})
                    for limit in fleet.availability
                ),
            }
        )
        resolved = instance.model_copy(
            update={"models": models, "workloads": workloads, "fleet": fleet}
        )
        resolved._cards = {card.id: card for card in self.cards.values()}
        return resolved


def resolve(
    parts: InstanceParts, places: Places, directory: Path
) -> tuple[Resolved, list[Problem]]:
    """What the names stand for, and every name that stands for nothing or does not fit."""
    work = _Resolver(parts, places, directory)
    work.models()
    work.traces()
    work.workloads()
    work.fleet()
    return work.resolved, work.problems


@dataclass(slots=True)
class _Resolver:
    parts: InstanceParts
    places: Places
    directory: Path
    resolved: Resolved = field(default_factory=Resolved)
    problems: list[Problem] = field(default_factory=list)

    def _add(self, path: FieldPath, message: str, hint: str = "") -> None:
        self.problems.append(self.places.problem(path, message, hint))

    def _find(self, look: Callable[[str], V], name: str, path: FieldPath) -> V | None:
        """`look(name)`; its complaint about an unknown name is told at `path`.

        Past many problems names are no longer looked up: nobody reads on, and suggestions cost.
        """
        if len(self.problems) >= ENOUGH_PROBLEMS:
            return None
        try:
            return look(name)
        except InputError as error:
            for problem in error.problems:
                if problem.file:  # not about the name, but about a file of the catalogue
                    raise
                self._add(path, problem.message, problem.hint)
            return None

    def models(self) -> None:
        """The card of each served model, and whether it allows what is asked of it."""
        first: dict[str, int] = {}
        for index, name in self.parts.texts("models", "model"):
            card = self._find(catalog.find_model, name, ("models", index, "model"))
            self._take_card(index, card, first, ("models", index, "model"))
        named = {index for index, _ in self.parts.texts("models", "model")}
        for index, name in self.parts.texts("models", "card"):
            if index in named:
                continue  # refused already: one of the two must go
            path: FieldPath = ("models", index, "card")
            self._take_card(index, self._card_file(name, path), first, path)
        for index, served in enumerate(self.parts.models):
            if served is None or index not in self.resolved.cards:
                continue
            card = self.resolved.cards[index]
            self._precisions(("models", index), served.weight_precisions, card)
            speculative = served.speculative
            if (
                speculative is not None
                and speculative.draft_parameters_billion is None
                and card.mtp_layers == 0
            ):
                message = f"is missing, and {card.id} has no multi-token-prediction layers"
                path = ("models", index, "speculative", "draft_parameters_billion")
                self._add(path, message, "give the size of the draft model")

    def _take_card(
        self, index: int, card: ModelCard | None, first: dict[str, int], path: FieldPath
    ) -> None:
        if card is None:
            return
        if card.id in first:
            message = f"{card.id} is listed twice: models[{first[card.id]}] has it"
            self._add(path, message, "list each model once")
        first.setdefault(card.id, index)
        self.resolved.cards[index] = card

    def _card_file(self, name: str, path: FieldPath) -> ModelCard | None:
        from planner.catalog.card_file import load_card

        try:
            return load_card(self.directory / name)
        except InputError as error:
            self._add_of_file(error, name, path)
            return None

    def _precisions(self, at: FieldPath, asked: tuple[str, ...] | None, card: ModelCard) -> None:
        for index, precision in enumerate(asked or ()):
            if precision not in card.weight_precisions:
                message = f"{card.id} cannot be deployed in {precision}"
                hint = f"it can in {', '.join(card.weight_precisions)}"
                self._add((*at, "weight_precisions", index), message, hint)

    def traces(self) -> None:
        """The histogram of every number of tokens that is given by a trace; each file read once."""
        read: dict[str, Trace | None] = {}
        for index, workload in enumerate(self.parts.workloads):
            for key in TOKEN_FIELDS:
                given = getattr(workload, key, None)
                if not isinstance(given, TraceTokens):
                    continue
                path: FieldPath = ("workloads", index, key, "trace")
                if key == "hidden_output_tokens":
                    hint = "give a mean, percentiles or a histogram"
                    self._add(path, "is given, but traces do not tell hidden tokens", hint)
                    continue
                if given.trace not in read:
                    read[given.trace] = self._trace(given.trace, path)
                trace = read[given.trace]
                if trace is not None:
                    from planner.traces.lengths import histogram_of

                    bins = tuple(
                        HistogramBin(up_to=edge, share=share)
                        for edge, share in histogram_of(getattr(trace, key))
                    )
                    found = self.resolved.tokens.setdefault(index, {})
                    found[key] = HistogramTokens(histogram=bins)

    def _trace(self, name: str, path: FieldPath) -> Trace | None:
        from planner.traces import read_trace

        try:
            return read_trace(self.directory / name)
        except InputError as error:
            self._add_of_file(error, name, path)
            return None

    def _add_of_file(self, error: InputError, name: str, path: FieldPath) -> None:
        """Mistakes of a file named at `path`: those with a line keep it, others are told here."""
        for problem in error.problems:
            if problem.line is None:
                self._add(path, f"{problem.file or name}: {problem.message}", problem.hint)
            else:
                self.problems.append(problem)

    def workloads(self) -> None:
        """The served model of each workload, and whether the two fit."""
        by_card = {card.id: index for index, card in reversed(self.resolved.cards.items())}
        listed = [name for _, name in self.parts.texts("models", "model")]
        written = {
            catalog.normalise(name): index for index, name in self.parts.texts("models", "model")
        }
        for index, name in self.parts.texts("workloads", "model"):
            path = ("workloads", index, "model")
            known = written.get(catalog.normalise(name))
            if known is not None and known not in self.resolved.cards:
                continue  # unknown to the catalogue, and told so in `models`
            place = known if known is not None else self._by_alias(name, by_card)
            if place is None:
                misspelt = len(listed) > len(by_card) and _in_catalogue(name)
                if (listed or by_card) and not misspelt:
                    words = [*dict.fromkeys([*listed, *by_card])]
                    message = f"{shown(name)} is not one of the file's models"
                    self._add(path, message, hint_for_word(name, words))
                continue
            self.resolved.workload_models[index] = place
            workload = self.parts.workloads[index]
            if workload is not None:
                self._fits(index, workload, place)
        if all(workload is not None for workload in self.parts.workloads):
            cards = self.resolved.cards
            used = {cards[place].id for place in self.resolved.workload_models.values()}
            complete = len(self.resolved.workload_models) == len(self.parts.workloads) > 0
            for index, card in cards.items():
                if complete and card.id not in used:
                    message = f"no workload uses {card.id}"
                    self._add(("models", index), message, "remove it, or add its workload")

    def _by_alias(self, name: str, by_card: dict[str, int]) -> int | None:
        if name in by_card:
            return by_card[name]
        try:
            return by_card.get(catalog.find_model(name).id)
        except InputError:
            return None

    def _fits(self, index: int, workload: WorkloadSpec, place: int) -> None:
        at: FieldPath = ("workloads", index)
        card, served = self.resolved.cards[place], self.parts.models[place]
        self._precisions(at, workload.weight_precisions, card)
        if served is not None:
            for key in ("weight_precisions", "kv_precisions"):
                own, allowed = getattr(workload, key), getattr(served, key)
                if own and allowed and not set(own) & set(allowed):
                    message = f"none of {', '.join(own)} is allowed for the model"
                    self._add((*at, key), message, f"models[{place}] allows {', '.join(allowed)}")
            if self.parts.engine is not None:
                engine = (served.engine or Engine()).over(self.parts.engine)
                if engine.prefix_cache is False:
                    self._needs_cache(at, workload)
        read = workload.model_copy(update=self.resolved.tokens.get(index, {}))
        given = [getattr(read, key) for key in TOKEN_FIELDS]
        unread = any(isinstance(count, TraceTokens) for count in given)
        if workload.input_tokens is not None and not unread:
            longest = sum(longest_tokens(count) for count in given if count is not None)
            if longest > card.max_context_tokens:
                message = (
                    f"the longest request has {longest:,.0f} tokens, above the "
                    f"{card.max_context_tokens:,} of {card.id}"
                )
                self._add((*at, "input_tokens"), message, "lower max of input or output tokens")

    def _needs_cache(self, at: FieldPath, workload: WorkloadSpec) -> None:
        hint = "set prefix_cache: true, or leave this out"
        message = "needs a prefix cache, and prefix_cache is false"
        if workload.cached_input_fraction:
            self._add((*at, "cached_input_fraction"), message, hint)
        if workload.conversation is not None and workload.conversation.cache_hit_fraction:
            self._add((*at, "conversation", "cache_hit_fraction"), message, hint)

    def _accelerator(self, name: str, path: FieldPath) -> None:
        found = self._find(catalog.find_accelerator, name, path)
        if found is not None:
            self.resolved.accelerators[name] = found.id

    def fleet(self) -> None:
        """Accelerators, own offers, limits, and filters that let something through."""
        raw = self.parts.raw.get("fleet")
        for path, name in _accelerators_named(raw):
            self._accelerator(name, ("fleet", *path))
        if isinstance(raw, dict) and raw.get("catalogue_offers", True) is True:
            self._filter_names(raw)
        fleet = self.parts.fleet
        if fleet is None:
            return
        named = self.resolved.accelerators
        allowed = None
        if fleet.accelerators is not None:
            allowed = {named[name] for name in fleet.accelerators if name in named}
            first: dict[str, str] = {}
            for index, name in enumerate(fleet.accelerators):
                canonical = named.get(name, name)
                # The same word twice is told by the pure checks; here, two words for one thing.
                if first.setdefault(canonical, name) != name:
                    message = f"{shown(name)} is {canonical}, listed before"
                    self._add(("fleet", "accelerators", index), message, "list it once")
        own = {offer.id for offer in fleet.offers}
        for index, offer in enumerate(fleet.offers):
            at: FieldPath = ("fleet", "offers", index)
            if fleet.catalogue_offers and offer.id in catalog.offers():
                message = f"the id {shown(offer.id)} is taken by an offer of the catalogue"
                self._add((*at, "id"), message, "choose another")
            if (
                allowed is not None
                and offer.accelerator in named
                and named[offer.accelerator] not in allowed
            ):
                message = f"{named[offer.accelerator]} is not among fleet.accelerators"
                self._add((*at, "accelerator"), message, "add it there, or drop the offer")
        for index, limit in enumerate(fleet.availability):
            if limit.offer is None or limit.offer in own:
                continue
            limited: FieldPath = ("fleet", "availability", index, "offer")
            if fleet.catalogue_offers:
                self._find(catalog.find_offer, limit.offer, limited)
            else:
                message = f"unknown offer {shown(limit.offer)}"
                self._add(limited, message, hint_for_word(limit.offer, own))
        if fleet.catalogue_offers:
            self._filters(allowed)

    def _filter_names(self, raw: dict[str, Any]) -> None:
        """Whether the catalogue has each provider and region that is filtered on."""
        rows = catalog.offers().values()
        for key, known in (
            ("providers", sorted({row.provider for row in rows})),
            ("regions", sorted({row.region for row in rows})),
        ):
            values = raw.get(key)
            for index, value in enumerate(values if isinstance(values, list) else ()):
                if isinstance(value, str) and value not in known:
                    message = f"no offer of the catalogue has the {key[:-1]} {shown(value)}"
                    self._add(("fleet", key, index), message, hint_for_word(value, known))

    def _filters(self, allowed: set[str] | None) -> None:
        """Whether the filters together leave an offer."""
        fleet = self.parts.fleet
        assert fleet is not None
        rows = catalog.offers().values()
        unknown = bool(
            set(fleet.providers or ()) - {row.provider for row in rows}
            or set(fleet.regions or ()) - {row.region for row in rows}
        )
        left = [
            row
            for row in rows
            if (fleet.providers is None or row.provider in fleet.providers)
            and (fleet.regions is None or row.region in fleet.regions)
            and row.term in fleet.terms
            and (allowed is None or row.accelerator in allowed)
        ]
        complete = allowed is None or len(allowed) == len(fleet.accelerators or ())
        if not left and not fleet.offers and not unknown and complete:
            message = "no offer passes the filters on accelerators, providers, regions and terms"
            self._add(("fleet",), message, "widen one of them, or give offers of your own")


def _in_catalogue(model: str) -> bool:
    """Whether the catalogue has a model of this name."""
    try:
        catalog.find_model(model)
    except InputError:
        return False
    return True


def _accelerators_named(fleet: Any) -> Iterator[tuple[FieldPath, str]]:
    """Every accelerator name in the plain values of `fleet`, with its path inside it."""
    if not isinstance(fleet, dict):
        return
    names = fleet.get("accelerators")
    for index, name in enumerate(names if isinstance(names, list) else []):
        if isinstance(name, str):
            yield ("accelerators", index), name
    for key in ("offers", "availability"):
        items = fleet.get(key)
        for index, item in enumerate(items if isinstance(items, list) else []):
            if isinstance(item, dict) and isinstance(item.get("accelerator"), str):
                yield (key, index, "accelerator"), item["accelerator"]
