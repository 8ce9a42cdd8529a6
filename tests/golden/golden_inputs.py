"""One fleet of three options, two classes, two periods, with coefficients readable in an LP file.

Numbers are invented and round: what a row costs class 0 says which row it is, and class 1 pays
8 more, so 3.25 is the bandwidth row of class 0 and 11.25 that of class 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner import catalog
from planner.candidates.options import ROWS, PoolOption
from planner.catalog.offers import Offer
from planner.fleet.inputs import FleetInputs, Period, Stock
from planner.perf.config import Layout, PoolConfig
from planner.perf.engines import engine_profile
from planner.queueing import CapacityTable


def config(gpus: int) -> PoolConfig:
    """A configuration of so many GPUs; the program reads only its names and its size."""
    return PoolConfig(
        catalog.find_model("llama-3.1-8b-instruct"),
        catalog.find_accelerator("h100"),
        Layout(gpus),
        "fp8",
        "fp8",
        engine_profile("vllm"),
    )


CALIBRATED = tuple(name for name in ROWS if name.startswith("calibrated_step_"))
COST = {
    **{name: (j + 1) / 4 for j, name in enumerate(CALIBRATED)},
    "compute": 3.0,
    "hbm_bandwidth": 3.25,
    "hbm_capacity": 3.5,
    "interconnect": 3.75,
    "kv_transfer": 4.0,
    "batch_limit": 4.25,
    "chunk_budget": 4.5,
    "prefill_utilization": 4.75,
}
"""Replicas per request/s of class 0 in every row."""

ENGINE_ROWS = (
    *CALIBRATED,
    "compute",
    "hbm_bandwidth",
    "hbm_capacity",
    "interconnect",
    "batch_limit",
)
PREFILL_ROWS = ("compute", "hbm_bandwidth", "interconnect", "kv_transfer", "prefill_utilization")


def coefficients(classes: tuple[int, ...], rows: tuple[str, ...]) -> NDArray[np.float64]:
    """The cost of each row in `rows`, zero in the others; inf for classes not admitted."""
    table = np.full((len(ROWS), 2), np.inf)
    for k in classes:
        table[:, k] = [COST[name] + 8 * k if name in rows else 0.0 for name in ROWS]
    return table


def options() -> tuple[PoolOption, ...]:
    """One aggregated option of 2 GPUs for both classes; a prefill and a decode one for class 0,
    the latter for pools of three replicas and more.
    """
    both, first = (0, 1), (0,)
    place = {"site": "own/here", "gpus_per_node": 2}
    return (
        PoolOption(
            name="agg",
            config=config(2),
            role="aggregated",
            classes=both,
            coefficients=coefficients(both, (*ENGINE_ROWS, "chunk_budget", "prefill_utilization")),
            step_s=0.02,
            chunk_tokens=512,
            **place,  # type: ignore[arg-type]  # a mapping of the two fields
        ),
        PoolOption(
            name="pre",
            config=config(1),
            role="prefill",
            classes=first,
            coefficients=coefficients(first, PREFILL_ROWS),
            chunk_tokens=512,
            service_s=np.array([0.125, np.inf]),
            capacity=CapacityTable((0.5, 1.25), 0.75, 4096, slope=0.875),
            **place,  # type: ignore[arg-type]  # a mapping of the two fields
        ),
        PoolOption(
            name="dec",
            config=config(1),
            role="decode",
            classes=first,
            coefficients=coefficients(first, (*ENGINE_ROWS, "kv_transfer")),
            step_s=0.02,
            least_replicas=3,
            **place,  # type: ignore[arg-type]  # a mapping of the two fields
        ),
    )


def offer(name: str, price: float, available: int | None) -> Offer:
    """Nodes of two H100; the price is per GPU and hour."""
    return Offer(
        id=name,
        provider="own",
        region="here",
        term="owned",
        accelerator="h100",
        price_usd_per_gpu_hour=price,
        gpus_per_node=2,
        available_nodes=available,
        source="a test",
    )


def inputs() -> FleetInputs:
    """Classes a and b, a day and a night, offers `cheap` and `dear`, every kind of limit."""
    return FleetInputs(
        classes=("a", "b"),
        class_models=("llama-3.1-8b-instruct", "llama-3.1-8b-instruct"),
        demand=((4.0, 2.0), (3.0, 1.0)),
        periods=(Period("day", 0.5), Period("night", 0.5)),
        options=options(),
        offers=(offer("cheap", 1.5, 3), offer("dear", 2.0, None)),
        stocks=(Stock("cheap", ("cheap",), 2), Stock("h100", ("cheap", "dear"), 5)),
        budget_usd_per_hour=100.0,
        max_pool_kinds_per_model=2,
    )
