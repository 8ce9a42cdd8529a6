"""The step-time backend that an instance asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from planner import catalog
from planner.errors import InputError, Problem
from planner.perf.backend import RooflineBackend, StepTimeBackend, find_backend
from planner.perf.config import Layout, PoolConfig, Speculative, config_problem
from planner.perf.constants import Constants, load_constants
from planner.perf.corrections import Correction, corrections_of
from planner.perf.engines import engine_profile
from planner.perf.limits import least_overhead_s, least_prefill_factor, least_step_factor
from planner.schema.calibration import CalibrationFile, MeasuredDeployment, read_calibration
from planner.schema.instance import Instance
from planner.schema.messages import Places
from planner.schema.yaml_positions import FieldPath

MILLI: Final = 1e-3


def instance_backend(instance: Instance) -> StepTimeBackend:
    """The backend that `perf` names; the roofline with the corrections of `calibration` files.

    Raises InputError, at the field, for an unknown backend, one whose package is missing, a
    calibration file that cannot be used, one beside another backend than the roofline, and a
    correction with which a step would be faster than its physical bound.
    """
    source, names = instance.source, instance.calibration
    if names is None:
        try:
            return find_backend(instance.perf)
        except InputError as error:
            told = [source.problem(("perf",), each.message, each.hint) for each in error.problems]
            raise InputError(told) from error
    if instance.perf != RooflineBackend.name:
        message = f"corrects the roofline, and step times come from {instance.perf}"
        hint = f"leave one of the two out, or set perf: {RooflineBackend.name}"
        raise InputError([source.problem(("calibration",), message, hint)])
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            message = f"{name} is named twice"
            raise InputError([source.problem(("calibration", index), message, "keep one of them")])
    read: list[tuple[str, CalibrationFile]] = []
    problems: list[Problem] = []
    constants = load_constants()
    for index, name in enumerate(names):
        at: FieldPath = ("calibration", index)
        if at not in source.positions:
            at = ("calibration",)  # written as one name, without a list
        try:
            calibration, places = read_calibration(source.directory / name)
        except InputError as error:
            raise InputError(
                [
                    each
                    if each.line is not None
                    else source.problem(at, f"{each.file or name}: {each.message}", each.hint)
                    for each in error.problems
                ]
            ) from error
        read.append((name, calibration))
        problems += _too_fast(instance, calibration, places, constants)
    try:
        corrections = corrections_of(read, constants)
    except InputError as error:
        told = [replace(each, file=str(source.directory / each.file)) for each in error.problems]
        raise InputError(told) from error
    if problems:
        raise InputError(problems)
    return RooflineBackend(constants, corrections)


def _too_fast(
    instance: Instance, calibration: CalibrationFile, places: Places, constants: Constants
) -> Iterator[Problem]:
    """Corrections of the instance's models that make a step or a prompt faster than its bound."""
    hint = "run `planner calibrate` again with its results"
    for index, each in enumerate(calibration.deployments):
        config = _measured(instance, each)
        if config is None:
            continue
        fitted, at = each.fitted, ("deployments", index, "fitted")
        overhead_s = fitted.step_overhead_ms * MILLI
        what = f"{config.layout.label} of {config.model.id} on {config.accelerator.name}"
        least = least_step_factor(config, overhead_s, constants)
        if fitted.step_time_factor < least:
            culprit, right = "step_time_factor", f"at least {least:.3g}"
            if fitted.step_time_factor >= least_step_factor(config, 0.0, constants):
                least_s = least_overhead_s(config, fitted.step_time_factor, constants)
                culprit, right = "step_overhead_ms", f"at least {least_s / MILLI:.3g}"
            value = getattr(fitted, culprit)
            message = f"is {value:g}: a step of {what} would be faster than the hardware allows"
            yield places.problem((*at, culprit), message, f"{right}, or {hint}")
            continue
        correction = Correction(fitted.step_time_factor, overhead_s)
        # The fit moves this factor by points with a TTFT alone; without any it leaves 1.
        prompts = [point for point in each.points if point.ttft_ms is not None]
        if not prompts and fitted.prefill_time_factor >= 1:
            continue
        prompts = prompts or [*each.points]
        least = least_prefill_factor(
            config,
            correction,
            [point.input_tokens for point in prompts],
            [point.cached_input_fraction for point in prompts],
            each.chunk_tokens,
            constants,
        )
        if fitted.prefill_time_factor < least:
            message = (
                f"is {fitted.prefill_time_factor:g}: a prompt on {what} would be faster than the "
                "hardware allows"
            )
            right = f"at least {least:.3g}, or {hint}"
            yield places.problem((*at, "prefill_time_factor"), message, right)


def _measured(instance: Instance, each: MeasuredDeployment) -> PoolConfig | None:
    """The configuration that an entry corrects; None where this instance can have no such one."""
    card = instance.cards.get(each.model)
    if card is None:
        return None
    try:
        chip = catalog.find_accelerator(each.accelerator)
    except InputError:
        return None
    speculative = None
    if each.draft_tokens:
        draft = instance.served_model(each.model).speculative
        if draft is None or draft.draft_tokens != each.draft_tokens:
            return None
        billions = draft.draft_parameters_billion
        parameters = card.mtp_parameters if billions is None else billions * 1e9
        speculative = Speculative(draft.draft_tokens, draft.accepted_tokens_per_step, parameters)
    config = PoolConfig(
        model=card,
        accelerator=chip,
        layout=Layout(
            each.tensor_parallel,
            each.pipeline_parallel,
            each.attention_data_parallel,
            each.expert_parallel,
        ),
        weight_precision=each.weight_precision,
        kv_precision=each.kv_precision,
        engine=engine_profile(each.engine),
        speculative=speculative,
    )
    return None if config_problem(config) else config
