"""The only file that knows a solver: Pyomo model -> sparse arrays -> HiGHS, or another solver.

HiGHS runs embedded through highspy: the model is compiled once by Pyomo's standard-form
compiler and handed over as arrays, several times faster than any of Pyomo's plugins and with
warm starts, proven bounds and interruption. Any other MIP solver goes through Pyomo's factory.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import highspy
import numpy as np
import pyomo.environ as pyo
from numpy.typing import NDArray
from pyomo.common.errors import InfeasibleConstraintException
from pyomo.common.gc_manager import PauseGC
from pyomo.repn.plugins.standard_form import LinearStandardFormCompiler

from planner.errors import SolverError, SolverUnavailableError

Floats = NDArray[np.float64]

EMBEDDED: Final = "highs"
KNOWN_SOLVERS: Final = ("cbc", "glpk", "scip", "gurobi", "cplex", "xpress", "copt")
"""Names tried when a message lists what is there."""

_STATUS: Final = {
    highspy.HighsModelStatus.kOptimal: "optimal",
    highspy.HighsModelStatus.kInfeasible: "infeasible",
    highspy.HighsModelStatus.kUnboundedOrInfeasible: "infeasible",
    highspy.HighsModelStatus.kTimeLimit: "time_limit",
    highspy.HighsModelStatus.kSolutionLimit: "time_limit",
    highspy.HighsModelStatus.kInterrupt: "interrupted",
}


@dataclass(frozen=True, slots=True)
class SolveSettings:
    """How hard to try. `gap_fraction` is relative; the time limit is wall-clock seconds."""

    solver: str = EMBEDDED
    gap_fraction: float = 1e-3
    time_limit_s: float | None = None
    threads: int = 1
    seed: int = 0
    progress: Callable[[Progress], None] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the solver's log: seconds, best plan so far, proven bound (USD/hour)."""

    elapsed_s: float
    incumbent: float
    bound: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a solve ended with. `status` is optimal (within the gap asked), infeasible,
    time_limit or interrupted; `bound` is proven; the values sit in the Pyomo variables.
    """

    status: str
    has_incumbent: bool
    objective: float
    bound: float
    nodes: int
    elapsed_s: float
    solver: str

    @property
    def gap_fraction(self) -> float:
        """(objective - bound) / objective, infinite without an incumbent."""
        if not self.has_incumbent or not math.isfinite(self.bound):
            return math.inf
        return max(self.objective - self.bound, 0.0) / max(abs(self.objective), 1e-10)


class Program:
    """A Pyomo model compiled for HiGHS."""

    def __init__(self, model: pyo.ConcreteModel) -> None:
        with PauseGC():
            form = LinearStandardFormCompiler().write(model, mixed_form=True, set_sense=None)
        self.variables = form.columns
        self.rows = form.rows
        count = len(form.columns)
        kinds = np.fromiter((row.bound_type for row in form.rows), np.int8, len(form.rows))
        right = np.asarray(form.rhs, dtype=float)
        infinity = highspy.kHighsInf
        bounds = [variable.bounds for variable in form.columns]
        self.integer = np.array([not variable.is_continuous() for variable in form.columns])
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = count, len(form.rows)
        lp.col_cost_ = form.c.toarray().ravel()
        lp.offset_ = float(form.c_offset[0])
        lp.col_lower_ = np.array([-infinity if low is None else low for low, _ in bounds])
        lp.col_upper_ = np.array([infinity if high is None else high for _, high in bounds])
        lp.row_lower_ = np.where(kinds == 1, -infinity, right)
        lp.row_upper_ = np.where(kinds == -1, infinity, right)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = form.A.indptr
        lp.a_matrix_.index_ = form.A.indices
        lp.a_matrix_.value_ = form.A.data
        self._lp = lp

    def relax(self) -> tuple[Outcome, dict[int, float]]:
        """The linear relaxation: its outcome and the dual of each row, by id of the constraint."""
        highs = self._highs(integer=False)
        started = time.monotonic()
        self._run(highs)
        status = _STATUS.get(highs.getModelStatus(), "failed")
        if status == "failed":
            raise SolverError(f"HiGHS stopped with {highs.getModelStatus().name}")
        objective = highs.getInfo().objective_function_value
        duals: dict[int, float] = {}
        if status == "optimal":
            values = np.asarray(highs.getSolution().row_dual)
            for row, value in zip(self.rows, values.tolist(), strict=True):
                duals[id(row.constraint)] = duals.get(id(row.constraint), 0.0) + value
        solved = status == "optimal"
        bound = objective if solved else -math.inf
        elapsed = time.monotonic() - started
        return Outcome(status, solved, objective, bound, 0, elapsed, EMBEDDED), duals

    def solve(self, settings: SolveSettings, start: bool = False) -> Outcome:
        """Solve the mixed-integer program and leave the best values in the variables.

        `start` begins from the variables' present values. Ctrl-C stops the search and keeps
        the best plan found.
        """
        highs = self._highs(integer=bool(self.integer.any()))
        options: dict[str, Any] = {
            "threads": settings.threads,
            "random_seed": settings.seed,
            "mip_rel_gap": settings.gap_fraction,
            "mip_abs_gap": 1e-9,
            "mip_feasibility_tolerance": 1e-7,
            "primal_feasibility_tolerance": 1e-8,
        }
        if settings.time_limit_s is not None:
            options["time_limit"] = max(float(settings.time_limit_s), 0.0)
        if settings.progress is not None:
            options["output_flag"] = True
            options["log_to_console"] = False
        for name, value in options.items():
            if highs.setOptionValue(name, value) != highspy.HighsStatus.kOk:
                raise SolverError(f"HiGHS refuses the option {name}={value!r}")
        if start:
            solution = highspy.HighsSolution()
            solution.col_value = [
                0.0 if variable.value is None else float(variable.value)
                for variable in self.variables
            ]
            highs.setSolution(solution)
        if settings.progress is not None:
            report = settings.progress
            highs.cbMipLogging.subscribe(
                lambda event: report(
                    Progress(
                        event.data_out.running_time,
                        event.data_out.mip_primal_bound,
                        event.data_out.mip_dual_bound,
                    )
                )
            )
        started = time.monotonic()
        with _interruptible(highs) as interrupted:
            self._run(highs)
        return self._outcome(highs, time.monotonic() - started, interrupted.is_set())

    def _highs(self, integer: bool) -> highspy.Highs:
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        self._lp.integrality_ = [kinds[int(flag)] for flag in self.integer] if integer else []
        highs = highspy.Highs()  # type: ignore[no-untyped-call]
        highs.setOptionValue("output_flag", False)
        if highs.passModel(self._lp) == highspy.HighsStatus.kError:
            raise SolverError("HiGHS rejected the program: a coefficient is not a number?")
        return highs

    @staticmethod
    def _run(highs: highspy.Highs) -> None:
        if highs.run() == highspy.HighsStatus.kError:
            raise SolverError(f"HiGHS failed with {highs.getModelStatus().name}")

    def _outcome(self, highs: highspy.Highs, elapsed_s: float, interrupted: bool) -> Outcome:
        status = _STATUS.get(highs.getModelStatus())
        if status is None:
            raise SolverError(f"HiGHS stopped with {highs.getModelStatus().name}")
        if interrupted:
            status = "interrupted"
        info = highs.getInfo()
        has_incumbent = (
            info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        )
        objective = info.objective_function_value if has_incumbent else math.nan
        bound = info.mip_dual_bound if self.integer.any() else objective
        if has_incumbent:
            values = np.asarray(highs.getSolution().col_value)
            values[self.integer] = np.round(values[self.integer])
            for variable, value in zip(self.variables, values.tolist(), strict=True):
                variable.set_value(value, skip_validation=True)
        return Outcome(
            status,
            has_incumbent,
            objective,
            bound,
            max(info.mip_node_count, 0),
            elapsed_s,
            EMBEDDED,
        )


@contextmanager
def _interruptible(highs: highspy.Highs) -> Iterator[threading.Event]:
    """Turn Ctrl-C into a clean stop of the search; the incumbent stays."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def stop(event: Any) -> None:
        if requested.is_set():
            event.interrupt()

    def handle(signum: int, frame: object) -> None:
        requested.set()

    highs.cbMipInterrupt.subscribe(stop)
    highs.cbSimplexInterrupt.subscribe(stop)
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, previous)


