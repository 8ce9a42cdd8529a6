"""What the plan's formulas say of the latencies that a simulation measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from planner.embedded import EmbeddedPlan
from planner.verify import FleetPool, FleetRules, verify
from planner.workload.classes import Slo

NO_LIMIT_S: Final = math.inf
ROLES: Final = frozenset({"prefill", "decode", "aggregated"})

Key = tuple[str, str, float | None]
"""Class, metric, and the percentile in (0, 1), or None for the mean."""


def predictions_s(
    embedded: EmbeddedPlan, wanted: Sequence[Key], rate_factor: float = 1.0
) -> Mapping[Key, float]:
    """Predicted latencies in seconds of a plan's fleet at `rate_factor` times the planned rate.

    They are what verification computes for promises that have no limit; infinite where a pool is
    overloaded. The metric `first_token` is the ttft of the same class without hidden tokens.
    """
    found: dict[Key, float] = {}
    rules = FleetRules(
        offers={},
        stocks=(),
        budget_usd_per_hour=None,
        max_pool_kinds_per_model=None,
        roles=ROLES,
        max_gpus_per_replica=max(pool.gpus for pool in embedded.plan.pools),
        backend=embedded.backend,
    )
    pools = [
        FleetPool(
            id=pool.id,
            config=embedded.configs[pool.id],
            role=pool.role,
            site=pool.site,
            gpus_per_node=pool.gpus_per_node,
            replicas=pool.replicas,
            chunk_tokens=pool.chunk_tokens,
            requests_per_s={name: rate * rate_factor for name, rate in pool.requests_per_s.items()},
        )
        for pool in embedded.plan.pools
    ]
    for first_token in (False, True):
        keys = [key for key in wanted if (key[1] == "first_token") == first_token]
        if not keys:
            continue
        classes = []
        for workload in embedded.classes:
            slos = tuple(
                Slo("ttft" if first_token else metric, NO_LIMIT_S, fraction)
                for name, metric, fraction in keys
                if name == workload.name
            )
            mix = workload.mix
            if first_token:
                mix = replace(mix, max_hidden_tokens=0.0)
            classes.append(
                replace(
                    workload,
                    mix=mix,
                    slos=slos,
                    ttft_limits=(),
                    tpot_limits=(),
                    rate_per_s=tuple(rate * rate_factor for rate in workload.rate_per_s),
                )
            )
        checked = verify(classes, pools, {}, rules)
        for name, states in checked.slos.items():
            mine = [key for key in keys if key[0] == name]
            for key, state in zip(mine, states, strict=True):
                found[key] = state.predicted_s
    return found
