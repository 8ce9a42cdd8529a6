"""A plan as pandas tables, for notebooks and further arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.plan import Plan

if TYPE_CHECKING:
    import pandas as pd


def frames(plan: Plan) -> dict[str, pd.DataFrame]:
    """Tables of a plan: `pools`, `nodes`, `classes`, `promises` and `shares`.

    Columns are the keys of plan.json, units in their names; nested records are flattened with
    a dot (`layout.tensor_parallel`, `utilization_fraction.compute`). `promises` has one row for
    each workload and SLO, `shares` one for each workload, pool and phase.
    """
    import pandas as pd

    def table(rows: list[dict[str, object]]) -> pd.DataFrame:
        return pd.json_normalize(rows)

    nested = {"slos", "served_by"}
    return {
        "pools": table([pool.model_dump(mode="json") for pool in plan.pools]),
        "nodes": table([node.model_dump(mode="json") for node in plan.nodes]),
        "classes": table([each.model_dump(mode="json", exclude=nested) for each in plan.classes]),
        "promises": table(
            [
                {"workload": each.name, **slo.model_dump(mode="json")}
                for each in plan.classes
                for slo in each.slos
            ]
        ),
        "shares": table(
            [
                {"workload": each.name, **share.model_dump(mode="json")}
                for each in plan.classes
                for share in each.served_by
            ]
        ),
    }
