"""Why the calibrated rows exist: plain rooflines buy a fleet too small for its promise."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest

from planner.candidates.build import build_candidates
from planner.candidates.options import ROW_INDEX, PoolOption
from planner.fleet.inputs import FleetInputs
from planner.fleet.solution import FleetSolution
from planner.fleet.solve import solve_fleet
from planner.fleet.solver import SolveSettings
from planner.perf.coefficients import StepModel
from planner.pools.decode import Engine
from planner.pools.loads import mixed_load
from planner.pools.prompts import chunk_profile
from planner.problem import Problem, build_problem
from planner.schema import parse_instance

INSTANCE = """
format_version: 1
name: chat
roles: [aggregated]
engine: {chunk_budgets_tokens: [1024]}
models:
  - {model: llama-3.1-8b-instruct, weight_precisions: [fp8], kv_precisions: [fp8]}
workloads:
  - name: chat
    model: llama-3.1-8b-instruct
    demand: {requests_per_s: 90}
    burst_factor: 1.0
    input_tokens: {mean: 900, scv: 1.0, max: 8000}
    output_tokens: {mean: 300, scv: 1.0, max: 2000}
    slo:
      - {metric: ttft, percentile: 95, limit_ms: 2000}
      - {metric: tpot, percentile: 95, limit_ms: 40}
fleet:
  catalogue_offers: false
  max_gpus_per_replica: 1
  offers:
    - id: h100
      provider: own
      region: here
      accelerator: h100
      gpus_per_node: 1
      price_usd_per_gpu_hour: 2.5
"""

ROOFLINES = ("compute", "hbm_bandwidth", "hbm_capacity")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return build_problem(parse_instance(INSTANCE))


@pytest.fixture(scope="module")
def inputs(problem: Problem) -> FleetInputs:
    return problem.inputs().with_options(build_candidates(problem.request()).options)


def only(option: PoolOption, rows: Collection[str]) -> PoolOption:
    """The option with all other rows dropped: a row of zeros does not bind."""
    kept = np.zeros_like(option.coefficients)
    for name in rows:
        kept[ROW_INDEX[name]] = option.coefficients[ROW_INDEX[name]]
    return replace(option, coefficients=kept)


def solve(inputs: FleetInputs) -> FleetSolution:
    return solve_fleet(inputs, SolveSettings(gap_fraction=0.0))


def worst_tpot_s(problem: Problem, inputs: FleetInputs, fleet: FleetSolution) -> float:
    """95th percentile of TPOT in the fleet's worst pool, by the full model."""
    load = mixed_load(problem.classes[0].mix)
    worst = 0.0
    for name, replicas in fleet.replicas.items():
        option = inputs.by_name[name]
        assert option.chunk_tokens is not None
        step = StepModel([option.config])
        budget = np.array([float(option.chunk_tokens)])
        engine = Engine(step, [load], [chunk_profile(step, load, budget)])
        batch, point = engine.operating_point(np.array([[fleet.flow[0, name] / replicas]]))
        tail_s = float(engine.tpot_s(batch, 0, 0.95, replicas)[0])
        worst = max(worst, float(point.step_s[0]), tail_s)
    return worst


def test_calibrated_rows_keep_the_promise(problem: Problem, inputs: FleetInputs) -> None:
    assert worst_tpot_s(problem, inputs, solve(inputs)) <= 0.040


def test_rooflines_alone_buy_a_cheaper_fleet_that_breaks_it(
    problem: Problem, inputs: FleetInputs
) -> None:
    bare = replace(inputs, options=tuple(only(option, ROOFLINES) for option in inputs.options))
    calibrated, roofline = solve(inputs), solve(bare)
    assert roofline.cost_usd_per_hour < calibrated.cost_usd_per_hour
    assert worst_tpot_s(problem, inputs, roofline) > 0.040
