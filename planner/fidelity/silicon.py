"""Measured deployments: NVIDIA's published rows, beside the true shape that we worked out for them.

`silicon_sample.csv` comes with the PyPI package aiconfigurator-core (Apache-2.0) and is not ours
to ship. `data/silicon_rows.csv` is: for 1,748 of its rows the true number of GPUs, the bytes per
weight and cache element, the stretch of the nominal lengths and the deployment that a row belongs
to. The package is looked up, not imported: reading a CSV needs none of its code.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner import resources
from planner.errors import InputError, Problem
from planner.perf.aic_names import SYSTEMS
from planner.perf.batch import Catalogue, distinct, operating_point_of
from planner.perf.coefficients import StepModel
from planner.perf.config import kind_of
from planner.perf.serving import ServingPoint, serving_point

Floats = NDArray[np.float64]
Row = Mapping[str, str]

PACKAGE: Final = "aiconfigurator_core"
DISTRIBUTION: Final = "aiconfigurator-core"
SAMPLE: Final = "systems/silicon_sample.csv"
COLUMNS: Final = (
    "id",
    "mode",
    "system",
    "backend",
    "model_path",
    "precision",
    "isl",
    "osl",
    "decode_num_workers",
    "decode_batch_size",
    "decode_tp_size",
    "decode_attention_dp_size",
    "decode_moe_ep_size",
    "silicon_data_source",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
)
"""What is read of a measured row."""
FOLD_OF: Final = {"gb200": "b200"}
"""Two rows of GB200 make no fold; its chip is that of the B200."""


@dataclass(frozen=True, slots=True)
class Screening:
    """How many rows of the sample passed, and what each of the others was left out for."""

    rows: int
    passed: int
    reasons: Mapping[str, int]


class Silicon:
    """Labelled and measured operating points, with the model compiled for all of them.

    Arrays are (N,): `tpot_s` and `ttft_s` measured (TTFT is `nan` where it was not), `family`,
    `accelerator` and `engine` the folds, `kind` that of the model (`kind_of`), `deployment` what
    shares everything but the load.
    `wait_steps` are decode steps that the benchmark's script tells the server to hold prompts back
    (docs/data.md has the scripts and the formula), 0 where none is known.
    """

    def __init__(self, labels: Sequence[Row], measured: Sequence[Row], version: str) -> None:
        self.labels, self.measured, self.version = tuple(labels), tuple(measured), version
        catalogue = Catalogue()
        points = [operating_point_of(row, catalogue) for row in labels]
        firsts, places = distinct(points)
        self.model = StepModel(
            [points[n].config for n in firsts],
            component_bytes=[points[n].component_bytes for n in firsts],
        )
        self.bound = StepModel(
            [points[n].config for n in firsts],
            calibrated=False,
            component_bytes=[points[n].component_bytes for n in firsts],
        )
        self.place = np.array(places, dtype=np.int64)
        self.configs = tuple(point.config for point in points)
        self.concurrency = np.array([point.concurrency for point in points])
        self.input_tokens = np.array([point.input_tokens for point in points])
        self.output_tokens = np.array([point.output_tokens for point in points])
        self.gpus = np.array([float(point.config.layout.gpus) for point in points])
        self.wait_steps = np.array([float(row["wait_steps"]) for row in labels])
        self.lengths_vary = np.array([float(row["length_scale"]) < 1 for row in labels])
        self.tpot_s = np.array([seconds(row["silicon_tpot_ms"]) for row in measured])
        self.ttft_s = np.array([seconds(row["silicon_ttft_ms"]) for row in measured])
        self.family = np.array([row["model_family"] for row in labels])
        self.accelerator = np.array(
            [FOLD_OF.get(row["accelerator"], row["accelerator"]) for row in labels]
        )
        self.engine = np.array([point.config.engine.name for point in points])
        self.kind = np.array([kind_of(config.model) for config in self.configs])
        self.deployment = np.array([row["deployment"] for row in labels])

    def __len__(self) -> int:
        return len(self.labels)

    def serve(
        self, model: StepModel | None = None, rows: NDArray[np.int64] | None = None
    ) -> ServingPoint:
        """What `model` (default: the shipped constants) predicts for `rows` (default: all)."""
        at: slice | NDArray[np.int64] = slice(None) if rows is None else rows
        return serving_point(
            model or self.model,
            self.place[at],
            self.concurrency[at],
            self.input_tokens[at],
            self.output_tokens[at],
            wait_steps=self.wait_steps[at],
            lengths_vary=self.lengths_vary[at],
        )

    @cached_property
    def throughput_per_gpu(self) -> Floats:
        """Measured output tokens/s and GPU: Little's law on the measured TTFT and TPOT, (N,)."""
        request_s = self.ttft_s + (self.output_tokens - 1) * self.tpot_s
        return np.asarray(self.concurrency * self.output_tokens / request_s / self.gpus)


