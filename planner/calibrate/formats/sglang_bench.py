"""`python -m sglang.bench_serving`: JSON Lines, one run per line.

Read in python/sglang/benchmark/serving.py, https://github.com/sgl-project/sglang. Times are
milliseconds. `concurrency` is measured (sum of latencies / duration). `server_info` holds the
server's arguments, so layout and precisions are known; the GPU is not. With attention data
parallelism `tp_size` counts all ranks of a stage, which its groups share. The keys of a
disaggregated deployment stand in `server_info.prefill[]` and `server_info.decode[]`.
"""

from __future__ import annotations

from typing import Final

from planner.calibrate.formats.node import Node
from planner.calibrate.formats.vllm_bench import closed_loop, percentiles, totals_and_means
from planner.calibrate.measurement import Measurement, Recorded

NAME: Final = "sglang bench_serving"
ALGORITHM: Final = "speculative_algorithm"
KEYS: Final = frozenset(
    {
        "server_info",
        "dataset_name",
        "sharegpt_output_len",
        "random_input_len",
        "random_output_len",
        "random_range_ratio",
        "total_input_tokens",
        "total_output_tokens",
        "total_output_tokens_retokenized",
        "input_throughput",
        "total_throughput",
        "mean_ttft_ms",
        "mean_tpot_ms",
        "mean_e2e_latency_ms",
        "accept_length",
    }
)


def read(node: Node) -> list[Measurement]:
    """The one measurement of a line. Raises InputError naming the field."""
    draft, completed = totals_and_means(node, NAME, "mean_e2e_latency_ms")
    accepted = node.find("accept_length")
    if accepted is not None and accepted.value != 0:  # 0 where nothing was drafted
        draft.take("accepted_tokens_per_step", accepted)
    draft.take_load(
        node.find("max_concurrency"),
        closed=closed_loop(node, completed),
        measured=node.find("concurrency"),
    )
    server = node.find("server_info")
    return [
        draft.finish(
            requests=completed,
            failed=None,
            tpot_percentiles_s=percentiles(node, "tpot"),
            ttft_percentiles_s=percentiles(node, "ttft"),
            recorded=_recorded(server) if server is not None else Recorded(),
            cached_fraction=_cached_fraction(node),
            disaggregated=_roles(server)[0] if server is not None else None,
        )
    ]


def _cached_fraction(node: Node) -> float | None:
    report = node.find("cache_report")
    if report is None:
        return None
    prompt = report.at("total_prompt_tokens").positive()
    cached = report.at("total_cached_tokens")
    if not 0 <= cached.number() <= prompt:
        raise cached.error(
            f"{cached.number():g} of {prompt:g} prompt tokens cannot come from the cache"
        )
    return cached.number() / prompt


def _roles(server: Node) -> tuple[bool, Node]:
    """Whether prefill and decode are apart, and the arguments of the (decode) server."""
    for role in ("decode", "prefill"):
        servers = server.find(role)
        if servers is not None and servers.value:
            first = next(servers.items())
            return True, first if role == "decode" else server
    mode = server.find("disaggregation_mode")
    return mode is not None and mode.value in ("prefill", "decode"), server


def _recorded(server: Node) -> Recorded:
    disaggregated, arguments = _roles(server)

    def text(key: str, *unset: str) -> str | None:
        found = arguments.find(key)
        return found.text() if found is not None and found.value not in ("", *unset) else None

    ranks, stages = arguments.first_count("tp_size"), arguments.first_count("pp_size")
    groups, copies = arguments.first_count("attn_dp_size"), arguments.first_count("dp_size")
    given = arguments.mapping()
    switch = arguments.find("enable_dp_attention")
    if switch is not None and switch.truth():
        groups, copies = groups or copies, None
    groups = groups or (1 if ranks is not None else None)
    if ranks is not None and groups is not None and ranks % groups:
        raise arguments.at("tp_size").error(
            f"{ranks} ranks cannot be shared by {groups} attention groups"
        )
    known = ranks is not None and not disaggregated
    return Recorded(
        model=text("served_model_name") or text("model_path"),
        engine="sglang" if ranks is not None else None,
        weight_precision=text("quantization"),
        kv_precision=text("kv_cache_dtype", "auto"),
        tensor_parallel=ranks // groups if ranks is not None and groups is not None else None,
        pipeline_parallel=stages,
        attention_data_parallel=groups,
        expert_parallel=arguments.first_count("ep_size"),
        gpus=ranks * (stages or 1) if known and ranks is not None else None,
        replicas=copies if known else None,
        # A server that speculates not writes null; one that has no such argument is another.
        speculative=text(ALGORITHM) or ("none" if ALGORITHM in given else None),
    )
