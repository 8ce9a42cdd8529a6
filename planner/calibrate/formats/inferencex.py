"""InferenceX (before: InferenceMAX) aggregate results, agg_*.json, or a list of them.

Read in utils/process_result.py and utils/bench_serving/benchmark_serving.py,
https://github.com/SemiAnalysisAI/InferenceX. Times are seconds: `_ms` was taken out of the names.
The loop is closed at `conc`. `isl` and `osl` are the longest lengths: requests draw from 0.8 to
1.0 of them, so their mean is what the latencies say, else 0.9. `output_tput_per_gpu` is per
decode GPU where prefill and decode are apart. `intvty` is 1 / TPOT and is not read.
"""

from __future__ import annotations

import re
from typing import Final

from planner.calibrate.formats.draft import Draft
from planner.calibrate.formats.node import Node
from planner.calibrate.formats.percentiles import by_percent, rising
from planner.calibrate.measurement import Measurement, Recorded

NAME: Final = "InferenceX"
KEYS: Final = frozenset(
    {
        "hw",
        "conc",
        "isl",
        "osl",
        "framework",
        "precision",
        "infmax_model_prefix",
        "spec_decoding",
        "disagg",
        "is_multinode",
        "dp_attention",
        "tput_per_gpu",
        "output_tput_per_gpu",
        "input_tput_per_gpu",
        "mean_intvty",
        "mean_tpot",
        "mean_ttft",
    }
)
MEAN_SHARE: Final = 0.9
"""Mean length over the longest: RANDOM_RANGE_RATIO of the benchmark is 0.8, drawn evenly."""
LEAST_SHARE: Final = 0.5
MOST_SHARE: Final = 1.1
"""Outside these, latencies and lengths are not of the same run."""
_PERCENTILE: Final = re.compile(r"(?P<which>median|p\d[\d.]*)_(?P<metric>ttft|tpot)")


def read(node: Node) -> list[Measurement]:
    """The one measurement of an object. Raises InputError naming the field."""
    draft = Draft(node, NAME)
    draft.take("ttft_s", node.at("mean_ttft"))
    draft.take("e2e_s", node.find("mean_e2el"))
    share = _mean_share(node, draft)
    draft.take("input_tokens", node.at("isl"), share)
    draft.take("output_tokens", node.at("osl"), share)
    draft.take_tpot(node.at("mean_tpot"), 1.0)
    draft.take_load(node.at("conc"), closed=True)
    several_nodes = _truth(node, "is_multinode")
    producing = _producing_gpus(node, several_nodes=several_nodes)
    if producing is not None:
        draft.take("output_tokens_per_s", node.find("output_tput_per_gpu"), producing)
    return [
        draft.finish(
            requests=None,
            failed=None,
            tpot_percentiles_s=_percentiles(node, "tpot"),
            ttft_percentiles_s=_percentiles(node, "ttft"),
            recorded=_recorded(node, several_nodes=several_nodes),
            disaggregated=_disaggregated(node, several_nodes=several_nodes),
        )
    ]


def _mean_share(node: Node, draft: Draft) -> float:
    """Mean output length over `osl`, from the three mean latencies, where they are known."""
    e2e_s, ttft_s = draft.get("e2e_s"), draft.values["ttft_s"]
    longest = node.at("osl").positive()
    if e2e_s is None or longest <= 1:
        draft.notes.append(f"mean lengths taken as {MEAN_SHARE:g} of isl and osl")
        return MEAN_SHARE if longest > 1 else 1.0
    share = (1 + (e2e_s - ttft_s) / node.at("mean_tpot").positive()) / longest
    if not LEAST_SHARE <= share <= MOST_SHARE:
        raise node.at("osl").error(
            f"{longest:g} does not fit the latencies: (mean_e2el - mean_ttft) / mean_tpot + 1 is "
            f"{share * longest:.4g} tokens",
            "likely a wrong unit in one of the three; all are seconds",
        )
    draft.notes.append(f"mean lengths are {share:.3g} of isl and osl, by the mean latencies")
    return share


def _percentiles(node: Node, metric: str) -> dict[float, float]:
    found: dict[float, Node] = {}
    for key, value in node.mapping().items():
        match = _PERCENTILE.fullmatch(key)
        if match is not None and match["metric"] == metric and value is not None:
            fraction = by_percent(match["which"])
            if fraction is not None:
                found[fraction] = node.at(key)
    return rising(found, 1.0)


def _truth(node: Node, key: str) -> bool:
    found = node.find(key)
    return found.truth() if found is not None else False


def _count(node: Node, key: str) -> int | None:
    found = node.find(key)
    return found.written_count(0) if found is not None else None


def _producing_gpus(node: Node, *, several_nodes: bool) -> int | None:
    """GPUs that `output_tput_per_gpu` divides by: those of decode, if there are any."""
    if several_nodes:
        return _count(node, "num_decode_gpu") or _count(node, "num_prefill_gpu")
    return _gpus_of_worker(node)


def _gpus_of_worker(node: Node) -> int | None:
    ranks = _count(node, "tp")
    if ranks is None:
        return None
    return ranks * (_count(node, "pp") or 1) * (_count(node, "pcp_size") or 1)


def _disaggregated(node: Node, *, several_nodes: bool) -> bool | None:
    found = node.find("disagg")
    if several_nodes and _count(node, "num_decode_gpu") == 0:
        return False
    return found.truth() if found is not None else None


def _recorded(node: Node, *, several_nodes: bool) -> Recorded:
    prefix = ""
    if several_nodes:
        prefix = "decode_" if _count(node, "num_decode_gpu") else "prefill_"
    ranks = _count(node, f"{prefix}tp")
    attention_apart = _truth(node, f"{prefix}dp_attention")
    groups = ranks if attention_apart else 1
    if several_nodes:
        gpus = (_count(node, "num_prefill_gpu") or 0) + (_count(node, "num_decode_gpu") or 0)
    else:
        gpus = _gpus_of_worker(node) or 0

    return Recorded(
        model=node.first_text("model"),
        accelerator=node.first_text("hw"),
        engine=node.first_text("framework"),
        weight_precision=node.first_text("precision"),
        tensor_parallel=ranks // groups if ranks and groups else None,
        pipeline_parallel=_count(node, f"{prefix}pp"),
        attention_data_parallel=groups if ranks else None,
        expert_parallel=_count(node, f"{prefix}ep"),
        gpus=gpus or None,
        speculative=node.first_text("spec_decoding") or node.first_text("mtp"),
    )
