"""Sets and coefficients of the program, every unit resolved. No Pyomo here."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from planner.candidates.options import PoolOption
from planner.catalog.offers import Offer
from planner.queueing import CapacityTable

PREFILL_CEILING: Final = 4096
"""Largest prefill pool of one kind; capacity tables are proven up to here."""


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of the horizon with one demand per class; weights average the cost."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Stock:
    """A limit on the nodes of one offer, or of one accelerator over all its offers."""

    name: str
    offers: tuple[str, ...]
    nodes: int


@dataclass(frozen=True)
class FleetInputs:
    """One fleet problem: what the rules in `planner.fleet.model` read.

    `demand[k][t]` is requests/s of class k in period t, bursts included.
    """

    classes: tuple[str, ...]
    class_models: tuple[str, ...]
    demand: tuple[tuple[float, ...], ...]
    periods: tuple[Period, ...]
    options: tuple[PoolOption, ...]
    offers: tuple[Offer, ...]
    stocks: tuple[Stock, ...] = ()
    budget_usd_per_hour: float | None = None
    max_pool_kinds_per_model: int | None = None

    def with_options(self, options: Sequence[PoolOption]) -> FleetInputs:
        """The same problem over other columns."""
        return replace(self, options=tuple(options))

    @cached_property
    def by_name(self) -> dict[str, PoolOption]:
        """Options by their stable name."""
        return {option.name: option for option in self.options}

    @cached_property
    def flows(self) -> list[tuple[int, str]]:
        """Pairs (class, option) that exist: the option admits the class."""
        return [(k, option.name) for option in self.options for k in option.classes]

    @cached_property
    def prefilling(self) -> dict[int, list[str]]:
        """Per class, the options that compute its prompts."""
        return self._serving("prefills")

    @cached_property
    def decoding(self) -> dict[int, list[str]]:
        """Per class, the options that generate its tokens."""
        return self._serving("decodes")

    @cached_property
    def kv_pairs(self) -> dict[tuple[int, tuple[str, str, str]], tuple[list[str], list[str]]]:
        """Per class and KV group: the prefill options and the decode options there."""
        pairs: dict[tuple[int, tuple[str, str, str]], tuple[list[str], list[str]]] = {}
        for option in self.options:
            if option.role == "aggregated":
                continue
            for k in option.classes:
                entry = pairs.setdefault((k, option.kv_group), ([], []))
                entry[0 if option.role == "prefill" else 1].append(option.name)
        return pairs

    @cached_property
    def servable(self) -> frozenset[int]:
        """Classes with an aggregated option, or with prefill and decode that can exchange KV."""
        whole = {k for o in self.options if o.role == "aggregated" for k in o.classes}
        split = {k for (k, _), (sent, received) in self.kv_pairs.items() if sent and received}
        return frozenset(whole | split)

    @cached_property
    def node_groups(self) -> dict[tuple[str, str, int], tuple[list[str], list[str]]]:
        """Per site, accelerator and node size: options hosted there and offers of the nodes."""
        groups: dict[tuple[str, str, int], tuple[list[str], list[str]]] = defaultdict(
            lambda: ([], [])
        )
        for option in self.options:
            groups[option.node_group][0].append(option.name)
        for offer in self.offers:
            key = (offer.site, offer.accelerator, offer.gpus_per_node)
            if key in groups:
                groups[key][1].append(offer.id)
        return dict(groups)

    @cached_property
    def used_offers(self) -> dict[str, Offer]:
        """Offers whose nodes can host at least one option."""
        hosted = {name for _, names in self.node_groups.values() for name in names}
        return {offer.id: offer for offer in self.offers if offer.id in hosted}

    @cached_property
    def models(self) -> dict[str, list[str]]:
        """Options of each model."""
        found: dict[str, list[str]] = defaultdict(list)
        for option in self.options:
            found[option.model].append(option.name)
        return dict(found)

    @cached_property
    def replica_limits(self) -> dict[str, int]:
        """Most replicas of each option that a fleet can use: all its classes' peak demand."""
        peak = np.array([max(rates) for rates in self.demand])
        limits: dict[str, int] = {}
        for option in self.options:
            columns = list(option.classes)
            rows = option.coefficients[:, columns] @ peak[columns]
            need = float(rows.max())
            if option.capacity is not None and option.service_s is not None:
                load = float(option.service_s[columns] @ peak[columns])
                need = min(max(need, _pool_size(option.capacity, load)), PREFILL_CEILING)
            limits[option.name] = max(math.ceil(need), option.least_replicas)
        return limits

    def exact_counts(self, name: str) -> range:
        """Pool sizes of a prefill option that have a binary of their own."""
        option = self.by_name[name]
        assert option.capacity is not None
        return range(1, min(len(option.capacity.exact), self.replica_limits[name]) + 1)

    def grows_large(self, name: str) -> bool:
        """Whether a prefill pool may outgrow the sizes with a binary of their own."""
        return self.replica_limits[name] > self.exact_counts(name)[-1]

    def _serving(self, phase: str) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {k: [] for k in range(len(self.classes))}
        for option in self.options:
            if getattr(option, phase):
                for k in option.classes:
                    found[k].append(option.name)
        return found


def _pool_size(table: CapacityTable, load: float) -> float:
    """Replicas that carry `load` erlangs: the first exact size that does, else load + spare."""
    for size, capacity in enumerate(table.exact, start=1):
        if capacity >= load:
            return float(size)
    return max((load + table.spare) / table.slope, len(table.exact) + 1.0)
