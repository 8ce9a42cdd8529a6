"""How the optimal cost may move when the instance does."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_strategies import documents

TOLERANCE = 1e-6


def cost(content: tiny.Document) -> float:
    """Optimal USD/hour, infinite where there is no fleet."""
    plan = tiny.solve(content)
    assert plan.status in ("optimal", "infeasible")
    return math.inf if plan.cost_usd_per_hour is None else plan.cost_usd_per_hour


def at_least(dearer: tiny.Document, cheaper: tiny.Document) -> None:
    assert cost(dearer) >= cost(cheaper) * (1 - TOLERANCE)


@given(documents(), st.integers(0, 9), st.sampled_from([1.01, 1.5, 4.0]))
def test_a_higher_price_never_lowers_the_cost(
    content: tiny.Document, which: int, factor: float
) -> None:
    dearer = copy.deepcopy(content)
    chosen = dearer["fleet"]["offers"]
    chosen[which % len(chosen)]["price_usd_per_gpu_hour"] *= factor
    at_least(dearer, content)


@given(documents(), st.integers(0, 9), st.sampled_from([1.001, 1.2, 3.0]))
def test_more_demand_never_lowers_the_cost(
    content: tiny.Document, which: int, factor: float
) -> None:
    busier = copy.deepcopy(content)
    chosen = busier["workloads"]
    chosen[which % len(chosen)]["demand"]["requests_per_s"] *= factor
    at_least(busier, content)


@given(documents(), st.integers(0, 9), st.integers(0, 9), st.sampled_from([0.99, 0.8, 0.5]))
def test_a_tighter_promise_never_lowers_the_cost(
    content: tiny.Document, which: int, promise: int, factor: float
) -> None:
    tighter = copy.deepcopy(content)
    chosen = tighter["workloads"][which % len(tighter["workloads"])]["slo"]
    chosen[promise % len(chosen)]["limit_ms"] *= factor
    at_least(tighter, content)


@given(documents(), st.integers(0, 9))
def test_less_hardware_never_lowers_the_cost(content: tiny.Document, which: int) -> None:
    offers = content["fleet"]["offers"]
    assume(len(offers) > 1)
    fewer = copy.deepcopy(content)
    del fewer["fleet"]["offers"][which % len(offers)]
    at_least(fewer, content)


@given(documents(), st.integers(0, 9), st.integers(1, 3))
def test_less_stock_never_lowers_the_cost(
    content: tiny.Document, which: int, available: int
) -> None:
    scarcer = copy.deepcopy(content)
    offers = scarcer["fleet"]["offers"]
    chosen = offers[which % len(offers)]
    chosen["available_nodes"] = min(available, chosen.get("available_nodes", available))
    at_least(scarcer, content)


@given(documents(), st.sampled_from([0.5, 3.0, 10.0]))
def test_prices_scale_the_cost(content: tiny.Document, factor: float) -> None:
    scaled = copy.deepcopy(content)
    for each in scaled["fleet"]["offers"]:
        each["price_usd_per_gpu_hour"] *= factor
    assert cost(scaled) == pytest.approx(cost(content) * factor, rel=TOLERANCE)


@given(documents(), st.randoms(use_true_random=False))
def test_order_and_names_change_nothing(content: tiny.Document, random: object) -> None:
    renamed = copy.deepcopy(content)
    shuffle = getattr(random, "shuffle")  # noqa: B009  # hypothesis types it as its own Random
    for key in ("workloads", "models"):
        shuffle(renamed[key])
    shuffle(renamed["fleet"]["offers"])
    for index, each in enumerate(renamed["workloads"]):
        each["name"] = f"z{9 - index}"
    for index, each in enumerate(renamed["fleet"]["offers"]):
        each["id"] = f"offer-{9 - index}"
    assert cost(renamed) == pytest.approx(cost(content), rel=TOLERANCE)
