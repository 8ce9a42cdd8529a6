"""From names and a partial layout, as typed on a command line, to a configuration."""

from __future__ import annotations

from planner.catalog import find_accelerator, find_model
from planner.errors import InputError, Problem
from planner.perf.config import Layout, PoolConfig, config_problem, enumerate_layouts
from planner.perf.engines import engine_profile
from planner.perf.memory import MemoryModel
from planner.perf.serving import DEFAULT_BUDGET_TOKENS


def _plainness(layout: Layout) -> tuple[int, int, int]:
    return layout.gpus, layout.attention_data_parallel, layout.pipeline_parallel


def choose_config(
    model: str,
    accelerator: str,
    *,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    attention_data_parallel: int | None = None,
    expert_parallel: int | None = None,
    weights: str | None = None,
    kv: str = "bf16",
    engine: str = "vllm",
    request_tokens: int = 1,
) -> PoolConfig:
    """The configuration of these names. Where no degree of parallelism is given, the layout with
    the fewest GPUs, of these the plainest, that holds the weights and one request of
    `request_tokens`.

    Raises InputError for unknown names, or if no layout fits. A layout that was given is not
    judged here.
    """
    card, chip = find_model(model), find_accelerator(accelerator)
    profile = engine_profile(engine)
    precision = weights or card.native_precision
    given = (tensor_parallel, pipeline_parallel, attention_data_parallel, expert_parallel)
    if any(degree is not None for degree in given):
        layout = Layout(*(degree or 1 for degree in given))
        return PoolConfig(card, chip, layout, precision, kv, profile)
    node = chip.usual_node_size
    problem = ""
    layouts = enumerate_layouts(card, chip, max(8 * node, chip.scale_up_domain), node)
    for layout in sorted(layouts, key=_plainness):
        config = PoolConfig(card, chip, layout, precision, kv, profile)
        problem = config_problem(config) or ""
        if problem:
            continue
        memory = MemoryModel([config])
        if bool(memory.longest_fits(0, request_tokens, DEFAULT_BUDGET_TOKENS)):
            return config
        problem = f"a request of {request_tokens} tokens does not fit beside the weights"
    raise InputError([Problem(f"{card.id} fits no layout on {chip.name}", problem)])
