"""How many tokens requests have: a number, mean and spread, percentiles, a histogram, a trace."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from planner.schema.fields import (
    Count,
    CountOrZero,
    Name,
    NotNegative,
    Part,
    ShareBelowOne,
    Some,
    Whole,
    described,
    mistakes,
)

DEFAULT_SCV = 1.0
"""Squared coefficient of variation assumed where only a mean is given (that of an exponential;
public chat traces lie between 0.9 and 1.7)."""
DEFAULT_MAX_OVER_MEAN = 10.0
"""Longest request over the mean one, where no `max` is given: with the default SCV a lognormal
passes it once in some 1,300 requests."""
PERCENTILES: tuple[tuple[str, float], ...] = (
    ("p10", 0.10),
    ("p25", 0.25),
    ("p50", 0.50),
    ("p75", 0.75),
    ("p90", 0.90),
    ("p95", 0.95),
    ("p99", 0.99),
)

Tokens = Annotated[float, Field(ge=1)]


class MeanTokens(Part):
    """A lognormal number of tokens, cut at `max`."""

    mean: Tokens = described("Mean number of tokens.", unit="tokens")
    scv: NotNegative | None = described(
        "Squared coefficient of variation: variance over mean squared. 0 means all alike. "
        "Left out: 1.0, and said to be assumed.",
        default=None,
    )
    max: Count | None = described(
        "Longest there is. Left out: ten times the mean, and said to be assumed.",
        unit="tokens",
        default=None,
    )

    @property
    def largest_scv(self) -> float:
        """Bhatia and Davis (2000): the most that values between 1 and `longest` can vary."""
        return (self.longest - self.mean) * (self.mean - 1) / self.mean**2

    @property
    def effective_scv(self) -> float:
        """As given; else the default, or half of what `max` leaves room for if that is less."""
        return min(DEFAULT_SCV, self.largest_scv / 2) if self.scv is None else self.scv

    @property
    def longest(self) -> float:
        """Longest number of tokens, given or assumed."""
        if self.max is not None:
            return float(self.max)
        return self.mean if self.scv == 0 else DEFAULT_MAX_OVER_MEAN * self.mean

    @model_validator(mode="after")
    def _check(self) -> Self:
        found: list[tuple[str, str, str]] = []
        longest, largest = self.longest, self.largest_scv
        if self.mean > longest:
            found.append(("mean", f"is {self.mean:g}, above max {longest:g}", "raise max"))
        elif self.scv is not None and self.scv > largest:
            message = f"is {self.scv:g}, but between 1 and {longest:g} tokens it cannot exceed"
            hint = "raise max or lower scv"
            found.append(("scv", f"{message} {largest:.3g} at this mean", hint))
        mistakes(found)
        return self


class PercentileTokens(Part):
    """Percentiles of the number of tokens, joined by straight lines in the logarithm."""

    min: Count | None = described(
        "Shortest there is. Left out: everything below the lowest percentile is taken to be as "
        "long as that percentile, which is safe.",
        unit="tokens",
        default=None,
    )
    p10: Tokens | None = described("10th percentile.", unit="tokens", default=None)
    p25: Tokens | None = described("25th percentile.", unit="tokens", default=None)
    p50: Tokens | None = described("Median.", unit="tokens", default=None)
    p75: Tokens | None = described("75th percentile.", unit="tokens", default=None)
    p90: Tokens | None = described("90th percentile.", unit="tokens", default=None)
    p95: Tokens | None = described("95th percentile.", unit="tokens", default=None)
    p99: Tokens | None = described("99th percentile.", unit="tokens", default=None)
    max: Count = described("Longest there is.", unit="tokens")

    @property
    def given(self) -> list[tuple[str, float, float]]:
        """(name, probability, tokens) of the percentiles given, in rising order."""
        return [
            (name, p, float(getattr(self, name)))
            for name, p in PERCENTILES
            if getattr(self, name) is not None
        ]

    @property
    def longest(self) -> float:
        """Longest number of tokens."""
        return float(self.max)

    @model_validator(mode="after")
    def _check(self) -> Self:
        found: list[tuple[str, str, str]] = []
        if not self.given:
            found.append(("", "no percentile is given", "give at least p50"))
        steps = [(name, tokens) for name, _, tokens in self.given] + [("max", self.longest)]
        if self.min is not None:
            steps.insert(0, ("min", float(self.min)))
        for (low, below), (high, above) in pairwise(steps):
            if above < below:
                message = f"is {above:g}, below {low} {below:g}"
                found.append((high, message, "percentiles rise from min to max"))
        mistakes(found)
        return self


class HistogramBin(Part):
    """One bin: the share of requests longer than the bin before, up to this edge."""

    up_to: Count = described("Upper edge of the bin.", unit="tokens")
    share: NotNegative = described("Share of the requests in this bin.", unit="fraction")


class HistogramTokens(Part):
    """A histogram; every request counts as long as the upper edge of its bin, which is safe."""

    histogram: Some[HistogramBin] = described("Bins in rising order; their shares sum to 1.")

    @property
    def longest(self) -> float:
        """Longest number of tokens."""
        return float(max(bin_.up_to for bin_ in self.histogram if bin_.share > 0))

    @model_validator(mode="after")
    def _check(self) -> Self:
        found: list[tuple[str, str, str]] = []
        for index in range(1, len(self.histogram)):
            before, here = self.histogram[index - 1].up_to, self.histogram[index].up_to
            if here <= before:
                place = f"histogram[{index}].up_to"
                message = f"is {here}, not above the edge {before} before it"
                found.append((place, message, "sort the bins by their edges"))
        total = sum(bin_.share for bin_ in self.histogram)
        if abs(total - 1) > 1e-6:
            hint = "shares sum to 1"
            if abs(total - 100) < 1:
                hint = "give fractions, not percent: shares sum to 1"
            found.append(("histogram", f"the shares sum to {total:g}", hint))
        mistakes(found)
        return self


class TraceTokens(Part):
    """The tokens in a file of requests. Loading replaces this by a histogram of at most 200 bins,
    in which no request is shorter than in the trace, so that a plan needs no file.
    """

    trace: Name = described(
        "Trace file, relative to this file: Azure, BurstGPT or Mooncake, or a CSV with columns "
        "arrival_s, input_tokens, output_tokens; also packed as .gz."
    )


class Conversation(Part):
    """Requests that are turns of a conversation, whose earlier turns come back as input."""

    turns: Annotated[int, Field(ge=1, le=1000), Whole] = described(
        "Turns of a conversation; each is a request.", unit="requests"
    )
    system_tokens: CountOrZero = described(
        "Tokens of the system prompt, at the head of every turn.", unit="tokens", default=0
    )
    user_tokens: Tokens = described("New tokens the user adds in each turn.", unit="tokens")
    cache_hit_fraction: ShareBelowOne = described(
        "Share of the repeated tokens that are found in the prefix cache.",
        unit="fraction",
        default=0.0,
    )


_FORMS: dict[str, tuple[str, ...]] = {
    "HistogramTokens": ("histogram",),
    "TraceTokens": ("trace",),
    "MeanTokens": ("mean", "scv"),
    "PercentileTokens": ("p50", "min", "median", *(name for name, _ in PERCENTILES)),
}


def _form(value: Any) -> str:
    """Which way of giving a number of tokens this is."""
    if isinstance(value, BaseModel):
        return type(value).__name__
    if isinstance(value, dict):
        for form, keys in _FORMS.items():
            if any(key in value for key in keys):
                return form
        return "MeanTokens"
    return "Number"


TokenCount = Annotated[
    Annotated[Tokens, Tag("Number")]
    | Annotated[MeanTokens, Tag("MeanTokens")]
    | Annotated[PercentileTokens, Tag("PercentileTokens")]
    | Annotated[HistogramTokens, Tag("HistogramTokens")]
    | Annotated[TraceTokens, Tag("TraceTokens")],
    Discriminator(_form),
]
"""A plain number (all requests alike), mean and spread, percentiles, a histogram, or a trace."""


def longest_tokens(
    count: float | MeanTokens | PercentileTokens | HistogramTokens | TraceTokens,
) -> float:
    """The longest that a number of tokens can be; raises ValueError for a trace not yet read."""
    if isinstance(count, TraceTokens):
        raise ValueError(f"the trace {count.trace} has not been read")
    return count.longest if isinstance(count, Part) else float(count)


__all__ = [
    "DEFAULT_MAX_OVER_MEAN",
    "DEFAULT_SCV",
    "PERCENTILES",
    "Conversation",
    "HistogramBin",
    "HistogramTokens",
    "MeanTokens",
    "PercentileTokens",
    "TokenCount",
    "TraceTokens",
    "longest_tokens",
]
