"""What can be planned with: accelerators, rental offers and LLM cards, loaded once when asked for.

No data is read at import; each accessor reads its file on the first call and keeps the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner import resources

# Loaded here and not on first use: importing a submodule later would put the module in the place
# of the function of the same name below.
from planner.catalog.accelerators import Accelerator, alias_table, parse_accelerators
from planner.catalog.names import lookup, normalise
from planner.catalog.offers import Offer, parse_offers

if TYPE_CHECKING:
    from planner.catalog.cards import ModelCard

__all__ = [
    "accelerators",
    "find_accelerator",
    "find_model",
    "find_offer",
    "models",
    "normalise",
    "offers",
]


@cache
def accelerators() -> Mapping[str, Accelerator]:
    """Every accelerator of the catalogue by its id."""
    name = "accelerators.yaml"
    return MappingProxyType(parse_accelerators(resources.read_text(name), file=name))


@cache
def offers() -> Mapping[str, Offer]:
    """Every public rental offer of the catalogue by its id."""
    name = "offers.csv"
    return MappingProxyType(parse_offers(resources.read_text(name), accelerators(), file=name))


@cache
def models() -> Mapping[str, ModelCard]:
    """Every LLM card of the catalogue by its id."""
    from planner.catalog.card_file import load_models

    return MappingProxyType(dict(load_models(resources.model_card_paths())))


@cache
def _accelerator_names() -> Mapping[str, Accelerator]:
    return alias_table(accelerators().values())


def find_accelerator(name: str) -> Accelerator:
    """The accelerator with this id, full name or alias ("H100_SXM", "nvidia h200").

    Raises InputError with suggestions when no alias matches exactly.
    """
    return lookup(name, _accelerator_names(), "accelerator")


def find_offer(offer_id: str) -> Offer:
    """The offer with this id; raises InputError with suggestions when there is none."""
    return lookup(offer_id, _offer_names(), "offer")


@cache
def _offer_names() -> Mapping[str, Offer]:
    return {normalise(offer_id): offer for offer_id, offer in offers().items()}


def find_model(name: str) -> ModelCard:
    """The LLM card with this id, repository name or alias.

    Raises InputError with suggestions when no alias matches exactly.
    """
    from planner.catalog.card_file import find_model as find_among

    return find_among(name, models())
