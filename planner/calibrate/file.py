"""Calibration files: a fitted deployment as an entry, added to what a file holds already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from planner.atomic import write_text
from planner.calibrate.correct import FittedDeployment, FittedPoint
from planner.errors import InputError, Problem
from planner.perf.constants import Constants
from planner.perf.corrections import Deployment, fingerprint
from planner.schema.calibration import CalibrationFile, MeasuredDeployment, load_calibration

DIGITS: Final = 6
"""Significant digits in the file: more than any measurement has."""
HEADER: Final = (
    "# Corrections of measured deployments, written by `planner calibrate`; an instance names\n"
    "# this file as `calibration:`. Each holds for the deployment as it was measured, no other.\n"
)


def entry_of(
    fitted: FittedDeployment,
    digests: Mapping[Path, str],
    constants: Constants,
    day: date,
    notes: Sequence[str] = (),
) -> MeasuredDeployment:
    """A fitted deployment as it stands in a file. `digests` are the SHA-256 of the result files,
    `notes` what was to be said before the fit.

    Raises InputError where what was fitted is nothing that a calibration may hold.
    """
    steps, prefill = fitted.steps, fitted.prefill
    overhead_error = steps.overhead_error_s
    deployment = Deployment.of(fitted.config)
    values: dict[str, Any] = {
        **{name: getattr(deployment, name) for name in Deployment.__slots__},
        "chunk_tokens": round(fitted.chunk_tokens),
        "date": day.isoformat(),
        "constants": fingerprint(constants),
        "files": [{"name": str(path), "sha256": found} for path, found in digests.items()],
        "fitted": {
            "step_time_factor": steps.factor,
            "step_overhead_ms": steps.overhead_s * 1e3,
            "prefill_time_factor": fitted.correction.prefill_time_factor,
            "tpot_band_factors": [*steps.band],
            "ttft_band_factors": None if prefill is None else [*prefill.band],
        },
        "standard_errors": {
            "step_time_factor": steps.factor_error,
            "step_overhead_ms": None if overhead_error is None else overhead_error * 1e3,
            "prefill_time_factor": None if prefill is None else prefill.factor_error,
        },
        "points": [_point(each) for each in fitted.points],
        "notes": [*notes, *fitted.notes],
    }
    try:
        return MeasuredDeployment.model_validate(_rounded(values))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in wrong["loc"])
        message = f"the measurements lead to {field} {wrong['input']!r}, far from any prediction"
        hint = "check the units of the results, the GPU and the layout"
        raise InputError([Problem(message, hint)]) from error


def _point(each: FittedPoint) -> dict[str, Any]:
    point, measurement = each.point, each.point.measurement
    return {
        "file": measurement.file,
        "place": measurement.place,
        "concurrency": point.concurrency,
        "input_tokens": measurement.input_tokens,
        "output_tokens": measurement.output_tokens,
        "cached_input_fraction": point.cached_fraction,
        "accepted_tokens_per_step": measurement.accepted_tokens_per_step,
        "tpot_ms": point.tpot_s * 1e3,
        "predicted_tpot_ms": each.predicted_tpot_s * 1e3,
        "corrected_tpot_ms": each.corrected_tpot_s * 1e3,
        "held_out_tpot_ms": each.held_out_tpot_s * 1e3,
        "ttft_ms": None if point.ttft_s is None else point.ttft_s * 1e3,
        "predicted_ttft_ms": each.predicted_ttft_s * 1e3,
        "corrected_ttft_ms": each.corrected_ttft_s * 1e3,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value


def earlier_deployments(path: Path) -> tuple[MeasuredDeployment, ...]:
    """What a calibration file holds already; nothing where there is none yet.

    Raises InputError if the file is no calibration, or its folder is missing: before a fit,
    so that nobody waits for one that cannot be written.
    """
    if path.exists():
        return load_calibration(path).deployments
    if not path.parent.is_dir():
        message = f"cannot be written: there is no folder {path.parent}"
        raise InputError([Problem(message, "make it first", file=str(path))])
    return ()


def add_to_file(path: Path, entry: MeasuredDeployment) -> bool:
    """Write a deployment into a calibration file, new or not; others in it stay as they are.

    Returns whether an earlier entry of the same deployment was replaced. Raises InputError if the
    file is there and is no calibration, or cannot be written.
    """
    earlier = earlier_deployments(path)
    kept = [each for each in earlier if each.key != entry.key]
    write_text(path, as_yaml([*kept, entry]))
    return len(kept) < len(earlier)


def as_yaml(deployments: Iterable[MeasuredDeployment]) -> str:
    """The text of a calibration file."""
    whole = CalibrationFile(format_version=1, deployments=tuple(deployments))
    data = whole.model_dump(mode="json", exclude_none=True)
    return HEADER + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
