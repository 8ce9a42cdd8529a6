"""Requests of one kind: clusters of the logarithms of input and output, or cells of a grid."""

from __future__ import annotations

from typing import Final

import numpy as np

from planner.traces.trace import Floats, Ints, Trace

MOST_CLASSES: Final = 6
EXPLAINED: Final = 0.75
"""Share of the variance of the logarithms that lies between the clusters when there are enough."""
LEAST_SHARE: Final = 0.01
"""Clusters and cells with a smaller share of the requests join the nearest."""
FITTED_ROWS: Final = 50_000
"""Requests that clusters are fitted on, evenly taken from the trace; all are then assigned."""
ROUNDS: Final = 200
INPUT_EDGES: Final = (512, 4096)
OUTPUT_EDGES: Final = (128, 512)
"""Cells of the grid: up to and including the edge, the last open."""


def by_clusters(trace: Trace, classes: int | None = None) -> Ints:
    """The cluster (R,) of each request, 0 for the largest: k-means on (ln input, ln output).

    With `classes` None: the fewest, up to six, that explain three quarters of the variance. No
    scaling, as twice the tokens cost about twice the time in either. The start is fixed: centres
    at equal shares along the widest direction, so that the same trace gives the same classes.
    """
    points = np.log(np.stack([trace.input_tokens, trace.output_tokens], axis=1).astype(float))
    step = -(-len(points) // FITTED_ROWS)
    sample = points[::step]
    different = len(np.unique(sample, axis=0))
    total = float(((sample - sample.mean(axis=0)) ** 2).sum())
    centres = sample.mean(axis=0, keepdims=True)
    for number in range(1, MOST_CLASSES + 1) if classes is None else (classes,):
        centres = _centres(sample, min(number, different))
        left = float(_distances(sample, centres).min(axis=1).sum())
        if classes is None and left <= (1 - EXPLAINED) * total:
            break
    nearest = np.concatenate(
        [
            _distances(points[at : at + FITTED_ROWS], centres).argmin(axis=1)
            for at in range(0, len(points), FITTED_ROWS)
        ]
    )
    return _largest_first(_joined(points, nearest))


def by_grid(trace: Trace) -> Ints:
    """The cell (R,) of each request, 0 for the fullest; empty and nearly empty cells are none."""
    across = np.searchsorted(INPUT_EDGES, trace.input_tokens, side="left")
    down = np.searchsorted(OUTPUT_EDGES, trace.output_tokens, side="left")
    points = np.log(np.stack([trace.input_tokens, trace.output_tokens], axis=1).astype(float))
    return _largest_first(_joined(points, across * (len(OUTPUT_EDGES) + 1) + down))


def _centres(points: Floats, number: int) -> Floats:
    """Centres (K, 2) by Lloyd's algorithm from a fixed start."""
    middle = points - points.mean(axis=0)
    _, directions = np.linalg.eigh(middle.T @ middle)
    order = np.argsort(middle @ directions[:, -1], kind="stable")
    centres = np.stack([part.mean(axis=0) for part in np.array_split(points[order], number)])
    nearest = np.full(len(points), -1)
    for _ in range(ROUNDS):
        found = _distances(points, centres).argmin(axis=1)
        if np.array_equal(found, nearest):
            break
        nearest = found
        counts = np.bincount(nearest, minlength=number)
        for axis in range(points.shape[1]):
            sums = np.bincount(nearest, weights=points[:, axis], minlength=number)
            held = counts > 0
            centres[held, axis] = sums[held] / counts[held]
    return centres


def _distances(points: Floats, centres: Floats) -> Floats:
    """Squared distances (R, K)."""
    squares: Floats = ((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    return squares


def _joined(points: Floats, label: Ints) -> Ints:
    """Labels in which no class is smaller than the least share: the smallest joins the nearest."""
    label = np.unique(label, return_inverse=True)[1]
    while True:
        counts = np.bincount(label)
        alive = np.flatnonzero(counts)
        smallest = alive[np.argmin(counts[alive])]
        if len(alive) == 1 or counts[smallest] >= LEAST_SHARE * len(label):
            return label
        means = np.stack([points[label == each].mean(axis=0) for each in alive])
        distance = ((means - means[alive == smallest]) ** 2).sum(axis=1)
        distance[alive == smallest] = np.inf
        label = np.where(label == smallest, alive[int(distance.argmin())], label)


def _largest_first(label: Ints) -> Ints:
    """The same classes, numbered from the largest to the smallest."""
    found, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
    rank = np.empty(len(found), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(found))
    return rank[inverse]
