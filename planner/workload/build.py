"""The classes of an instance, and a sentence for everything that had to be assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from planner.errors import InputError, Problem
from planner.schema.demand import RequestRate, TokenVolume, UserDemand
from planner.schema.instance import Instance, WorkloadSpec
from planner.schema.messages import Places
from planner.schema.slo import DEFAULT_TTFT_SHARE
from planner.schema.tokens import HistogramTokens, MeanTokens, PercentileTokens
from planner.units import SECONDS_PER_DAY
from planner.workload.classes import HitLevel, Slo, WorkloadClass, derived_limits
from planner.workload.distribution import Distribution
from planner.workload.mix import NO_TOKENS, TokenMix
from planner.workload.precisions import Pair, allowed_pairs, largest_product, within_loss

LEAST_RATE_PER_S = 1e-6
"""One request in eleven days; less would drown in the solver's tolerance."""
INDEPENDENT = "Input and output lengths of a request are taken to be independent."
UNLIMITED = "Availability is taken as unlimited where neither offer nor instance limits it."
QUALITY = (
    "Losses of quality at lower precision are upper bounds from published evaluations, "
    "not measurements of these workloads."
)


@dataclass(frozen=True, slots=True)
class Workload:
    """All classes, in the order of the instance, and what was assumed, a sentence each."""

    classes: tuple[WorkloadClass, ...]
    assumptions: tuple[str, ...]


def build_workload(instance: Instance) -> Workload:
    """The numbers of a loaded instance.

    Raises InputError where a workload accepts no precision at all, or a conversation grows
    beyond the context of its model.
    """
    work = _Builder(instance)
    classes = tuple(work.build(index, spec) for index, spec in enumerate(instance.workloads))
    if work.problems:
        raise InputError(work.problems)
    work.assumptions += _fleet_assumptions(instance)
    return Workload(classes, tuple(dict.fromkeys(work.assumptions)))


@dataclass(slots=True)
class _Builder:
    instance: Instance
    assumptions: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def build(self, index: int, spec: WorkloadSpec) -> WorkloadClass:
        mix = self._mix(index, spec)
        slos = tuple(self._slos(spec))
        ttft_limits, tpot_limits = derived_limits(slos, mix)
        pairs = self._pairs(index, spec, mix)
        weights, caches = largest_product(pairs)
        if spec.burst_factor is None:
            self._say(spec, "no burst_factor is given, so the plan is made for the mean rate")
        burst = spec.burst_factor or 1.0
        if spec.arrival_scv is None:
            self._say(spec, "requests are taken to come independently of each other (Poisson)")
        return WorkloadClass(
            name=spec.name,
            model=spec.model,
            rate_per_s=(self._planned_rate(spec, mix, burst),),
            mix=mix,
            slos=slos,
            ttft_limits=ttft_limits,
            tpot_limits=tpot_limits,
            weight_precisions=weights,
            kv_precisions=caches,
            precision_pairs=pairs,
            burst_factor=burst,
            arrival_scv=1.0 if spec.arrival_scv is None else spec.arrival_scv,
            hit_levels=self._hit_levels(spec, mix),
        )

    def _say(self, spec: WorkloadSpec, sentence: str) -> None:
        self.assumptions.append(f"{spec.name}: {sentence}.")

    def _problem(self, index: int, key: str, message: str, hint: str) -> None:
        source = self.instance.source
        places = Places(source.file, source.positions, source.key_positions)
        self.problems.append(places.problem(("workloads", index, key), message, hint))

    def _distribution(self, spec: WorkloadSpec, key: str) -> Distribution:
        tokens = getattr(spec, key)
        found = _distribution(tokens)
        if found.assumption:
            self._say(spec, f"{key.replace('_', ' ')} are taken as {found.assumption}")
        return found

    def _mix(self, index: int, spec: WorkloadSpec) -> TokenMix:
        visible = self._distribution(spec, "output_tokens")
        hidden = NO_TOKENS
        if spec.hidden_output_tokens is not None:
            hidden = self._distribution(spec, "hidden_output_tokens")
        if visible.scv > 0 or hidden.scv > 0:
            self.assumptions.append(INDEPENDENT)
        if spec.conversation is None:
            prompt = self._distribution(spec, "input_tokens")
            cached = spec.cached_input_fraction or 0.0
            share = spec.cached_request_fraction or 1.0
            if cached and prompt.scv > 0:
                whole = "every input"
                if share < 1.0:
                    whole += f" of the {share:.0%} of requests that find any"
                self._say(
                    spec, f"{cached / share:.0%} of {whole} is taken as cached, long or short"
                )
            return TokenMix.of(prompt, visible, hidden, cached, share)
        talk = spec.conversation
        mix = TokenMix.conversation(
            talk.turns,
            talk.system_tokens,
            talk.user_tokens,
            visible,
            hidden,
            talk.cache_hit_fraction,
        )
        self._say(
            spec,
            f"all {talk.turns} turns are taken as equally frequent, and earlier answers as of "
            "mean length",
        )
        longest = mix.max_prompt_tokens + mix.max_output_tokens
        card = self.instance.cards[spec.model]
        if longest > card.max_context_tokens:
            message = (
                f"the last turn can reach {longest:,.0f} tokens, above the "
                f"{card.max_context_tokens:,} of {card.id}"
            )
            self._problem(index, "conversation", message, "lower turns or the tokens of a turn")
        return mix

    def _hit_levels(self, spec: WorkloadSpec, mix: TokenMix) -> tuple[HitLevel, ...]:
        """The mixes at the points of the hit curve; none where hits do not hang on the room."""
        curve = spec.cached_input_by_cache_size
        if curve is None:
            return ()
        routing = self.instance.engine_for(spec.model).routing
        if routing != "prefix_affine":
            self._say(
                spec,
                "no hits in the prefix cache are counted on, as requests are not routed to the "
                "replica that may hold their prefix (routing: prefix_affine)",
            )
            return ()
        self._say(
            spec,
            "hits in the prefix cache are counted on in pools of its own only, by the room left "
            "beside the requests in flight",
        )
        share = spec.cached_request_fraction or 1.0
        return tuple(
            HitLevel(point.cache_tokens, mix.with_hits(point.fraction, share)) for point in curve
        )

    def _slos(self, spec: WorkloadSpec) -> Iterator[Slo]:
        if not spec.slo:
            self._say(spec, "no SLO is given, so only capacity limits it")
        for item in spec.slo:
            percentile = None if item.percentile == "mean" else item.percentile / 100
            share = item.ttft_share_fraction
            slo = Slo(
                item.metric,
                item.limit_ms / 1000,
                percentile,
                DEFAULT_TTFT_SHARE if share is None else share,
            )
            split = item.metric == "e2e" or (
                item.metric == "ttft" and spec.hidden_output_tokens is not None
            )
            if split:
                given = "" if share is not None else ", as no ttft_share_fraction is given"
                self._say(
                    spec,
                    f"of the limit {slo}, {slo.ttft_share_fraction:.0%} is kept for the first "
                    f"token{given}; the tokens after it have the rest",
                )
            yield slo

    def _planned_rate(self, spec: WorkloadSpec, mix: TokenMix, burst: float) -> float:
        """Requests per second to plan for, at least what the program can tell from nothing."""
        rate = self._mean_rate(spec, mix) * burst
        if rate < LEAST_RATE_PER_S:
            self._say(spec, f"its demand is taken as {LEAST_RATE_PER_S:g} requests/s, the least")
        return max(rate, LEAST_RATE_PER_S)

    def _mean_rate(self, spec: WorkloadSpec, mix: TokenMix) -> float:
        """Mean requests per second."""
        demand = spec.demand
        if isinstance(demand, RequestRate):
            return demand.requests_per_s
        if isinstance(demand, TokenVolume):
            if spec.burst_factor is None:
                self._say(spec, "its tokens are taken as spread evenly over the day")
            return demand.tokens_per_day / SECONDS_PER_DAY / (mix.mean_prompt + mix.mean_output)
        assert isinstance(demand, UserDemand)
        if "active_fraction" not in demand.model_fields_set:
            self._say(spec, "all its users are taken as active at once")
        active = demand.users * demand.active_fraction
        return active * demand.requests_per_user_per_hour / 3600

    def _pairs(self, index: int, spec: WorkloadSpec, mix: TokenMix) -> frozenset[Pair]:
        card = self.instance.cards[spec.model]
        served = self.instance.served_model(spec.model)
        pairs = allowed_pairs(
            card,
            (served.weight_precisions, spec.weight_precisions),
            (served.kv_precisions, spec.kv_precisions),
        )
        if spec.max_quality_loss_percent is None or not pairs:
            return pairs
        largest = spec.max_quality_loss_percent / 100
        kept = within_loss(pairs, card, mix.max_prompt_tokens, largest)
        self.assumptions.append(QUALITY)
        if not kept:
            listed = ", ".join(f"{weight}/{cache}" for weight, cache in sorted(pairs))
            message = f"no precision loses as little as {spec.max_quality_loss_percent:g} percent"
            hint = f"raise it, or allow others than {listed} (weights/KV cache)"
            self._problem(index, "max_quality_loss_percent", message, hint)
        return kept


