"""Which precisions a workload accepts: allowed lists first, then the bound on quality."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from planner.catalog.cards import ModelCard
from planner.catalog.quality import quality_loss_fraction
from planner.units import KV_BYTES

Pair = tuple[str, str]


def allowed_pairs(
    card: ModelCard,
    weight_lists: Iterable[Collection[str] | None],
    kv_lists: Iterable[Collection[str] | None],
) -> frozenset[Pair]:
    """(weight, KV) precisions that the card and every list given allow."""
    weights = set(card.weight_precisions)
    caches = set(KV_BYTES)
    for listed in weight_lists:
        weights &= set(weights if listed is None else listed)
    for listed in kv_lists:
        caches &= set(caches if listed is None else listed)
    return frozenset((weight, cache) for weight in weights for cache in caches)


def within_loss(
    pairs: Iterable[Pair], card: ModelCard, longest_input_tokens: float, largest_loss: float
) -> frozenset[Pair]:
    """The pairs whose published upper bound on the loss (a fraction) is at most `largest_loss`.

    A pair without a bound is left out.
    """
    kept = set()
    for weight, cache in pairs:
        loss = quality_loss_fraction(card, weight, cache, longest_input_tokens)
        if loss is not None and loss <= largest_loss + 1e-12:
            kept.add((weight, cache))
    return frozenset(kept)


def largest_product(pairs: Collection[Pair]) -> tuple[frozenset[str], frozenset[str]]:
    """Weight and KV precisions all of whose combinations are among `pairs`: the most there are.

    Of equally many, those with more weight precisions.
    """
    caches = sorted({cache for _, cache in pairs})
    subsets = [frozenset([cache]) for cache in caches]
    if len(caches) > 1:
        subsets.append(frozenset(caches))
    best: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    for subset in subsets:
        weights = frozenset(
            weight for weight, _ in pairs if all((weight, cache) in pairs for cache in subset)
        )
        if (len(weights) * len(subset), len(weights)) > (
            len(best[0]) * len(best[1]),
            len(best[0]),
        ):
            best = (weights, subset)
    return best
