"""Estimates of workloads as YAML to paste into an instance, and as JSON."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from planner.traces.arrivals import UNPLANNABLE
from planner.traces.estimate import ClassEstimate, WorkloadEstimate
from planner.traces.lengths import Lengths

PLACEHOLDER: Final = "MODEL"
WIDTH: Final = 98
BINS_A_LINE: Final = 3
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")


@dataclass(frozen=True, slots=True)
class Written:
    """How classes are written."""

    model: str = PLACEHOLDER
    slos: tuple[tuple[str, float | str, float], ...] = ()
    """(metric, percentile or `mean`, limit in ms) of every class."""
    shape: Literal["percentiles", "histogram"] = "percentiles"
    burst: Literal["class", "shared"] = "class"


def workloads_yaml(estimates: Sequence[WorkloadEstimate], how: Written) -> str:
    """The items of `workloads:`, indented by two, with comments on where they come from."""
    lines: list[str] = []
    for estimate in estimates:
        lines += [*_comments(estimate)]
        for each in estimate.classes:
            lines += [*_class_lines(each, estimate, how), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def instance_yaml(estimates: Sequence[WorkloadEstimate], how: Written, name: str) -> str:
    """A whole instance of these classes: one model, any accelerator of the catalogue."""
    return (
        f"format_version: 1\nname: {_text(name)}\n\nmodels:\n  - model: {_text(how.model)}\n\n"
        f"workloads:\n{workloads_yaml(estimates, how)}"
    )


def workloads_json(estimates: Sequence[WorkloadEstimate]) -> str:
    """All that was found, with sorted keys; null where something is not known."""
    sources = [_source(estimate) for estimate in estimates]
    document = {"format_version": 1, "sources": sources}
    return json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n"


def warning_of(estimate: WorkloadEstimate) -> str | None:
    """Why a trace cannot be provisioned for; None where it can."""
    if not estimate.unplannable or estimate.busiest_second is None:
        return None
    return (
        f"too bursty to be provisioned for: its busiest second has {estimate.busiest_second:.0f} "
        f"times the mean rate, and a fleet for more than {UNPLANNABLE:.0f} times would stand idle "
        "nine tenths of the time. The classes below hold for its minutes; promises will be broken "
        "in such seconds unless clients are made to send more evenly"
    )


def _comments(estimate: WorkloadEstimate) -> Iterator[str]:
    span = _span(estimate.span_s)
    rate = estimate.rate_per_s / estimate.scale
    words = f"{estimate.source}: {estimate.requests:,} requests in {span}, {rate:.4g}/s."
    if estimate.kind != "trace":
        words = f"{words} Counters of {estimate.kind}."
    sentences = [words]
    if estimate.scale != 1.0:
        sentences.append(
            f"Scaled to {estimate.rate_per_s:.4g}/s: rates and cache sizes are "
            f"{estimate.scale:.4g} times those of the source, as with more users of the same kind."
        )
    if estimate.busiest_minute is not None:
        peak = f"Busiest minute {estimate.busiest_minute:.2f} times the mean"
        if estimate.busiest_second is not None:
            peak += f", busiest second {estimate.busiest_second:.1f} times"
        sentences.append(
            f"{peak}, as counted. Burst factors are of a class's own busiest minute, without what "
            "chance adds to a count."
        )
    if estimate.shared_burst_factor is not None and len(estimate.classes) > 1:
        sentences.append(
            f"Classes peak at different minutes: a fleet that all of them share sees a burst "
            f"factor of {estimate.shared_burst_factor:.2f}."
        )
    if estimate.cache_curve:
        points = ", ".join(f"{_short(size)} {share:.1%}" for size, share in estimate.cache_curve)
        sentences.append(
            "Share of all input tokens found in an LRU prefix cache, by its size in tokens: "
            f"{points}."
        )
    if (warning := warning_of(estimate)) is not None:
        sentences.append(f"WARNING: {warning}.")
    if estimate.hourly_profile is not None:
        hours = " ".join(f"{rate:.2f}" for rate in estimate.hourly_profile)
        clock = "from midnight of its clock" if estimate.has_hours else "from its first request"
        sentences.append(f"Hourly profile {clock}: {hours}.")
    sentences += [f"{note[0].upper()}{note[1:]}." for note in estimate.notes]
    for sentence in sentences:
        yield from _comment(sentence, "  ")


def _class_lines(each: ClassEstimate, estimate: WorkloadEstimate, how: Written) -> Iterator[str]:
    yield f"  - name: {each.name}"
    unset = "  # the name of one of the file's models" if how.model == PLACEHOLDER else ""
    yield f"    model: {_text(how.model)}{unset}"
    share = f"  # {each.share:.1%} of the requests" if len(estimate.classes) > 1 else ""
    yield f"    demand: {{requests_per_s: {each.rate_per_s:.4g}}}{share}"
    burst, note = each.burst_factor, ""
    if how.burst == "shared" and estimate.shared_burst_factor is not None:
        burst, note = estimate.shared_burst_factor, "  # of all classes together"
    elif each.busiest_minute is not None:
        note = f"  # busiest minute {each.busiest_minute:.3g} as counted"
    if burst is not None:
        yield f"    burst_factor: {math.ceil(burst * 100 - 1e-9) / 100:g}{note}"
    if each.arrival_scv is not None:
        yield f"    arrival_scv: {each.arrival_scv:.3g}"
    rank = each.rank_correlation
    if rank is not None and each.dependent:
        longer = "longer" if rank > 0 else "shorter"
        words = (
            f"Long inputs have {longer} outputs (rank correlation {rank:.2f}), but are planned "
            "for as independent; more classes tell them apart."
        )
        yield from _comment(words, "    ")
    yield from _lengths("input_tokens", each.input, how.shape)
    if each.cached_fraction is not None:
        yield f"    cached_input_fraction: {_down(each.cached_fraction):g}  # as measured"
    yield from _cache(each)
    yield from _lengths("output_tokens", each.output, how.shape)
    if how.slos:
        yield "    slo:"
        for metric, percentile, limit_ms in how.slos:
            shown = percentile if isinstance(percentile, str) else f"{percentile:g}"
            yield f"      - {{metric: {metric}, percentile: {shown}, limit_ms: {limit_ms:g}}}"


def _cache(each: ClassEstimate) -> Iterator[str]:
    curve = cache_points(each)
    if not curve:
        return
    yield "    cached_input_by_cache_size:  # one cache shared by all classes of this source"
    for size, share in curve:
        yield f"      - {{cache_tokens: {size}, fraction: {share:g}}}"
    effective = each.cached_request_fraction
    if effective is None or each.finding_share is None:
        return
    least = _down(curve[-1][1]) + 1e-4
    shown = min(max(math.ceil(effective * 1e4) / 1e4, least), 1.0)
    note = f"{each.finding_share:.0%} find something; this keeps how much the finds vary"
    yield f"    cached_request_fraction: {shown:g}  # {note}"


def cache_points(each: ClassEstimate) -> list[tuple[int, float]]:
    """The points of the curve with shares rounded down and sizes up, still rising."""
    points = [(_up(size), _down(share)) for size, share in each.cache_curve]
    kept = points[:1]
    for before, here in pairwise(points):
        if here[0] > before[0]:
            kept.append(here)
    return [(size, share) for size, share in kept if share > 0]


def _lengths(key: str, lengths: Lengths, shape: str) -> Iterator[str]:
    yield f"    # mean {lengths.mean:,.0f}, SCV {lengths.scv:.2f}"
    if lengths.shortest == lengths.longest:
        yield f"    {key}: {lengths.longest}"
    elif shape == "percentiles" and lengths.percentiles:
        points = "".join(f"p{percentile}: {tokens}, " for percentile, tokens in lengths.percentiles)
        yield f"    {key}: {{min: {lengths.shortest}, {points}max: {lengths.longest}}}"
    else:
        yield f"    {key}:"
        bins = [f"{{up_to: {edge}, share: {share:.9g}}}," for edge, share in lengths.histogram]
        rows = (bins[at : at + BINS_A_LINE] for at in range(0, len(bins), BINS_A_LINE))
        text = "\n".join(f"        {' '.join(row)}" for row in rows).rstrip(",")
        yield f"      histogram: [\n{text}\n      ]"


def _source(estimate: WorkloadEstimate) -> dict[str, Any]:
    return {
        "source": estimate.source,
        "kind": estimate.kind,
        "requests": estimate.requests,
        "span_s": estimate.span_s,
        "requests_per_s": estimate.rate_per_s,
        "scale": estimate.scale,
        "busiest_minute_over_mean": estimate.busiest_minute,
        "busiest_second_over_mean": estimate.busiest_second,
        "shared_burst_factor": estimate.shared_burst_factor,
        "too_bursty": estimate.unplannable,
        "cached_input_by_cache_size": _curve_json(estimate.cache_curve),
        "clock_tick_s": estimate.tick_s,
        "hourly_profile": estimate.hourly_profile,
        "interval_s": estimate.interval_s,
        "requests_per_s_by_interval": estimate.rates_per_s,
        "notes": estimate.notes,
        "classes": [_class(each) for each in estimate.classes],
    }


def _class(each: ClassEstimate) -> dict[str, Any]:
    return {
        "name": each.name,
        "share_fraction": each.share,
        "requests_per_s": each.rate_per_s,
        "busiest_minute_over_mean": each.busiest_minute,
        "burst_factor": each.burst_factor,
        "arrival_scv": each.arrival_scv,
        "input_tokens": _lengths_json(each.input),
        "output_tokens": _lengths_json(each.output),
        "rank_correlation": each.rank_correlation,
        "cached_input_fraction": each.cached_fraction,
        "cached_input_by_cache_size": _curve_json(each.cache_curve),
        "requests_that_find_fraction": each.finding_share,
        "cached_request_fraction": each.cached_request_fraction,
    }


def _curve_json(curve: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"cache_tokens": size, "fraction": share} for size, share in curve]


def _lengths_json(lengths: Lengths) -> dict[str, Any]:
    return {
        "mean": lengths.mean,
        "scv": lengths.scv,
        "min": lengths.shortest,
        "max": lengths.longest,
        "percentiles": {f"p{percentile}": tokens for percentile, tokens in lengths.percentiles},
        "histogram": [{"up_to": edge, "share": share} for edge, share in lengths.histogram],
    }


def _comment(sentence: str, indent: str) -> list[str]:
    clean = "".join(each if each.isprintable() else "?" for each in sentence)
    head = f"{indent}# "
    return textwrap.wrap(
        clean, WIDTH, initial_indent=head, subsequent_indent=head, break_on_hyphens=False
    )


def _text(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _down(share: float) -> float:
    return math.floor(share * 1e4) / 1e4


def _short(size: float) -> str:
    for unit, length in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= length:
            return f"{size / length:.3g}{unit}"
    return f"{size:.0f}"


def _up(size: float) -> int:
    """A number rounded up to three digits."""
    step = 10.0 ** max(math.floor(math.log10(size)) - 2, 0)
    return round(math.ceil(size / step - 1e-9) * step)


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