def _distribution(
    tokens: float | MeanTokens | PercentileTokens | HistogramTokens,
) -> Distribution:
    """The distribution that a part of the instance describes, with what it assumes."""
    if isinstance(tokens, MeanTokens):
        notes = []
        if tokens.scv is None:
            notes.append(f"lognormal with an SCV of {tokens.effective_scv:.3g}, as none is given")
        if tokens.max is None and tokens.effective_scv > 0:
            notes.append(f"at most {tokens.longest:,.0f}, as no max is given")
        return Distribution.lognormal(
            tokens.mean, tokens.effective_scv, tokens.longest, " and ".join(notes)
        )
    if isinstance(tokens, PercentileTokens):
        given = tokens.given
        note = ""
        if tokens.min is None:
            name, _, value = given[0]
            note = f"{value:g} below {name}, as no min is given, which is safe"
        shortest = None if tokens.min is None else float(tokens.min)
        pairs = [(p, value) for _, p, value in given]
        return Distribution.percentiles(pairs, tokens.longest, shortest, note)
    if isinstance(tokens, HistogramTokens):
        return Distribution.histogram(
            [bin_.up_to for bin_ in tokens.histogram], [bin_.share for bin_ in tokens.histogram]
        )
    return Distribution.deterministic(tokens)


def _fleet_assumptions(instance: Instance) -> Iterator[str]:
    """What is assumed of the fleet."""
    fleet = instance.fleet
    limited = {limit.accelerator for limit in fleet.availability}
    limited_offers = {limit.offer for limit in fleet.availability}
    own_open = any(
        offer.available_nodes is None
        and offer.accelerator not in limited
        and offer.id not in limited_offers
        for offer in fleet.offers
    )
    catalogue_open = fleet.catalogue_offers and (
        fleet.accelerators is None or not set(fleet.accelerators) <= limited
    )
    if own_open or catalogue_open:
        yield UNLIMITED