def read_labels() -> list[dict[str, str]]:
    """The rows of `data/silicon_rows.csv`, screened or not."""
    return [*csv.DictReader(io.StringIO(resources.read_text("silicon_rows.csv")))]


def sample_path() -> Path:
    """Where the installed package keeps its measurements.

    Raises InputError that names the extra if the package is not installed or lacks the file.
    """
    hint = "pip install 'llm-fleet-planner[validate]'"
    found = util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError([Problem(f"needs the measurements in {DISTRIBUTION}", hint=hint)])
    path = Path(next(iter(found.submodule_search_locations))) / SAMPLE
    if not path.is_file():
        raise InputError([Problem(f"has no {SAMPLE}", hint=hint, file=str(path.parents[1]))])
    return path


def read_sample(path: Path | None = None) -> tuple[list[dict[str, str]], str]:
    """All measured rows and the version of the package that they came with.

    `path` reads another copy of the file. Raises InputError if it cannot be read or lacks columns.
    """
    place = path or sample_path()
    version = path.name if path else f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    try:
        with place.open(encoding="utf-8", newline="") as stream:
            rows = [*csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError([Problem(f"cannot be read: {error}", file=str(place))]) from error
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise InputError([Problem(f"has no column {', '.join(missing)}", file=str(place), line=1)])
    return rows, version


def screen(measured: Row, label: Row | None) -> str:
    """Why a measured row is not used, in words; empty if it is.

    Rules: one pool that prefills and decodes; a shape that was worked out; a label that does not
    doubt the row (`screen` other than `clean`); the same lengths, engine and GPU in the label as
    in the sample, so that another edition of the file cannot be misread; a measured TPOT.
    """
    if measured["mode"] != "agg":
        return "separate prefill and decode workers"
    if label is None:
        return "true shape not known"
    if label["screen"] != "clean":
        return "doubted: outlier among its neighbours"
    same = measured["isl"] == label["isl_nominal"] and measured["osl"] == label["osl_nominal"]
    same = same and measured["backend"] == label["engine"]
    same = same and SYSTEMS.get(label["accelerator"]) == measured["system"]
    if not same:
        return "differs from the edition that was labelled"
    if not math.isfinite(seconds(measured["silicon_tpot_ms"])):
        return "no measured TPOT"
    return ""


def screened(sample: Sequence[Row], version: str) -> tuple[Silicon, Screening]:
    """The rows that pass, in the order of the labels, and what the others were left out for.

    Raises InputError if none passes.
    """
    labels = {row["id"]: row for row in read_labels()}
    reasons: Counter[str] = Counter()
    kept: dict[str, Row] = {}
    for row in sample:
        reason = screen(row, labels.get(row["id"])) or ("repeated" if row["id"] in kept else "")
        if reason:
            reasons[reason] += 1
        else:
            kept[row["id"]] = row
    used = [row for key, row in labels.items() if key in kept]
    if not used:
        raise InputError([Problem("none of its rows is known", file=version)])
    silicon = Silicon(used, [kept[row["id"]] for row in used], version)
    return silicon, Screening(len(sample), len(used), dict(reasons.most_common()))


def seconds(milliseconds: str) -> float:
    """A time of the sample in seconds; `nan` where it is missing or no time."""
    return positive(milliseconds) / 1e3


def positive(text: str) -> float:
    """A number of the sample above 0; `nan` where it is anything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and value > 0 else math.nan
