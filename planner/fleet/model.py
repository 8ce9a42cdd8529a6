"""The fleet program in Pyomo: one function per constraint family, its formula in the docstring.

Sets: options p (pool kinds), classes k, periods t, offers o, node groups g, KV groups v.
Variables: replicas n[p,t] integer, flow x[k,p,t] >= 0 in requests/s, nodes N[o] integer,
count[p,j,t] and large[p,t] binary (which pool size a prefill pool has), open[p] and
standing[p,t] binary.
The objective is the fleet's price in USD/hour. Rows of the options (`planner.candidates`) are
in replicas per request/s, so every row of a pool reads: use <= replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import pyomo.environ as pyo
from pyomo.common.gc_manager import PauseGC

from planner.candidates.options import PROGRAM_MARGIN, ROW_INDEX, ROWS
from planner.fleet.inputs import FleetInputs
from planner.fleet.slacks import SLACKS

Model: TypeAlias = Any
"""A `pyo.ConcreteModel`; Pyomo's components are attributes that no type checker can see."""


def build_model(
    inputs: FleetInputs, relaxed: Collection[str] = (), objective: str = "cost"
) -> Model:
    """The program over `inputs`. `relaxed` names slack families; with objective "slack" their
    weighted sum is minimised instead of the cost.
    """
    with PauseGC():
        m = pyo.ConcreteModel(name="fleet")
        _variables(m, inputs)
        _slacks(m, inputs, relaxed)
        for build in CONSTRAINTS:
            build(m, inputs)
        m.cost = pyo.Expression(expr=_cost(m, inputs))
        respect_budget(m, inputs)
        expression = m.cost if objective == "cost" else _shortfall(m, relaxed)
        m.objective = pyo.Objective(expr=expression, sense=pyo.minimize)
    return m


def _variables(m: Model, inputs: FleetInputs) -> None:
    options = [option.name for option in inputs.options]
    m.periods = pyo.Set(initialize=range(len(inputs.periods)), ordered=True)
    m.options = pyo.Set(initialize=options, ordered=True)
    m.offers = pyo.Set(initialize=list(inputs.used_offers), ordered=True)
    m.flows = pyo.Set(initialize=inputs.flows, ordered=True, dimen=2)
    prefill = [option.name for option in inputs.options if option.capacity is not None]
    m.prefill_options = pyo.Set(initialize=prefill, ordered=True)
    m.exact = pyo.Set(
        initialize=[(p, j) for p in prefill for j in inputs.exact_counts(p)],
        ordered=True,
        dimen=2,
    )
    limits = inputs.replica_limits
    m.replicas = pyo.Var(
        m.options,
        m.periods,
        domain=pyo.NonNegativeIntegers,
        bounds=lambda m, p, t: (0, limits[p]),
    )
    m.flow = pyo.Var(m.flows, m.periods, domain=pyo.NonNegativeReals)
    m.nodes = pyo.Var(m.offers, domain=pyo.NonNegativeIntegers)
    m.count = pyo.Var(m.exact, m.periods, domain=pyo.Binary)
    growing = [p for p in prefill if inputs.grows_large(p)]
    m.large_options = pyo.Set(initialize=growing, ordered=True)
    m.large = pyo.Var(m.large_options, m.periods, domain=pyo.Binary)
    m.many = pyo.Var(m.large_options, m.periods, domain=pyo.NonNegativeReals)


def _slacks(m: Model, inputs: FleetInputs, relaxed: Collection[str]) -> None:
    unknown = set(relaxed) - set(SLACKS)
    if unknown:
        raise ValueError(f"no such slack family: {', '.join(sorted(unknown))}")
    if "demand" in relaxed:
        m.unserved_fraction = pyo.Var(range(len(inputs.classes)), bounds=(0, 1))
    if "stock" in relaxed:
        m.extra_nodes = pyo.Var(range(len(inputs.stocks)), domain=pyo.NonNegativeIntegers)
    if "budget" in relaxed:
        m.over_budget_usd_per_hour = pyo.Var(domain=pyo.NonNegativeReals)
    if "pool_kinds" in relaxed:
        m.extra_kinds = pyo.Var(list(inputs.models), domain=pyo.NonNegativeIntegers)


def _shortfall(m: Model, relaxed: Collection[str]) -> pyo.Expression:
    return pyo.quicksum(
        SLACKS[name].penalty * pyo.quicksum(m.component(SLACKS[name].variable).values())
        for name in sorted(relaxed)
    )


