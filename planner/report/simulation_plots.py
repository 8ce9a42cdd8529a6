"""Pictures of a simulation, as PNG: how late requests were, and what pools did over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from planner.embedded import EmbeddedPlan
from planner.report import numbers
from planner.report.pictures import new_figure, png
from planner.report.promises import METRICS
from planner.simulate.latencies import class_latencies, metrics
from planner.simulate.records import ComponentRun, PoolSeries, SimulationRun
from planner.simulate.statistics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Told apart with every common colour vision (Okabe and Ito)."""
PER_INCH: Final = 110
PANEL_INCHES: Final = (4.2, 2.9)
SERIES_INCHES: Final = (5.4, 2.2)
WIDTH: Final = 1.1
POINTS: Final = 400
"""Of a curve."""
LEAST_SHARE: Final = 1e-3
DECADE: Final = 10.0
"""Ratio of the largest and smallest latency beyond which an axis is logarithmic."""
METRIC_NAMES: Final = {**METRICS, "first_token": "first token, hidden or not"}


def latencies_png(run: SimulationRun, embedded: EmbeddedPlan) -> bytes:
    """Of every class, the share of requests that are later than a latency, with the promises.

    A promise is kept where the curve passes left of, or below, its mark. Raises InputError that
    names the extra if matplotlib is not installed.
    """
    parts = {name: part for part in run.components for name in part.classes}
    classes = [each for each in embedded.classes if each.name in parts]
    columns = max(len(metrics(each)) for each in classes)
    figure, axes = _subplots(len(classes), columns, PANEL_INCHES)
    for row, workload in zip(axes, classes, strict=True):
        found = class_latencies(parts[workload.name], workload.name)
        names = metrics(workload)
        for axis, metric in zip(row, names, strict=False):
            limits = [
                (slo.limit_s * 1e3, slo.percentile) for slo in workload.slos if slo.metric == metric
            ]
            _tail(axis, found.of(metric) * 1e3, limits)
            axis.set_title(f"{workload.name}: {METRIC_NAMES[metric]}", fontsize=9)
        for axis in row[len(names) :]:
            axis.set_visible(False)
    return png(figure, PER_INCH)


def pools_png(run: SimulationRun) -> bytes:
    """Of every pool over time: its use, and the requests that wait and run in it.

    Raises InputError that names the extra if matplotlib is not installed.
    """
    found = [(part, series) for part in run.components for series in part.series]
    figure, axes = _subplots(len(found), 2, SERIES_INCHES)
    for (use, queue), (part, series) in zip(axes, found, strict=True):
        _use(use, part, series)
        _queue(queue, part, series)
    return png(figure, PER_INCH)


def _tail(axis: Axes, values_ms: Floats, limits: list[tuple[float, float | None]]) -> None:
    """Share later than a latency, on logarithmic axes."""
    served = np.sort(values_ms[np.isfinite(values_ms)])
    if served.size:
        # Ranks spread evenly over the logarithm of the share that is later.
        share = np.geomspace(1.0, 1 / values_ms.size, POINTS)
        rank = np.ceil((1 - share) * values_ms.size).astype(int)
        shown = rank < served.size
        axis.plot(served[rank[shown]], share[shown], color=COLOURS[0], linewidth=1.4)
        if served[-1] > DECADE * served[0] or any(
            limit > DECADE * served[0] for limit, _ in limits
        ):
            axis.set_xscale("log")
            # Figures between powers of ten would run into each other.
            axis.tick_params(axis="x", which="minor", labelbottom=False)
    for (limit, percentile), colour in zip(limits, (*COLOURS[1:], *COLOURS), strict=False):
        axis.axvline(limit, color=colour, linewidth=0.9, linestyle="--")
        which = "mean" if percentile is None else f"p{percentile * 100:g}"
        label = f"{which} ≤ {numbers.latency_limit(limit)}"
        if percentile is None:
            axis.plot([], [], color=colour, linestyle="--", label=label)
        else:
            axis.plot([limit], [1 - percentile], "o", color=colour, markersize=5, label=label)
    axis.set(yscale="log", ylim=(LEAST_SHARE, 1.2), xlabel="ms")
    axis.set_ylabel("share that is later", fontsize=8)
    axis.grid(visible=True, which="major", linewidth=0.3)
    axis.tick_params(labelsize=7)
    if limits:
        axis.legend(fontsize=7, frameon=False, loc="lower left")


def _use(axis: Axes, part: ComponentRun, series: PoolSeries) -> None:
    time_s = series.time_s - part.warmup_s
    axis.plot(time_s, series.busy_fraction, color=COLOURS[0], label="busy", linewidth=WIDTH)
    axis.plot(time_s, series.kv_fraction, color=COLOURS[1], label="KV cache", linewidth=WIDTH)
    axis.set(ylim=(0, 1.05))
    axis.set_ylabel("fraction", fontsize=8)
    _over_time(axis, part, f"{series.pool}: use of a replica")


def _queue(axis: Axes, part: ComponentRun, series: PoolSeries) -> None:
    time_s, running = series.time_s - part.warmup_s, "in work, per replica"
    axis.plot(time_s, series.waiting, color=COLOURS[3], label="waiting, in all", linewidth=WIDTH)
    axis.plot(time_s, series.running, color=COLOURS[2], label=running, linewidth=WIDTH)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("requests", fontsize=8)
    _over_time(axis, part, f"{series.pool}: requests")


def _over_time(axis: Axes, part: ComponentRun, title: str) -> None:
    """What the two panels of a pool share: the warm-up, the events, and words."""
    axis.axvspan(-part.warmup_s, 0, color="black", alpha=0.06, linewidth=0)
    for time_s, _ in part.events:
        axis.axvline(time_s - part.warmup_s, color="black", linewidth=0.7, linestyle=":")
    axis.set_xlim(-part.warmup_s, part.horizon_s - part.warmup_s)
    axis.set_xlabel("seconds since the warm-up", fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False, loc="upper right")


def _subplots(
    rows: int, columns: int, panel: tuple[float, float]
) -> tuple[Figure, list[list[Axes]]]:
    figure = new_figure(panel[0] * columns, panel[1] * rows)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    return figure, [[*row] for row in axes]
