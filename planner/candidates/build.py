"""From models, classes and hardware to the candidate table.

Per model: every configuration (accelerator, layout, precisions, speculation) that fits, then
options in three roles for every set of classes it may admit. Options dedicated to one class
are exact at the batch where memory or a promise binds; options shared by several classes are
bounded by chords of the frontier of their mixes. Dominated options are dropped, the rest placed
at every site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.dominance import undominated
from planner.candidates.engine_options import ClassView, EngineOptions, Refusals, class_sets
from planner.candidates.options import CandidateTable, PoolOption
from planner.candidates.prefill import PrefillOptions
from planner.candidates.request import CandidateRequest, NodeGroup, ServedModel
from planner.perf.backend import StepTimes
from planner.perf.config import PoolConfig, config_problem, enumerate_layouts
from planner.workload.classes import WorkloadClass

Flags = NDArray[np.bool_]

CHORDS: Final = 3
"""Chords of the frontier of two classes that share a pool; a refinement of 1 doubles them."""


def build_candidates(request: CandidateRequest) -> CandidateTable:
    """Every undominated option of the request, named, in a stable order."""
    options: list[PoolOption] = []
    enumerated = configurations = 0
    refusals: dict[str, dict[str, int]] = {}
    for served in request.models:
        model = _ModelCandidates(request, served)
        found = model.options()
        enumerated += len(found)
        configurations += len(model.configs)
        refusals.update(model.refusals.counts)
        options.extend(model.place(undominated(found)))
    return CandidateTable(tuple(options), enumerated, configurations, refusals)


class _ModelCandidates:
    """Enumeration of one model."""

    def __init__(self, request: CandidateRequest, served: ServedModel) -> None:
        self.request = request
        self.served = served
        self.views = [
            ClassView.of(index, workload)
            for index, workload in enumerate(request.classes)
            if workload.model == served.card.id
        ]
        self.refusals = Refusals()
        self.hosts: dict[tuple[str, int], list[NodeGroup]] = {}
        for group in request.node_groups:
            self.hosts.setdefault((group.accelerator.id, group.gpus_per_node), []).append(group)
        problems: Counter[str] = Counter()
        self.configs, self.node_sizes = self._configurations(problems)
        for view in self.views:
            for reason, count in problems.items():
                self.refusals.add(view, reason, count)

    def _configurations(
        self, problems: Counter[str]
    ) -> tuple[list[PoolConfig], list[tuple[int, ...]]]:
        sizes: dict[PoolConfig, list[int]] = {}
        refused: set[PoolConfig] = set()
        served = self.served
        if self.request.only is not None:
            given = [each for each in self.request.only if each.model.id == served.card.id]
            return given, [self._node_sizes(each) for each in given]
        for (_, gpus_per_node), groups in self.hosts.items():
            accelerator = groups[0].accelerator
            layouts = enumerate_layouts(
                served.card, accelerator, self.request.max_gpus_per_replica, gpus_per_node
            )
            for layout in layouts:
                for weights in served.weight_precisions:
                    for kv in served.kv_precisions:
                        config = PoolConfig(
                            served.card, accelerator, layout, weights, kv, served.engine
                        )
                        if config in refused:
                            continue
                        problem = config_problem(config)
                        if problem is not None:
                            problems[_kind(problem)] += 1
                            refused.add(config)
                            continue
                        sizes.setdefault(config, []).append(gpus_per_node)
        if served.speculative is not None:
            for config, nodes in list(sizes.items()):
                guessing = replace(config, speculative=served.speculative)
                if config_problem(guessing) is None:
                    sizes[guessing] = nodes
        return list(sizes), [tuple(nodes) for nodes in sizes.values()]

    def _node_sizes(self, config: PoolConfig) -> tuple[int, ...]:
        return tuple(size for chip, size in self.hosts if chip == config.accelerator.id)

    def options(self) -> list[PoolOption]:
        """Every option of the model, one per node size, without a site."""
        if not self.configs or not self.views:
            return []
        masks = {view.index: self._admits(view) for view in self.views}
        step = self.request.backend.compile(self.configs)
        budgets = self.served.engine.chunk_budgets_tokens
        found: list[PoolOption] = []
        for role, chunks in (("decode", None), ("aggregated", budgets)):
            if role in self.request.roles:
                engines = EngineOptions(
                    step,
                    self.views,
                    len(self.request.classes),
                    chunks,
                    self.refusals,
                    CHORDS * (1 + self.request.refinement),
                    self.request.margins,
                )
                found.extend(engines.run(masks))
        if "prefill" in self.request.roles:
            found.extend(self._prefill_options(step, masks))
        return list(self._per_node_size(found))

    def _prefill_options(self, step: StepTimes, masks: dict[int, Flags]) -> Iterator[PoolOption]:
        plain = np.array([config.speculative is None for config in self.configs])
        budgets = self.served.engine.chunk_budgets_tokens
        for views in class_sets(self.views):
            admitted = plain & np.all([masks[view.index] for view in views], axis=0)
            for chunk in budgets:
                longest = max(view.load.longest_tokens for view in views)
                config = np.flatnonzero(admitted)
                batched = chunk + step.max_num_seqs_per_rank(config)
                config = config[step.longest_fits(config, longest, batched)]
                if len(config):
                    # Nothing decodes here: one prompt at a time runs in the largest chunks.
                    ways = (False, True) if chunk == max(budgets) else (True,)
                    members = [(view.index, view.workload, view.load) for view in views]
                    able = step.take(config)
                    build = PrefillOptions(
                        able, chunk, len(self.request.classes), ways, self.request.margins
                    )
                    yield from build.options(members)
                    if len(views) == 1:
                        only = views[0]
                        yield from build.with_cache(only.index, only.workload, only.hit_loads)

    def _admits(self, view: ClassView) -> Flags:
        """Which configurations have a precision that the class accepts."""
        pairs = view.workload.precision_pairs
        admitted = np.array(
            [(config.weight_precision, config.kv_precision) in pairs for config in self.configs]
        )
        reason = "precision not allowed for this class"
        self.refusals.add(view, reason, int((~admitted).sum()))
        return admitted

    def _per_node_size(self, found: Iterable[PoolOption]) -> Iterator[PoolOption]:
        sizes = dict(zip(self.configs, self.node_sizes, strict=True))
        for option in found:
            for gpus_per_node in sizes[option.config]:
                yield replace(option, gpus_per_node=gpus_per_node)

    def place(self, options: Iterable[PoolOption]) -> Iterator[PoolOption]:
        """A copy of each option at every site that has such nodes, with its stable name."""
        for option in options:
            key = (option.config.accelerator.id, option.gpus_per_node)
            for group in self.hosts[key]:
                placed = replace(option, site=group.site)
                yield replace(placed, name=option_name(placed, self.request.classes))


def _kind(problem: str) -> str:
    """The first clause of a configuration problem, to count alike ones together."""
    return "weights do not fit in memory" if "leave no room" in problem else problem


def option_name(option: PoolOption, classes: Sequence[WorkloadClass]) -> str:
    """Stable name of a column: everything that makes it what it is."""
    config = option.config
    parts = [
        config.model.id,
        option.role,
        option.site,
        f"{config.accelerator.id}x{option.gpus_per_node}",
        config.layout.label,
        f"{config.weight_precision}-kv-{config.kv_precision}",
    ]
    if config.speculative is not None:
        parts.append(f"spec{config.speculative.draft_tokens}")
    if option.chunk_tokens is not None:
        parts.append(f"chunk{option.chunk_tokens}")
    if option.step_s is not None:
        parts.append(f"{option.step_s * 1e3:.4g}ms")
    if option.least_replicas > 1:
        parts.append(f"from{option.least_replicas}")
    if option.variant:
        parts.append(option.variant)
    parts.append("+".join(classes[k].name for k in option.classes))
    return "|".join(parts)