def _cost(m: Model, inputs: FleetInputs) -> pyo.Expression:
    # Nodes are held in every period, so each period pays for all of them.
    hours = sum(period.weight for period in inputs.periods)
    shares = [period.weight / hours for period in inputs.periods]
    return pyo.quicksum(
        sum(share * offer.price_usd_per_node_hour for share in shares) * m.nodes[name]
        for name, offer in inputs.used_offers.items()
    )


def serve_demand(m: Model, inputs: FleetInputs) -> None:
    r"""Every request is prefilled somewhere: sum_p x[k,p,t] = lambda[k,t] (1 - unserved[k])."""

    def rule(m: Model, k: int, t: int) -> object:
        served = pyo.quicksum(m.flow[k, p, t] for p in inputs.prefilling[k])
        demand = inputs.demand[k][t]
        if m.component("unserved_fraction") is not None:
            return served + demand * m.unserved_fraction[k] == demand
        if not inputs.prefilling[k] and demand > 0:
            return pyo.Constraint.Infeasible
        return served == demand if inputs.prefilling[k] else pyo.Constraint.Feasible

    m.serve_demand = pyo.Constraint(range(len(inputs.classes)), m.periods, rule=rule)


def cover_demand(m: Model, inputs: FleetInputs) -> None:
    r"""Enough whole replicas in each phase: sum_p n[p,t] / a[p,k] >= lambda[k,t] (1 - unserved[k]),
    a[p,k] the replicas that a request/s of class k takes on p alone. Implied by the rows of the
    pools, but stated in replicas only, where the solver can round it.
    """

    def rule(m: Model, k: int, phase: str, t: int) -> object:
        serving = inputs.prefilling[k] if phase == "prefill" else inputs.decoding[k]
        demand = inputs.demand[k][t]
        if not serving or demand <= 0:
            return pyo.Constraint.Skip
        capacity = pyo.quicksum(
            m.replicas[p, t] / float(inputs.by_name[p].coefficients[:, k].max()) for p in serving
        )
        if m.component("unserved_fraction") is not None:
            return capacity + demand * m.unserved_fraction[k] >= demand
        return capacity >= demand

    m.cover_demand = pyo.Constraint(
        range(len(inputs.classes)), ["prefill", "decode"], m.periods, rule=rule
    )


def conserve_kv(m: Model, inputs: FleetInputs) -> None:
    r"""What is prefilled is decoded where its KV cache can go: for every class and KV group v
    (site, vendor, KV precision), sum over prefill pools x[k,p,t] = sum over decode pools x[k,p,t].
    """
    keys = list(inputs.kv_pairs)

    def rule(m: Model, index: int, t: int) -> object:
        k, _ = keys[index]
        prefill, decode = inputs.kv_pairs[keys[index]]
        return pyo.quicksum(m.flow[k, p, t] for p in prefill) == pyo.quicksum(
            m.flow[k, p, t] for p in decode
        )

    m.conserve_kv = pyo.Constraint(range(len(keys)), m.periods, rule=rule)


def _pool_rows(family: str) -> Callable[[Model, FleetInputs], None]:
    """Constraint `family`[p,t] of every option whose row is not empty: use <= replicas."""
    row = ROW_INDEX[family]

    def build(m: Model, inputs: FleetInputs) -> None:
        members = [
            option.name
            for option in inputs.options
            if option.coefficients[row, list(option.classes)].any()
        ]

        def rule(m: Model, p: str, t: int) -> object:
            option = inputs.by_name[p]
            use = pyo.quicksum(
                float(option.coefficients[row, k]) * m.flow[k, p, t] for k in option.classes
            )
            return use <= m.replicas[p, t]

        setattr(m, family, pyo.Constraint(members, m.periods, rule=rule))

    return build


def calibrated_step(m: Model, inputs: FleetInputs) -> None:
    r"""The safe rows: at the calibrated step every promise, memory and engine limit holds.

    One class: x[k,p,t] O_k tau / (a B_k) <= n[p,t], with B_k the largest batch at which they hold
    and tau its step. Several classes: sum_k a[j,k] x[k,p,t] <= n[p,t] for each chord j of the
    frontier of loads that one replica carries in the full model.
    """
    for family in ROWS:
        if family.startswith("calibrated_step"):
            _pool_rows(family)(m, inputs)


