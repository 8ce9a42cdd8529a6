"""Fewer columns without losing the optimum: pricing against the relaxation's duals.

With the duals of the linear relaxation (bound z), a fleet that runs at least one replica of
option p costs at least z + d_p, where

    d_p = mu_g gpus_p - max { sum_k pi_pk x_k : every row of p at one replica }

mu_g is the price of a GPU in the option's node group and pi_pk what a unit of flow earns
(demand, and the KV exchange between prefill and decode). The maximum is bounded by its
tightest single row: min over rows of max_k pi_pk / row_k. An option with z + d_p above the
cost of a known fleet is in no better fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.candidates.options import PoolOption
from planner.fleet.inputs import FleetInputs
from planner.fleet.model import Model
from planner.fleet.solver import Outcome, Program

Floats = NDArray[np.float64]


def without_implied_rows(option: PoolOption) -> PoolOption:
    """The same option with the rows that another of its rows implies set to zero.

    A row is implied where no coefficient exceeds that of the other row; of equal rows the first
    stays. Physical rows are mostly implied by the calibrated ones: they bound what these allow.
    """
    columns = list(option.classes)
    rows = option.coefficients[:, columns]
    implied = np.zeros(len(rows), dtype=bool)
    for index, row in enumerate(rows):
        if row.any():
            above = (rows >= row).all(axis=1) & rows.any(axis=1)
            equal = (rows == row).all(axis=1)
            earlier = np.arange(len(rows)) < index
            implied[index] = bool((above & (~equal | earlier)).any())
    kept = option.coefficients.copy()
    kept[np.ix_(np.flatnonzero(implied), np.array(columns))] = 0.0
    return replace(option, coefficients=kept)


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The linear relaxation: outcome and, per option, the least extra cost of using it."""

    outcome: Outcome
    extra_usd_per_hour: Floats


def relaxation(model: Model, inputs: FleetInputs) -> Relaxation:
    """Solve the relaxation of `model` (built from `inputs`) and price every option."""
    # The duals must be those of the rows that `_least_extra` prices: rows implied by them, which
    # hold replicas too, would take part of the weight. They do not change the optimum.
    model.cover_demand.deactivate()
    outcome, duals = Program(model).relax()
    model.cover_demand.activate()
    if outcome.status != "optimal":
        return Relaxation(outcome, np.zeros(len(inputs.options)))
    periods = range(len(inputs.periods))

    def dual(constraint: object) -> float:
        return duals.get(id(constraint), 0.0)

    demand = {
        (k, t): dual(model.serve_demand[k, t]) if (k, t) in model.serve_demand else 0.0
        for k in range(len(inputs.classes))
        for t in periods
    }
    exchange = {
        (key, t): dual(model.conserve_kv[index, t])
        for index, key in enumerate(inputs.kv_pairs)
        for t in periods
    }
    gpu = {
        (key, t): -dual(model.fit_nodes[index, t])
        for index, key in enumerate(inputs.node_groups)
        for t in periods
    }
    extra = np.array(
        [
            min(_least_extra(option, t, demand, exchange, gpu) for t in periods)
            for option in inputs.options
        ]
    )
    return Relaxation(outcome, np.maximum(extra, 0.0))


def _least_extra(
    option: PoolOption,
    t: int,
    demand: dict[tuple[int, int], float],
    exchange: dict[tuple[tuple[int, tuple[str, str, str]], int], float],
    gpu: dict[tuple[tuple[str, str, int], int], float],
) -> float:
    columns = list(option.classes)
    earns = np.zeros(len(columns))
    for position, k in enumerate(columns):
        if option.prefills:
            earns[position] += demand[k, t]
        if option.role != "aggregated":
            sign = 1.0 if option.role == "prefill" else -1.0
            earns[position] += sign * exchange[(k, option.kv_group), t]
    rows = option.coefficients[:, columns]
    used = rows[rows.any(axis=1)]
    with np.errstate(divide="ignore"):
        worth = np.where(used > 0, np.maximum(earns, 0.0) / used, np.inf)
    worth = np.where((used == 0) & (earns <= 0), 0.0, worth)
    best = float(worth.max(axis=1).min()) if len(used) else np.inf
    return gpu[option.node_group, t] * option.gpus - best
