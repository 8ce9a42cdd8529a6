"""Measurements as points of one deployment: which can be used, and what is predicted for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.calibrate.measurement import Measurement
from planner.errors import InputError, Problem
from planner.perf.coefficients import StepModel
from planner.perf.config import PoolConfig
from planner.perf.constants import Constants
from planner.perf.corrections import NO_CORRECTION, Correction
from planner.perf.limits import step_limits
from planner.perf.serving import DEFAULT_BUDGET_TOKENS, ServingPoint, serving_point

Floats = NDArray[np.float64]

MOST_FAILED_FRACTION: Final = 0.1
"""Share of failed requests above which the rest no longer shows the load that was meant."""
OVERHEAD_PROBE_S: Final = 1e-3
"""An overhead small enough to be harmless and large enough to be measured in floating point."""


@dataclass(frozen=True, slots=True)
class Point:
    """One usable measurement of one replica: its load, and what was measured."""

    measurement: Measurement
    concurrency: float
    replicas: int
    cached_fraction: float
    tpot_s: float
    ttft_s: float | None

    @property
    def place(self) -> str:
        """File and place, for messages."""
        return self.measurement.where


def usable_points(
    measurements: Sequence[Measurement], replicas: int | None = None
) -> tuple[list[Point], list[str]]:
    """The points, and for every other measurement why it is none. `replicas` took the load where
    a file does not say how many did.

    Raises InputError, with all reasons, if there is no point at all.
    """
    points: list[Point] = []
    reasons: list[Problem] = []
    for each in measurements:
        reason = unusable(each)
        if reason is None:
            points.append(point_of(each, replicas or 1))
        else:
            reasons.append(Problem(reason, file=each.file, field=each.place))
    if not points:
        raise InputError([*reasons, Problem("no measurement can be used")])
    return points, [str(each) for each in reasons]


def unusable(each: Measurement) -> str | None:
    """Why a measurement cannot be compared with the model, or None."""
    if each.tpot_s is None:
        return "has no TPOT: answers of one token, or latencies that were not recorded"
    if each.concurrency is None:
        return "has no concurrency, and none follows from its rate and latencies"
    if each.disaggregated:
        return "was measured with prefill and decode apart, which have a layout each"
    tried = (each.requests or 0) + (each.failed or 0)
    if each.failed and each.failed > MOST_FAILED_FRACTION * tried:
        return f"{each.failed} of {tried} requests failed, so the load is not what was meant"
    return None


def point_of(each: Measurement, replicas: int = 1) -> Point:
    """A usable measurement as a point; the load of several replicas is shared evenly, of as many
    as the file records or else of `replicas`.
    """
    assert each.tpot_s is not None
    assert each.concurrency is not None
    served_by = each.recorded.replicas or replicas
    return Point(
        measurement=each,
        concurrency=each.concurrency / served_by,
        replicas=served_by,
        cached_fraction=each.cached_fraction or 0.0,
        tpot_s=each.tpot_s,
        ttft_s=each.ttft_s,
    )


class Predictions:
    """What the model says of points of one deployment, at any correction."""

    def __init__(
        self,
        config: PoolConfig,
        points: Sequence[Point],
        constants: Constants | None = None,
        budget_tokens: float = DEFAULT_BUDGET_TOKENS,
    ) -> None:
        self.points = tuple(points)
        self.constants = constants
        self.config = config
        self.budget_tokens = budget_tokens
        self.configs = [self._config(point) for point in points]
        self.each = np.arange(len(self.points))

    def _config(self, point: Point) -> PoolConfig:
        accepted = point.measurement.accepted_tokens_per_step
        guess = self.config.speculative
        if guess is None or accepted is None:
            return self.config
        yields = min(max(accepted, 1.0), guess.draft_tokens + 1.0)
        return replace(self.config, speculative=replace(guess, accepted_tokens_per_step=yields))

    def serving(self, correction: Correction = NO_CORRECTION) -> ServingPoint:
        """Means at every point under a correction, all (N,)."""
        return self._serving(self._model(correction))

    def decode_tpot_s(self, correction: Correction = NO_CORRECTION) -> Floats:
        """Seconds per token (N,) of an engine that decodes only: no prompt delays a step, and
        requests decode while they are not in prefill.
        """
        return self._decode(self._model(correction))

    def bound_step_s(self) -> Floats:
        """Seconds per token (N,) that the hardware takes at least for the sequences that decode:
        of the clients of a closed loop, those whose prompt is through.
        """
        return self._decode(StepModel(self.configs, self.constants, calibrated=False))

    def _decode(self, model: StepModel) -> Floats:
        served = self.serving()
        tpot = np.array([point.tpot_s for point in self.points])
        ttft = np.array(
            [
                float(served.ttft_s[n]) if point.ttft_s is None else point.ttft_s
                for n, point in enumerate(self.points)
            ]
        )
        decoding_s = np.maximum(self._outputs - 1, 1) * tpot
        batch = np.minimum(served.batch, self._clients * decoding_s / (decoding_s + ttft))
        step = model.decode_step_s(self.each, np.maximum(batch, 1.0), served.context_tokens)
        return np.asarray(step / model.accepted_per_step(self.each))

    def bound_prefill_s(self) -> Floats:
        """Seconds (N,) that the hardware takes at least for each point's prompt alone."""
        bound = StepModel(self.configs, self.constants, calibrated=False)
        return np.asarray(self._serving(bound).prefill_s)

    def steps(self) -> Floats:
        """Steps per output token (N,): how often an overhead per step is in a TPOT, which is
        linear in it.
        """
        plain, probed = self.serving(), self.serving(Correction(step_overhead_s=OVERHEAD_PROBE_S))
        return np.asarray((probed.tpot_s - plain.tpot_s) / OVERHEAD_PROBE_S)

    def single_step_s(self) -> float:
        """A decode step of one sequence at the shortest context measured."""
        model = StepModel([self.config], self.constants)
        contexts = [each.measurement.input_tokens for each in self.points]
        return float(model.decode_step_s(0, 1.0, min(contexts)))

    def limits(self) -> tuple[Floats, Floats]:
        """Steps of the deployment at which a correction must keep the bound, as `step_limits`."""
        return step_limits(self.config, self.constants)

    # ---- pieces -------------------------------------------------------------------------------

    def _model(self, correction: Correction) -> StepModel:
        corrections = [correction] * len(self.configs)
        return StepModel(self.configs, self.constants, corrections=corrections)

    @property
    def _clients(self) -> Floats:
        return np.array([point.concurrency for point in self.points])

    @property
    def _outputs(self) -> Floats:
        return np.array([point.measurement.output_tokens for point in self.points])

    def _serving(self, model: StepModel) -> ServingPoint:
        served = serving_point(
            model,
            self.each,
            self._clients,
            np.array([point.measurement.input_tokens for point in self.points]),
            self._outputs,
            self.budget_tokens,
            cached_fraction=np.array([point.cached_fraction for point in self.points]),
        )
        for point, capacity in zip(self.points, served.capacity, strict=True):
            if capacity < 1:
                message = "by the model, not even one such request fits beside the weights"
                hint = "check the GPU, the layout and the precisions"
                place = point.measurement
                raise InputError([Problem(message, hint, file=place.file, field=place.place)])
        return served
