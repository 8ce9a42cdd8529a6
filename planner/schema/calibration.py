"""The calibration file: measured deployments and what was fitted to them.

`planner calibrate` writes it, an instance names it. It holds the points as well as the fit, so
that a reader can see what the correction rests on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from planner.errors import InputError
from planner.schema.fields import (
    Count,
    CountOrZero,
    Many,
    Name,
    NotNegative,
    Part,
    Positive,
    ShareBelowOne,
    Some,
    described,
    mistakes,
)
from planner.schema.messages import Places, problems_of
from planner.schema.serving import EngineName, KvPrecision, WeightPrecision
from planner.schema.yaml_positions import parse_yaml, read_text_file

Degree = Annotated[int, Field(ge=1, le=4096)]
FileName = Annotated[str, Field(min_length=1)]
"""A path as it was given; paths may be long."""
Factor = Annotated[float, Field(ge=0.01, le=100)]
"""Beyond a hundredfold something other than speed was measured."""


class ResultFile(Part):
    """A file that points were read from."""

    name: FileName = described("Its path as it was given.")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = described("Of its bytes.")


class FittedValues(Part):
    """The correction of one deployment."""

    step_time_factor: Factor = described("On every step.")
    step_overhead_ms: Annotated[float, Field(ge=-10_000, le=10_000)] = described(
        "Added to every step after the factor.", unit="ms"
    )
    prefill_time_factor: Factor = described(
        "On the prefill of a prompt, besides both.", default=1.0
    )
    tpot_band_factors: Some[Factor] = described(
        "Between these times the prediction, 80 % of measured TPOTs are expected."
    )
    ttft_band_factors: Some[Factor] | None = described(
        "The same for TTFT. Left out: no TTFT was measured.", default=None
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = []
        for key in ("tpot_band_factors", "ttft_band_factors"):
            band = getattr(self, key)
            if band is not None and (len(band) != 2 or not band[0] <= 1 <= band[1]):
                found.append((key, "is no band", "give two factors, one below and one above 1"))
        mistakes(found)
        return self


class StandardErrors(Part):
    """Standard errors of the fitted values, left out where one point cannot tell."""

    step_time_factor: NotNegative | None = described("By jackknife.", default=None)
    step_overhead_ms: NotNegative | None = described("By jackknife.", unit="ms", default=None)
    prefill_time_factor: NotNegative | None = described("By jackknife.", default=None)


class MeasuredPoint(Part):
    """One operating point: measured, as predicted without the correction, and with it."""

    file: FileName = described("Result file.")
    place: str = described("Where in it. Empty: the file is one result.", default="")
    concurrency: Positive = described("Requests in flight on one replica.", unit="requests")
    input_tokens: Positive = described("Mean per request.", unit="tokens")
    output_tokens: Positive = described("Mean per request.", unit="tokens")
    cached_input_fraction: ShareBelowOne = described(
        "Share of the input found in the prefix cache.", unit="fraction", default=0.0
    )
    accepted_tokens_per_step: Positive | None = described(
        "Under speculative decoding.", unit="tokens", default=None
    )
    tpot_ms: Positive = described("Measured.", unit="ms")
    predicted_tpot_ms: Positive = described("Without the correction.", unit="ms")
    corrected_tpot_ms: Positive = described("With it.", unit="ms")
    held_out_tpot_ms: Positive = described("Predicted by a fit to all other points.", unit="ms")
    ttft_ms: Positive | None = described("Measured, if it was.", unit="ms", default=None)
    predicted_ttft_ms: Positive = described("Without the correction.", unit="ms")
    corrected_ttft_ms: Positive = described("With it.", unit="ms")


class MeasuredDeployment(Part):
    """One deployment: what it is, what was fitted, and the points behind it."""

    model: Name = described("Id of the model card.")
    accelerator: Name = described("Id of the accelerator.")
    engine: EngineName = described("The serving engine.")
    weight_precision: WeightPrecision = described("Of the weights.")
    kv_precision: KvPrecision = described("Of the KV cache.")
    tensor_parallel: Degree = described("Ranks that share each layer.", unit="GPUs")
    pipeline_parallel: Degree = described("Stages.", default=1)
    attention_data_parallel: Degree = described("Attention groups.", default=1)
    expert_parallel: Degree = described("Ranks that experts are spread over.", default=1)
    draft_tokens: CountOrZero = described(
        "Tokens drafted per step under speculative decoding; 0 without.", unit="tokens", default=0
    )
    chunk_tokens: Count = described(
        "Most tokens of a step while it was measured.", unit="tokens", default=8192
    )
    date: Name = described("Day of the fit.")
    constants: Name = described(
        "Fingerprint of the constants that the fit corrects; of no use with others."
    )
    files: Some[ResultFile] = described("Result files.")
    fitted: FittedValues = described("The correction.")
    standard_errors: StandardErrors = described(
        "How sure the fitted values are.", default=StandardErrors()
    )
    points: Some[MeasuredPoint] = described("What was measured.")
    notes: Many[str] = described("What the fit had to say.", default=())

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it this deployment and no other."""
        names = (
            "model",
            "accelerator",
            "engine",
            "weight_precision",
            "kv_precision",
            "tensor_parallel",
            "pipeline_parallel",
            "attention_data_parallel",
            "expert_parallel",
            "draft_tokens",
        )
        return tuple(getattr(self, name) for name in names)


class CalibrationFile(Part):
    """Measured deployments, each once."""

    format_version: Literal[1] = described("Version of this format.")
    deployments: Some[MeasuredDeployment] = described("What was measured.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: dict[tuple[Any, ...], int] = {}
        found = []
        for index, each in enumerate(self.deployments):
            if each.key in seen:
                message = f"is the deployment of deployments[{seen[each.key]}] again"
                found.append((f"deployments[{index}]", message, "keep one of the two"))
            seen.setdefault(each.key, index)
        mistakes(found)
        return self


def load_calibration(path: str | Path) -> CalibrationFile:
    """Read a calibration file. Raises InputError with every mistake in it and its place."""
    return read_calibration(path)[0]


def read_calibration(path: str | Path) -> tuple[CalibrationFile, Places]:
    """A calibration file, and where its fields stand. Raises InputError as `load_calibration`."""
    text = read_text_file(path)
    document = parse_yaml(text, str(path))
    places = Places.of(document, str(path))
    if not isinstance(document.value, dict) or "deployments" not in document.value:
        message, hint = "is not a calibration", "`planner calibrate` writes one"
        raise InputError([places.problem((), message, hint)])
    try:
        return CalibrationFile.model_validate(document.value), places
    except ValidationError as error:
        raise InputError(problems_of(error, CalibrationFile, places, ())) from None
