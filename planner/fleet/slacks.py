"""Which requirements can be relaxed, in which unit, and how to say it.

One registry serves elastic solves (what is the smallest change that makes the instance
feasible?), and the words in which the answer is given. A family that is not relaxed has no
variable in the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SlackFamily:
    """One kind of requirement that a fleet can fall short of."""

    name: str
    constraint: str
    variable: str
    """Component of the program that holds the shortfall."""
    unit: str
    penalty: float
    """Weight of one unit when several families are relaxed at once."""
    sentence: str
    """What the change means; `{amount}` and `{subject}` are filled in."""


SLACKS: Final = {
    family.name: family
    for family in (
        SlackFamily(
            "demand",
            "serve_demand",
            "unserved_fraction",
            "share of demand",
            1.0,
            "serve {amount:.1%} less of {subject}",
        ),
        SlackFamily(
            "stock",
            "respect_stock",
            "extra_nodes",
            "nodes",
            1.0,
            "have {amount:.0f} more nodes of {subject}",
        ),
        SlackFamily(
            "budget",
            "respect_budget",
            "over_budget_usd_per_hour",
            "USD/hour",
            1.0,
            "raise the budget by ${amount:,.2f}/hour",
        ),
        SlackFamily(
            "pool_kinds",
            "limit_pool_kinds",
            "extra_kinds",
            "pool kinds",
            1.0,
            "allow {amount:.0f} more pool kinds for {subject}",
        ),
    )
}
"""Slack families by name."""
