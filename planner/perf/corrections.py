"""What a user's own measurements change: a correction of one deployment's step times.

A correction belongs to a deployment as it was measured: model, accelerator, engine, precisions,
layout, speculation. Another layout of the same model keeps the global constants, because what
made the measured one differ (a kernel, a setting, a driver) need not be there. A corrected step
takes

    t' = f (g(T) + B r(ctx) + draft) + d

with a factor f and d seconds a step, so it stays monotone and its split stays exact. Prompts
take f and a factor of their own. `planner.calibrate` fits them and sees to it that the result
is never below the physical bound; here they are only looked up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from planner.errors import InputError, Problem

if TYPE_CHECKING:
    from planner.perf.config import PoolConfig
    from planner.perf.constants import Constants
    from planner.schema.calibration import CalibrationFile, MeasuredDeployment


@dataclass(frozen=True, slots=True)
class Deployment:
    """What was measured, by canonical names: everything that decides how long a step takes."""

    model: str
    accelerator: str
    engine: str
    weight_precision: str
    kv_precision: str
    tensor_parallel: int
    pipeline_parallel: int = 1
    attention_data_parallel: int = 1
    expert_parallel: int = 1
    draft_tokens: int = 0

    @classmethod
    def of(cls, config: PoolConfig) -> Deployment:
        """The deployment that a configuration is. Engine settings that only decide how much is
        admitted (memory share, chunk budget) are no part of it.
        """
        layout = config.layout
        return cls(
            model=config.model.id,
            accelerator=config.accelerator.id,
            engine=config.engine.name,
            weight_precision=config.weight_precision,
            kv_precision=config.kv_precision,
            tensor_parallel=layout.tensor_parallel,
            pipeline_parallel=layout.pipeline_parallel,
            attention_data_parallel=layout.attention_data_parallel,
            expert_parallel=layout.expert_parallel,
            draft_tokens=config.speculative.draft_tokens if config.speculative else 0,
        )


@dataclass(frozen=True, slots=True)
class Correction:
    """What measurements of one deployment say of its step times.

    `step_time_factor` is on every step, `step_overhead_s` is added to every step after it, and
    `prefill_time_factor` is on the prefill of a prompt besides both. `band` holds factors on a
    predicted TPOT between which 80 % of measurements are expected, `ttft_band` the same for TTFT,
    None where no TTFT was measured. `source` says in words what it rests on.
    """

    step_time_factor: float = 1.0
    step_overhead_s: float = 0.0
    prefill_time_factor: float = 1.0
    band: tuple[float, float] = (1.0, 1.0)
    ttft_band: tuple[float, float] | None = None
    source: str = ""


NO_CORRECTION: Final = Correction()


@dataclass(frozen=True, slots=True)
class Corrections:
    """Corrections by deployment; exact matches only."""

    by_deployment: Mapping[Deployment, Correction] = field(
        default_factory=lambda: MappingProxyType({})
    )
    by_file: Mapping[str, frozenset[Deployment]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """What each calibration file corrects, by the name under which it was given."""

    def find(self, config: PoolConfig) -> Correction | None:
        """The correction of exactly this deployment, or None if it was not measured."""
        if not self.by_deployment:
            return None
        return self.by_deployment.get(Deployment.of(config))

    def without_effect(self, configs: Iterable[PoolConfig]) -> tuple[str, ...]:
        """The calibration files that correct none of these configurations."""
        used = {Deployment.of(config) for config in configs}
        return tuple(name for name, corrected in self.by_file.items() if not corrected & used)


NO_CORRECTIONS: Final = Corrections()

_NOT_IN_THE_FIT: Final = frozenset({"source", "rows", "date", "accelerators", "bands"})
"""Fields of the constants that no step time depends on."""


def fingerprint(constants: Constants) -> str:
    """Twelve hexadecimal digits that change with any constant of the step model or of TTFT: a
    correction is of use only beside the constants that it was fitted to.
    """
    values = [
        f"{each.name}={getattr(constants, each.name)!r}"
        for each in fields(constants)
        if each.name not in _NOT_IN_THE_FIT
    ]
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:12]


def corrections_of(
    files: Iterable[tuple[str, CalibrationFile]], constants: Constants
) -> Corrections:
    """The corrections of calibration files, given with their names.

    Raises InputError when one was fitted to other constants, or two correct one deployment.
    """
    expected = fingerprint(constants)
    found: dict[Deployment, Correction] = {}
    first: dict[Deployment, str] = {}
    problems: list[Problem] = []
    by_file: dict[str, frozenset[Deployment]] = {}
    for name, calibration in files:
        by_file[name] = frozenset(deployment_of(each) for each in calibration.deployments)
        for index, each in enumerate(calibration.deployments):
            place = f"deployments[{index}]"
            if each.constants != expected:
                results = ", ".join(file.name for file in each.files)
                message = "was fitted to other constants of the performance model"
                hint = f"run `planner calibrate` again with its results: {results}"
                problems.append(Problem(message, hint, file=name, field=f"{place}.constants"))
                continue
            deployment = deployment_of(each)
            if deployment in first:
                message = f"corrects a deployment that {first[deployment]} corrects too"
                problems.append(Problem(message, "keep one", file=name, field=place))
                continue
            first[deployment] = f"{name}: {place}"
            found[deployment] = _correction(name, each)
    if problems:
        raise InputError(problems)
    return Corrections(MappingProxyType(found), MappingProxyType(by_file))


def deployment_of(each: MeasuredDeployment) -> Deployment:
    """The deployment that an entry of a calibration file is of."""
    return Deployment(**{key: getattr(each, key) for key in Deployment.__slots__})


def _correction(file: str, each: MeasuredDeployment) -> Correction:
    fitted, count = each.fitted, len(each.points)
    ttft = fitted.ttft_band_factors
    return Correction(
        step_time_factor=fitted.step_time_factor,
        step_overhead_s=fitted.step_overhead_ms / 1e3,
        prefill_time_factor=fitted.prefill_time_factor,
        band=(fitted.tpot_band_factors[0], fitted.tpot_band_factors[1]),
        ttft_band=None if ttft is None else (ttft[0], ttft[1]),
        source=(
            f"corrected by {count} measured point{'' if count == 1 else 's'} ({file}, {each.date})"
        ),
    )
