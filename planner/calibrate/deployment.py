"""Which deployment was measured: what the result files record and what the user states, as one.

What a file records must agree with what is stated, and files with each other. What nobody says
is asked for: a correction under a guessed layout would be worse than none. Only degrees of
parallelism beside a known number of ranks default to 1, as the engines have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from planner import catalog
from planner.calibrate.measurement import Measurement
from planner.catalog.cards import ModelCard
from planner.errors import InputError, Problem
from planner.perf.config import Layout, PoolConfig, Speculative, config_problem
from planner.perf.engines import engine_profile
from planner.schema.suggest import hint_for_word

T = TypeVar("T")

OPTIONS: Final = {
    "model": "--model",
    "accelerator": "--gpu",
    "engine": "--engine",
    "weight_precision": "--weights",
    "kv_precision": "--kv-cache",
    "tensor_parallel": "--tensor-parallel",
    "pipeline_parallel": "--pipeline-parallel",
    "attention_data_parallel": "--attention-data-parallel",
    "expert_parallel": "--expert-parallel",
    "gpus": "--gpus",
    "draft_tokens": "--draft-tokens",
    "accepted_tokens_per_step": "--accepted-tokens-per-step",
    "draft_parameters_billion": "--draft-parameters-billion",
}
"""The option that states each field."""

WEIGHT_WORDS: Final = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "bf16",
    "float16": "bf16",
    "half": "bf16",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
    "w8a8_fp8": "fp8",
    "modelopt": "fp8",
    "int8": "int8",
    "w8a8_int8": "int8",
    "int4": "int4",
    "w4a16": "int4",
    "awq": "int4",
    "awq_marlin": "int4",
    "gptq": "int4",
    "gptq_marlin": "int4",
    "fp4": "fp4",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
    "modelopt_fp4": "fp4",
}
"""How tools write weight precisions. Methods that do not tell the precision are left out."""
KV_WORDS: Final = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "bf16",
    "float16": "bf16",
    "half": "bf16",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
}
NO_SPECULATION: Final = frozenset({"none", "off", "false", "no", "disabled"})


@dataclass(frozen=True, slots=True)
class Stated:
    """What the user says of the deployment; None where nothing is said."""

    model: str | None = None
    accelerator: str | None = None
    engine: str | None = None
    weight_precision: str | None = None
    kv_precision: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    attention_data_parallel: int | None = None
    expert_parallel: int | None = None
    gpus: int | None = None
    draft_tokens: int | None = None
    accepted_tokens_per_step: float | None = None
    draft_parameters_billion: float | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """A value, and who says it: an option, or a place in a file."""

    value: object
    by: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The configuration that was measured, and what was passed over to tell it."""

    config: PoolConfig
    notes: tuple[str, ...]


def measured_config(stated: Stated, measurements: Sequence[Measurement]) -> Measured:
    """The configuration that was measured.

    Raises InputError where two sources differ (naming both), for every field that is missing
    (naming its option), and for a configuration that cannot exist.
    """
    reader = _Reader(stated, measurements)
    return Measured(reader.config(), tuple(reader.notes))


