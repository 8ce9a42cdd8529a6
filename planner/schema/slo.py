"""What users are promised: a percentile of a latency stays below a limit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from planner.schema.fields import MISTAKES, InnerShare, Part, Positive, described, mistakes

DEFAULT_TTFT_SHARE = 0.2
"""Share of an end-to-end limit kept for the first token where none is given."""


def _percentile(value: Any) -> float | Literal["mean"]:
    """A percentile between 1 and 100, or the word `mean`."""
    message, hint = "", "give a percentile such as 95, 99 or 99.9, or the word mean"
    if value == "mean":
        return "mean"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        message = f"is {value!r}, not a percentile"
    elif 0 < value < 1:
        message, hint = f"is {value:g}", f"percentiles are in percent: did you mean {value:.4%}?"
        hint = hint.replace(f"{value:.4%}", f"{value * 100:g}")
    elif not 0 < value < 100:
        message, hint = f"is {value:g}", "a percentile lies between 0 and 100, both excluded"
    if message:
        raise PydanticCustomError(MISTAKES, "percentile", {"found": [("", message, hint)]})
    return float(value)


Percentile = Annotated[
    float | Literal["mean"],
    PlainValidator(_percentile),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 1, "exclusiveMaximum": 100},
                {"const": "mean", "type": "string"},
            ]
        }
    ),
]


class SloItem(Part):
    """One promise, for example: the 99th percentile of TTFT is at most 1500 ms."""

    metric: Literal["ttft", "tpot", "e2e"] = described(
        "ttft: time until the first token that the user sees; tpot: (e2e - ttft) / (output "
        "tokens - 1), per request; e2e: time until the last token."
    )
    percentile: Percentile = described(
        "Percentile over requests that is held below the limit, or `mean`.", unit="percent"
    )
    limit_ms: Positive = described("The limit.", unit="ms")
    ttft_share_fraction: InnerShare | None = described(
        "Share of the limit kept for the first token; the rest is for the tokens after it. For "
        "e2e, and for ttft of a workload with hidden output tokens. Left out: 0.2.",
        unit="fraction",
        default=None,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.metric == "tpot" and self.ttft_share_fraction is not None:
            message = "does not apply to tpot"
            mistakes([("ttft_share_fraction", message, "give it for e2e, or leave it out")])
        return self
