"""Operating points per second of the performance model, on one core.

    python benchmarks/perf_points.py [--points 200000]

A point is one decode step time: a configuration, a batch and a context. Prints points per second
for steps, for closed-loop serving (TPOT, TTFT, throughput) and the time to compile configurations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from planner.catalog import find_accelerator, find_model
from planner.perf import PoolConfig, StepModel, config_problem, engine_profile, enumerate_layouts
from planner.perf.serving import serving_point

MODELS = ("llama-3.3-70b-instruct", "qwen3-235b-a22b", "deepseek-v3", "qwen3.5-397b-a17b")
ACCELERATORS = ("h100", "h200", "b200", "l40s")


def configurations() -> list[PoolConfig]:
    """Every layout that fits of four models on four accelerators, in FP8."""
    engine = engine_profile("vllm")
    found = []
    for name in MODELS:
        card = find_model(name)
        for accelerator in ACCELERATORS:
            chip = find_accelerator(accelerator)
            for layout in enumerate_layouts(card, chip, 16, chip.usual_node_size):
                config = PoolConfig(card, chip, layout, "fp8", "fp8", engine)
                if config_problem(config) is None:
                    found.append(config)
    return found


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The fastest of several runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--points", type=int, default=200_000)
    points = parser.parse_args().points
    start = time.perf_counter()
    configs = configurations()
    enumerated = time.perf_counter() - start
    compiled = seconds(lambda: StepModel(configs))
    model = StepModel(configs)
    random = np.random.default_rng(1)
    i = random.integers(0, len(configs), points)
    batch = random.uniform(1, 512, points)
    context = random.uniform(100, 32_000, points)
    step = seconds(lambda: model.decode_step_s(i, batch, context))
    serving = seconds(lambda: serving_point(model, i, batch, context, 500.0))
    print(
        f"{len(configs)} configurations found in {enumerated:.2f} s, compiled in {compiled:.3f} s"
    )
    print(f"decode steps:  {points / step:12,.0f} points/s")
    print(f"serving:       {points / serving:12,.0f} points/s")


if __name__ == "__main__":
    main()