def solve_model(model: pyo.ConcreteModel, settings: SolveSettings, start: bool = False) -> Outcome:
    """Solve a Pyomo model with the solver that the settings name.

    Raises SolverUnavailableError when it cannot be reached, SolverError when it fails.
    """
    try:
        if settings.solver == EMBEDDED:
            return Program(model).solve(settings, start=start)
        return _solve_elsewhere(model, settings)
    except InfeasibleConstraintException:
        # A row without variables that cannot hold: nothing is left for the solver to find.
        return Outcome("infeasible", False, math.nan, math.inf, 0, 0.0, settings.solver)


def require_solver(name: str) -> None:
    """Raise SolverUnavailableError unless the solver can be reached from here."""
    if name != EMBEDDED and not _available(name):
        present = [EMBEDDED, *(other for other in KNOWN_SOLVERS if _available(other))]
        raise SolverUnavailableError(
            f"solver {name!r} cannot be reached through Pyomo; available here: "
            f"{', '.join(present)}. Install it and put its program on the PATH, or leave "
            "--solver out"
        )


def _available(name: str) -> bool:
    return _reachable(_pyomo_name(name))


def _pyomo_name(name: str) -> str:
    """SCIP is a program, or a library from PyPI that Pyomo knows under a name of its own."""
    return "scip_direct" if name == "scip" and not _reachable(name) else name


