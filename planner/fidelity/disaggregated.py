"""Decode workers of disaggregated deployments in the same sample, on which nothing was fitted.

A row counts where the sample says how many decode workers there were, how each was laid out, and
how many requests were open. TPOT is one decode step at the sequences that are in decode: C clients
spend TTFT in prefill and O TPOT in decode, so a worker of n holds C/n O TPOT / (O TPOT + TTFT),
which is solved for the predicted TPOT with the measured TTFT. Lengths are 0.9 of nominal.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.catalog import find_accelerator, find_model
from planner.errors import InputError
from planner.fidelity.silicon import Floats, Row, positive, seconds
from planner.perf.coefficients import StepModel
from planner.perf.config import Layout, PoolConfig, config_problem
from planner.perf.constants import Constants
from planner.perf.engines import engine_profile

LENGTH_SCALE: Final = 0.9
ROUNDS: Final = 60
KV_PRECISION: Final = "fp8"
"""Of the cache: not in the file; what the benchmark's scripts say for these deployments."""


@dataclass(frozen=True, slots=True)
class DecodeWorkers:
    """Measured and predicted TPOT (N,) of decode workers, and why the other rows are left out."""

    measured_s: Floats
    predicted_s: Floats
    kinds: NDArray[np.str_]
    """Layout of the attention of each row: `tensor parallel` or `attention data parallel`."""
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Workers:
    config: PoolConfig
    count: float
    clients: float
    input_tokens: float
    output_tokens: float
    ttft_s: float
    tpot_s: float


def predict_decode_workers(sample: Sequence[Row], constants: Constants) -> DecodeWorkers:
    """TPOT of every disaggregated row of the sample whose topology is known."""
    reasons: Counter[str] = Counter()
    found: list[_Workers] = []
    for row in sample:
        if row["mode"] != "disagg":
            continue
        workers = _workers(row)
        if isinstance(workers, str):
            reasons[workers] += 1
        else:
            found.append(workers)
    measured = np.array([each.tpot_s for each in found])
    configs = [each.config for each in found]
    predicted = _tpot_s(StepModel(configs, constants), found)
    beaten = measured < _tpot_s(StepModel(configs, constants, calibrated=False), found)
    reasons["faster than the bound: speculative decoding, or other GPUs"] += int(beaten.sum())
    kinds = np.array(
        [
            "attention data parallel"
            if config.layout.attention_data_parallel > 1
            else "tensor parallel"
            for config in configs
        ]
    )
    kept = ~beaten
    told = {reason: count for reason, count in reasons.most_common() if count}
    return DecodeWorkers(measured[kept], predicted[kept], kinds[kept], told)


def _workers(row: Row) -> _Workers | str:
    """The decode side of a row, or why it cannot be used."""
    if not (row["decode_num_workers"] and row["decode_batch_size"]):
        return "topology not in the sample"
    clients = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    if clients is None:
        return "open requests not in the sample"
    tpot_s, ttft_s = seconds(row["silicon_tpot_ms"]), seconds(row["silicon_ttft_ms"])
    if not (math.isfinite(tpot_s) and math.isfinite(ttft_s)):
        return "no measured TPOT or TTFT"
    try:
        config = _config(row)
    except InputError as error:
        return f"not in the catalogue: {error}"
    except ValueError:
        return "layout not in whole numbers"
    problem = config_problem(config)
    if problem:
        return f"cannot be so: {problem}"
    count, input_tokens, output_tokens = (
        positive(row[name]) for name in ("decode_num_workers", "isl", "osl")
    )
    if not math.isfinite(count * input_tokens * output_tokens):
        return "workers or lengths not in numbers"
    return _Workers(
        config=config,
        count=count,
        clients=float(clients.group(1)),
        input_tokens=input_tokens * LENGTH_SCALE,
        output_tokens=output_tokens * LENGTH_SCALE,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
    )


def _config(row: Row) -> PoolConfig:
    model = find_model(row["model_path"])
    groups = max(int(row["decode_attention_dp_size"]), 1)
    width = int(row["decode_tp_size"])
    experts = int(row["decode_moe_ep_size"]) > 1 and model.moe_layers > 0
    if groups > 1:
        # The column counts all GPUs where it is a multiple of the groups, else those of one group.
        gpus = width if width % groups == 0 else width * groups
        layout = Layout(gpus // groups, 1, groups, gpus)
    else:
        layout = Layout(width, 1, 1, width if experts else 1)
    weights = row["precision"]
    if weights not in model.weight_precisions:
        weights = model.native_precision
    accelerator = find_accelerator(row["system"])
    engine = engine_profile(row["backend"])
    return PoolConfig(model, accelerator, layout, weights, KV_PRECISION, engine)


def _tpot_s(step: StepModel, workers: Sequence[_Workers]) -> Floats:
    """The step at which in-flight sequences and step agree, by repeated substitution: a longer
    step means more of a client's time in decode, which bounds itself at all clients.
    """
    if not workers:
        return np.zeros(0)
    each = np.arange(len(workers))
    clients = np.array([w.clients / w.count for w in workers])
    output = np.array([w.output_tokens for w in workers])
    ttft_s = np.array([w.ttft_s for w in workers])
    context = np.array([w.input_tokens for w in workers]) + output / 2
    batch = clients
    for _ in range(ROUNDS):
        tpot = step.decode_step_s(each, np.maximum(batch, 1.0), context)
        batch = clients * output * tpot / (output * tpot + ttft_s)
    return np.asarray(step.decode_step_s(each, np.maximum(batch, 1.0), context))
