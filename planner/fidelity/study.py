"""One validation: predictions in sample and held out, beside the bound, textbook constants and
AIConfigurator, and what a few measurements of one's own add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.calibrate.fit import StepTerms, solve_steps
from planner.fidelity.disaggregated import DecodeWorkers, predict_decode_workers
from planner.fidelity.fit import Rows, constants_of, fit, held_out, standard_errors
from planner.fidelity.public_cases import RATES, GroupSummary, predict_cases, summarise
from planner.fidelity.public_data import load_cases
from planner.fidelity.silicon import Floats, Row, Screening, Silicon
from planner.perf.coefficients import StepModel
from planner.perf.constants import OTHER_ACCELERATORS, Band, Constants

Tell = Callable[[str], None]

FOLDS: Final = ("family", "accelerator", "engine")
"""What is left out, one value at a time: attributes of `Silicon`."""
OLD_ENGINES: Final = frozenset({"SPLITWISE"})
"""Published with engines of 2023, whose steps are launched one kernel at a time."""
BAND_QUANTILES: Final = (0.1, 0.9)
RESAMPLES: Final = 40
SEED: Final = 20261124
USER_ROWS: Final = 3
USER_REPEATS: Final = 20
TEXTBOOK_COMPUTE: Final = 0.5
TEXTBOOK_BANDWIDTH: Final = 0.8


@dataclass(frozen=True, slots=True)
class Errors:
    """|predicted / measured - 1| over the rows where both exist, as fractions."""

    rows: int
    median: float
    mean: float
    p90: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted arrays (N,), `nan` where a method has none."""

    tpot_s: Floats
    ttft_s: Floats
    throughput_per_gpu: Floats


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that a report of the accuracy shows.

    `methods` are predictions by the name of what made them; those of `FOLDS` come from constants
    that had not seen the row predicted. `user` are the errors with `USER_ROWS` measured rows per
    deployment, `user_before` those of the same rows without. `reasons` says how often and why
    AIConfigurator has no prediction.
    """

    data: Silicon
    screening: Screening
    constants: Constants
    methods: Mapping[str, Prediction]
    user: Errors
    user_before: Errors
    workers: DecodeWorkers
    public: tuple[GroupSummary, ...]
    reasons: Mapping[str, int]

    def errors(self, method: str, metric: str, rows: NDArray[np.bool_] | None = None) -> Errors:
        """Errors of one method in `tpot_s`, `ttft_s` or `throughput_per_gpu`, on some rows."""
        predicted = getattr(self.methods[method], metric)
        return errors_of(predicted, getattr(self.data, metric), rows)

    def decode_errors(self, rows: NDArray[np.bool_] | None = None) -> Errors:
        """TPOT errors of the disaggregated decode workers."""
        return errors_of(self.workers.predicted_s, self.workers.measured_s, rows)


def errors_of(predicted: Floats, measured: Floats, rows: NDArray[np.bool_] | None = None) -> Errors:
    """Errors where both are known (and `rows` holds). All `nan` without a row."""
    off = np.abs(predicted / measured - 1)
    return _errors(off if rows is None else off[rows])


def _errors(off: Floats) -> Errors:
    off = off[np.isfinite(off)]
    if not off.size:
        return Errors(0, np.nan, np.nan, np.nan)
    return Errors(off.size, float(np.median(off)), float(off.mean()), float(np.quantile(off, 0.9)))


def run_study(
    data: Silicon,
    screening: Screening,
    sample: Sequence[Row],
    constants: Constants,
    rival: tuple[Prediction, Mapping[str, int]] | None = None,
    tell: Tell = lambda _: None,
) -> Study:
    """Predicts every row with `constants`, with constants fitted without it, and by the yardsticks.

    `sample` are all rows, from which the disaggregated ones are taken. `rival` is AIConfigurator's
    prediction, which takes minutes to make, and why it lacks rows.
    """
    methods = {"in sample": predict(data, data.model.recalibrated(constants))}
    unseen = {}
    for fold in FOLDS:
        groups = getattr(data, fold)
        tell(f"fitting without each {fold} in turn")
        unseen[fold] = held_out(data, groups, constants)
        methods[fold] = predict_held_out(data, groups, unseen[fold], constants)
    methods["bound"] = predict(data, data.bound)
    methods["textbook"] = predict(data, _textbook(data, constants))
    if rival is not None:
        methods["aiconfigurator"] = rival[0]
    tell("predicting with a few measured rows per deployment")
    families = {
        name: data.model.recalibrated(constants_of(values, constants))
        for name, values in unseen["family"].items()
    }
    user, before = with_user_rows(data, families)
    tell("predicting published results")
    public = summarise(predict_cases(constants))
    reasons = rival[1] if rival is not None else {}
    workers = predict_decode_workers(sample, constants)
    return Study(data, screening, constants, methods, user, before, workers, public, reasons)


def refit(
    data: Silicon, base: Constants, tell: Tell = lambda _: None
) -> tuple[Constants, list[float]]:
    """Constants fitted on all rows, with the bands of held-out errors, and the standard errors of
    the fitted values in the order of `PARAMETERS`.
    """
    tell("fitting all rows")
    fitted = constants_of(fit(data, np.arange(len(data)), base), base)
    tell("fitting without each model family in turn")
    unseen = predict_held_out(data, data.family, held_out(data, data.family, base), base)
    tell(f"bootstrap of {RESAMPLES} resamples of deployments")
    errors = standard_errors(data, base, RESAMPLES, SEED)
    tell("predicting published results on other accelerators")
    bands = {**bands_of(data, unseen), OTHER_ACCELERATORS: band_elsewhere(fitted)}
    return replace(fitted, rows=len(data), bands=bands), errors


def bands_of(data: Silicon, unseen: Prediction) -> Mapping[str, Band]:
    """For each kind of model the factors on a prediction between which 80 % of the measurements
    lie that the constants had not seen.
    """
    found = {}
    for kind in np.unique(data.kind):
        rows = data.kind == kind
        found[str(kind)] = Band(
            tpot=_quantiles(data.tpot_s[rows] / unseen.tpot_s[rows]),
            ttft=_quantiles(data.ttft_s[rows] / unseen.ttft_s[rows]),
            rows=int(rows.sum()),
        )
    return found


def band_elsewhere(constants: Constants) -> Band:
    """The same for accelerators of which no row was fitted, from published results on them.
    Throughput counts as the time that it stands for. `OLD_ENGINES` are left out.
    """
    chips = {case.point_id: case.accelerator for case in load_cases()}
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for each in predict_cases(constants):
        fitted = chips[each.point_id] in constants.accelerators
        if not (fitted or each.left_out or each.group in OLD_ENGINES):
            ratio = each.measured / each.predicted
            first_token = each.metric == "ttft"
            ratios[first_token].append(1 / ratio if each.metric in RATES else ratio)
    rows = len(ratios[True]) + len(ratios[False])
    return Band(_quantiles(np.array(ratios[False])), _quantiles(np.array(ratios[True])), rows)


def _quantiles(ratios: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(ratios, BAND_QUANTILES)
    return float(low), float(high)


def predict(data: Silicon, model: StepModel, rows: Rows | None = None) -> Prediction:
    """What a model says of `rows` (default: all)."""
    served = data.serve(model, rows)
    gpus = data.gpus if rows is None else data.gpus[rows]
    return Prediction(served.tpot_s, served.ttft_s, served.output_tokens_per_s / gpus)


def predict_held_out(
    data: Silicon,
    groups: NDArray[np.str_],
    fitted: Mapping[str, list[float]],
    base: Constants,
) -> Prediction:
    """Every row by the constants that were fitted without its group."""
    tpot, ttft, throughput = (np.full(len(data), np.nan) for _ in range(3))
    for name, values in fitted.items():
        rows = np.flatnonzero(groups == name)
        part = predict(data, data.model.recalibrated(constants_of(values, base)), rows)
        tpot[rows], ttft[rows], throughput[rows] = (
            part.tpot_s,
            part.ttft_s,
            part.throughput_per_gpu,
        )
    return Prediction(tpot, ttft, throughput)


def _textbook(data: Silicon, constants: Constants) -> StepModel:
    """Half of the FLOPs, four fifths of the bandwidth, and nothing else."""
    plain = replace(
        constants,
        compute_efficiency_fraction=TEXTBOOK_COMPUTE,
        weight_bandwidth_fraction=TEXTBOOK_BANDWIDTH,
        kv_bandwidth_fraction=TEXTBOOK_BANDWIDTH,
        attention_compute_fraction=TEXTBOOK_COMPUTE,
        layer_overhead_s=0.0,
        fp8_expert_layer_overhead_s=0.0,
        mixer_extra_overhead_s=0.0,
        sequence_layer_overhead_s=0.0,
        ttft_decode_steps=0.0,
        ttft_token_s=0.0,
        ttft_burst_fraction=0.0,
        ttft_burst_in_step_fraction=0.0,
        tile_rows=0.0,
        engines={},
    )
    return data.model.recalibrated(plain)


def with_user_rows(
    data: Silicon,
    models: Mapping[str, StepModel],
    rows: int = USER_ROWS,
    repeats: int = USER_REPEATS,
    seed: int = SEED,
) -> tuple[Errors, Errors]:
    """TPOT errors once `rows` random rows of a deployment are measured, judged on its other rows,
    and the errors of the same rows before; `repeats` draws over all deployments that have more.

    `models` has for each model family the model that predicts it, with constants that saw none of
    it: only the correction has seen a row of the deployment.
    """
    predicted_s, step_s, single_s = (np.empty(len(data)) for _ in range(3))
    for family, model in models.items():
        mine = np.flatnonzero(data.family == family)
        served = data.serve(model, mine)
        predicted_s[mine], step_s[mine] = served.tpot_s, served.decode_step_s
        single_s[mine] = model.decode_step_s(data.place[mine], 1.0, data.input_tokens[mine])
    bound_s = data.serve(data.bound).decode_step_s
    generator = np.random.default_rng(seed)
    after: list[float] = []
    before: list[float] = []
    for name in np.unique(data.deployment):
        members = np.flatnonzero(data.deployment == name)
        if members.size <= rows:
            continue
        for _ in range(repeats):
            order = generator.permutation(members)
            seen, rest = order[:rows], order[rows:]
            terms = StepTerms(
                measured_s=data.tpot_s[seen],
                predicted_s=predicted_s[seen],
                # What a prefill chunk adds has no overhead of its own: one per step and token.
                steps=np.ones(rows),
                single_step_s=float(single_s[members].min()),
                limit_step_s=step_s[seen],
                limit_bound_s=bound_s[seen],
            )
            factor, overhead_s, _ = solve_steps(terms)
            corrected = factor * predicted_s[rest] + overhead_s
            after += np.abs(corrected / data.tpot_s[rest] - 1).tolist()
            before += np.abs(predicted_s[rest] / data.tpot_s[rest] - 1).tolist()
    return _errors(np.array(after)), _errors(np.array(before))
