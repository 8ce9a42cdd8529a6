"""The step-time backend that an instance asks for."""

from __future__ import annotations

from dataclasses import replace

from planner.errors import InputError
from planner.perf.backend import RooflineBackend, StepTimeBackend, find_backend
from planner.perf.constants import load_constants
from planner.perf.corrections import corrections_of
from planner.schema.calibration import load_calibration
from planner.schema.instance import Instance
from planner.schema.yaml_positions import FieldPath


def instance_backend(instance: Instance) -> StepTimeBackend:
    """The backend that `perf` names; the roofline with the corrections of `calibration` files.

    Raises InputError, at the field, for an unknown backend, one whose package is missing, a
    calibration file that cannot be used, or one beside another backend than the roofline.
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
    files = []
    for index, name in enumerate(names):
        at: FieldPath = ("calibration", index)
        if at not in source.positions:
            at = ("calibration",)  # written as one name, without a list
        try:
            files.append((name, load_calibration(source.directory / name)))
        except InputError as error:
            raise InputError(
                [
                    each
                    if each.line is not None
                    else source.problem(at, f"{each.file or name}: {each.message}", each.hint)
                    for each in error.problems
                ]
            ) from error
    constants = load_constants()
    try:
        return RooflineBackend(constants, corrections_of(files, constants))
    except InputError as error:
        told = [replace(each, file=str(source.directory / each.file)) for each in error.problems]
        raise InputError(told) from error
