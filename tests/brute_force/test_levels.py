"""Optima are relative to the levels enumerated: twice as many change the cost by under 0.1 %."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.candidates.build import build_candidates
from planner.candidates.options import ROWS
from planner.fleet.solve import solve_fleet
from planner.fleet.solver import SolveSettings
from planner.problem import Problem, build_problem
from planner.schema import load_instance, parse_instance

ENTERPRISE = Path(__file__).parents[2] / "instances" / "enterprise.yaml"

SHARED = """
format_version: 1
name: shared
models:
  - {model: llama-3.1-8b-instruct, weight_precisions: [fp8], kv_precisions: [fp8]}
workloads:
  - name: chat
    model: llama-3.1-8b-instruct
    demand: {requests_per_s: 31}
    burst_factor: 1.0
    input_tokens: {mean: 800, scv: 1.0, max: 8000}
    output_tokens: {mean: 300, scv: 1.0, max: 2000}
    slo:
      - {metric: ttft, percentile: 95, limit_ms: 1500}
      - {metric: tpot, percentile: 95, limit_ms: 40}
  - name: summaries
    model: llama-3.1-8b-instruct
    demand: {requests_per_s: 9}
    burst_factor: 1.0
    input_tokens: {mean: 3000, scv: 0.5, max: 12000}
    output_tokens: {mean: 150, scv: 1.0, max: 1000}
    slo:
      - {metric: ttft, percentile: 95, limit_ms: 3000}
      - {metric: tpot, percentile: mean, limit_ms: 80}
fleet:
  catalogue_offers: false
  max_gpus_per_replica: 1
  offers:
    - id: l4
      provider: own
      region: here
      accelerator: l4
      gpus_per_node: 1
      price_usd_per_gpu_hour: 0.7
    - id: l40s
      provider: own
      region: here
      accelerator: l40s
      gpus_per_node: 1
      price_usd_per_gpu_hour: 1.1
    - id: h100
      provider: own
      region: here
      accelerator: h100
      gpus_per_node: 1
      price_usd_per_gpu_hour: 2.4
"""


STEP_ROWS = [index for index, row in enumerate(ROWS) if row.startswith("calibrated_step")]


def costs(problem: Problem, gap: float, time_limit_s: float | None = None) -> list[float]:
    """Cost with the levels as they are, and with twice as many."""
    found = []
    for refinement in (0, 1):
        table = build_candidates(problem.request(refinement))
        inputs = problem.inputs().with_options(table.options)
        solution = solve_fleet(inputs, SolveSettings(gap_fraction=gap, time_limit_s=time_limit_s))
        assert solution.status == "optimal"
        found.append(solution.cost_usd_per_hour)
    return found


def test_two_classes_that_share_pools() -> None:
    problem = build_problem(parse_instance(SHARED))
    plain, doubled = costs(problem, gap=0.0)
    assert abs(plain - doubled) <= 1e-3 * plain


def test_levels_add_shared_options() -> None:
    """Doubling is no empty change: shared engines are bounded by twice as many chords."""
    problem = build_problem(parse_instance(SHARED))
    chords = [
        max(
            int(option.coefficients[STEP_ROWS][:, list(option.classes)].any(axis=1).sum())
            for option in build_candidates(problem.request(refinement)).options
            if len(option.classes) > 1 and option.step_s is not None
        )
        for refinement in (0, 1)
    ]
    assert chords[1] == 2 * chords[0] > 0


@pytest.mark.slow
def test_enterprise() -> None:
    problem = build_problem(load_instance(ENTERPRISE))
    plain, doubled = costs(problem, gap=2e-4, time_limit_s=120.0)
    assert abs(plain - doubled) <= 1e-3 * plain
