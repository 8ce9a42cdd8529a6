"""Pricing leaves out no option of an optimal fleet."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from planner.fleet import solve as solve_module
from planner.fleet.inputs import FleetInputs
from planner.fleet.model import build_model
from planner.fleet.reduce import relaxation
from planner.fleet.solve import solve_fleet
from planner.fleet.solver import SolveSettings, solve_model

EXACT = SolveSettings(gap_fraction=0.0)
ROLES = ("aggregated", "prefill", "decode")


def table(seed: int) -> FleetInputs:
    """Two or three classes on three accelerators: some tens of options."""
    rng = np.random.default_rng(seed)
    prices = {"h100": 2.5, "l40s": 1.1, "mi300x": 2.6, "a100-80gb": 1.5}
    chosen = rng.choice(sorted(prices), 3, replace=False)
    return tiny.inputs(
        tiny.document(
            *[
                tiny.workload(
                    f"class-{k}",
                    float(rng.uniform(1, 90)),
                    input_tokens=int(rng.integers(100, 4000)),
                    slo=[
                        tiny.ttft(float(rng.choice([800, 4000]))),
                        tiny.tpot(float(rng.choice([25, 60, 150]))),
                    ],
                )
                for k in range(int(rng.integers(2, 4)))
            ],
            roles=ROLES,
            offers=[
                tiny.offer(
                    str(each),
                    round(prices[str(each)] * float(rng.uniform(0.7, 1.4)), 2),
                    int(rng.choice([1, 2, 4])),
                )
                for each in chosen
            ],
            engine={"chunk_budgets_tokens": [512, 2048]},
        )
    )


@pytest.mark.parametrize("seed", range(12))
def test_every_option_priced_out_is_in_no_better_fleet(seed: int) -> None:
    """The optimum over the options that are left is that over all; using one costs its price."""
    inputs = table(seed)
    model = build_model(inputs)
    priced = relaxation(model, inputs)
    best = solve_model(model, EXACT).objective
    floor = priced.outcome.objective
    assert floor <= best * (1 + 1e-9)
    keep = np.flatnonzero(priced.extra_usd_per_hour <= (best - floor) * (1 + 1e-6))
    left = inputs.with_options([inputs.options[index] for index in keep.tolist()])
    assert solve_model(build_model(left), EXACT).objective == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_fleet_with_an_option_costs_at_least_its_price(seed: int) -> None:
    inputs = table(seed)
    priced = relaxation(build_model(inputs), inputs)
    order = np.argsort(-priced.extra_usd_per_hour)[:6]
    for index in order.tolist():
        model = build_model(inputs)
        name = inputs.options[index].name
        model.replicas[name, 0].setlb(1)
        outcome = solve_model(model, EXACT)
        least = priced.outcome.objective + priced.extra_usd_per_hour[index]
        assert outcome.status == "infeasible" or outcome.objective >= least * (1 - 1e-7)


@pytest.mark.parametrize("seed", range(8))
def test_the_two_stage_search_finds_what_the_whole_program_finds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = table(seed)
    whole = solve_fleet(inputs, EXACT)
    monkeypatch.setattr(solve_module, "DIRECT_COLUMNS", 0)
    monkeypatch.setattr(solve_module, "FIRST_COLUMNS", 1)
    staged = solve_fleet(inputs, EXACT)
    assert staged.status == whole.status == "optimal"
    assert staged.cost_usd_per_hour == pytest.approx(whole.cost_usd_per_hour, rel=1e-9)
    assert staged.bound_usd_per_hour == pytest.approx(whole.bound_usd_per_hour, rel=1e-6)


def test_an_infeasible_relaxation_prices_nothing() -> None:
    inputs = tiny.inputs(tiny.document(tiny.workload(requests_per_s=120), budget_usd_per_hour=1.0))
    priced = relaxation(build_model(inputs), inputs)
    assert priced.outcome.status == "infeasible"
    assert not priced.extra_usd_per_hour.any()


@pytest.mark.parametrize("seed", range(6))
def test_the_staged_search_proves_the_same_optimum(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few first columns, then only those that their price does not rule out."""
    inputs = table(seed)
    whole = solve_fleet(inputs, EXACT)
    monkeypatch.setattr(solve_module, "DIRECT_COLUMNS", 0)
    monkeypatch.setattr(solve_module, "FIRST_COLUMNS", 1)
    staged = solve_fleet(inputs, EXACT)
    assert staged.cost_usd_per_hour == pytest.approx(whole.cost_usd_per_hour)
    assert staged.bound_usd_per_hour == pytest.approx(whole.bound_usd_per_hour)