def compute(m: Model, inputs: FleetInputs) -> None:
    r"""Physical bound: sum_k x[k,p,t] FLOPs_k / dense peak <= n[p,t]."""
    _pool_rows("compute")(m, inputs)


def hbm_bandwidth(m: Model, inputs: FleetInputs) -> None:
    r"""Physical bound: n W / (tau BW) + sum_k x[k,p,t] KV reads_k / BW <= n[p,t]."""
    _pool_rows("hbm_bandwidth")(m, inputs)


def hbm_capacity(m: Model, inputs: FleetInputs) -> None:
    r"""On the fullest rank: sum_k x[k,p,t] (O_k tau / a) cache_k <= n[p,t] occupancy room."""
    _pool_rows("hbm_capacity")(m, inputs)


def interconnect(m: Model, inputs: FleetInputs) -> None:
    r"""Physical bound: sum_k x[k,p,t] collective bytes_k / link rate <= n[p,t]."""
    _pool_rows("interconnect")(m, inputs)


def kv_transfer(m: Model, inputs: FleetInputs) -> None:
    r"""Cache leaving prefill or entering decode: sum_k x[k,p,t] cache bytes_k / NIC <= n[p,t]."""
    _pool_rows("kv_transfer")(m, inputs)


def batch_limit(m: Model, inputs: FleetInputs) -> None:
    r"""Sequences in flight: sum_k x[k,p,t] O_k tau / a <= n[p,t] max_num_seqs."""
    _pool_rows("batch_limit")(m, inputs)


def chunk_budget(m: Model, inputs: FleetInputs) -> None:
    r"""Aggregated: prompt tokens per step, sum_k x[k,p,t] U_k tau <= n[p,t] chunk."""
    _pool_rows("chunk_budget")(m, inputs)


def prefill_utilization(m: Model, inputs: FleetInputs) -> None:
    r"""Prefill busy time: sum_k x[k,p,t] E[S_k] <= n[p,t] cap, S_k = U_k full step / chunk in
    aggregated pools (cap as stated), the prefill time in prefill pools (cap 1).
    """
    _pool_rows("prefill_utilization")(m, inputs)


def prefill_capacity(m: Model, inputs: FleetInputs) -> None:
    r"""TTFT percentile of a prefill pool by its size.

    n = sum_j j count_j + many;
    sum_k x[k,p,t] E[S_k] <= sum_j cap_j count_j + slope many - spare large;
    sum_j count_j + large <= 1;  (J + 1) large <= many <= n_max large. cap_j is exact for pools of
    up to J replicas, above them a fixed number of spare replicas suffices (slope 1 in one queue).
    """
    growing = set(m.large_options)

    def size(m: Model, p: str, t: int) -> object:
        exact = pyo.quicksum(j * m.count[p, j, t] for j in inputs.exact_counts(p))
        return m.replicas[p, t] == exact + (m.many[p, t] if p in growing else 0)

    def load(m: Model, p: str, t: int) -> object:
        option = inputs.by_name[p]
        table = option.capacity
        assert table is not None
        assert option.service_s is not None
        busy = pyo.quicksum(float(option.service_s[k]) * m.flow[k, p, t] for k in option.classes)
        exact = pyo.quicksum(table.exact[j - 1] * m.count[p, j, t] for j in inputs.exact_counts(p))
        if p not in growing:
            return busy <= exact
        large = table.slope * m.many[p, t] - (table.spare + PROGRAM_MARGIN) * m.large[p, t]
        return busy <= exact + large

    def one_size(m: Model, p: str, t: int) -> object:
        exact = pyo.quicksum(m.count[p, j, t] for j in inputs.exact_counts(p))
        return exact + (m.large[p, t] if p in growing else 0) <= 1

    def at_least(m: Model, p: str, t: int) -> object:
        return len(inputs.exact_counts(p)) + 1 <= m.many[p, t] + (
            len(inputs.exact_counts(p)) + 1
        ) * (1 - m.large[p, t])

    def at_most(m: Model, p: str, t: int) -> object:
        return m.many[p, t] <= inputs.replica_limits[p] * m.large[p, t]

    m.prefill_capacity_size = pyo.Constraint(m.prefill_options, m.periods, rule=size)
    m.prefill_capacity = pyo.Constraint(m.prefill_options, m.periods, rule=load)
    m.prefill_capacity_one = pyo.Constraint(m.prefill_options, m.periods, rule=one_size)
    m.prefill_capacity_least = pyo.Constraint(m.large_options, m.periods, rule=at_least)
    m.prefill_capacity_most = pyo.Constraint(m.large_options, m.periods, rule=at_most)


