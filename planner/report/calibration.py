"""A calibrated deployment -> document: what was measured, predicted before, and after."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from planner.calibrate.measurement import where
from planner.report import numbers
from planner.report.blocks import Bullets, Column, Document, Paragraph, Section, Table, Tone
from planner.schema.calibration import MeasuredDeployment, MeasuredPoint


def calibration_document(entry: MeasuredDeployment, skipped: Sequence[str]) -> Document:
    """The report of one deployment; `skipped` says which measurements were not used, and why."""
    sections = [Section("Correction", (_fitted(entry), _band(entry)))]
    sections.append(Section("Time per output token", (_tpot_table(entry.points),)))
    if any(point.ttft_ms is not None for point in entry.points):
        sections.append(Section("Time to first token", (_ttft_table(entry.points),)))
    if skipped:
        sections.append(Section("Not used", (Bullets(tuple(skipped), "warning"),)))
    if entry.notes:
        sections.append(Section("Notes", (Bullets(entry.notes),)))
    return Document(f"Calibration: {title(entry)}", tuple(_lead(entry)), tuple(sections))


def title(entry: MeasuredDeployment) -> str:
    """The deployment in a line."""
    degrees = (
        ("tp", entry.tensor_parallel),
        ("pp", entry.pipeline_parallel),
        ("dp", entry.attention_data_parallel),
        ("ep", entry.expert_parallel),
    )
    layout = "·".join(f"{name}{n}" for name, n in degrees if n > 1 or name == "tp")
    text = (
        f"{entry.model} on {entry.accelerator}, {layout}, "
        f"{entry.weight_precision}/{entry.kv_precision}, {entry.engine}"
    )
    return text + (f", {entry.draft_tokens} drafted" if entry.draft_tokens else "")


def _lead(entry: MeasuredDeployment) -> Iterator[Paragraph]:
    before = _median_error(entry.points, "predicted_tpot_ms")
    after = _median_error(entry.points, "corrected_tpot_ms")
    unseen = _median_error(entry.points, "held_out_tpot_ms")
    text = (
        f"{numbers.plural(len(entry.points), 'point')}: median TPOT error "
        f"{numbers.percent(before)} before, {numbers.percent(after)} after"
    )
    if len(entry.points) > 1:
        text += f", {numbers.percent(unseen)} on points that the fit had not seen"
    tone: Tone = "good" if unseen <= before or len(entry.points) == 1 else "warning"
    yield Paragraph(f"{text}.", tone)
    if tone == "warning":
        yield Paragraph(
            "Points that the fit had not seen are predicted no better than without it: measure "
            "more, or look for points that were measured under other settings.",
            "warning",
        )


def _median_error(points: Sequence[MeasuredPoint], name: str) -> float:
    errors: list[float] = [abs(getattr(each, name) / each.tpot_ms - 1) for each in points]
    return statistics.median(errors)


def _fitted(entry: MeasuredDeployment) -> Table:
    fitted, errors = entry.fitted, entry.standard_errors
    rows = [
        ("step time, factor", f"{fitted.step_time_factor:.3f}", _error(errors.step_time_factor, 3)),
        (
            "step overhead, ms",
            f"{fitted.step_overhead_ms:+.3f}",
            _error(errors.step_overhead_ms, 3),
        ),
    ]
    if fitted.ttft_band_factors is not None:
        error = _error(errors.prefill_time_factor, 3)
        rows.append(("prefill time, factor", f"{fitted.prefill_time_factor:.3f}", error))
    columns = (Column("fitted"), Column("value", True), Column("standard error", True))
    return Table(columns, tuple(rows))


def _error(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _band(entry: MeasuredDeployment) -> Paragraph:
    low, high = entry.fitted.tpot_band_factors
    text = f"80 % of measured TPOTs are expected between {low:.2f} and {high:.2f} x the prediction"
    if entry.fitted.ttft_band_factors is not None:
        low, high = entry.fitted.ttft_band_factors
        text += f", of TTFTs between {low:.2f} and {high:.2f} x"
    return Paragraph(f"{text}.")


LOAD = (
    Column("where"),
    Column("requests at once", True),
    Column("tokens in", True),
    Column("out", True),
    Column("measured ms", True),
    Column("before", True),
    Column("error", True),
    Column("after", True),
    Column("error", True),
)


def _tpot_table(points: Sequence[MeasuredPoint]) -> Table:
    return Table(
        LOAD,
        tuple(
            _row(each, each.tpot_ms, each.predicted_tpot_ms, each.corrected_tpot_ms)
            for each in points
        ),
    )


def _ttft_table(points: Sequence[MeasuredPoint]) -> Table:
    return Table(
        LOAD,
        tuple(
            _row(each, each.ttft_ms, each.predicted_ttft_ms, each.corrected_ttft_ms)
            for each in points
            if each.ttft_ms is not None
        ),
    )


def _row(
    point: MeasuredPoint, measured_ms: float, before_ms: float, after_ms: float
) -> tuple[str, ...]:
    return (
        where(point.file, point.place),
        numbers.significant(point.concurrency),
        f"{point.input_tokens:,.0f}",
        f"{point.output_tokens:,.0f}",
        numbers.significant(measured_ms),
        numbers.significant(before_ms),
        f"{before_ms / measured_ms - 1:+.1%}",
        numbers.significant(after_ms),
        f"{after_ms / measured_ms - 1:+.1%}",
    )