class _Reader:
    def __init__(self, stated: Stated, measurements: Sequence[Measurement]) -> None:
        self.stated = stated
        self.measurements = measurements
        self.problems: list[Problem] = []
        self.missing: list[str] = []
        self.notes: list[str] = []

    def config(self) -> PoolConfig:
        """The configuration, or every reason why there is none."""
        model = self._named("model", find_card)
        chip = self._named("accelerator", catalog.find_accelerator)
        engine = self._named("engine", engine_profile)
        weights = self._precision("weight_precision", WEIGHT_WORDS, model)
        cache = self._precision("kv_precision", KV_WORDS, None)
        layout = self._layout(model)
        speculative = self._speculative(model)
        if self.missing:
            options = ", ".join(OPTIONS[name] for name in self.missing)
            words = ", ".join(name.replace("_", " ") for name in self.missing)
            message = f"the results do not record the {words}"
            self.problems.append(Problem(message, f"give {options}"))
        if self.problems or not (model and chip and engine and layout and weights and cache):
            raise InputError(self.problems)
        config = PoolConfig(model, chip, layout, weights, cache, engine, speculative)
        problem = config_problem(config)
        if problem is not None:
            hint = "check the GPU, the layout and the precisions"
            raise InputError([Problem(f"this deployment cannot exist: {problem}", hint)])
        return config

    # ---- one field ----------------------------------------------------------------------------

    def _said(self, name: str) -> list[Said]:
        """Every statement of a field: the option first, then the files."""
        said = []
        value = getattr(self.stated, name)
        if value is not None:
            said.append(Said(value, OPTIONS[name]))
        for each in self.measurements:
            recorded = getattr(each.recorded, name, None)
            if recorded is not None:
                said.append(Said(recorded, each.where))
        return said

    def _agreed(self, name: str, values: Iterable[tuple[T, Said]]) -> T | None:
        """The one value that all say; None, with a problem, where they differ."""
        first: tuple[T, Said] | None = None
        for value, said in values:
            if first is None:
                first = (value, said)
            elif value != first[0]:
                message = (
                    f"{name.replace('_', ' ')}: {first[1].by} says {first[1].value}, {said.by} "
                    f"says {said.value}"
                )
                hint = "results of one deployment at a time; correct the one that is wrong"
                self.problems.append(Problem(message, hint))
                return None
        return None if first is None else first[0]

    def _named(self, name: str, find: Callable[[str], T]) -> T | None:
        """A field that is looked up. A name in a file that is not known (a served name, a path)
        says nothing where the option does, and that is noted. Without the option it may stand
        beside no other name: the two could be two deployments.
        """
        option = OPTIONS[name]
        values: list[tuple[T, Said]] = []
        unknown: list[tuple[Said, InputError]] = []
        for said in self._said(name):
            try:
                values.append((find(str(said.value)), said))
            except InputError as error:
                if said.by == option:
                    self.problems += error.problems
                    return None
                unknown.append((said, error))
        if unknown and getattr(self.stated, name) is not None:
            first = {str(said.value): said for said, _ in reversed(unknown)}
            self.notes += [
                f"{said.by} says {name} {value}, which is not known; {option} is believed."
                for value, said in reversed(first.items())
            ]
        elif unknown:
            self._unknown(name, values, unknown)
            return None
        if not values:
            self.missing.append(name)
            return None
        return self._agreed(name, values)

    def _unknown(
        self, name: str, values: list[tuple[T, Said]], unknown: list[tuple[Said, InputError]]
    ) -> None:
        """The problem of a name that is not known, beside one that differs where there is one."""
        said, error = unknown[0]
        plain = str(said.value).strip().lower()
        others = [each for _, each in values] + [
            each for each, _ in unknown if str(each.value).strip().lower() != plain
        ]
        if others:
            one, other = (others[0], said) if values else (said, others[0])
            message = (
                f"{name}: {one.by} says {one.value}, {other.by} says {other.value}, and "
                f"{said.value} is not known"
            )
            hint = f"if they are the same, give {OPTIONS[name]}; else one deployment at a time"
            self.problems.append(Problem(message, hint))
        else:
            hint = f"give {OPTIONS[name]}"
            found = [Problem(f"{said.by}: {each.message}", hint) for each in error.problems]
            self.problems += found[:1]

    def _precision(self, name: str, words: dict[str, str], model: ModelCard | None) -> str | None:
        known = tuple(dict.fromkeys(words.values()))
        values: list[tuple[str, Said]] = []
        for said in self._said(name):
            word = words.get(str(said.value).strip().lower().replace("-", "_"))
            if word is not None:
                values.append((word, said))
            elif said.by == OPTIONS[name]:
                message = f"{OPTIONS[name]}: unknown precision '{said.value}'"
                self.problems.append(Problem(message, hint_for_word(str(said.value), known)))
                return None
        if not values:
            if model is not None and len(model.weight_precisions) == 1 and words is WEIGHT_WORDS:
                return model.native_precision
            self.missing.append(name)
            return None
        return self._agreed(name, values)

    def _number(self, name: str) -> int | None:
        return self._agreed(name, [(int(str(said.value)), said) for said in self._said(name)])

    # ---- layout and speculation ---------------------------------------------------------------

    def _layout(self, model: ModelCard | None) -> Layout | None:
        before = len(self.problems)
        tensor = self._number("tensor_parallel")
        stages = self._number("pipeline_parallel")
        groups = self._number("attention_data_parallel")
        experts = self._number("expert_parallel")
        gpus = self._number("gpus")
        if len(self.problems) > before:
            return None
        if tensor is None and gpus is not None:
            rest = (stages or 1) * (groups or 1)
            # A dense model has one way to use its GPUs; experts can be spread in several.
            single = gpus == 1 or (model is not None and model.moe_layers == 0)
            if (single or (groups is not None and experts is not None)) and gpus % rest == 0:
                tensor = gpus // rest
        if tensor is None:
            self.missing.append("tensor_parallel")
            return None
        layout = Layout(tensor, stages or 1, groups or 1, experts or 1)
        if gpus is not None and gpus != layout.gpus:
            by = self._said("gpus")[0].by
            unit = "GPU" if layout.gpus == 1 else "GPUs"
            message = f"{layout.label} is a replica of {layout.gpus} {unit}, and {by} says {gpus}"
            degrees = ("tensor", "pipeline", "attention_data", "expert")
            listed = ", ".join(OPTIONS[f"{degree}_parallel"] for degree in degrees)
            hint = f"state every degree of parallelism of one replica: {listed}"
            self.problems.append(Problem(message, hint))
            return None
        return layout

    def _speculative(self, model: ModelCard | None) -> Speculative | None:
        stated = self.stated
        methods = [
            each.recorded.speculative
            for each in self.measurements
            if each.recorded.speculative is not None
        ]
        used = [method for method in methods if method.strip().lower() not in NO_SPECULATION]
        accepted = [
            each.accepted_tokens_per_step
            for each in self.measurements
            if each.accepted_tokens_per_step is not None and each.accepted_tokens_per_step > 1
        ]
        if stated.draft_tokens is None:
            stray = stated.accepted_tokens_per_step, stated.draft_parameters_billion
            if used or accepted or stray != (None, None):
                self.missing.append("draft_tokens")
            return None
        if methods and not used:
            where = next(each for each in self.measurements if each.recorded.speculative)
            message = (
                f"--draft-tokens says {stated.draft_tokens}, {where.where} says "
                "that nothing was drafted"
            )
            self.problems.append(Problem(message, "correct the one that is wrong"))
            return None
        yields = stated.accepted_tokens_per_step
        if yields is None and accepted:
            yields = sum(accepted) / len(accepted)
        billions = stated.draft_parameters_billion
        if yields is None:
            self.missing.append("accepted_tokens_per_step")
        if billions is None and (model is None or model.mtp_layers == 0):
            self.missing.append("draft_parameters_billion")
        if model is None or yields is None or self.missing:
            return None
        size = model.mtp_parameters if billions is None else billions * 1e9
        return Speculative(stated.draft_tokens, yields, size)


def find_card(name: str) -> ModelCard:
    """A model of the catalogue, or the card in a YAML file. Raises InputError."""
    if name.endswith((".yaml", ".yml")):
        from planner.catalog.card_file import load_card

        return load_card(name)
    return catalog.find_model(name)