def least_replicas(m: Model, inputs: FleetInputs) -> None:
    r"""Pools that keep their promises from a size on: least[p] standing[p,t] <= n[p,t] and
    n[p,t] <= n_max standing[p,t], standing binary.
    """
    members = [option.name for option in inputs.options if option.least_replicas > 1]
    m.standing = pyo.Var(members, m.periods, domain=pyo.Binary)

    def least(m: Model, p: str, t: int) -> object:
        return inputs.by_name[p].least_replicas * m.standing[p, t] <= m.replicas[p, t]

    def most(m: Model, p: str, t: int) -> object:
        return m.replicas[p, t] <= inputs.replica_limits[p] * m.standing[p, t]

    m.least_replicas = pyo.Constraint(members, m.periods, rule=least)
    m.least_replicas_most = pyo.Constraint(members, m.periods, rule=most)


def fit_nodes(m: Model, inputs: FleetInputs) -> None:
    r"""Replicas live on whole nodes: sum_p gpus_p n[p,t] <= sum_o gpus_per_node_o N[o], for every
    site, accelerator and node size. Replica sizes divide a node or fill whole nodes, so a count
    of GPUs that fits can be packed.
    """
    keys = list(inputs.node_groups)

    def rule(m: Model, index: int, t: int) -> object:
        options, offers = inputs.node_groups[keys[index]]
        used = pyo.quicksum(inputs.by_name[p].gpus * m.replicas[p, t] for p in options)
        return used <= pyo.quicksum(
            inputs.used_offers[o].gpus_per_node * m.nodes[o] for o in offers
        )

    m.fit_nodes = pyo.Constraint(range(len(keys)), m.periods, rule=rule)


def respect_stock(m: Model, inputs: FleetInputs) -> None:
    r"""Stated availability: sum_o N[o] <= nodes (+ extra) for each limit."""

    def rule(m: Model, s: int) -> object:
        stock = inputs.stocks[s]
        offers = [o for o in stock.offers if o in inputs.used_offers]
        if not offers:
            return pyo.Constraint.Feasible
        used = pyo.quicksum(m.nodes[o] for o in offers)
        if m.component("extra_nodes") is not None:
            return used <= stock.nodes + m.extra_nodes[s]
        return used <= stock.nodes

    m.respect_stock = pyo.Constraint(range(len(inputs.stocks)), rule=rule)


def limit_pool_kinds(m: Model, inputs: FleetInputs) -> None:
    r"""At most so many kinds of pool per model: n[p,t] <= n_max open[p], sum_p open[p] <= kinds."""
    kinds = inputs.max_pool_kinds_per_model
    if kinds is None:
        return
    m.open = pyo.Var(m.options, domain=pyo.Binary)

    def opened(m: Model, p: str, t: int) -> object:
        return m.replicas[p, t] <= inputs.replica_limits[p] * m.open[p]

    def rule(m: Model, model: str) -> object:
        used = pyo.quicksum(m.open[p] for p in inputs.models[model])
        if m.component("extra_kinds") is not None:
            return used <= kinds + m.extra_kinds[model]
        return used <= kinds

    m.open_pool = pyo.Constraint(m.options, m.periods, rule=opened)
    m.limit_pool_kinds = pyo.Constraint(list(inputs.models), rule=rule)


def respect_budget(m: Model, inputs: FleetInputs) -> None:
    r"""sum_o price_o N[o] <= budget (+ what it is exceeded by), USD/hour."""
    if inputs.budget_usd_per_hour is None:
        return
    limit = inputs.budget_usd_per_hour
    if m.component("over_budget_usd_per_hour") is not None:
        m.respect_budget = pyo.Constraint(expr=m.cost <= limit + m.over_budget_usd_per_hour)
    else:
        m.respect_budget = pyo.Constraint(expr=m.cost <= limit)


CONSTRAINTS: tuple[Callable[[Model, FleetInputs], None], ...] = (
    serve_demand,
    cover_demand,
    conserve_kv,
    calibrated_step,
    compute,
    hbm_bandwidth,
    hbm_capacity,
    interconnect,
    kv_transfer,
    batch_limit,
    chunk_budget,
    prefill_utilization,
    prefill_capacity,
    least_replicas,
    fit_nodes,
    respect_stock,
    limit_pool_kinds,
)
"""Every constraint family but the budget, which needs the cost."""
