"""From the points of one deployment to its correction, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.calibrate.fit import PrefillFit, StepFit, StepTerms, fit_prefill, fit_steps
from planner.calibrate.points import Point, Predictions
from planner.errors import InputError, Problem
from planner.perf.config import PoolConfig
from planner.perf.constants import Constants
from planner.perf.corrections import Correction
from planner.perf.serving import DEFAULT_BUDGET_TOKENS

Floats = NDArray[np.float64]

FAR_OFF: Final = 2.0
"""A factor beyond this, or below its inverse, has another cause than slower kernels as a rule."""


@dataclass(frozen=True, slots=True)
class FittedPoint:
    """One point: measured, predicted without the correction, with it, and by a fit without it."""

    point: Point
    predicted_tpot_s: float
    corrected_tpot_s: float
    held_out_tpot_s: float
    predicted_ttft_s: float
    corrected_ttft_s: float


@dataclass(frozen=True, slots=True)
class FittedDeployment:
    """The correction of one deployment with all that it rests on."""

    config: PoolConfig
    chunk_tokens: float
    correction: Correction
    steps: StepFit
    prefill: PrefillFit | None
    points: tuple[FittedPoint, ...]
    notes: tuple[str, ...]


def fit_deployment(
    config: PoolConfig,
    points: Sequence[Point],
    constants: Constants | None = None,
    chunk_tokens: float = DEFAULT_BUDGET_TOKENS,
) -> FittedDeployment:
    """Fit the correction of `config` to what was measured of it, with steps of at most
    `chunk_tokens` tokens.

    Raises InputError, naming the likely causes, where something was measured that the hardware
    cannot do.
    """
    predictions = Predictions(config, points, constants, chunk_tokens)
    _refuse_impossible(predictions)
    before = predictions.serving()
    measured = np.array([point.tpot_s for point in points])
    limit_step_s, limit_bound_s = predictions.limits()
    terms = StepTerms(
        measured_s=measured,
        predicted_s=before.tpot_s,
        steps=predictions.steps(),
        single_step_s=predictions.single_step_s(),
        limit_step_s=limit_step_s,
        limit_bound_s=limit_bound_s,
    )
    steps = fit_steps(terms)
    stepped = Correction(step_time_factor=steps.factor, step_overhead_s=steps.overhead_s)
    prefill = _fit_prefill(predictions, stepped)
    correction = Correction(
        step_time_factor=steps.factor,
        step_overhead_s=steps.overhead_s,
        prefill_time_factor=1.0 if prefill is None else prefill.factor,
        band=steps.band,
        ttft_band=None if prefill is None else prefill.band,
    )
    after = predictions.serving(correction)
    held_out = measured * np.exp(-steps.held_out)
    return FittedDeployment(
        config=config,
        chunk_tokens=chunk_tokens,
        correction=correction,
        steps=steps,
        prefill=prefill,
        points=tuple(
            FittedPoint(
                point=point,
                predicted_tpot_s=float(before.tpot_s[n]),
                corrected_tpot_s=float(after.tpot_s[n]),
                held_out_tpot_s=float(held_out[n]),
                predicted_ttft_s=float(before.ttft_s[n]),
                corrected_ttft_s=float(after.ttft_s[n]),
            )
            for n, point in enumerate(points)
        ),
        notes=_notes(steps, prefill, points),
    )


def _fit_prefill(predictions: Predictions, stepped: Correction) -> PrefillFit | None:
    """The factor on prefill from the points whose TTFT was measured, if any."""
    known = np.array([point.ttft_s is not None for point in predictions.points])
    if not known.any():
        return None
    # TTFT is linear in the factor, so two predictions tell the part that it multiplies.
    once, twice = (
        predictions.serving(replace(stepped, prefill_time_factor=factor)) for factor in (1.0, 2.0)
    )
    measured = np.array([point.ttft_s or 0.0 for point in predictions.points])[known]
    multiplied = (twice.ttft_s - once.ttft_s)[known]
    least = float(np.max((predictions.bound_prefill_s() / once.prefill_s)[known]))
    return fit_prefill(measured, multiplied, once.ttft_s[known] - multiplied, least)


def _refuse_impossible(predictions: Predictions) -> None:
    """Refuse points that are faster than arithmetic and memory allow."""
    problems: list[Problem] = []
    steps, prompts = predictions.bound_step_s(), predictions.bound_prefill_s()
    what = f"{predictions.config.layout.label} on {predictions.config.accelerator.name}"
    for n, point in enumerate(predictions.points):
        measurement = point.measurement
        if point.tpot_s < steps[n]:
            message = (
                f"TPOT {point.tpot_s * 1e3:.3g} ms is below the {steps[n] * 1e3:.3g} ms that "
                f"{what} takes at least"
            )
            causes = ["another GPU or a wider layout", "lower precision"]
            if predictions.config.speculative is None:
                causes.append("speculative decoding")
            causes.append("a TPOT that counts the first token or the tokens of several choices")
            problems.append(_impossible(message, causes, measurement.file, measurement.place))
        elif point.ttft_s is not None and point.ttft_s < prompts[n]:
            message = (
                f"TTFT {point.ttft_s * 1e3:.3g} ms is below the {prompts[n] * 1e3:.3g} ms that "
                f"{what} takes at least for the prompt"
            )
            causes = ["prompts found in the prefix cache", "shorter prompts than recorded"]
            causes.append("another GPU or a wider layout")
            problems.append(_impossible(message, causes, measurement.file, measurement.place))
    if problems:
        raise InputError(problems)


def _far_off(steps: StepFit, prefill: PrefillFit | None) -> Iterator[str]:
    """A note for each factor that more than the quality of kernels must stand behind."""
    step_causes = (
        "another GPU, layout or precision than stated, CUDA graphs off, a profiler, or a shared GPU"
    )
    if steps.factor > FAR_OFF:
        yield f"Steps take {steps.factor:.2g} x the predicted time; likely: {step_causes}."
    if steps.factor < 1 / FAR_OFF:
        yield (
            f"Steps take {steps.factor:.2g} x the predicted time; likely: another GPU, a wider "
            "layout or lower precision than stated, speculative decoding, or fewer requests at "
            "once than recorded."
        )
    if prefill is None:
        return
    if prefill.factor > FAR_OFF:
        yield (
            f"Prefill takes {prefill.factor:.2g} x the predicted time; likely: requests that "
            "waited (bursts, no warm-up, more than fit), a smaller --chunk-tokens, or a router "
            "that adds time."
        )
    if prefill.factor < 1 / FAR_OFF:
        yield (
            f"Prefill takes {prefill.factor:.2g} x the predicted time; likely: prompts found in "
            "the prefix cache, or shorter than recorded."
        )


def _impossible(message: str, causes: Sequence[str], file: str, place: str) -> Problem:
    hint = f"likely causes: {', '.join(causes[:-1])}, or {causes[-1]}"
    return Problem(message, hint, file=file, field=place)


def _notes(steps: StepFit, prefill: PrefillFit | None, points: Sequence[Point]) -> tuple[str, ...]:
    notes = [*_far_off(steps, prefill)]
    if len(points) == 1:
        notes.append("One point moves the level only part of the way, and has no standard error.")
    if steps.limited:
        notes.append(
            "The physical bound holds the fit back: as fitted freely, some step would be faster "
            "than the hardware allows."
        )
    if any(point.cached_fraction for point in points):
        notes.append("Cached input is taken to need no prefill, and to be read at every step.")
    for point in points:
        notes += [f"{point.place}: {note}" for note in point.measurement.notes]
    return tuple(dict.fromkeys(notes))
