"""The calibration: global constants by robust least squares on measured TPOT and TTFT at once.

Residuals are logarithms of predicted over measured, so an error of a half counts alike at 5 ms and
at 50 ms; a soft L1 loss keeps single bad rows from steering. TTFT scatters about three times as
much as TPOT and weighs a third. What is fitted, and between which limits, is the table
`PARAMETERS`; everything else in the constants file is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.fidelity.silicon import Floats, Silicon
from planner.perf.constants import Constants, EngineConstants

Rows = NDArray[np.int64]

TPOT_SCALE: Final = 0.1
"""Log error from which a row counts by its size and no longer by its square."""
TTFT_SCALE: Final = 0.3
STEP: Final = 1e-4
TOLERANCE: Final = 1e-6
MOST_EVALUATIONS: Final = 60
PULL: Final = 1e-3
"""Weight of the neutral value: decides constants that the rows at hand say nothing about."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One fitted constant: its name in the constants file, its scale there, and its limits.

    `engine` is the serving engine that it belongs to, empty for a global one. `unit` is what one
    of the file's units is in SI.

    A constant that no row asks for stays at its `neutral` value: of an engine nothing, so that an
    engine never measured is one like all others.
    """

    name: str
    start: float
    low: float
    high: float
    unit: float = 1.0
    engine: str = ""

    @property
    def neutral(self) -> float:
        """Where it is drawn to: where it starts, or to nothing for what belongs to an engine."""
        return 0.0 if self.engine else self.start

    @property
    def field(self) -> str:
        """Name of the attribute of `Constants` or `EngineConstants`."""
        for suffix in ("_us", "_ms"):
            if self.name.endswith(suffix):
                return self.name.removesuffix(suffix) + "_s"
        return self.name

    @property
    def label(self) -> str:
        """Name in tables: `vllm.layer_overhead_us`."""
        return f"{self.engine}.{self.name}" if self.engine else self.name


_US: Final = 1e-6

STEP_PARAMETERS: Final = (
    Parameter("compute_efficiency_fraction", 0.7, 0.2, 1.0),
    Parameter("kv_bandwidth_fraction", 0.8, 0.2, 1.0),
    Parameter("layer_overhead_us", 50.0, 0.0, 300.0, _US),
    Parameter("fp8_expert_layer_overhead_us", 30.0, 0.0, 300.0, _US),
    Parameter("mixer_extra_overhead_us", 40.0, 0.0, 300.0, _US),
    Parameter("sequence_layer_overhead_us", 0.4, 0.0, 5.0, _US),
    Parameter("layer_overhead_us", 15.0, 0.0, 300.0, _US, engine="vllm"),
)
"""What a step time depends on: six global constants and one of an engine."""

TTFT_PARAMETERS: Final = (
    Parameter("ttft_decode_steps", 3.0, 0.0, 20.0),
    Parameter("ttft_token_us", 10.0, 0.0, 100.0, _US),
    Parameter("ttft_burst_fraction", 0.1, 0.0, 1.0),
    Parameter("ttft_burst_in_step_fraction", 0.5, 0.0, 1.0),
    Parameter("ttft_launch_us", 500.0, 0.0, 5000.0, _US, engine="sglang"),
    Parameter("ttft_launch_us", 500.0, 0.0, 5000.0, _US, engine="tensorrt-llm"),
)
"""What only the first token depends on."""

PARAMETERS: Final = STEP_PARAMETERS + TTFT_PARAMETERS


def constants_of(values: Sequence[float], base: Constants) -> Constants:
    """`base` with the fitted constants replaced by `values`, in the file's units and the order of
    `PARAMETERS`.
    """
    fields: dict[str, float] = {}
    engines: dict[str, dict[str, float]] = {}
    for parameter, value in zip(PARAMETERS, values, strict=True):
        into = engines.setdefault(parameter.engine, {}) if parameter.engine else fields
        into[parameter.field] = float(value) * parameter.unit
    fitted = {name: EngineConstants(**given) for name, given in engines.items()}
    return replace(base, engines=MappingProxyType(fitted), **fields)  # type: ignore[arg-type]


def values_of(constants: Constants) -> list[float]:
    """The fitted constants in the file's units and the order of `PARAMETERS`."""
    found = []
    for parameter in PARAMETERS:
        owner = constants.engine(parameter.engine) if parameter.engine else constants
        found.append(getattr(owner, parameter.field) / parameter.unit)
    return found


def residuals(data: Silicon, rows: Rows, constants: Constants) -> Floats:
    """Log errors of TPOT and of TTFT of `rows`, the latter scaled to count like the former; zero
    where no TTFT was measured. Shape (2 N,).
    """
    served = data.serve(data.model.recalibrated(constants), rows)
    tpot = np.log(served.tpot_s / data.tpot_s[rows])
    ttft = np.log(served.ttft_s / data.ttft_s[rows]) * (TPOT_SCALE / TTFT_SCALE)
    return np.concatenate([tpot, np.where(np.isfinite(ttft), ttft, 0.0)])


def fit(data: Silicon, rows: Rows, base: Constants) -> list[float]:
    """The constants that fit `rows` (positions in `data`) best, in the order of `PARAMETERS`.

    No other row is looked at, and every fit begins at the same round numbers.
    """
    from scipy.optimize import least_squares

    first = np.array([parameter.start for parameter in PARAMETERS])
    neutral = np.array([parameter.neutral for parameter in PARAMETERS]) / first
    low = np.array([parameter.low for parameter in PARAMETERS]) / first
    high = np.array([parameter.high for parameter in PARAMETERS]) / first
    inside = 1e-9 * (high - low)

    def errors(scaled: Floats) -> Floats:
        value = residuals(data, rows, constants_of(scaled * first, base))
        return np.concatenate([value, PULL * (scaled - neutral)])

    found = least_squares(
        errors,
        np.clip(np.ones_like(first), low + inside, high - inside),
        bounds=(low, high),
        loss="soft_l1",
        f_scale=TPOT_SCALE,
        diff_step=np.full_like(first, STEP),
        ftol=TOLERANCE,
        xtol=TOLERANCE,
        max_nfev=MOST_EVALUATIONS,
    )
    return [float(value) for value in found.x * first]


def held_out(data: Silicon, groups: NDArray[np.str_], base: Constants) -> Mapping[str, list[float]]:
    """For each distinct value of `groups` (N,) the constants fitted on all rows that lack it."""
    return {
        str(name): fit(data, np.flatnonzero(groups != name), base) for name in np.unique(groups)
    }


def standard_errors(data: Silicon, base: Constants, resamples: int, seed: int) -> list[float]:
    """Bootstrap over deployments: they, not rows, are what is independent. Same order and units
    as `fit`.
    """
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(data.deployment == name) for name in np.unique(data.deployment)]
    found = []
    for _ in range(resamples):
        drawn = generator.integers(len(members), size=len(members))
        rows = np.concatenate([members[n] for n in drawn])
        found.append(fit(data, rows, base))
    return [float(value) for value in np.std(found, axis=0, ddof=1)]
