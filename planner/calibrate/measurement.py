"""One operating point of a deployment, as a benchmark measured it, in base units.

Every format of result file is turned into this record. Means are over completed requests. What
a file does not say is None; nothing is filled in from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a file says of the deployment that was measured; None where it is silent.

    Names are as written in the file (`NVIDIA-H100-80GB-HBM3`, `h200`), not yet looked up.
    `gpus` are those of one replica; of a disaggregated deployment, all of them. With
    `replicas` above 1, concurrency and rates of the measurement are those of all replicas.
    `speculative` is the method of speculative decoding, or `none` where the file says so.
    """

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
    replicas: int | None = None
    speculative: str | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Means and percentiles of one benchmark run at one load.

    `tpot_s` is (e2e - ttft) / (output tokens - 1), whatever the tool calls so; None when answers
    have a single token. `concurrency` is the mean number of requests in flight: the limit of a
    closed loop, else what the tool measured, else Little's law (rate x mean e2e).
    `request_rate_per_s` is achieved: completed requests over the duration. Percentiles map a
    fraction of requests to seconds. `accepted_tokens_per_step` counts the token that the model
    itself adds to the accepted drafts. `notes` say what was derived instead of read.
    """

    file: str
    place: str
    format: str
    input_tokens: float
    output_tokens: float
    concurrency: float | None
    request_rate_per_s: float | None
    duration_s: float | None
    requests: int | None
    failed: int | None
    tpot_s: float | None
    ttft_s: float | None
    e2e_s: float | None
    tpot_percentiles_s: Mapping[float, float] = field(default_factory=dict)
    ttft_percentiles_s: Mapping[float, float] = field(default_factory=dict)
    output_tokens_per_s: float | None = None
    cached_fraction: float | None = None
    accepted_tokens_per_step: float | None = None
    disaggregated: bool | None = None
    recorded: Recorded = field(default_factory=Recorded)
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return where(self.file, self.place)


def where(file: str, place: str) -> str:
    """File and place in it; the file alone where it is one object as a whole."""
    return f"{file}, {place}" if place else file
