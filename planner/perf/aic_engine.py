"""What is used of the package aiconfigurator-core: loads a setup and compiles its steps.

Nothing here reaches the network: a model whose config the wheel lacks would be fetched by the
package, so it is refused before the package is asked. Loaded setups are kept for the process.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Final, Protocol

from planner.perf.aic_names import Setup

PACKAGE: Final = "aiconfigurator_core"
DISTRIBUTION: Final = "aiconfigurator-core"
VERSION: Final = "current"
"""Its name for the newest complete set of tables of a system and engine."""


class EngineHandle(Protocol):
    """What is used of `aiconfigurator_core.sdk.EngineHandle`: milliseconds of compiled steps.

    Counts are of one attention group and pipeline lane.
    """

    def predict_prefill_latency(self, bs: int, isl: int, prefix: int = 0) -> float:
        """One prefill of `bs` prompts of `isl` tokens, `prefix` of them cached."""
        ...

    def predict_decode_latency(self, bs: int, isl: int, osl: int = 2) -> float:
        """One decode step of `bs` sequences behind `isl` tokens."""
        ...


class NotCoveredError(Exception):
    """The tables do not cover a setup; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A setup as AIConfigurator's objects: model, tables, and the engine's scheduling rules."""

    model: Any
    database: Any
    scheduler: Any


def installed() -> bool:
    """Whether the package is there; imports nothing of it."""
    return find_spec(PACKAGE) is not None


def package_version() -> str:
    """Its version, for provenance."""
    return metadata.version(DISTRIBUTION)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps its warnings off the terminal: they speak of its own command line."""
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def reason_of(error: Exception) -> str:
    """What one of its errors says is missing, short enough for a table: keys and paths cut off."""
    text = " ".join(str(error).removeprefix("perf database error: ").split())
    for mark in (" at /", " {", ";"):
        text = text.split(mark)[0]
    words = text.split(" ")
    if len(words) > 2 and words[-2] == "for" and words[-1].endswith("Key"):
        words = words[:-2]
    return " ".join(words)[:160].rstrip(". ") or type(error).__name__


@cache
def _database(system: str, engine: str) -> Any:
    """Its tables of an engine on a system, or why there are none, in words."""
    tables = import_module(f"{PACKAGE}.sdk.perf_database")
    try:
        found = tables.get_database_view(system, engine, VERSION)
    except Exception as error:  # it raises many kinds, all of them "cannot predict this"
        return reason_of(error)
    return f"no tables of {engine} on {system}" if found is None else found


@cache
def load(setup: Setup) -> Loaded:
    """Model, tables and scheduling rules of a setup. Raises NotCoveredError with the reason."""
    common = import_module(f"{PACKAGE}.sdk.common")
    path = setup.checkpoint.path
    if path not in common.DefaultHFModels:
        raise NotCoveredError(f"the package has no config of {path}")
    models = import_module(f"{PACKAGE}.sdk.models")
    builders = import_module(f"{PACKAGE}.sdk.config_builders")
    factory = import_module(f"{PACKAGE}.sdk.backends.factory")
    with quiet():
        database = _database(setup.system, setup.engine)
        if isinstance(database, str):
            raise NotCoveredError(database)
        try:
            options = builders.build_model_config(
                setup.tensor_parallel,
                setup.pipeline_parallel,
                setup.attention_data_parallel,
                setup.moe_tensor_parallel,
                setup.moe_expert_parallel,
                gemm_quant_mode=setup.checkpoint.gemm,
                kvcache_quant_mode=setup.kv_mode,
                moe_quant_mode=setup.checkpoint.moe,
            )
            builders.apply_nextn(options, 0)
            # As its own estimator does: attention modes that have tables, FP4 on older chips.
            models.resolve_context_fmha_by_data(
                options, path, database, setup.engine, is_context_role=True
            )
            models.resolve_nvfp4_for_system(options, setup.system, path, backend_name=setup.engine)
            model = models.get_model(path, options, setup.engine)
        except Exception as error:  # as above
            raise NotCoveredError(reason_of(error)) from error
    return Loaded(model, database, factory.get_backend(setup.engine))


def handle(setup: Setup) -> EngineHandle:
    """The compiled step estimator of a setup. Raises NotCoveredError with the reason."""
    loaded = load(setup)
    core = import_module(PACKAGE)
    engine = import_module(f"{PACKAGE}.sdk.engine")
    with quiet():
        try:
            spec = engine.build_engine_spec_json(
                loaded.model,
                model_path=setup.checkpoint.path,
                system=setup.system,
                backend=setup.engine,
                backend_version=loaded.database.version,
                kv_block_size=None,
                systems_path=None,
                nextn=0,
                database=loaded.database,
            )
            compiled: EngineHandle = engine.EngineHandle(core.engine_spec_bincode_from_json(spec))
        except Exception as error:  # as above
            raise NotCoveredError(reason_of(error)) from error
    return compiled