def _reachable(name: str) -> bool:
    # Pyomo logs a warning, with a traceback, for every solver that is not there.
    logger = logging.getLogger("pyomo")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        solver = pyo.SolverFactory(name)
        return solver is not None and bool(solver.available(exception_flag=False))
    finally:
        logger.setLevel(level)


_TIME_LIMIT_OPTION: Final[Mapping[str, str]] = {
    "cbc": "sec",
    "glpk": "tmlim",
    "scip": "limits/time",
    "scip_direct": "limits/time",
    "gurobi": "TimeLimit",
    "cplex": "timelimit",
}
_GAP_OPTION: Final[Mapping[str, str]] = {
    "cbc": "ratio",
    "glpk": "mipgap",
    "scip": "limits/gap",
    "scip_direct": "limits/gap",
    "gurobi": "MIPGap",
    "cplex": "mip tolerances mipgap",
}


def _solve_elsewhere(model: pyo.ConcreteModel, settings: SolveSettings) -> Outcome:
    require_solver(settings.solver)
    name = _pyomo_name(settings.solver)
    solver = pyo.SolverFactory(name)
    if name in _GAP_OPTION:
        solver.options[_GAP_OPTION[name]] = settings.gap_fraction
    limit = math.inf if settings.time_limit_s is None else settings.time_limit_s
    if name == "glpk":
        limit = max(1, math.ceil(limit)) if math.isfinite(limit) else limit
    if math.isfinite(limit) and name in _TIME_LIMIT_OPTION:
        solver.options[_TIME_LIMIT_OPTION[name]] = limit
    started = time.monotonic()
    result = solver.solve(model, load_solutions=False)
    elapsed = time.monotonic() - started
    condition = result.solver.termination_condition
    infeasible = pyo.TerminationCondition.infeasible
    if condition == infeasible or condition == pyo.TerminationCondition.infeasibleOrUnbounded:
        return Outcome("infeasible", False, math.nan, math.inf, 0, elapsed, settings.solver)
    has_incumbent = len(result.solution) > 0
    if has_incumbent:
        # A search cut short is no reason for Pyomo to warn: the status below says so.
        result.solver.status = pyo.SolverStatus.ok
        model.solutions.load_from(result)
    objective = float(pyo.value(model.objective)) if has_incumbent else math.nan
    lower = result.problem.lower_bound
    bound = float(lower) if lower is not None and math.isfinite(float(lower)) else -math.inf
    # GLPK says "feasible" both where the gap is reached and where time is up.
    stopped = condition == pyo.TerminationCondition.feasible and elapsed >= limit
    if condition == pyo.TerminationCondition.maxTimeLimit or stopped:
        status = "time_limit"
    elif condition in (pyo.TerminationCondition.optimal, pyo.TerminationCondition.feasible):
        # A solver that was told the gap and ends in it has proven it, if it reports no bound.
        told = name in _GAP_OPTION
        promised = objective - settings.gap_fraction * abs(objective) if told else -math.inf
        bound = bound if math.isfinite(bound) and bound <= objective + 1e-6 else promised
        status = "optimal"
    else:
        raise SolverError(f"{settings.solver} stopped with {condition}")
    for variable in model.component_data_objects(pyo.Var, active=True):
        if variable.value is not None and not variable.is_continuous():
            variable.set_value(round(variable.value), skip_validation=True)
    return Outcome(status, has_incumbent, objective, bound, 0, elapsed, settings.solver)
