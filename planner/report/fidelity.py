"""A validation study -> document: how far predictions are from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from planner.fidelity.fit import PARAMETERS, STEP_PARAMETERS, values_of
from planner.fidelity.public_cases import METRIC_NAMES
from planner.fidelity.study import USER_REPEATS, USER_ROWS, Errors, Study
from planner.fidelity.tried import load_tried
from planner.report.blocks import Block, Bullets, Column, Document, Paragraph, Section, Table

METRICS: Final = {"tpot_s": "TPOT", "ttft_s": "TTFT", "throughput_per_gpu": "tok/s/GPU"}
METHODS: Final = {
    "in sample": "fitted on all rows, these among them",
    "family": "one model family left out at a time",
    "accelerator": "one GPU left out at a time",
    "engine": "one engine left out at a time",
    "aiconfigurator": "AIConfigurator, its own kernel measurements",
    "textbook": "half of the FLOPs, four fifths of the bandwidth",
    "bound": "pure roofline: efficiency 1, no overhead",
}
GOALS: Final[tuple[tuple[str, str, str, str, float], ...]] = (
    ("TPOT, unseen model family", "family", "tpot_s", "median", 0.10),
    ("TPOT, unseen model family", "family", "tpot_s", "mean", 0.14),
    ("TPOT, unseen model family", "family", "tpot_s", "p90", 0.28),
    ("TPOT, unseen GPU", "accelerator", "tpot_s", "median", 0.09),
    ("tok/s/GPU, unseen model family", "family", "throughput_per_gpu", "median", 0.10),
    ("TTFT, unseen model family", "family", "ttft_s", "median", 0.20),
)
"""What was set out for: words, method, metric, statistic, limit."""
DISAGGREGATED_GOAL: Final = 0.15
USER_GOAL: Final = 0.06
STEP_CONSTANTS_GOAL: Final = 12
TRIED_NOTE: Final = (
    "TPOT errors (median / mean / 90th percentile, per cent) with one model family left out. What "
    "is kept stays in what follows, so the figures to compare with change down the list. The "
    "structure as shipped has 8.9 / 12.6 / 27.0 on inner folds (two families left out, one of them "
    "predicted), so looking at the outer folds, as was done for the earlier ideas, flatters little."
)
MOST_LINKS: Final = 3
FOLD_HEADINGS: Final = {"family": "model family", "accelerator": "GPU", "engine": "engine"}


def fidelity_document(study: Study) -> Document:
    """The report of one validation."""
    sections = [
        Section("Goals", (_goals(study),)),
        Section("All methods on the same rows", tuple(_methods(study))),
        Section("By model, GPU and engine", tuple(_folds(study))),
        Section("Decode workers of disaggregated deployments", tuple(_workers(study))),
        Section("With measurements of your own", (_user(study),)),
        Section("Published results, predicted without tuning", tuple(_public(study))),
        Section("Constants", tuple(_constants(study))),
        Section("What was tried", (Paragraph(TRIED_NOTE), _tried())),
        Section("Which rows", tuple(_screening(study))),
    ]
    lead = (_lead(study), _ttft(study))
    return Document("Fidelity: predictions against measurements", lead, tuple(sections))


def _lead(study: Study) -> Paragraph:
    unseen = study.errors("family", "tpot_s")
    return Paragraph(
        f"On {unseen.rows:,} measured deployments of vLLM, SGLang and TensorRT-LLM "
        f"({study.data.version}), TPOT of a model family that the constants have not seen is off "
        f"by {_cell(unseen.median)} in the median, {_cell(unseen.mean)} on average, with "
        f"{len(STEP_PARAMETERS)} fitted constants for step times. Errors are "
        "|predicted / measured - 1|."
    )


def _ttft(study: Study) -> Paragraph:
    unseen = study.errors("family", "ttft_s")
    return Paragraph(
        f"TTFT is the weak side: {_cell(unseen.median)} in the median, {_cell(unseen.p90)} at the "
        "90th percentile. It depends on settings of the server and of the benchmark that the rows "
        "do not tell."
    )


def _goals(study: Study) -> Table:
    rows = []
    for words, method, metric, statistic, limit in GOALS:
        errors = study.errors(method, metric)
        rows.append(
            _goal(f"{words}, {_word(statistic)}", getattr(errors, statistic), limit, errors)
        )
    workers = study.decode_errors()
    rows.append(_goal("decode workers, TPOT, median", workers.median, DISAGGREGATED_GOAL, workers))
    rows.append(
        _goal(
            f"TPOT with {USER_ROWS} rows of one's own, median",
            study.user.median,
            USER_GOAL,
            study.user,
        )
    )
    if "aiconfigurator" in study.methods:
        common = np.isfinite(study.methods["aiconfigurator"].tpot_s)
        rival = study.errors("aiconfigurator", "tpot_s")
        own = study.errors("family", "tpot_s", common)
        for statistic in ("median", "mean"):
            words = f"TPOT, unseen model family, better than AIConfigurator, {statistic}"
            rows.append(_goal(words, getattr(own, statistic), getattr(rival, statistic), own))
    count = len(STEP_PARAMETERS)
    met = "met" if count <= STEP_CONSTANTS_GOAL else "not met"
    rows.append(("fitted constants of a step time", "-", str(STEP_CONSTANTS_GOAL), str(count), met))
    columns = (
        Column("goal"),
        Column("rows", True),
        Column("at most", True),
        Column("measured", True),
        Column("verdict"),
    )
    return Table(columns, tuple(rows))


def _goal(words: str, value: float, limit: float, errors: Errors) -> tuple[str, ...]:
    verdict = "met" if value <= limit else "not met"
    if not errors.rows:
        verdict = "no rows"
    return words, f"{errors.rows:,}", _cell(limit), _cell(value), verdict


def _methods(study: Study) -> Iterator[Block]:
    rows = []
    for method, words in METHODS.items():
        if method not in study.methods:
            continue
        for metric, name in METRICS.items():
            rows.append((words, name, *_errors(study.errors(method, metric))))
    columns = (Column("method"), Column("quantity"), *_ERROR_COLUMNS)
    yield Table(columns, tuple(rows), grouped=True)
    if "aiconfigurator" not in study.methods:
        yield Paragraph("AIConfigurator's own predictions are added with --aic.")
        return
    common = np.isfinite(study.methods["aiconfigurator"].tpot_s)
    if not common.all():
        shared = [
            (words, *_errors(study.errors(method, "tpot_s", common)))
            for method, words in METHODS.items()
            if method in study.methods
        ]
        yield Paragraph(f"TPOT on the {int(common.sum()):,} rows that AIConfigurator can predict:")
        yield Table((Column("method"), *_ERROR_COLUMNS), tuple(shared))
        yield Paragraph("It has no prediction for the others:")
        yield _counts(study.reasons)


def _folds(study: Study) -> Iterator[Block]:
    for fold, heading in FOLD_HEADINGS.items():
        groups = getattr(study.data, fold)
        rows = []
        for name in np.unique(groups):
            chosen = groups == name
            cells = [
                f"{_cell(e.median)} / {_cell(e.mean)} / {_cell(e.p90)}"
                for e in (study.errors(fold, metric, chosen) for metric in METRICS)
            ]
            ratio = study.methods[fold].tpot_s[chosen] / study.data.tpot_s[chosen] - 1
            rows.append(
                (str(name), f"{int(chosen.sum()):,}", *cells, _signed(float(np.median(ratio))))
            )
        columns = (
            Column(f"{heading} left out"),
            Column("rows", True),
            *(Column(f"{name}, median / mean / p90", True) for name in METRICS.values()),
            Column("TPOT, signed median", True),
        )
        yield Table(columns, tuple(rows))


def _workers(study: Study) -> Iterator[Block]:
    rows = [("all", *_errors(study.decode_errors()))]
    for kind in np.unique(study.workers.kinds):
        rows.append((str(kind), *_errors(study.decode_errors(study.workers.kinds == kind))))
    yield Paragraph(
        "TPOT of decode workers whose number, layout and load the sample tells. No constant was "
        "fitted on any of them; GB200 and GB300 are hardly among the fitted rows."
    )
    yield Table((Column("decode workers"), *_ERROR_COLUMNS), tuple(rows))
    yield Paragraph("Left out of the sample's disaggregated rows:")
    yield _counts(study.workers.reasons)


def _user(study: Study) -> Table:
    rows = (
        ("without them", *_errors(study.user_before)),
        (f"{USER_ROWS} measured rows per deployment", *_errors(study.user)),
    )
    columns = (
        Column(f"TPOT of the other rows of the deployment, {USER_REPEATS} draws"),
        *_ERROR_COLUMNS,
    )
    return Table(columns, rows)


def _public(study: Study) -> Iterator[Block]:
    rows = []
    for group in study.public:
        for each in group.errors:
            ape = (each.median_ape_fraction, each.mean_ape_fraction, each.p90_ape_fraction)
            signed = _signed(float(np.expm1(each.median_log_error)))
            cells = (f"{each.count:,}", *(_cell(value) for value in ape), signed)
            rows.append((group.group.name, METRIC_NAMES[each.metric], *cells))
    columns = (Column("group"), Column("quantity"), *_ERROR_COLUMNS, Column("signed median", True))
    yield Table(columns, tuple(rows), grouped=True)
    left = tuple(
        (group.group.name, f"{count:,}", reason)
        for group in study.public
        for reason, count in group.left_out
    )
    yield Table((Column("left out of"), Column("figures", True), Column("why")), left, grouped=True)
    yield Bullets(
        tuple(
            f"{group.group.name}: {group.group.runs}."
            + (f" Assumed: {'; '.join(group.group.assumed)}." if group.group.assumed else "")
            + f" Published: {_links(group.source_urls)}"
            for group in study.public
        )
    )


def _links(urls: Sequence[str]) -> str:
    if len(urls) <= MOST_LINKS:
        return ", ".join(urls)
    return f"{urls[0]} and {len(urls) - 1} more beside it"


def _tried() -> Table:
    rows = tuple((each.idea, each.figures, each.verdict) for each in load_tried())
    return Table((Column("idea"), Column("what it did"), Column("verdict")), rows)


def _constants(study: Study) -> Iterator[Block]:
    values = values_of(study.constants)
    errors = study.constants.standard_errors
    rows = tuple(
        (parameter.label, f"{value:.4g}", f"{errors[parameter.label]:.4g}")
        for parameter, value in zip(PARAMETERS, values, strict=True)
    )
    columns = (Column("constant"), Column("value", True), Column("standard error", True))
    yield Table(columns, rows)
    bands = tuple(
        (
            kind,
            f"{band.rows:,}",
            f"{band.tpot[0]:.2f} to {band.tpot[1]:.2f}",
            f"{band.ttft[0]:.2f} to {band.ttft[1]:.2f}",
        )
        for kind, band in study.constants.bands.items()
    )
    yield Paragraph(
        "Eight in ten held-out measurements lie between these multiples of the prediction; every "
        "plan shows its latencies with them."
    )
    heads = (Column("kind of model"), Column("rows", True), Column("TPOT"), Column("TTFT"))
    yield Table(heads, bands)


def _screening(study: Study) -> Iterator[Block]:
    screening = study.screening
    yield Paragraph(
        f"{screening.rows:,} rows in the sample, {screening.passed:,} used here. Left out:"
    )
    yield _counts(screening.reasons)


def _counts(reasons: Mapping[str, int]) -> Bullets:
    return Bullets(tuple(f"{count:,}: {reason}" for reason, count in reasons.items()))


_ERROR_COLUMNS: Final = (
    Column("rows", True),
    Column("median", True),
    Column("mean", True),
    Column("p90", True),
)


def _errors(errors: Errors) -> Sequence[str]:
    return f"{errors.rows:,}", _cell(errors.median), _cell(errors.mean), _cell(errors.p90)


def _cell(fraction: float) -> str:
    return f"{fraction * 100:.1f} %" if np.isfinite(fraction) else "-"


def _signed(fraction: float) -> str:
    return f"{fraction * 100:+.1f} %" if round(fraction, 3) else "0.0 %"


def _word(statistic: str) -> str:
    return {"p90": "90th percentile"}.get(statistic, statistic)
