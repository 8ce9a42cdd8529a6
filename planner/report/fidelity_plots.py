"""The pictures of a validation study, as PNG: predicted against measured, and errors by fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from planner.fidelity.study import FOLDS, Study
from planner.report.pictures import new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = {"dense": "#0072b2", "moe": "#d55e00", "mixer": "#009e73"}
"""Of the kinds of model; told apart with every common colour vision (Okabe and Ito)."""
WORDS: Final = {
    "dense": "dense",
    "moe": "experts",
    "mixer": "latent, linear or sparse attention",
    "family": "model family left out",
    "accelerator": "GPU left out",
    "engine": "engine left out",
}
PER_INCH: Final = 130


def predicted_png(study: Study) -> bytes:
    """TPOT and TTFT of unseen model families against what was measured, log-log; with it
    AIConfigurator's TPOT where the study has it.

    Raises InputError that names the extra if matplotlib is not installed.
    """
    panels = [("family", "tpot_s", "TPOT, model family unseen")]
    if "aiconfigurator" in study.methods:
        panels.append(("aiconfigurator", "tpot_s", "TPOT, AIConfigurator"))
    panels.append(("family", "ttft_s", "TTFT, model family unseen"))
    figure, axes = _subplots(len(panels), 4.6 * len(panels), 5.2)
    for axis, (method, metric, title) in zip(axes, panels, strict=True):
        measured = getattr(study.data, metric) * 1e3
        predicted = getattr(study.methods[method], metric) * 1e3
        for kind, colour in COLOURS.items():
            rows = (study.data.kind == kind) & np.isfinite(predicted)
            axis.scatter(
                measured[rows], predicted[rows], s=7, alpha=0.45, c=colour, label=WORDS[kind],
                linewidths=0,
            )  # fmt: skip
        both = np.concatenate([measured, predicted])
        low, high = np.nanmin(both) * 0.8, np.nanmax(both) * 1.25
        line = np.array([low, high])
        axis.plot(line, line, color="black", linewidth=0.8)
        axis.fill_between(
            line, line / 1.25, line * 1.25, color="black", alpha=0.07, linewidth=0,
            label="within a factor of 1.25",
        )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        errors = study.errors(method, metric)
        words = f"{title}\nmedian error {errors.median:.1%}, {errors.rows:,} rows"
        axis.set_title(words, fontsize=10)
        axis.set(xlabel="measured, ms", ylabel="predicted, ms")
        axis.set_aspect("equal")
    axes[0].legend(loc="upper left", fontsize=8, frameon=False)
    return png(figure, PER_INCH)


def errors_png(study: Study) -> bytes:
    """Predicted over measured TPOT of every model family, GPU and engine when it is left out.

    Raises InputError that names the extra if matplotlib is not installed.
    """
    names = {fold: np.unique(getattr(study.data, fold)) for fold in FOLDS}
    widths = [len(found) + 1 for found in names.values()]
    figure, axes = _subplots(len(FOLDS), 12.5, 4.6, widths)
    for axis, (fold, found) in zip(axes, names.items(), strict=True):
        ratio = study.methods[fold].tpot_s / study.data.tpot_s
        groups = getattr(study.data, fold)
        parts = [ratio[groups == name] for name in found]
        axis.boxplot(parts, whis=(10, 90), sym="", widths=0.6, medianprops={"color": "#d55e00"})
        labels = [f"{name}\n{part.size:,}" for name, part in zip(found, parts, strict=True)]
        axis.set_xticks(range(1, len(found) + 1), labels, fontsize=7, rotation=35)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(yscale="log", ylim=(0.55, 1.8), title=WORDS[fold])
        axis.set_yticks([0.6, 0.75, 1.0, 1.33, 1.67], ["0.6", "0.75", "1", "1.33", "1.67"])
        axis.minorticks_off()
    axes[0].set_ylabel("TPOT, predicted / measured\n(box: quartiles, whiskers: 10 to 90 %)")
    return png(figure, PER_INCH)


def _subplots(
    count: int, width: float, height: float, widths: list[int] | None = None
) -> tuple[Figure, list[Axes]]:
    figure = new_figure(width, height)
    ratios: dict[str, Any] = {"width_ratios": widths} if widths else {}
    axes = figure.subplots(1, count, squeeze=False, gridspec_kw=ratios)[0]
    return figure, [*axes]
