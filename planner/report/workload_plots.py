"""The picture of a workload, as PNG: rates over time, tokens by class, hits by cache size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from planner.report.pictures import new_figure, png
from planner.traces.estimate import TraceEstimate, WorkloadEstimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of classes; told apart with every common colour vision (Okabe and Ito)."""
MOST_POINTS: Final = 4_000
PER_INCH: Final = 130


def workload_png(
    estimates: Sequence[WorkloadEstimate], traces: Sequence[TraceEstimate | None]
) -> bytes:
    """A row of three panels for each source; `traces` has the requests of it, None for metrics.

    Raises InputError that names the extra if matplotlib is not installed.
    """
    figure = new_figure(14.0, 4.3 * len(estimates), "the picture needs")
    axes = figure.subplots(len(estimates), 3, squeeze=False)
    for row, estimate, trace in zip(axes, estimates, traces, strict=True):
        _rates(row[0], estimate)
        if trace is None:
            _lengths(row[1], estimate)
        else:
            _requests(row[1], estimate, trace)
        if estimate.cache_curve:
            _hits(row[2], estimate)
        else:
            _profile(row[2], estimate)
    return png(figure, PER_INCH)


def _rates(axis: Axes, estimate: WorkloadEstimate) -> None:
    hours = estimate.span_s > 3 * 3600
    unit_s = 3600.0 if hours else 60.0
    starts = np.arange(len(estimate.rates_per_s)) * estimate.interval_s / unit_s
    axis.step(starts, estimate.rates_per_s, where="post", color=COLOURS[0], linewidth=1)
    axis.axhline(estimate.rate_per_s, color="black", linewidth=0.8, label="mean")
    shared = estimate.shared_burst_factor
    if shared is not None:
        peak, label = estimate.rate_per_s * shared, f"mean x burst factor {shared:.2f}"
        axis.axhline(peak, color=COLOURS[1], linewidth=0.8, linestyle="--", label=label)
    axis.set(xlabel="hours" if hours else "minutes", ylabel="requests/s", ylim=(0, None))
    axis.set_title(f"{estimate.source}\n{estimate.requests:,} requests", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _requests(axis: Axes, estimate: WorkloadEstimate, trace: TraceEstimate) -> None:
    step = -(-trace.trace.requests // MOST_POINTS)
    for index, each in enumerate(estimate.classes):
        rows = np.flatnonzero(trace.label == index)[::step]
        axis.scatter(
            trace.trace.input_tokens[rows], trace.trace.output_tokens[rows], s=5, alpha=0.4,
            c=COLOURS[index % len(COLOURS)], linewidths=0, label=f"{each.share:.0%} {each.name}",
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="input tokens", ylabel="output tokens")
    axis.legend(fontsize=7, frameon=False, markerscale=3)


def _lengths(axis: Axes, estimate: WorkloadEstimate) -> None:
    for index, each in enumerate(estimate.classes):
        for lengths, style in ((each.input, "-"), (each.output, "--")):
            edges = [edge for edge, _ in lengths.histogram]
            reached = np.cumsum([share for _, share in lengths.histogram])
            word = "input" if style == "-" else "output"
            axis.step(
                edges, reached, where="post", linestyle=style,
                color=COLOURS[index % len(COLOURS)], label=f"{each.name}: {word}",
            )  # fmt: skip
    axis.set(xscale="log", xlabel="tokens", ylabel="share of requests up to", ylim=(0, 1.02))
    axis.legend(fontsize=7, frameon=False)


def _hits(axis: Axes, estimate: WorkloadEstimate) -> None:
    for index, each in enumerate(estimate.classes):
        if each.cache_curve:
            sizes, shares = zip(*each.cache_curve, strict=True)
            colour = COLOURS[index % len(COLOURS)]
            axis.plot(sizes, shares, marker=".", color=colour, label=each.name)
    sizes, shares = zip(*estimate.cache_curve, strict=True)
    axis.plot(sizes, shares, color="black", linestyle="--", label="all together")
    axis.set(xscale="log", ylim=(0, None), xlabel="prefix cache of all replicas, tokens")
    axis.set_ylabel("share of input tokens found")
    axis.legend(fontsize=7, frameon=False)


def _profile(axis: Axes, estimate: WorkloadEstimate) -> None:
    if estimate.hourly_profile is None:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no prefixes known, and less than a day", ha="center", fontsize=8)
        return
    axis.bar(range(24), estimate.hourly_profile, color=COLOURS[0])
    axis.set(xlabel="hour", ylabel="rate over the mean")
